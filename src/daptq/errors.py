"""Every exception that daptq raises on purpose.

One class per kind of failure; messages read "subject must be X, got Y. What to do."

    DaptqError
    ├── InvalidInputError (ValueError)   an argument has a value that cannot be used
    │   ├── UnknownNameError             nothing in the catalog has this name
    │   ├── RecipeError                  a setting of a recipe is outside its range
    │   ├── CalibrationDataError         calibration data is empty, not finite or of the wrong shape
    │   └── OutputExistsError            the output folder holds something already
    ├── ArtifactError                    a folder or file on disk cannot be read as what it should be
    │   ├── CorruptArtifactError         bytes differ from what was written
    │   ├── MissingShardError            a file that the manifest names is not there
    │   ├── SchemaVersionError           written by a version with another on-disk format
    │   └── ForeignArtifactError         not written by daptq, or an artifact of another kind
    ├── OutputWriteError                 the disk refused a write (full, read-only, not permitted)
    ├── BackendUnavailableError          an explicitly chosen kernel backend cannot run here
    ├── MissingDependencyError           an optional package or system library is not installed
    └── CheckFailedError                 everything ran, and the answer is "no"

The command line exits with 1 for CheckFailedError and with 2 for every other DaptqError. This module knows nothing of
the rest of the library.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

__all__ = [
    "ArtifactError",
    "BackendUnavailableError",
    "CalibrationDataError",
    "CheckFailedError",
    "CorruptArtifactError",
    "DaptqError",
    "ForeignArtifactError",
    "InvalidInputError",
    "MissingDependencyError",
    "MissingShardError",
    "OutputExistsError",
    "OutputWriteError",
    "RecipeError",
    "SchemaVersionError",
    "UnknownNameError",
    "require_check",
    "require_one_of",
]


class DaptqError(Exception):
    """Base of every exception that daptq raises on purpose."""


class InvalidInputError(DaptqError, ValueError):
    """An argument has a value that cannot be used."""


class UnknownNameError(InvalidInputError):
    """Nothing has the given name.

    Attributes:
        kind: What was looked up, in the singular, for example ``"policy"``.
        name: The name that was given.
        known: The names that exist, sorted.
        near: The existing names that resemble the given one, most alike first.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """Builds the message from what was asked for and what exists.

        Args:
            kind: What was looked up, in the singular, for example ``"policy"``.
            name: The name that was given.
            known: The names that exist.
        """
        self.kind = kind
        self.name = name
        self.known = tuple(sorted(known))
        # Catalog names use '-', Python uses '_': a user who mixes them up still gets the suggestion.
        spelled = {known_name.lower().replace("_", "-"): known_name for known_name in self.known}
        alike = difflib.get_close_matches(name.lower().replace("_", "-"), list(spelled), n=3, cutoff=0.5)
        self.near = tuple(spelled[match] for match in alike)
        # Hundreds of names (the tensors of a checkpoint) would bury the one that was meant.
        expected = f"one of {', '.join(self.known)}" if 0 < len(self.known) <= 20 else "a known name"
        if self.near:
            advice = f"Did you mean {' or '.join(map(repr, self.near))}?"
        else:
            advice = "Choose one of the known names." if self.known else "None is installed."
        message = f"{kind} must be {expected}, got {name!r}. {advice}"
        super().__init__(message)

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, tuple[str, ...]]]:
        """Rebuilds the exception from its arguments, so that it survives a worker process."""
        return type(self), (self.kind, self.name, self.known)


class RecipeError(InvalidInputError):
    """A setting of a recipe is outside its range."""


class CalibrationDataError(InvalidInputError):
    """Calibration data is empty, not finite, or of the wrong shape."""


class OutputExistsError(InvalidInputError):
    """The output folder exists and is not empty."""


class ArtifactError(DaptqError):
    """A folder or file on disk cannot be read as what it should be."""


class CorruptArtifactError(ArtifactError):
    """The bytes of an artifact differ from what was written."""


class MissingShardError(ArtifactError):
    """A file that the manifest names is not there."""


class SchemaVersionError(ArtifactError):
    """The artifact was written with another version of the on-disk format."""


class ForeignArtifactError(ArtifactError):
    """The folder or file is no artifact of daptq, or one of another kind."""


class OutputWriteError(DaptqError):
    """The disk refused a write; nothing was left under the final name."""


class BackendUnavailableError(DaptqError):
    """An explicitly chosen kernel backend cannot run on this machine."""


class MissingDependencyError(DaptqError):
    """An optional package or system library is not installed."""


class CheckFailedError(DaptqError):
    """Everything ran, and a check answered "no"; the command line exits with 1."""


def require_check(condition: bool, message: str) -> None:
    """What a conformance suite asks.

    Args:
        condition: Whether it holds.
        message: What must hold and what was found instead, without the full stop.

    Raises:
        CheckFailedError: It does not hold.
    """
    if not condition:
        raise CheckFailedError(f"{message}.")


def require_one_of(
    subject: str, value: object, choices: Collection[object], error: type[InvalidInputError] = InvalidInputError
) -> None:
    """Refuses a value that is none of a few.

    Args:
        subject: What has the value, the beginning of the message.
        value: What was given.
        choices: What is allowed, at least one.
        error: Class of the error.

    Raises:
        InvalidInputError: Or `error`: the value is none of `choices`.
    """
    if value not in choices:
        raise error(f"{subject} must be one of {', '.join(map(str, choices))}, got {value!r}. Choose one of these.")
