"""The working folder of one quantization run: every finished stage is an artifact in it, so a killed run continues.

The folder is `<output>.partial`, beside the output. It is stamped with a digest of everything that decides the
result; a run with other inputs starts over. This module does not know what the stages compute.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from daptq._atomic import writing
from daptq.artifacts import read_artifact, write_artifact, write_json
from daptq.errors import ArtifactError
from daptq.json_model import read_json
from daptq.quantization.stage import Stage

__all__ = ["Workspace", "digest"]

LOG = logging.getLogger(__name__)

STAMP = "stamp.json"

T = TypeVar("T")


def digest(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, allow_nan=False).encode()).hexdigest()


class Workspace:
    """Opens the working folder of an output, continuing in it when its stamp fits.

    Args:
        output: Final folder of the run.
        inputs: Digest of everything that decides the result.
        provenance: Describes a run that starts now.

    Attributes:
        path: The working folder.
        provenance: Description of the run that started this folder, with the digest under ``inputs``. A continued run
            keeps the description of its start, so that it writes the same bytes as if it had never been killed.

    Raises:
        OutputWriteError: The disk refused a write.
    """

    def __init__(self, output: Path, inputs: str, provenance: Mapping[str, Any]) -> None:
        self.path = _working_folder(output)
        stamp = _stamp(self.path)
        if stamp is not None and stamp.get("inputs") == inputs:
            LOG.info("continuing the run of %s in %s", stamp["provenance"].get("time", "unknown time"), self.path)
        else:
            if self.path.exists():
                LOG.info("starting over: %s belongs to a run with other inputs", self.path)
            self.remove()
            stamp = {"inputs": inputs, "provenance": dict(provenance)}
            with writing(self.path):
                self.path.mkdir(parents=True)
            write_json(self.path / STAMP, stamp)
        self.provenance: dict[str, Any] = {**stamp["provenance"], "inputs": inputs}

    @staticmethod
    def belongs_to(output: Path, inputs: str) -> bool:
        """Whether there is a working folder of `output` with this digest."""
        stamp = _stamp(_working_folder(output))
        return stamp is not None and stamp.get("inputs") == inputs

    def run(self, stage: Stage[T]) -> T:
        """What a stage says: read when a former run finished it, otherwise computed, written and read.

        Raises:
            OutputWriteError: The disk refused a write.
        """
        folder = self.path / stage.name
        if folder.exists():
            try:
                return stage.read(read_artifact(folder, kind=stage.kind))
            except ArtifactError as error:
                LOG.warning("computing stage %s again: %s", stage.name, error)
                with writing(folder):
                    shutil.rmtree(folder)
        tensors, metadata = stage.compute()
        write_artifact(folder, kind=stage.kind, tensors=tensors, metadata=metadata)
        return stage.read(read_artifact(folder, kind=stage.kind))

    def remove(self) -> None:
        """Deletes the working folder.

        Raises:
            OutputWriteError: The disk refused it.
        """
        with writing(self.path):
            if self.path.exists():
                shutil.rmtree(self.path)


def _working_folder(output: Path) -> Path:
    absolute = output.absolute()
    return absolute.parent / f"{absolute.name}.partial"


def _stamp(folder: Path) -> dict[str, Any] | None:
    """What a working folder says it belongs to, or None when it says nothing."""
    try:
        return read_json(folder / STAMP)
    except ArtifactError:
        return None
