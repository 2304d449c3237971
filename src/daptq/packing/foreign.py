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

    No family is imported unless `directory` is a folder without an artifact.

    Raises:
        ForeignArtifactError: Several families recognise it.
    """
    if not directory.is_dir() or (directory / MANIFEST).is_file():
        return None
    families: list[type[Policy]] = [POLICIES.load(name).POLICY for name in POLICIES.names()]
    found = [family for family in families if family.recognises(directory)]
    if len(found) > 1:
        raise ForeignArtifactError(
            f"{directory} must be recognised by one family, got {', '.join(family.family for family in found)}. "
            "Uninstall the packages of all but one."
        )
    return found[0] if found else None
