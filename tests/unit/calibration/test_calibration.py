"""Batches that cannot be used are refused by name, limits are kept, and observers watch without touching."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from daptq.calibration.contract import (
    CalibrationSource,
    batch_size,
    check_batch,
    checked,
    limited,
    open_named_source,
    source_name,
)
from daptq.calibration.observers import InterfaceStatistics, observe_interfaces
from daptq.errors import CalibrationDataError, UnknownNameError
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Batch


@pytest.fixture(scope="module")
def policy() -> SmallCogACTPolicy:
    return SmallCogACTPolicy.tiny()


class Batches(CalibrationSource):
    hash, licence, description = "0", "CC0-1.0", "batches of a test"

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.read = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            self.read += 1
            yield batch


def test_good_batch_passes(policy: SmallCogACTPolicy) -> None:
    check_batch(policy.example_batch(0), policy, 0)


def change_nan(batch: Batch) -> None:
    batch["action"][1, 0, 3] = torch.nan


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "action",
            torch.zeros(2, 16, 6),
            r"action of calibration batch 7 must have shape \(b, 16, 7\), got \(2, 16, 6\)",
        ),
        ("action", torch.zeros(2, 15, 7), r"must have shape \(b, 16, 7\), got \(2, 15, 7\)"),
        ("action", torch.zeros(16, 7), r"must have shape \(b, 16, 7\), got \(16, 7\)"),
        ("action", torch.zeros(2, 16, 7, dtype=torch.int64), "must be a float tensor .* got dtype torch.int64"),
        ("action", [[0.0] * 7], "must be a float tensor .* got a list"),
        ("action", torch.full((2, 16, 7), torch.inf), "action of calibration batch 7 must be finite, got 224"),
        (
            "observation.images.front",
            torch.zeros(2, 3, 32, 32),
            r"must have shape \(2, 3, 64, 64\), got \(2, 3, 32, 32\)",
        ),
        ("observation.images.front", torch.zeros(1, 3, 64, 64), r"must have shape \(2, 3, 64, 64\)"),
        ("observation.state", torch.full((2, 7), torch.nan), "observation.state of calibration batch 7 must be finite"),
        ("observation.state", torch.zeros(3, 7), "observation.state of calibration batch 7 must have shape"),
        ("task", ["one"], "task of calibration batch 7 must be a list of 2 instructions"),
        ("task", [1, 2], "task of calibration batch 7 must be a list of 2 instructions"),
        ("task", None, r"calibration batch 7 must have the keys \['task'\]"),
        ("action", None, r"calibration batch 7 must have the keys \['action'\]"),
        ("observation.images.front", None, r"calibration batch 7 must have the keys \['observation.images.front'\]"),
    ],
)
def test_bad_batch_is_refused_by_name(policy: SmallCogACTPolicy, key: str, value: Any, message: str) -> None:
    batch = policy.example_batch(0)
    if value is None:
        del batch[key]
    else:
        batch[key] = value
    with pytest.raises(CalibrationDataError, match=message):
        check_batch(batch, policy, 7)


def test_one_nan_is_found(policy: SmallCogACTPolicy) -> None:
    batch = policy.example_batch(0)
    change_nan(batch)
    with pytest.raises(CalibrationDataError, match="must be finite, got 1 NaN or infinite"):
        check_batch(batch, policy, 0)


def test_empty_batch_is_refused(policy: SmallCogACTPolicy) -> None:
    empty = {key: value[:0] for key, value in policy.example_batch(0).items()}
    with pytest.raises(CalibrationDataError, match="at least one state"):
        check_batch(empty, policy, 0)


def test_batches_are_checked_in_order(policy: SmallCogACTPolicy) -> None:
    batches = [policy.example_batch(seed) for seed in range(3)]
    change_nan(batches[1])
    stream = checked(Batches(batches), policy)
    next(stream)
    with pytest.raises(CalibrationDataError, match="calibration batch 1"):
        next(stream)


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1]), (2, [2]), (3, [2, 1]), (5, [2, 2, 1]), (100, [2, 2, 2])])
def test_limit_counts_states(policy: SmallCogACTPolicy, limit: int, sizes: list[int]) -> None:
    source = Batches([policy.example_batch(seed) for seed in range(3)])
    seen = list(limited(source, limit))
    assert [batch_size(batch) for batch in seen] == sizes
    assert all(len(batch["task"]) == len(batch["action"]) for batch in seen)
    assert source.read == len(sizes)


@pytest.mark.parametrize("name", ["tabletop", "tabletop:", ":train", ""])
def test_source_needs_a_split(name: str) -> None:
    with pytest.raises(CalibrationDataError, match="must be named 'source:split'"):
        source_name(name)


@pytest.mark.parametrize("look_up", [source_name, lambda name: open_named_source(name, limit=1, seed=0)])
def test_unknown_source_is_refused_with_near_names(look_up: Any) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tabletop'"):
        look_up("table-top:train")


def test_source_name_is_split() -> None:
    assert source_name("tabletop:train") == ("tabletop", "train")


def test_observer_sees_the_representation_and_changes_nothing(policy: SmallCogACTPolicy) -> None:
    batch = policy.example_batch(0)
    seen: list[tuple[str, Tensor]] = []

    def predict() -> Tensor:
        with torch.no_grad():
            return policy.predict_target(batch, torch.Generator().manual_seed(0)).predicted

    before = predict()
    with observe_interfaces(policy, policy.interfaces(), batch, lambda *observed: seen.append(observed)):
        assert torch.equal(predict(), before)
    predict()
    (observed, representation), *more = seen
    assert not more, "after the block nothing is observed"
    assert observed == "action_model.net.z_embedder.linear"
    with torch.no_grad():
        cognition, _ = policy.perceive(batch)
    assert torch.equal(representation, cognition)


def test_observed_values_carry_no_graph(policy: SmallCogACTPolicy) -> None:
    seen: list[Tensor] = []
    batch = policy.example_batch(0)
    with observe_interfaces(policy, policy.interfaces(), batch, lambda _, representation: seen.append(representation)):
        policy.predict_target(batch, torch.Generator())
    assert [tensor.requires_grad for tensor in seen] == [False]


def test_hooks_are_removed_after_an_exception(policy: SmallCogACTPolicy) -> None:
    seen: list[Tensor] = []
    batch = policy.example_batch(0)
    with (
        pytest.raises(RuntimeError, match="stop"),
        observe_interfaces(policy, policy.interfaces(), batch, lambda _, z: seen.append(z)),
    ):
        raise RuntimeError("stop")
    policy.predict_target(batch, torch.Generator())
    assert seen == []


def test_statistics_stream_and_hold_out() -> None:
    statistics = InterfaceStatistics()
    parts = [torch.randn(4, 3) for _ in range(3)]
    for part in parts:
        statistics.fit("a", part)
        statistics.hold_out("a", part)
    parts[0].zero_()
    held = statistics.held_out("a")
    assert held.shape == (12, 3)
    assert not torch.equal(held[:4], parts[0]), "held-out states are copies"
    exact = held.double()
    torch.testing.assert_close(statistics.moments["a"].mean, exact.mean(dim=0), rtol=1e-12, atol=1e-12)
    covariance = statistics.moments["a"].covariance()
    torch.testing.assert_close(covariance, torch.cov(exact.mT, correction=0), rtol=1e-12, atol=1e-12)
