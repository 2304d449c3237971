"""`benchmark`: latency and memory of policies against the best way to run one of them in floating point.

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
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from daptq.artifacts import provenance
from daptq.benchmarking.control_step import ControlStep, control_step
from daptq.benchmarking.device import device_name, find_device
from daptq.benchmarking.float_paths import EAGER, FLOAT_PATHS, FloatPath, float_paths
from daptq.benchmarking.parts import PARTS, part_times
from daptq.benchmarking.peak_memory import peak_bytes
from daptq.benchmarking.result import (
    BenchmarkProvenance,
    BenchmarkResult,
    FastestPath,
    MeasuredPath,
    MeasuredPolicy,
    Percentiles,
    SkippedPath,
)
from daptq.errors import InvalidInputError
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import load_policy
from daptq.packing.size import weight_bytes_resident
from daptq.policies.captured import captured_denoising
from daptq.policies.contract import Policy
from daptq.progress import Progress
from daptq.statistics.bootstrap import bootstrap_estimate, median
from daptq.statistics.estimate import Estimate

__all__ = ["benchmark", "interleaved_times", "percentiles", "ratio_interval"]

Times = Float[np.ndarray, " repeats"]


def benchmark(
    policies: Mapping[str, str | Path] | Sequence[str],
    *,
    against: str,
    device: str = "cpu",
    repeats: int = 30,
    warmup: int = 3,
    threads: int | None = None,
    paths: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Measures policies against the float path of a baseline.

    Args:
        policies: Names or folders of policies; a mapping gives them labels.
        against: Name or folder of the float policy that candidates for the float path are built from.
        device: ``"cpu"`` or ``"cuda"``, what policies and candidates run on.
        repeats: Measured repetitions, at least 1.
        warmup: Repetitions before the measured ones.
        threads: Threads of torch and of every runtime; None for as many as torch is set to.
        paths: Candidates for the float path besides float32 in eager mode, among `FLOAT_PATHS`; None for all.
        seed: Seed of the observation, the noise, the order and the bootstrap.
        progress: Called after every step of the work with how many are done, how many there are, and what was done.

    Raises:
        InvalidInputError: There is no policy, repetition or thread, a policy is named twice, the baseline is not in
            floating point, or torch finds no such device here.
        UnknownNameError: There is no such policy, candidate or kind of device.
        ArtifactError: A folder holds no policy, or is damaged.
    """
    labels = list(policies)
    _check(labels, against, repeats, warmup, threads)
    sources = dict(policies) if isinstance(policies, Mapping) else {name: name for name in policies}
    sources = {**sources, against: against}
    place = find_device(device)
    names = list(dict.fromkeys((EAGER, *(FLOAT_PATHS if paths is None else paths))))
    done = _counted(progress, 2 * len(sources) + len(names) + warmup + repeats)
    with _threads(threads), ExitStack() as stack:
        loaded = {label: load_policy(source).to(place) for label, source in sources.items()}
        _require_float(loaded[against], against)
        steps = {label: control_step(policy, seed) for label, policy in loaded.items()}
        built, skipped = float_paths(loaded[against], steps[against], names, done)
        # The baseline's own time is that of eager mode: it is run once.
        candidates: dict[str, Callable[[], object]] = {
            label: partial(steps[label].run, loaded[label]) for label in labels
        }
        candidates |= {path.name: path.run for path in built}
        captured = {label: stack.enter_context(captured_denoising(loaded[label])) for label in labels}
        times = interleaved_times(candidates, repeats=repeats, warmup=warmup, seed=seed, progress=done)
        times[against] = times[EAGER]
        measured = []
        for label, policy in loaded.items():
            parts = _parts(policy, steps[label], repeats)
            done(f"parts of {label}")
            peak = peak_bytes(str(sources[label]), device=device, threads=torch.get_num_threads(), seed=seed)
            done(f"memory of {label}")
            measured.append(
                MeasuredPolicy(
                    name=label,
                    captured=captured.get(label, False),
                    weight_bytes=weight_bytes_resident(policy),
                    peak_bytes=peak,
                    control_step_ms=percentiles(times[label]),
                    stages_ms=parts,
                )
            )
        used = torch.get_num_threads()
    fastest = min((path.name for path in built if path.kind == "float"), key=lambda name: np.median(times[name]))
    origin = BenchmarkProvenance(
        **provenance(seed=seed), threads=used, repeats=repeats, warmup=warmup, observation=steps[against].source
    )
    return BenchmarkResult(
        device=str(loaded[against].device),
        device_name=device_name(place),
        policies=tuple(measured),
        float_path=FastestPath(name=fastest, p50=float(np.median(times[fastest]))),
        ratio_to_float_path={label: ratio_interval(times[label] / times[fastest], seed) for label in loaded},
        ratio_to_eager={label: ratio_interval(times[label] / times[EAGER], seed) for label in loaded},
        float_paths=tuple(_measured_path(path, times[path.name]) for path in built),
        skipped=tuple(SkippedPath(name=one.name, reason=one.reason) for one in skipped),
        provenance=origin,
    )


def _measured_path(path: FloatPath, times: Times) -> MeasuredPath:
    return MeasuredPath(
        name=path.name,
        kind=path.kind,
        captured=path.captured,
        control_step_ms=percentiles(times),
        max_abs_difference=path.max_abs_difference,
    )


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


def _parts(policy: Policy, step: ControlStep, repeats: int) -> dict[str, float]:
    """Median milliseconds of each part of a control step."""
    rounds = [part_times(policy, step) for _ in range(repeats)]
    return {part: float(np.median([times[part] for times in rounds])) for part in PARTS}


def percentiles(times: Times) -> Percentiles:
    """Percentiles of times."""
    p50, p95, p99 = np.percentile(times, [50.0, 95.0, 99.0])
    return Percentiles(p50=float(p50), p95=float(p95), p99=float(p99), n=len(times))


def ratio_interval(values: Times, seed: int) -> Estimate:
    """Median of ratios with its 95 % bootstrap interval."""
    return bootstrap_estimate(values, np.arange(len(values)), median, seed=seed)
