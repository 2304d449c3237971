"""Finished episodes on disk, one JSON object per line, so that a killed evaluation continues where it stopped.

The first line says which evaluation the file belongs to; every other line is a record. A line that was being written
when the process was killed is dropped. The module does not know what the records mean for the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daptq.errors import CorruptArtifactError, InvalidInputError, OutputWriteError
from daptq.evaluation.rollout import BranchRecord, EpisodeRecord, Record

_KINDS: dict[str, type[EpisodeRecord] | type[BranchRecord]] = {"episode": EpisodeRecord, "branch": BranchRecord}


class Journal:
    """The records of one evaluation.

    Args:
        path: File to continue or to create; None keeps the records in memory only.
        identity: JSON object that says what is evaluated. The file keeps its hash, so that records of another
            evaluation are not mixed in.

    Attributes:
        records: The records so far, by key.

    Raises:
        InvalidInputError: The file belongs to another evaluation.
        CorruptArtifactError: A line other than the last one cannot be read.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.records: dict[tuple[str, int, int | None], Record] = {}
        if path is None:
            return
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        header = json.dumps({"evaluation": digest})
        lines = _complete_lines(path)
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(header)
            return
        if lines[0] != header:
            message = f"journal {path} must belong to the same evaluation, got one with other policies or settings."
            raise InvalidInputError(message + " Remove it, or choose another file.")
        for number, line in enumerate(lines[1:], start=2):
            record = _parse(line, path, number)
            self.records[record.key] = record

    def add(self, record: Record) -> None:
        """Keeps a record, in memory and in the file.

        Raises:
            OutputWriteError: The disk refused the write.
        """
        self.records[record.key] = record
        if self.path is not None:
            kind = "branch" if isinstance(record, BranchRecord) else "episode"
            self._write(json.dumps({kind: record.to_json()}))

    def _write(self, line: str) -> None:
        assert self.path is not None
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            message = f"journal {self.path} must be writable, got {error.strerror}. Free some space and run again."
            raise OutputWriteError(message) from error


def _complete_lines(path: Path) -> list[str]:
    """The lines of the file; an unfinished last one is cut off, in the file too, so that the next starts afresh."""
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as file:
            file.truncate(complete)
    return content[:complete].decode("utf-8").splitlines()


def _parse(line: str, path: Path, number: int) -> Record:
    try:
        ((kind, value),) = json.loads(line).items()
        return _KINDS[kind].from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"line {number} of journal {path} must be a record, got {line[:60]!r}. Remove the file and run again."
        raise CorruptArtifactError(message) from error
