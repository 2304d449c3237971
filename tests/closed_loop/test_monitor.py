"""The monitor in the point world, where a policy acts on a sensor's reading and a variant falsifies it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from daptq.closed_loop.interface_stream import EpisodeStream, watch_episodes
from daptq.errors import DaptqError, ForeignArtifactError, InvalidInputError, UnknownNameError
from daptq.evaluation.request import Evaluation
from daptq.evaluation.watched_drive import drive, take_reference
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Interface, Tap
from daptq.interfaces.into_attention_keys import IntoAttentionKeys
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.interfaces.into_norm import IntoNorm
from daptq.interfaces.into_producer import IntoProducer
from daptq.interfaces.map_class import belongs
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.monitoring.monitor import InterfaceMonitor, MonitorConfig
from daptq.monitoring.normal_interface import RIDGE
from daptq.monitoring.refresh import RefreshConfig, Refreshed, refreshed_maps
from daptq.numerics.moments import Moments
from daptq.policies.contract import Condition, Policy
from tests.closed_loop.json_results import evaluate_json, evaluated
from tests.closed_loop.point_world import Reader

pytestmark = pytest.mark.usefixtures("point_world")


def run(policy: Policy, monitor: InterfaceMonitor, variant: str | None, episodes: int, seed: int = 1) -> float:
    """Drives watched episodes; returns the success rate."""
    request = Evaluation(
        candidates=[policy], environment="point", variant=variant, episodes=episodes, seed=seed, batch=8
    )
    driven = drive(request, policy, monitor.watch)
    return float(np.mean([record.success_any_step for records, _ in driven for record in records]))


# --- what is watched -------------------------------------------------------------------------------------------------


def test_watching_changes_nothing_and_counts_each_prediction_once(reader: Reader) -> None:
    def record(watched: bool) -> tuple[list[Any], list[EpisodeStream]]:
        records, streams = [], []

        def nothing(instructions: Sequence[str]) -> Any:
            return watch_episodes(reader, instructions)

        batch = 5 if watched else 1
        request = Evaluation(candidates=[reader], environment="point", episodes=5, seed=3, batch=batch)
        for group, some in drive(request, reader, nothing):
            records += [one.motion.positions for one in group]
            streams += some
        return records, streams

    one, streams = record(True)
    other, _ = record(False)
    np.testing.assert_allclose(one, other, atol=1e-7)
    assert [stream.instruction for stream in streams] == ["go left", "go right"] * 2 + ["go left"]
    # 24 control steps in chunks of 4: six predictions, however many denoising steps and constants are read.
    assert [stream.moments["consumer"].count for stream in streams] == [6] * 5
    sides = [0.01, -0.01] * 2 + [0.01]
    for side, stream in zip(sides, streams, strict=True):
        assert abs(float(stream.moments["consumer"].mean[0]) - side) < 0.003
    assert not reader.consumer._forward_pre_hooks


def test_a_block_without_a_prediction_is_refused(reader: Reader) -> None:
    with (
        pytest.raises(DaptqError, match="must predict at least once"),
        watch_episodes(reader, ["go left"]),
    ):
        pass


def test_the_score_is_the_mean_squared_mahalanobis_distance() -> None:
    generator = np.random.default_rng(0)
    raw = {name: generator.normal(size=(6, 5, 3)) * [1.0, 0.1, 3.0] + shift for name, shift in (("a", 0.0), ("b", 4.0))}
    streams = [stream(rows, name) for name, group in raw.items() for rows in group]
    reference = InterfaceReference.of(streams)
    fitted = {name: group[0::2].reshape(-1, 3) for name, group in raw.items()}
    centred = np.concatenate([rows - rows.mean(axis=0) for rows in fitted.values()])
    covariance = centred.T @ centred / len(centred)
    covariance += RIDGE * np.trace(covariance) / 3 * np.eye(3)
    for name, group in raw.items():
        expected = []
        for rows in group:
            errors = rows - fitted[name].mean(axis=0)
            expected.append(np.mean(np.einsum("ni,ni->n", errors @ np.linalg.inv(covariance), errors)))
        assert [reference.score(stream(rows, name)) for rows in group] == pytest.approx(expected, rel=1e-10)
        assert reference.scores[name] == pytest.approx(expected[1::2], rel=1e-10)
    means = {name: group.mean(axis=1) for name, group in raw.items()}
    squares = sum(((rows - rows.mean(axis=0)) ** 2).sum(axis=0) for rows in means.values())
    np.testing.assert_allclose(
        reference.interfaces["elsewhere"].spread.numpy(), np.sqrt(squares / (12 - 2)), rtol=1e-10
    )
    mixed = reference.interfaces["elsewhere"].mixed({"a": 30, "b": 90})
    together = np.concatenate([raw["a"].reshape(-1, 3), *[raw["b"].reshape(-1, 3)] * 3])
    np.testing.assert_allclose(mixed.mean.numpy(), together.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(mixed.std().numpy(), together.std(axis=0), rtol=1e-10)


def stream(rows: Any, instruction: str = "a") -> EpisodeStream:
    moments = Moments(np.shape(rows)[1])
    moments.update(torch.tensor(np.asarray(rows), dtype=torch.float64))
    return EpisodeStream(instruction=instruction, moments={"elsewhere": moments})


def test_a_channel_that_never_varies_is_not_the_one_that_moved_most() -> None:
    generator = np.random.default_rng(0)
    varied = generator.normal(size=(9, 5, 3)) * [1.0, 0.0, 1.0]
    reference = InterfaceReference.of([stream(rows) for rows in varied[:8]])
    reading = reference.reading(stream(varied[8] + [0.0, 0.0, 4.0]))
    assert reading.channel == 2
    assert reading.moved > 4
    stirred = reference.reading(stream(varied[8] + [0.0, 1e-3, 4.0]))
    assert (stirred.channel, stirred.moved) == (1, np.inf)


def test_a_reference_survives_the_disk(reference: InterfaceReference, reader: Reader, tmp_path: Path) -> None:
    again = InterfaceReference.load(reference.save(tmp_path / "reference", seed=7))
    one, other = (InterfaceMonitor(reader, each) for each in (reference, again))
    for monitor in (one, other):
        run(reader, monitor, "offset", 8)
    assert one.assessments == other.assessments
    with pytest.raises(ForeignArtifactError, match="interface-reference"):
        InterfaceReference.load(reference_of_another_kind(tmp_path))


def reference_of_another_kind(folder: Path) -> Path:
    from daptq.artifacts import write_artifact

    write_artifact(folder / "other", kind="profile", tensors=iter([("x", torch.zeros(1))]), metadata={})
    return folder / "other"


# --- the flag --------------------------------------------------------------------------------------------------------


def test_no_flag_while_nothing_changes(reader: Reader, reference: InterfaceReference) -> None:
    monitor = InterfaceMonitor(reader, reference)
    assert run(reader, monitor, None, 100) == 1.0
    assert not monitor.shifted
    assert len(monitor.assessments) == 100
    # Uniform p-values have mean 1/2 with standard error 0.03.
    assert 0.38 < np.mean([assessment.p_value for assessment in monitor.assessments]) < 0.62
    assert "no shift" in monitor.assessments[-1].explanation


def test_a_changed_sensor_is_flagged_and_explained(reader: Reader, reference: InterfaceReference) -> None:
    monitor = InterfaceMonitor(reader, reference)
    run(reader, monitor, None, 40)
    run(reader, monitor, "offset", 24, seed=2)
    first = next(assessment for assessment in monitor.assessments if assessment.shifted)
    assert 40 <= first.episode < 55
    assert first.statistic >= first.threshold == 2000.0
    assert first.explanation.startswith("shift at consumer: statistic")
    assert "channel 0 moved most, by -" in first.explanation
    assert all(assessment.shifted for assessment in monitor.assessments[first.episode :])  # the flag stays
    monitor.restart()
    assert not monitor.shifted


# --- the refresh -----------------------------------------------------------------------------------------------------


def test_a_refresh_restores_success_and_can_be_taken_back(reader: Reader, reference: InterfaceReference) -> None:
    before = {key: value.clone() for key, value in reader.state_dict().items()}
    monitor = InterfaceMonitor(reader, reference)
    assert run(reader, monitor, "offset", 16) == 0.5  # to the right the wrong reading helps
    affine = monitor.refresh(16)["consumer"]
    refreshed = monitor.refreshed
    assert refreshed is not None
    assert refreshed.exact
    assert not monitor.shifted
    # The reading's error of 9.5 mm, known to 0.5 mm / sqrt(16) from the stream.
    assert float(affine(torch.tensor([[0.0, 0.0]]))[0, 0]) == pytest.approx(0.0095, abs=0.002)
    assert run(reader, monitor, "offset", 16, seed=2) == 1.0
    assert not monitor.shifted  # what the consumer reads now is normal again
    monitor.undo()
    assert monitor.refreshed is None
    assert reader.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in reader.state_dict().items())
    assert run(reader, monitor, "offset", 8, seed=3) == 0.5


def test_a_second_refresh_builds_on_the_first(reader: Reader, reference: InterfaceReference) -> None:
    monitor = InterfaceMonitor(reader, reference, MonitorConfig(refresh=RefreshConfig(significance=0.0)))
    run(reader, monitor, "offset", 16)
    monitor.refresh(16)
    run(reader, monitor, None, 16, seed=2)  # the sensor is repaired
    affine = monitor.refresh(16)["consumer"]
    assert float(affine(torch.tensor([[0.0, 0.0]]))[0, 0]) == pytest.approx(0.0, abs=0.002)
    assert run(reader, monitor, None, 8, seed=3) == 1.0
    monitor.undo()
    assert isinstance(reader.consumer, nn.Linear)
    assert torch.equal(reader.consumer.weight, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "quantized"])
def test_the_consumer_reads_the_map_and_answers_constants_as_before(reader: Reader, kind: str) -> None:
    layer = nn.Linear(2, 3)
    changed: dict[str, Callable[[], nn.Module]] = {
        "float32": lambda: layer,
        "bfloat16": lambda: BFloat16Linear.from_linear(layer),
        "quantized": lambda: Sealed(layer),
    }
    reader.consumer = changed[kind]()
    consumer, constant = reader.consumer, reader.constant.detach().clone()
    affine = AffineMap(matrix=torch.diag(torch.tensor([0.8, 1.5]).double()), shift=torch.tensor([0.1, -0.3]).double())
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    expected, answered = consumer(affine(z).float()), consumer(constant)
    refreshed = Refreshed(reader, {"consumer": affine})
    assert refreshed.exact == (kind != "quantized")
    # float32 weights and inputs of order 1: a few roundings of 1e-7.
    torch.testing.assert_close(reader.consumer(z), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(reader.consumer(reader.constant), answered, atol=2e-6, rtol=0)
    assert "consumer" in dict(reader.named_modules())
    refreshed.undo()
    assert reader.consumer is consumer
    assert torch.equal(reader.constant, constant)


class Sealed(nn.Module):
    """A linear layer whose weight cannot be folded into."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_every_channel_gets_the_mean_and_spread_of_the_reference_or_stays() -> None:
    generator = np.random.default_rng(1)
    normal = [stream(generator.normal(size=(20, 4))) for _ in range(40)]
    reference = InterfaceReference.of(normal)
    raw = [generator.normal(size=(20, 4)) * [1, 1, 1.4, 1] + [0, 0.8, 0.8, 0] for _ in range(20)]
    streams = [stream(rows) for rows in raw]
    every = refreshed_maps(reference, streams, RefreshConfig(significance=0.0, epsilon=0.0))["elsewhere"]
    mapped = every(torch.tensor(np.concatenate(raw))).numpy()
    target = reference.interfaces["elsewhere"].mixed({"a": 1})
    np.testing.assert_allclose(mapped.mean(axis=0), target.mean.numpy(), atol=1e-10)
    np.testing.assert_allclose(mapped.std(axis=0), target.std().numpy(), rtol=1e-10)
    some = refreshed_maps(reference, streams)["elsewhere"]
    changed = ~torch.isclose(some.matrix.diagonal(), torch.ones(4, dtype=torch.float64)) | (some.shift != 0)
    assert changed.tolist() == [False, True, True, False]
    corrected = refreshed_maps(reference, streams, RefreshConfig(significance=0.0))["elsewhere"]
    assert torch.equal(some.shift[1:3], corrected.shift[1:3])
    assert refreshed_maps(reference, normal)["elsewhere"].is_identity


# --- several interfaces ----------------------------------------------------------------------------------------------


class TwiceReader(Reader):
    """Reads the same representation at a second interface of two rows, whose consumer has no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.second.weight)

    def interfaces(self) -> tuple[Interface, ...]:
        return (*super().interfaces(), Interface("second", Tap("second"), (IntoConsumers(("second",)),)))

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        (z,) = condition
        self.denoising_step.index = 0
        idle: Tensor = self.second(torch.stack([z, 2 * z], dim=1)).sum(dim=1)
        return super().denoise(condition, noise) + 0.0 * idle.unsqueeze(2)


def test_all_interfaces_are_watched_and_one_score_is_judged() -> None:
    twice = TwiceReader()
    reference = take_reference(twice, environment="point", episodes=48, seed=7)
    assert list(reference.interfaces) == ["consumer", "second"]
    monitor = InterfaceMonitor(twice, reference)
    streams: list[EpisodeStream] = []
    request = Evaluation(candidates=[twice], environment="point", variant="offset", episodes=24, seed=2)
    for _, some in drive(request, twice, monitor.watch):
        streams += some
    assert [one.moments["second"].count for one in streams] == [2 * one.moments["consumer"].count for one in streams]
    for one, assessment in zip(streams, monitor.assessments, strict=True):
        alone = [normal.distance(one.moments[name], one.instruction) for name, normal in reference.interfaces.items()]
        assert assessment.score == sum(alone)
    first = next(one for one in monitor.assessments if one.shifted)
    assert first.threshold == 2000.0, "one false-alarm rate over all interfaces"
    assert first.explanation.startswith("shift at consumer, second: statistic")
    assert re.search(r"channel 0 of (consumer|second) moved most, by -", first.explanation)


def test_one_interface_is_scored_as_if_it_were_alone(reference: InterfaceReference) -> None:
    both = take_reference(TwiceReader(), environment="point", episodes=48, seed=7)
    assert reference.names == "consumer"
    for name, moments in both.interfaces["consumer"].moments.items():
        alone = reference.interfaces["consumer"].moments[name]
        torch.testing.assert_close(moments.mean, alone.mean, rtol=0, atol=1e-9)


def test_no_flag_at_two_interfaces_while_nothing_changes(tmp_path: Path) -> None:
    twice = TwiceReader()
    reference = take_reference(twice, environment="point", episodes=48, seed=7)
    monitor = InterfaceMonitor(twice, InterfaceReference.load(reference.save(tmp_path / "reference")))
    run(twice, monitor, None, 60)
    assert not monitor.shifted
    assert 0.35 < np.mean([one.p_value for one in monitor.assessments]) < 0.65


def test_a_refresh_corrects_every_interface_and_can_be_taken_back() -> None:
    twice = TwiceReader()
    before = {key: value.clone() for key, value in twice.state_dict().items()}
    monitor = InterfaceMonitor(twice, take_reference(twice, environment="point", episodes=48, seed=7))
    run(twice, monitor, "offset", 16)
    maps = monitor.refresh(16)
    assert set(maps) == {"consumer", "second"}
    assert float(maps["consumer"](torch.zeros(1, 2))[0, 0]) == pytest.approx(0.0095, abs=0.002)
    assert run(twice, monitor, "offset", 16, seed=2) == 1.0
    assert not monitor.shifted
    monitor.undo()
    assert twice.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in twice.state_dict().items())


def test_a_refresh_stays_within_the_class_of_its_fold() -> None:
    generator = np.random.default_rng(1)
    reference = InterfaceReference.of([stream(generator.normal(size=(20, 4))) for _ in range(40)])
    streams = [stream(generator.normal(size=(20, 4)) * [1, 1, 1.5, 1] + [0, 0, 0.8, 0]) for _ in range(20)]
    keys, norm = IntoAttentionKeys("q", "k", heads=2, kv_heads=1), IntoNorm("n")
    for fold in (keys, norm):
        affine = refreshed_maps(reference, streams, folds={"elsewhere": fold})["elsewhere"]
        assert belongs(affine, fold.map_class, fold.map_heads)
        assert not affine.is_identity
    assert refreshed_maps(reference, streams, folds={"elsewhere": keys})["elsewhere"].matrix[0, 0] < 1.0, "a pair"


def test_an_interface_without_a_fold_for_a_running_policy_is_not_refreshed(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.consumer = Sealed(nn.Linear(2, 1))
    only = (Interface("consumer", Tap("consumer"), (IntoProducer("consumer"),)),)
    monkeypatch.setattr(reader, "interfaces", lambda: only)
    with pytest.raises(InvalidInputError, match="interface consumer must have a fold whose layers"):
        Refreshed(reader, {"consumer": AffineMap.identity(2)})


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_monitored_is_refused(
    reader: Reader, reference: InterfaceReference, make_pusher: Callable[..., Policy]
) -> None:
    with pytest.raises(InvalidInputError, match="policy pusher must have a perception-to-action interface to be mon"):
        take_reference(make_pusher(), environment="point", episodes=8)
    with pytest.raises(InvalidInputError, match="at least 4 episodes"):
        take_reference(reader, environment="point", episodes=6)
    other = InterfaceReference.of([stream(np.eye(2))] * 4)
    with pytest.raises(InvalidInputError, match="of the interfaces consumer, got elsewhere"):
        InterfaceMonitor(reader, other)
    with pytest.raises(InvalidInputError, match="of the interfaces consumer, got elsewhere"):
        evaluate_json(reader, monitor=other, environment="point", episodes=30)
    with pytest.raises(InvalidInputError, match="whole episodes to watch"):
        evaluated([reader], against=reader, closed_loop=False, monitor=reference, environment="point")
    with pytest.raises(InvalidInputError, match="batch must be at least 1"):
        take_reference(reader, environment="point", batch=0)
    with pytest.raises(UnknownNameError, match="task must be one of"):
        take_reference(reader, environment="point", tasks=["lefft"])
    monitor = InterfaceMonitor(reader, reference)
    with pytest.raises(InvalidInputError, match="'go left', 'go right', got 'dance'"), monitor.watch(["dance"]):
        pass
    for asked in (0, 1):
        with pytest.raises(InvalidInputError, match="those watched so far"):
            monitor.refresh(asked)
    with pytest.raises(InvalidInputError, match="at least one episode"):
        refreshed_maps(reference, [])
    with pytest.raises(InvalidInputError, match="count of weighted moments"):
        reference.interfaces["consumer"].mixed({"go left": 0})
    for settings, message in (
        ({"gain_min": 0.0}, "0 < gain_min"),
        ({"gain_max": 0.5}, "0 < gain_min"),
        ({"significance": -1.0}, "significance of a refresh"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            RefreshConfig(**settings)
