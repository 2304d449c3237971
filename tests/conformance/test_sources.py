"""Every calibration source of the catalog keeps the contract, and the suite that says so notices when one does not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from daptq.artifacts import write_artifact
from daptq.calibration import simpler, tabletop
from daptq.calibration.conformance import check_source
from daptq.calibration.contract import CalibrationSource
from daptq.calibration.demonstrations import KIND, Episode, shard_tensors
from daptq.catalog import SOURCES
from daptq.errors import CheckFailedError, UnknownNameError
from daptq.observations import ACTION, STATE, TASK, camera_key
from daptq.policies.contract import Batch

# Sources whose recording needs packages that are not locked: `make test-simpler` checks what is recorded for real.
OWN_LANE = {"simpler"}

CAMERA = camera_key("front")


def record_two_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of `tabletop` become small enough to be recorded in this test."""
    monkeypatch.setattr(tabletop, "DEMONSTRATIONS", replace(tabletop.DEMONSTRATIONS, episodes_per_shard=2))


def write_a_shard_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of `simpler`; its second episode failed and holds what no source may hand out."""
    rng, settings = np.random.default_rng(0), simpler.DEMONSTRATIONS
    episodes = [Episode(task=task, seed=seed, success=seed != 1) for seed, task in enumerate(settings.tasks)]
    for episode in episodes:
        actions = rng.normal(size=(20, 7)).astype(np.float32)
        episode.arrays = {
            ACTION: actions if episode.success else actions * np.float32(np.nan),
            STATE: rng.normal(size=(20, 7)).astype(np.float32),
            CAMERA: rng.integers(0, 256, size=(20, 12, 16, 3), dtype=np.uint8),
        }
    metadata = {"success": [episode.success for episode in episodes]}
    tensors = shard_tensors(episodes, list(settings.tasks))
    write_artifact(settings.folder / "train" / "shard-00000", kind=KIND, tensors=tensors, metadata=metadata)


PREPARED = {"tabletop": record_two_episodes, "simpler": write_a_shard_by_hand}


@pytest.mark.parametrize("name", SOURCES.names())
def test_source_keeps_the_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if name in PREPARED:
        PREPARED[name](monkeypatch)
    check_source(SOURCES.load(name).open_source, "train")


def test_every_source_with_a_lane_exists_and_is_checked_there() -> None:
    assert set(SOURCES.names()) >= OWN_LANE
    for name in OWN_LANE:
        source = (Path(__file__).parents[1] / name / f"test_{name}.py").read_text(encoding="utf-8")
        assert "check_source(" in source


class _Sound(CalibrationSource):
    """A sound source of 40 states: the defects below are planted in it."""

    licence = "CC0-1.0"
    description = "made-up states"

    def __init__(self, split: str, /, *, limit: int | None, seed: int) -> None:
        if split != "train":
            raise UnknownNameError("split of the made-up states", split, ["train"])
        self.rows = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:limit]
        self.hash = self.digest()

    def digest(self) -> str:
        return hashlib.sha256(repr(self.rows.tolist()).encode()).hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        for index, rows in enumerate(self.rows.split(10)):
            yield self.batch(rows, index)

    def batch(self, rows: Tensor, index: int) -> Batch:
        numbers = rows.float().view(-1, 1)
        return {
            ACTION: numbers.view(-1, 1, 1).expand(-1, 4, 7).clone(),
            STATE: numbers.repeat(1, 3),
            CAMERA: (numbers / 40).view(-1, 1, 1, 1).repeat(1, 3, 5, 6),
            TASK: [f"move object {row}" for row in rows.tolist()],
        }


class _ShufflesAnew(_Sound):
    def __iter__(self) -> Iterator[Batch]:
        self.rows = self.rows[torch.randperm(len(self.rows))]
        return super().__iter__()


class _RunsDry(_Sound):
    def __init__(self, split: str, /, *, limit: int | None, seed: int) -> None:
        super().__init__(split, limit=limit, seed=seed)
        self.only = super().__iter__()

    def __iter__(self) -> Iterator[Batch]:
        return self.only


class _LendsWhatItKeeps(_Sound):
    def __init__(self, split: str, /, *, limit: int | None, seed: int) -> None:
        super().__init__(split, limit=limit, seed=seed)
        self.batches = list(super().__iter__())

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class _DrawsWithoutTheSeed(_Sound):
    def __init__(self, split: str, /, *, limit: int | None, seed: int) -> None:
        super().__init__(split, limit=limit, seed=int(torch.randint(1000, ())))


class _IgnoresTheSeed(_Sound):
    def __init__(self, split: str, /, *, limit: int | None, seed: int) -> None:
        super().__init__(split, limit=limit, seed=0)


class _IgnoresTheLimit(_Sound):
    def __init__(self, split: str, /, *, limit: int | None, seed: int) -> None:
        super().__init__(split, limit=None, seed=seed)


class _KeepsNoSmallLimit(_Sound):
    def __init__(self, split: str, /, *, limit: int | None, seed: int) -> None:
        super().__init__(split, limit=None if limit is None else max(limit, 20), seed=seed)


class _IgnoresTheSplit(_Sound):
    def __init__(self, split: str, /, *, limit: int | None, seed: int) -> None:
        super().__init__("train", limit=limit, seed=seed)


class _HashesNothing(_Sound):
    def digest(self) -> str:
        return hashlib.sha256(b"made-up states").hexdigest()


class _HashesTheTime(_Sound):
    opened = 0

    def digest(self) -> str:
        _HashesTheTime.opened += 1
        return hashlib.sha256(repr(self.opened).encode()).hexdigest()


class _HashesShortly(_Sound):
    def digest(self) -> str:
        return super().digest()[:12]


class _HasNoLicence(_Sound):
    licence = " "


class _IsDescribedAtLength(_Sound):
    description = "made-up\nstates"


class _IsEmpty(_Sound):
    def __iter__(self) -> Iterator[Batch]:
        return iter(())


def test_the_source_of_the_planted_defects_is_sound() -> None:
    check_source(_Sound, "train")
    check_source(_Sound, "train", limit=1000)


@pytest.mark.parametrize(
    ("defective", "message"),
    [
        (_ShufflesAnew, "must be the same at every iteration"),
        (_RunsDry, "must be the same at every iteration"),
        (_LendsWhatItKeeps, "when a reader stops early or writes into one"),
        (_DrawsWithoutTheSeed, "hash must be the same when a source is opened again"),
        (_IgnoresTheSeed, r"seeds \(0, 1, 2\) must draw different states"),
        (_IgnoresTheLimit, "with limit 24 must hold at most 24 states, got 40"),
        (_KeepsNoSmallLimit, "with limit 12 and seed 0 must hold at most 12 states, got 20"),
        (_IgnoresTheSplit, "split 'no-such-split' must be refused with an UnknownNameError"),
        (_HashesNothing, "hash must differ between limit 24 and seed 0 and limit 12 and seed 0"),
        (_HashesTheTime, "hash must be the same when a source is opened again"),
        (_HashesShortly, "hash must be a SHA-256"),
        (_HasNoLicence, "licence must be one line of text, got ' '"),
        (_IsDescribedAtLength, "description must be one line of text"),
        (_IsEmpty, "must hold at least one batch"),
    ],
)
def test_a_planted_defect_is_found(defective: type[_Sound], message: str) -> None:
    with pytest.raises(CheckFailedError, match=message):
        check_source(defective, "train")


def changed(key: str, change: Callable[[Tensor], object]) -> Callable[[Batch], Batch]:
    """What exchanges one entry of a batch."""
    return lambda batch: {**batch, key: change(batch[key])}


def without(key: str) -> Callable[[Batch], Batch]:
    """What takes one entry out of a batch."""
    return lambda batch: {name: value for name, value in batch.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(ACTION), r"batch 1 must have the keys \['action'\]"),
        (without(TASK), r"batch 1 must have the keys \['task'\]"),
        (without(CAMERA), "batch 1 must have pictures of a camera"),
        (without(STATE), "keys of batch 1 must be .*'observation.state'"),
        (lambda batch: {**batch, "reward": torch.zeros(10)}, "nothing but a policy's keys and action, got reward"),
        (changed(ACTION, Tensor.double), r"action of batch 1 must be float32 \(b, chunk, action\), got float64"),
        (changed(ACTION, lambda x: x[:, 0]), r"got float32 of shape \(10, 7\)"),
        (changed(ACTION, lambda x: x[:, :, :0]), r"got float32 of shape \(10, 4, 0\)"),
        (changed(ACTION, lambda x: x / 0), "action of batch 1 must be finite"),
        (changed(ACTION, Tensor.tolist), "action of batch 1 must be float32 .*, got a list"),
        (changed(ACTION, lambda x: x[:, :3]), r"sizes of action in batch 1 must be \(4, 7\), got \(3, 7\)"),
        (changed(STATE, lambda x: x[:9]), "observation.state of batch 1 must have one entry for each state"),
        (changed(STATE, Tensor.long), r"observation.state of batch 1 must be float32 \(b, state\), got int64"),
        (changed(STATE, lambda x: x * torch.nan), "observation.state of batch 1 must be finite"),
        (changed(STATE, lambda x: x[:, :2]), r"sizes of observation.state in batch 1 must be \(3,\), got \(2,\)"),
        (changed(CAMERA, lambda x: x.movedim(1, 3)), "observation.images.front of batch 1 must be float32 .* got"),
        (changed(CAMERA, lambda x: x.byte()), "observation.images.front of batch 1 must be float32 .* got uint8"),
        (changed(CAMERA, lambda x: x * 255), r"observation.images.front of batch 1 must lie in \[0, 1\], got"),
        (changed(CAMERA, lambda x: x - 0.5), r"observation.images.front of batch 1 must lie in \[0, 1\], got \[-"),
        (changed(TASK, tuple), "task of batch 1 must be a list of 10 str"),
        (changed(TASK, lambda tasks: [len(task) for task in tasks]), "task of batch 1 must be a list of 10 str"),
        (changed(TASK, lambda tasks: tasks[1:]), "task of batch 1 must be a list of 10 str"),
        (lambda batch: {key: value[:0] for key, value in batch.items()}, "must have one entry for each state, got"),
    ],
)
def test_a_batch_that_no_policy_can_read_is_found(change: Callable[[Batch], Batch], message: str) -> None:
    class Spoilt(_Sound):
        def batch(self, rows: Tensor, index: int) -> Batch:
            batch = super().batch(rows, index)
            return change(batch) if index == 1 else batch

    with pytest.raises(CheckFailedError, match=message):
        check_source(Spoilt, "train")
