"""Finished episodes on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from daptq.closed_loop.rollout import BranchRecord, EpisodeRecord, Motion
from daptq.errors import CorruptArtifactError, InvalidInputError, OutputWriteError
from daptq.evaluation.journal import Journal

IDENTITY = {"seed": 0}
POLICIES = {"p": "abc"}


def motion(seed: int) -> Motion:
    generator = np.random.default_rng(seed)
    return Motion(positions=generator.standard_normal((5, 3)), rotations=generator.standard_normal((5, 3, 3)))


def episode(index: int) -> EpisodeRecord:
    return EpisodeRecord(
        policy="p",
        index=index,
        task="t",
        seed=10_000_000 + index,
        success_any_step=bool(index % 2),
        success_last_step=False,
        first_success=3 if index % 2 else None,
        other_tasks=("u", "v"),
        gripper_flips=2,
        held=(None,) * 5,
        motion=motion(index),
        states={4: np.random.default_rng(index).standard_normal(7) / 3},
    )


def test_records_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "episodes.jsonl"
    journal = Journal(path, IDENTITY, POLICIES)
    branch = BranchRecord(policy="p", index=1, step=4, motion=motion(9))
    for record in (episode(0), episode(1), branch):
        journal.add(record)
    records = Journal(path, IDENTITY, POLICIES).records
    assert sorted(records, key=str) == sorted([("p", 0, None), ("p", 1, None), ("p", 1, 4)], key=str)
    for index in (0, 1):
        read, written = records["p", index, None], episode(index)
        assert isinstance(read, EpisodeRecord)
        assert read.to_json() == written.to_json()
        assert np.array_equal(read.motion.rotations, written.motion.rotations)
        assert np.array_equal(read.states[4], written.states[4])
        assert (read.other_tasks, read.first_success) == (("u", "v"), written.first_success)
    assert np.array_equal(records["p", 1, 4].motion.positions, branch.motion.positions)


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_line_cut_short_is_dropped_and_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "episodes.jsonl"
    journal = Journal(path, IDENTITY, POLICIES)
    journal.add(episode(0))
    whole = path.read_bytes()
    journal.add(episode(1))
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path, IDENTITY, POLICIES)
    assert list(again.records) == [("p", 0, None)]
    assert path.read_bytes() == whole
    again.add(episode(1))
    assert len(Journal(path, IDENTITY, POLICIES).records) == 2


def test_a_cut_first_line_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(b'{"evaluation": "12')
    Journal(path, IDENTITY, POLICIES).add(episode(0))
    assert len(Journal(path, IDENTITY, POLICIES).records) == 1


def test_another_evaluation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    Journal(path, IDENTITY, POLICIES).add(episode(0))
    before = path.read_bytes()
    with pytest.raises(InvalidInputError, match="must belong to the same evaluation"):
        Journal(path, {**IDENTITY, "seed": 1}, POLICIES)
    assert path.read_bytes() == before


def test_policies_join_an_evaluation_and_the_records_of_others_are_left(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    Journal(path, IDENTITY, POLICIES).add(episode(0))
    joined = Journal(path, IDENTITY, {"q": "def"})
    assert joined.records == {}
    joined.add(replace(episode(1), policy="q"))
    assert list(Journal(path, IDENTITY, {**POLICIES, "q": "def"}).records) == [("p", 0, None), ("q", 1, None)]


def test_a_label_of_another_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    Journal(path, IDENTITY, POLICIES).add(episode(0))
    with pytest.raises(InvalidInputError, match="policy 'p' of journal .* must be the same"):
        Journal(path, IDENTITY, {"p": "abd"})


@pytest.mark.parametrize(
    "line", ["not json", '{"episode": {"policy": "p"}}', '{"walk": {}}', "[1, 2]", '{"policy": {}}', '{"a": 1, "b": 2}']
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "episodes.jsonl"
    Journal(path, IDENTITY, POLICIES).add(episode(0))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(CorruptArtifactError, match="line 4 of journal"):
        Journal(path, IDENTITY, POLICIES)


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    journal = Journal(None, IDENTITY, POLICIES)
    journal.add(episode(0))
    assert list(journal.records) == [("p", 0, None)]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    journal = Journal(path, IDENTITY, POLICIES)
    path.unlink()
    path.mkdir()  # Not even root can append to a folder.
    with pytest.raises(OutputWriteError, match="must be writable"):
        journal.add(episode(0))
