"""Commands in this process, a small policy on disk, and calibration sources plugged in by name."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result

from daptq import catalog
from daptq.calibration.contract import CalibrationSource
from daptq.cli import main
from daptq.observations import ACTION
from daptq.packing.checkpoint import save_policy
from daptq.policies import cogact_small as cogact
from daptq.policies.contract import Batch

Run = Callable[..., Result]
Refused = Callable[..., None]


@pytest.fixture
def run() -> Run:
    """Runs a command in this process; a programming error is raised, not turned into an exit code."""

    def invoke(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def refused(run: Run) -> Refused:
    """Runs a command and asserts exit code 2 and one line of error that contains the fragments."""

    def check(arguments: list[str | Path], *fragments: str) -> None:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        (line,) = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
        assert "Traceback" not in result.output
        for fragment in fragments:
            assert fragment in line

    return check


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random policy."""
    return save_policy(cogact.POLICY.tiny(seed=0), tmp_path_factory.mktemp("policies") / "tiny")


class LittleSource(CalibrationSource):
    """Example batches of the small policy, after `spoil` was at them."""

    licence = "CC0-1.0"
    description = "example batches"

    def __init__(self, spoil: Callable[[Batch], Batch | None]) -> None:
        self.batches = [spoil(cogact.POLICY.tiny(seed=0).example_batch(seed)) for seed in range(4)]
        self.hash = hashlib.sha256(repr(self.batches).encode()).hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in self.batches if batch is not None)


def _nan(batch: Batch) -> Batch:
    batch[ACTION][0, 0, 0] = torch.nan
    return batch


SPLITS: dict[str, Callable[[Batch], Batch | None]] = {
    "good": lambda batch: batch,
    "empty": lambda batch: None,
    "nan": _nan,
    "shape": lambda batch: {**batch, ACTION: batch[ACTION][..., :6]},
}


@pytest.fixture
def little_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the splits above available as ``--data little:<split>``, as another distribution would."""
    module = ModuleType("little_source")
    module.open_source = lambda split, *, limit, seed: LittleSource(SPLITS[split])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "little_source", module)
    points = {"daptq.source": [EntryPoint("little", "little_source", "daptq.source")]}
    monkeypatch.setattr(catalog, "entry_points", lambda *, group: points.get(group, []))
