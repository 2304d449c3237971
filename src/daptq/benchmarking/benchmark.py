"""`benchmark`: latency, memory and stages of policies against the best way to run one of them in floating point.

Every repetition runs each policy and each floating-point candidate once, in an order drawn anew, so a machine that
slows down slows all of them down; ratios are taken within repetitions. One control step is timed: from an observation
to an action chunk, without rendering, physics and the robot. The times hold for this machine and this number of
threads; whatever else the machine does meanwhile is in them. On a CUDA device a step ends when its answer is on the
CPU, and the denoising loop of every policy but the baseline is one CUDA graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from daptq.artifacts import provenance
from daptq.benchmarking.control_step import ControlStep, control_step
from daptq.benchmarking.device import device_name, find_device
from daptq.benchmarking.float_paths import EAGER, FLOAT_PATHS, float_paths
from daptq.benchmarking.peak_memory import peak_bytes
from daptq.benchmarking.stages import STAGES, stage_times
from daptq.errors import InvalidInputError
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import load_policy
from daptq.packing.size import weight_bytes_resident
from daptq.policies.captured import captured_denoising
from daptq.policies.contract import Policy
from daptq.statistics.intervals import bootstrap_estimate, median

__all__ = ["benchmark", "interleaved_times", "percentiles", "ratio_interval"]

SCHEMA_VERSION = 1

Times = Float[np.ndarray, " repeats"]
Progress = Callable[[int, int, str], None]


def benchmark(
    policies: Sequence[str],
    *,
    against: str,
    device: str = "cpu",
    repeats: int = 30,
    warmup: int = 3,
    threads: int | None = None,
    paths: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures policies against the float path of a baseline.

    Args:
        policies: Names or folders of policies.
        against: Name or folder of the float policy that candidates for the float path are built from.
        device: ``"cpu"`` or ``"cuda"``, what policies and candidates run on.
        repeats: Measured repetitions, at least 1.
        warmup: Repetitions before the measured ones.
        threads: Threads of torch and of every runtime; None for as many as torch is set to.
        paths: Candidates for the float path besides float32 in eager mode, among `FLOAT_PATHS`; None for all.
        seed: Seed of the observation, the noise, the order and the bootstrap.
        progress: Called after every step of the work with how many are done, how many there are, and what was done.

    Returns:
        JSON object: `schema_version`; `device` and its `device_name`; `policies`, those that were named and the
        baseline, each with `name`, `captured` (whether the denoising loop is a CUDA graph), `weight_bytes` (resident
        after a step), `peak_bytes`, `control_step_ms` (`p50`, `p95`, `p99`, `n`) and `stages_ms` (medians);
        `float_path` (`name`, `p50`), the fastest floating-point candidate by its median;
        `ratio_to_float_path` and `ratio_to_eager`, by policy: median over repetitions of the policy's time divided by
        the other's, less than 1 where the policy is faster (`value`, `low`, `high`: bootstrap, 95 %); `float_paths`,
        every candidate with `name`, `kind`, `captured`, `control_step_ms` and `max_abs_difference`; `skipped`,
        candidates that were left out, with a `reason`; `provenance`.

    Raises:
        InvalidInputError: There is no policy, repetition or thread, a policy is named twice, the baseline is not in
            floating point, or torch finds no such device here.
        UnknownNameError: There is no such policy, candidate or kind of device.
        ArtifactError: A folder holds no policy, or is damaged.
    """
    _check(policies, against, repeats, warmup, threads)
    place = find_device(device)
    names = list(dict.fromkeys((EAGER, *(FLOAT_PATHS if paths is None else paths))))
    total = 2 * (len(policies) + 1) + len(names) + warmup + repeats
    done = _counted(progress, total)
    with _threads(threads), ExitStack() as stack:
        loaded = {name: load_policy(name).to(place) for name in (*policies, against)}
        _require_float(loaded[against], against)
        steps = {name: control_step(policy, seed) for name, policy in loaded.items()}
        built, skipped = float_paths(loaded[against], steps[against], names, done)
        # The baseline's own time is that of eager mode: it is run once.
        candidates: dict[str, Callable[[], object]] = {
            name: partial(steps[name].run, loaded[name]) for name in policies
        }
        candidates |= {path.name: path.run for path in built}
        captured = {name: stack.enter_context(captured_denoising(loaded[name])) for name in policies}
        times = interleaved_times(candidates, repeats=repeats, warmup=warmup, seed=seed, progress=done)
        times[against] = times[EAGER]
        measured = []
        for name, policy in loaded.items():
            stages = _stages(policy, steps[name], repeats)
            done(f"stages of {name}")
            peak = peak_bytes(name, device=device, threads=torch.get_num_threads(), seed=seed)
            done(f"memory of {name}")
            entry = {"name": name, "captured": captured.get(name, False), "weight_bytes": weight_bytes_resident(policy)}
            entry["peak_bytes"] = peak
            measured.append({**entry, "control_step_ms": percentiles(times[name]), "stages_ms": stages})
        fastest = min((path.name for path in built if path.kind == "float"), key=lambda name: np.median(times[name]))
        origin = {
            **provenance(seed=seed),
            "threads": torch.get_num_threads(),
            "repeats": repeats,
            "warmup": warmup,
            "observation": steps[against].source,
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "device": str(loaded[against].device),
        "device_name": device_name(place),
        "policies": measured,
        "float_path": {"name": fastest, "p50": float(np.median(times[fastest]))},
        "ratio_to_float_path": {name: ratio_interval(times[name] / times[fastest], seed) for name in loaded},
        "ratio_to_eager": {name: ratio_interval(times[name] / times[EAGER], seed) for name in loaded},
        "float_paths": [
            {
                "name": path.name,
                "kind": path.kind,
                "captured": path.captured,
                "control_step_ms": percentiles(times[path.name]),
                "max_abs_difference": path.max_abs_difference,
            }
            for path in built
        ],
        "skipped": [asdict(left_out) for left_out in skipped],
        "provenance": origin,
    }


def interleaved_times(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int,
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, Times]:
    """Times of candidates that take turns: once each in every repetition, in an order that is drawn anew.

    Args:
        candidates: What to time, by name.
        repeats: Measured repetitions.
        warmup: Repetitions before the measured ones.
        seed: Seed of the orders.
        progress: Called after every repetition with what was done.

    Returns:
        Milliseconds, float64 (repeats,), by name; entry i of each is from repetition i.
    """
    names = list(candidates)
    generator = np.random.default_rng(seed)
    times = {name: np.zeros(repeats) for name in names}
    for turn in range(-warmup, repeats):
        for index in generator.permutation(len(names)):
            name = names[index]
            start = time.perf_counter()
            candidates[name]()
            elapsed = time.perf_counter() - start
            if turn >= 0:
                times[name][turn] = 1e3 * elapsed
        progress("warm-up" if turn < 0 else f"repetition {turn + 1}")
    return times


def _check(policies: Sequence[str], against: str, repeats: int, warmup: int, threads: int | None) -> None:
    if not policies or repeats < 1 or warmup < 0:
        raise InvalidInputError(
            f"a benchmark must have at least one policy and one repetition, got {len(policies)} policies, "
            f"{repeats} repetitions and {warmup} to warm up. Name a policy and ask for more."
        )
    if threads is not None and threads < 1:
        raise InvalidInputError(f"threads must be at least 1, got {threads}. Leave it out for torch's number.")
    named = [*policies, against]
    twice = sorted({name for name in named if named.count(name) > 1} | set(named) & set(FLOAT_PATHS))
    if twice:
        raise InvalidInputError(
            f"policies and their baseline must have different names, got {', '.join(twice)} twice. Name each once."
        )


def _require_float(policy: Policy, name: str) -> None:
    if any(isinstance(module, QuantizedLinear) for module in policy.modules()):
        raise InvalidInputError(
            f"baseline must be a policy in floating point, got the quantized {name}. Name the policy it was made from."
        )


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Lets torch compute with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _counted(progress: Progress | None, total: int) -> Callable[[str], None]:
    """A function to call with what was done."""
    count = 0

    def done(what: str) -> None:
        nonlocal count
        count += 1
        if progress is not None:
            progress(count, total, what)

    return done


def _stages(policy: Policy, step: ControlStep, repeats: int) -> dict[str, float]:
    """Median milliseconds of each stage."""
    rounds = [stage_times(policy, step) for _ in range(repeats)]
    return {stage: float(np.median([times[stage] for times in rounds])) for stage in STAGES}


def percentiles(times: Times) -> dict[str, float]:
    """`p50`, `p95` and `p99` of times, and their number `n`."""
    p50, p95, p99 = np.percentile(times, [50.0, 95.0, 99.0])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "n": len(times)}


def ratio_interval(values: Times, seed: int) -> dict[str, float]:
    """Median of ratios (`value`) with its 95 % bootstrap interval (`low`, `high`)."""
    return bootstrap_estimate(values, np.arange(len(values)), median, seed=seed)
