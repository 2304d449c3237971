"""Which family reads a folder that daptq did not write: the families are asked, one after the other."""

from __future__ import annotations

from pathlib import Path

from daptq.artifacts import MANIFEST
from daptq.catalog import POLICIES
from daptq.errors import ForeignArtifactError
from daptq.policies.contract import Policy

__all__ = ["foreign_family"]


def foreign_family(directory: Path) -> type[Policy] | None:
    """The family that recognises a folder; None for an artifact of daptq, and where no family does.

    No family is imported unless `directory` is a folder without an artifact; one that cannot be imported is left out.

    Raises:
        ForeignArtifactError: Several families recognise it.
    """
    if not directory.is_dir() or (directory / MANIFEST).is_file():
        return None

    def recognising(_: str, family: type[Policy]) -> type[Policy] | None:
        return family if family.recognises(directory) else None

    found = [family for family in POLICIES.usable(recognising).values() if family is not None]
    if len(found) > 1:
        raise ForeignArtifactError(
            f"{directory} must be recognised by one family, got {', '.join(family.family for family in found)}. "
            "Uninstall the packages of all but one."
        )
    return found[0] if found else None
