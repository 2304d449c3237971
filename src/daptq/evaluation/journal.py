"""Finished episodes on disk, one JSON object per line, so that a killed evaluation continues where it stopped.

The first line says which evaluation the file belongs to; every other line names a policy or is a record of one, so that
policies can be added to an evaluation that is finished for others. A line that was being written when the process was
killed is dropped. The module does not know what the records mean for the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daptq.closed_loop.rollout import BranchRecord, EpisodeRecord, Record
from daptq.errors import CorruptArtifactError, InvalidInputError, OutputWriteError

_KINDS: dict[str, type[EpisodeRecord] | type[BranchRecord]] = {"episode": EpisodeRecord, "branch": BranchRecord}


class Journal:
    """The records of one evaluation.

    Args:
        path: File to continue or to create; None keeps the records in memory only.
        identity: JSON object that says what every policy is asked. The file keeps its hash, so that records of another
            evaluation are not mixed in.
        policies: JSON object that says what each policy is, by label. The file keeps their hashes, too.

    Attributes:
        records: The records of these policies so far, by key.

    Raises:
        InvalidInputError: The file belongs to another evaluation, or a label in it to another policy.
        CorruptArtifactError: A line other than the last one cannot be read.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any], policies: Mapping[str, Any]) -> None:
        self.path = path
        self.records: dict[tuple[str, int, int | None], Record] = {}
        if path is None:
            return
        header = json.dumps({"evaluation": _digest(identity)})
        digests = {label: _digest(policy) for label, policy in policies.items()}
        lines = _complete_lines(path)
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(header)
        elif lines[0] != header:
            message = f"journal {path} must belong to the same evaluation, got one with other settings."
            raise InvalidInputError(message + " Remove it, or choose another file.")
        known: set[str] = set()
        for number, line in enumerate(lines[1:], start=2):
            kind, value = _parse(line, path, number)
            if kind == "policy":
                if digests.get(value["label"], value["sha256"]) != value["sha256"]:
                    message = f"policy {value['label']!r} of journal {path} must be the same, got another one."
                    raise InvalidInputError(message + " Remove the file, or choose another one.")
                known.add(value["label"])
            elif value.policy in policies:
                self.records[value.key] = value
        for label in sorted(digests.keys() - known):
            self._write(json.dumps({"policy": {"label": label, "sha256": digests[label]}}))

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


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _parse(line: str, path: Path, number: int) -> tuple[str, Any]:
    """What a line is about and its content: a record, or the label and the hash of a policy."""
    try:
        ((kind, value),) = json.loads(line).items()
        if kind == "policy":
            return kind, {"label": str(value["label"]), "sha256": str(value["sha256"])}
        return kind, _KINDS[kind].from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"line {number} of journal {path} must be a record, got {line[:60]!r}. Remove the file and run again."
        raise CorruptArtifactError(message) from error
