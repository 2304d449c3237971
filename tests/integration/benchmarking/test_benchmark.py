"""The benchmark's JSON, its choice of the float path, its order, and what it refuses; no test depends on a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from daptq.action_space import END_EFFECTOR_DELTA
from daptq.artifacts import provenance
from daptq.benchmarking import benchmark as module
from daptq.benchmarking import float_paths as paths
from daptq.benchmarking.benchmark import benchmark, interleaved_times
from daptq.benchmarking.control_step import control_step
from daptq.benchmarking.float_paths import EAGER, FLOAT_PATHS, Candidate, float_paths
from daptq.benchmarking.parts import PARTS, part_times
from daptq.benchmarking.peak_memory import peak_bytes
from daptq.errors import DaptqError, InvalidInputError, MissingDependencyError, UnknownNameError
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.observations import CameraSize, camera_key
from daptq.packing.checkpoint import load_policy, save_quantized
from daptq.policies import cogact_small as cogact
from daptq.policies.captured import CapturedLoop, captured_denoising, captured_loop
from daptq.rounding.nearest import round_weight
from tests.integration.conftest import Refused, Run

KEYS = {
    "schema_version",
    "device",
    "device_name",
    "policies",
    "float_path",
    "ratio_to_float_path",
    "ratio_to_eager",
    "float_paths",
    "skipped",
    "provenance",
}


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small policy with 4-bit layers everywhere."""
    policy = cogact.POLICY.tiny(seed=0)
    layers = {}
    for name in policy.linear_layers():
        linear: Any = policy.get_submodule(name)
        rounded = round_weight(linear.weight.detach(), 4)
        layers[name] = QuantizedLinear.from_integers(rounded.integers, rounded.scale, linear.bias)
    folder = tmp_path_factory.mktemp("benchmarked") / "quantized"
    return save_quantized(policy, folder, layers=layers, plan=None, folding=[], recipe={}, provenance={})


@pytest.mark.slow
def test_the_command_writes_what_it_promises(run: Run, tiny: Path, quantized: Path, tmp_path: Path) -> None:
    file = tmp_path / "benchmark.json"
    command = ["benchmark", quantized, "--against", tiny, "--repeats", "3", "--threads", "1"]
    before = torch.get_num_threads()
    result = run(*command, "--float-path", "torch-bfloat16", "--output", file)
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == before
    written = json.loads(file.read_text())
    assert set(written) == KEYS
    assert (written["schema_version"], written["device"], written["skipped"]) == (1, "cpu", [])
    assert written["device_name"] == provenance()["cpu"]
    assert not any(entry["captured"] for entry in (*written["policies"], *written["float_paths"]))
    low, full = written["policies"]
    assert (low["name"], full["name"]) == (str(quantized), str(tiny))
    for entry in (low, full):
        times = entry["control_step_ms"]
        assert times["n"] == 3
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
        assert list(entry["stages_ms"]) == list(PARTS)
        assert all(milliseconds > 0 for milliseconds in entry["stages_ms"].values())
        assert entry["peak_bytes"] > entry["weight_bytes"]
    parameters = sum(parameter.numel() for parameter in cogact.POLICY.tiny().parameters())
    assert 4 * parameters <= full["weight_bytes"] < 4 * parameters + 1000
    assert low["weight_bytes"] < 0.6 * full["weight_bytes"]

    assert [path["name"] for path in written["float_paths"]] == [EAGER, "torch-bfloat16"]
    eager, bfloat16 = written["float_paths"]
    assert eager["max_abs_difference"] == 0
    assert 0 < bfloat16["max_abs_difference"] < 3  # at most the gripper's other command
    assert eager["control_step_ms"] == full["control_step_ms"]
    fastest = min(written["float_paths"], key=lambda path: path["control_step_ms"]["p50"])
    assert written["float_path"] == {"name": fastest["name"], "p50": fastest["control_step_ms"]["p50"]}
    assert written["ratio_to_eager"][str(tiny)] == {"value": 1.0, "low": 1.0, "high": 1.0}
    for ratios in (written["ratio_to_float_path"], written["ratio_to_eager"]):
        assert set(ratios) == {str(quantized), str(tiny)}
        assert all(0 < ratio["low"] <= ratio["value"] <= ratio["high"] for ratio in ratios.values())
    assert (written["provenance"]["threads"], written["provenance"]["repeats"]) == (1, 3)
    assert written["provenance"]["observation"] == "tabletop"
    assert "repetition 3" in result.stderr
    assert "torch-bfloat16" in result.stdout


def constant(value: float) -> Callable[[Any], Callable[[], Tensor]]:
    """Builds a candidate that says one thing; NaN for one that says what it should."""

    def build(sources: Any) -> Callable[[], Tensor]:
        right = sources.step.run(sources.policy)
        return lambda: right if np.isnan(value) else torch.full_like(right, value)

    return build


def failing(error: Exception) -> Callable[[Any], Callable[[], Tensor]]:
    """Builds nothing."""

    def build(sources: Any) -> Callable[[], Tensor]:
        raise error

    return build


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that are right, wrong, missing and broken."""
    made = {
        "right": Candidate(build=constant(np.nan), exact=True),
        "rival": Candidate(build=constant(0.0), kind="4-bit"),
        "wrong": Candidate(build=constant(7.0), exact=True),
        "not-a-number": Candidate(build=constant(np.inf), exact=True),
        "missing": Candidate(build=failing(MissingDependencyError("package x must be installed")), exact=True),
        "broken": Candidate(build=failing(RuntimeError("cannot\n translate")), exact=True),
        "elsewhere": Candidate(build=constant(np.nan), exact=True, devices=("tpu", "npu")),
    }
    for name, entry in made.items():
        monkeypatch.setitem(paths.FLOAT_PATHS, name, entry)


class Replayed:
    """A recording without a GPU, which says what it said when it was recorded."""

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        return function()

    def replay(self) -> None:
        """The result is there already."""


def test_policies_are_captured_and_the_eager_baseline_is_not(
    tiny: Path, quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "captured_denoising", partial(captured_denoising, make=Replayed))
    monkeypatch.setattr(module, "peak_bytes", lambda name, **settings: 1)
    result = benchmark([str(quantized)], against=str(tiny), paths=["torch-bfloat16"], repeats=1, warmup=0).to_json()
    assert [entry["captured"] for entry in result["policies"]] == [True, False]
    assert not any(path["captured"] for path in result["float_paths"])
    assert all(milliseconds > 0 for entry in result["policies"] for milliseconds in entry["stages_ms"].values())


CAPTURED = ["torch-float32-captured", "torch-bfloat16-captured"]


def test_captured_candidates_say_what_eager_ones_say(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = cogact.POLICY.tiny()
    step = control_step(policy)
    _, skipped = float_paths(policy, step, CAPTURED, lambda name: None)
    assert [left_out.reason for left_out in skipped] == ["runs on cuda only, got cpu"] * 2
    for name in CAPTURED:
        monkeypatch.setitem(FLOAT_PATHS, name, replace(FLOAT_PATHS[name], devices=("cpu",)))
    _, skipped = float_paths(policy, step, CAPTURED, lambda name: None)
    assert all("must be on a CUDA device, got cpu" in left_out.reason for left_out in skipped)
    monkeypatch.setattr(paths, "captured_loop", partial(captured_loop, make=Replayed))
    (full, low), _ = float_paths(policy, step, CAPTURED, lambda name: None)
    (eager, rounded), _ = float_paths(policy, step, [EAGER, "torch-bfloat16"], lambda name: None)
    assert torch.equal(full.run(), eager.run())
    assert torch.equal(low.run(), rounded.run())
    assert policy.loop == policy.denoise  # It is the eager baseline, too.


def test_every_candidate_of_this_library_runs_on_its_device(device: torch.device) -> None:
    """On a CUDA device with real graphs."""
    policy = cogact.POLICY.tiny().to(device)
    names = [EAGER, "torch-bfloat16", *CAPTURED]
    built, skipped = float_paths(policy, control_step(policy), names, lambda name: None)
    on_cuda = device.type == "cuda"
    assert [path.captured for path in built] == ([False, False, True, True] if on_cuda else [False, False])
    assert [left_out.name for left_out in skipped] == ([] if on_cuda else CAPTURED)


@pytest.mark.usefixtures("candidates")
def test_candidates_that_are_wrong_or_fail_are_left_out_with_a_reason() -> None:
    policy = cogact.POLICY.tiny()
    names = [EAGER, "right", "wrong", "not-a-number", "missing", "broken", "elsewhere", "rival"]
    built, skipped = float_paths(policy, control_step(policy), names, lambda name: None)
    assert [(path.name, path.kind) for path in built] == [(EAGER, "float"), ("right", "float"), ("rival", "4-bit")]
    reasons = {left_out.name: left_out.reason for left_out in skipped}
    assert list(reasons) == ["wrong", "not-a-number", "missing", "broken", "elsewhere"]
    assert reasons["wrong"].startswith("must equal torch-float32 to 0.001, got a difference of")
    assert reasons["missing"] == "package x must be installed"
    assert reasons["broken"] == "cannot run here: RuntimeError: cannot translate"
    assert reasons["elsewhere"] == "runs on tpu and npu only, got cpu"


@pytest.mark.usefixtures("candidates")
def test_the_float_path_and_the_ratios_follow_from_the_times(
    tiny: Path, quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {
        str(quantized): np.array([4.0, 6.0, 20.0]),
        EAGER: np.array([8.0, 12.0, 10.0]),
        "right": np.array([8.0, 6.0, 10.0]),
        "rival": np.array([1.0, 1.0, 1.0]),
    }
    monkeypatch.setattr(module, "interleaved_times", lambda *arguments, **settings: dict(times))
    monkeypatch.setattr(module, "peak_bytes", lambda name, **settings: len(name))
    result = benchmark([str(quantized)], against=str(tiny), paths=["right", "rival"], repeats=3).to_json()
    assert result["float_path"] == {"name": "right", "p50": 8.0}
    # Ratios within repetitions, 0.5, 1 and 2, whose median is not the ratio of the medians.
    assert result["ratio_to_float_path"][str(quantized)]["value"] == 1.0
    assert result["ratio_to_eager"][str(quantized)]["value"] == 0.5
    assert result["ratio_to_float_path"][str(tiny)]["value"] == 1.0
    assert result["policies"][0]["control_step_ms"]["p50"] == 6.0
    assert [entry["peak_bytes"] for entry in result["policies"]] == [len(str(quantized)), len(str(tiny))]


def test_every_candidate_runs_once_in_every_repetition() -> None:
    calls: list[str] = []
    candidates = {name: lambda name=name: calls.append(name) for name in "abc"}
    said: list[str] = []
    times = interleaved_times(candidates, repeats=6, warmup=2, seed=0, progress=said.append)
    rounds = [tuple(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert [sorted(order) for order in rounds] == [["a", "b", "c"]] * 8
    assert len(set(rounds)) > 1
    assert said == ["warm-up"] * 2 + [f"repetition {turn}" for turn in range(1, 7)]
    assert all(values.shape == (6,) and (values > 0).all() for values in times.values())
    again = list(calls)
    calls.clear()
    interleaved_times(candidates, repeats=6, warmup=2, seed=0, progress=said.append)
    assert calls == again


def test_parts_are_counted_from_block_to_block(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    def wait(inner: torch.nn.Module, arguments: Any) -> None:
        nonlocal now
        now += 5.0

    policy = cogact.POLICY.tiny()
    policy.get_submodule("llm_backbone.layers.1").register_forward_pre_hook(wait)
    hooks = sum(len(inner._forward_pre_hooks) for inner in policy.modules())
    monkeypatch.setattr("daptq.benchmarking.parts.time.perf_counter", clock)
    step = control_step(policy)
    times = part_times(policy, step)
    assert times == {"preprocessing": 1e3, "vision": 1e3, "language": 6e3, "action_head": 1e3}
    # A loop that is replayed calls no blocks, from the second time on.
    with captured_denoising(policy, Replayed):
        assert [part_times(policy, step) for _ in range(2)] == [times] * 2
        assert isinstance(policy.loop, CapturedLoop)
    assert sum(len(inner._forward_pre_hooks) for inner in policy.modules()) == hooks


@pytest.mark.slow
def test_peak_memory_holds_at_least_the_weights() -> None:
    """Of the packaged policy, whose weights are larger than what a process does by itself."""
    parameters = sum(parameter.numel() for parameter in load_policy("reference").parameters())
    assert 4 * parameters < peak_bytes("reference", device="cpu", threads=1, seed=0) < 20 * parameters


def test_a_process_that_fails_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DaptqError, match="peak memory of .*nowhere must be measurable"):
        peak_bytes(str(tmp_path / "nowhere"), device="cpu", threads=1, seed=0)


def test_an_observation_is_made_up_where_no_camera_fits() -> None:
    policy = cogact.POLICY.tiny()
    seen = control_step(policy)
    assert (seen.source, seen.observation["observation.images.front"].shape) == ("tabletop", (64, 64, 3))
    policy.cameras = {camera_key(camera): CameraSize(64, 64) for camera in ("front", "ceiling")}
    example = policy.example_batch

    def with_ceiling(seed: int) -> Any:
        return {**example(seed), "observation.images.ceiling": torch.full((2, 3, 64, 64), 0.5)}

    policy.example_batch = with_ceiling  # type: ignore[method-assign]
    made_up = control_step(policy)
    assert made_up.source == "synthetic"
    assert (made_up.observation["observation.images.ceiling"] == 127).all()
    assert torch.equal(made_up.run(policy), made_up.run(policy))
    assert not torch.equal(made_up.run(policy), seen.run(cogact.POLICY.tiny()))


@pytest.mark.parametrize(("name", "value"), [("action_space", END_EFFECTOR_DELTA[::-1]), ("state_dim", 8)])
def test_an_observation_is_made_up_where_the_policy_cannot_act(name: str, value: Any) -> None:
    policy = cogact.POLICY.tiny()
    setattr(policy, name, value)
    made_up, example = control_step(policy), policy.example_batch(0)
    assert made_up.source == "synthetic"
    np.testing.assert_array_equal(made_up.observation["observation.state"], example["observation.state"][0])


def test_bad_input_exits_with_2(refused: Refused, tiny: Path, quantized: Path) -> None:
    benchmark_of = ["benchmark", quantized, "--against"]
    refused([*benchmark_of, quantized], "must have different names")
    refused(["benchmark", tiny, "--against", quantized], "baseline must be a policy in floating point")
    refused([*benchmark_of, "refrence"], "Did you mean 'reference'")
    refused([*benchmark_of, tiny, "--repeats", "0"], "at least one policy and one repetition")
    refused([*benchmark_of, tiny, "--threads", "0"], "threads must be at least 1")
    refused([*benchmark_of, tiny, "--float-path", "openvino"], "Did you mean 'openvino-float32'")


def test_bad_arguments_are_refused(tiny: Path) -> None:
    with pytest.raises(InvalidInputError, match="at least one policy"):
        benchmark([], against=str(tiny))
    with pytest.raises(UnknownNameError, match="float path must be one of"):
        benchmark([str(tiny)], against="reference", paths=["colour"])
    with pytest.raises(UnknownNameError, match="device must be one of cpu, cuda"):
        benchmark([str(tiny)], against="reference", device="gpu")
    assert all(candidate.kind in ("float", "4-bit") for candidate in FLOAT_PATHS.values())


def test_a_device_that_is_not_there_exits_with_2(
    refused: Refused, tiny: Path, quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["benchmark", quantized, "--against", tiny, "--device"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused([*command, "cuda"], "device must be one that torch finds, got 'cuda'")
