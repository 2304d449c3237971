"""The Vulkan driver that draws SimplerEnv's pictures: a GPU's where there is one, otherwise SwiftShader on the CPU.

    daptq install simpler-driver [--library FILE]

puts SwiftShader's one library, which Debian ships inside Chromium, into the user's cache and writes the manifest that
Vulkan's loader reads. Mesa's own software driver, in release 22.3, lacks a feature that SAPIEN needs. What this module
does not know: ManiSkill, and drivers of graphics cards.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import torch

from daptq._atomic import write_bytes
from daptq._cache import cache_folder
from daptq.errors import InvalidInputError, MissingDependencyError

__all__ = ["install", "manifest", "offer_driver", "render_device"]

LIBRARY: Final = "libvk_swiftshader.so"
COMMAND: Final = "daptq install simpler-driver"
_PACKAGE: Final = "chromium-common"
_ENTRY_POINT: Final = "vk_icdGetInstanceProcAddr"
_CHOSEN_BY_USER: Final = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
_SOFTWARE_DEVICE: Final = "pci:0"  # SAPIEN's name for the one device of a software driver
_log = logging.getLogger(__name__)


def manifest() -> Path:
    """Where the manifest of the installed driver lies."""
    return cache_folder() / "vulkan" / "swiftshader.json"


def _chosen() -> str | None:
    """The manifest that Vulkan's loader was told to read."""
    return next((os.environ[name] for name in _CHOSEN_BY_USER if os.environ.get(name)), None)


def offer_driver() -> None:
    """Tells Vulkan's loader of the installed driver, unless there is a GPU or the user chose another.

    SAPIEN lists the devices once, when it is first used in a process: call this before.
    """
    if not torch.cuda.is_available() and _chosen() is None and manifest().exists():
        os.environ["VK_ICD_FILENAMES"] = str(manifest())


def render_device() -> str:
    """Chooses the device that draws, and logs a choice that is not a GPU.

    Returns:
        SAPIEN's name of the device: `cuda` where torch finds a GPU, otherwise that of a software driver, which is the
        one that `VK_DRIVER_FILES` or `VK_ICD_FILENAMES` names, or the installed SwiftShader.

    Raises:
        MissingDependencyError: If there is neither a GPU nor a driver for the CPU.
    """
    if torch.cuda.is_available():
        return "cuda"
    offer_driver()
    chosen = _chosen()
    if chosen is None:
        raise MissingDependencyError(
            f"a Vulkan driver for the CPU must be installed, got no GPU and no {manifest()}. Run `{COMMAND}`."
        )
    _log.info("pictures of simpler are drawn on the CPU, by the Vulkan driver %s", chosen)
    return _SOFTWARE_DEVICE


def install(library: Path | None = None) -> Path:
    """Installs SwiftShader into the user's cache.

    Args:
        library: SwiftShader's library; None takes it out of Debian's package of Chromium, which is downloaded and
            unpacked but not installed.

    Returns:
        Path of the manifest.

    Raises:
        InvalidInputError: If the library is not a Vulkan driver that can be loaded here.
        MissingDependencyError: If the package cannot be downloaded or holds no such library.
        OutputWriteError: If the cache refuses a write.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = _unpacked(Path(folder)) if library is None else library
        try:
            getattr(ctypes.CDLL(str(found)), _ENTRY_POINT)
        except (OSError, AttributeError) as error:
            raise InvalidInputError(
                f"library must be a Vulkan driver, got {found}: {error}. Name another file."
            ) from error
        write_bytes(manifest().parent / LIBRARY, found.read_bytes())
    description = {
        "file_format_version": "1.0.0",
        "ICD": {"library_path": f"./{LIBRARY}", "api_version": "1.3.0"},
    }
    write_bytes(manifest(), json.dumps(description).encode())
    return manifest()


def _unpacked(folder: Path) -> Path:
    """Downloads Debian's package into `folder` and returns the library that it holds."""
    try:
        subprocess.run(["apt-get", "download", "-qq", _PACKAGE], cwd=folder, check=True, capture_output=True, text=True)
        (archive,) = folder.glob(f"{_PACKAGE}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder / "package"], check=True, capture_output=True, text=True)
        (library,) = folder.glob(f"package/**/{LIBRARY}")
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise MissingDependencyError(
            f"{LIBRARY} must come from Debian's package {_PACKAGE}, got {reason}. Run `apt-get update` first, or name "
            f"the library of a Chromium or Chrome that is installed: `{COMMAND} --library FILE`."
        ) from error
    return library
