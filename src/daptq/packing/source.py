"""Where a policy lies: in the package, in a folder, or on the hub."""

from __future__ import annotations

import re
from pathlib import Path

import daptq.policies
from daptq.artifacts import MANIFEST
from daptq.errors import InvalidInputError, UnknownNameError
from daptq.packing.foreign import foreign_family

__all__ = ["locate", "packaged_policies"]

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_PICKLES = ["*.pt", "*.pth", "*.bin", "*.pkl", "*.ckpt"]


def packaged_policies() -> dict[str, Path]:
    """Folder of each policy that ships with the package, by name."""
    return {
        folder.name: folder
        for root in daptq.policies.__path__
        for folder in sorted(Path(root).iterdir())
        if (folder / MANIFEST).is_file()
    }


def locate(source: str | Path) -> Path:
    """The folder of a policy; it need not hold one.

    Args:
        source: Name of a packaged policy, a folder, or a hub id ``"organisation/name"``, which is downloaded.

    Raises:
        UnknownNameError: `source` is a plain word that is neither a packaged policy nor a folder.
        InvalidInputError: `source` reads like a hub id, but the hub did not deliver it.
    """
    if isinstance(source, Path):
        return source
    packaged = packaged_policies()
    if source in packaged:
        return packaged[source]
    path = Path(source).expanduser()
    if path.exists():
        return path
    if _HUB_ID.fullmatch(source):
        return _download(source)
    if "/" in source or source.startswith((".", "~")):
        return path
    raise UnknownNameError("policy", source, packaged)


def _download(hub_id: str) -> Path:
    """Downloads a repository of the hub, or finds it in the hub's local cache.

    Pickle files are left out, except those that the family which recognises the folder asks for.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(hub_id, ignore_patterns=_PICKLES))
        foreign = foreign_family(folder)
        if foreign is not None and foreign.foreign_files:
            # The family reads them with a loader that runs no code.
            folder = Path(snapshot_download(hub_id, allow_patterns=list(foreign.foreign_files)))
        return folder
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise InvalidInputError(
            f"policy must be a folder or a repository that the hub delivers, got {hub_id!r}: no such folder, and "
            f"{type(error).__name__}: {reason} Check the name and the connection."
        ) from error
