"""C++ sources that are compiled on the machine that runs them, once, and loaded into torch.

The library lies in the user's cache under a hash of everything that its bytes depend on: the source, the flags, torch's
version and the compiler's. It gets its name when it is complete; processes that start at once wait for the first one to
compile. What the operations of a source do, this module does not know.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from daptq._cache import cache_folder

__all__ = ["COMPILER", "kernel_cache", "load_source", "vector_flags"]

COMPILER = "g++"

_TORCH = Path(torch.__file__).parent
_FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-fopenmp", "-fvisibility=hidden")

_log = logging.getLogger("daptq.kernels")


def kernel_cache() -> Path:
    """Where compiled kernels and choices of a kernel are kept."""
    return cache_folder() / "kernels"


@functools.cache
def load_source(source: Path, flags: tuple[str, ...] = ()) -> str | None:
    """Compiles a source, unless that was done before, and loads it; tried once per process.

    Args:
        source: A C++ file that registers implementations of torch operations.
        flags: Compiler options in addition to those of every source.

    Returns:
        Why the operations are not there, or None.
    """
    compiler = shutil.which(COMPILER)
    if compiler is None:
        return f"there is no C++ compiler called {COMPILER} that could compile {source.name}"
    try:
        library = _library(source, compiler, (*_FLAGS, *flags))
        torch.ops.load_library(library)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error: " in line] or ["without a message"]
        return f"{COMPILER} could not compile {source.name}: {lines[0]}"
    except OSError as error:
        return f"{source.name} could not be compiled and loaded: {error}"
    return None


@functools.cache
def vector_flags() -> tuple[str, ...]:
    """Compiler options for floating-point vectors of this processor; none where torch finds no AVX2."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        return ()
    contracted = ("-mavx2", "-mfma", "-ffp-contract=fast")
    return (
        (*contracted, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq") if capability == "AVX512" else contracted
    )


def _library(source: Path, compiler: str, flags: tuple[str, ...]) -> Path:
    """The compiled source in the cache; the first of several processes compiles, the others wait for it.

    Raises:
        CalledProcessError: The compiler refused.
        OSError: The cache cannot be written.
    """
    version = _run([compiler, "--version"]).splitlines()[0]
    key = hashlib.sha256()
    for part in (source.read_text(encoding="utf-8"), " ".join(flags), torch.__version__, version):
        key.update(f"{len(part)} {part}".encode())
    folder = kernel_cache() / key.hexdigest()[:32]
    library = folder / f"{source.stem}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # The system releases it when the process ends, however it ends.
        if not library.exists():
            _log.info("compiling %s with %s", source.name, version)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                unfinished = Path(temporary) / library.name
                _run([compiler, *flags, str(source), *_torch_options(), "-o", str(unfinished)])
                unfinished.replace(library)
    return library


def _torch_options() -> list[str]:
    """Where torch's headers and libraries are."""
    abi = int(torch.compiled_with_cxx11_abi())
    libraries = _TORCH / "lib"
    return [f"-I{_TORCH / 'include'}", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", f"-L{libraries}", "-ltorch_cpu", "-lc10"]


def _run(command: list[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
