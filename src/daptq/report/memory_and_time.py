"""What a policy costs: weights on disk and in memory, peak memory, and the time of a control step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from daptq.benchmarking.result import BenchmarkResult
from daptq.evaluation.result import EvaluationResult
from daptq.report.elements import Group, Line, Section, Table
from daptq.report.labels import PolicyLabels
from daptq.report.tracks import bar
from daptq.report.wording import estimate, mebibytes, readable

_QUANTILES = ("p50", "p95", "p99")


@dataclass(frozen=True, kw_only=True)
class Times:
    """What a benchmark measured.

    Attributes:
        peaks: Peak memory of a control step.
        medians: Median time of a control step, and of the fastest way to run the baseline in floating point.
        control_step: Quantiles of the time, and ratios.
        parts: Medians by part of a control step.
        repeats: Number of repetitions.
        threads: Number of threads.
        device: What it ran on.
        fastest: The fastest way to run the baseline in floating point.
        candidates: Number of ways to run it that were tried.
    """

    peaks: Group
    medians: Group
    control_step: Table
    parts: Table
    repeats: int
    threads: int
    device: str
    fastest: str
    candidates: int


@dataclass(frozen=True, kw_only=True)
class MemoryAndTime:
    """Sizes of every policy, and times where a benchmark measured them.

    Attributes:
        disk: Weights on disk.
        not_on_disk: Labels of policies that are on no disk.
        memory: Weights in memory.
        times: What the benchmark measured, or None.
    """

    disk: Group
    not_on_disk: tuple[str, ...]
    memory: Group
    times: Times | None


def memory_and_time_section(
    result: EvaluationResult, labels: PolicyLabels, benchmark: BenchmarkResult | None
) -> Section:
    """Bars of sizes and times; what was not measured is said not to be."""
    weights = {policy.name: policy.weights for policy in result.policies}
    disk = {name: one.bytes_on_disk for name, one in weights.items() if one.bytes_on_disk is not None}
    memory = {name: one.bytes_in_memory for name, one in weights.items()}
    view = MemoryAndTime(
        disk=_sizes("Weights on disk [MiB]", disk, labels),
        not_on_disk=tuple(labels.label(name) for name in weights if name not in disk),
        memory=_sizes("Weights in memory [MiB]", memory, labels),
        times=None if benchmark is None else _times(benchmark, labels),
    )
    title = "Memory and latency"
    return Section(anchor="cost", link=title, title=title, template="memory_and_time.html", view=view)


def _times(benchmark: BenchmarkResult, labels: PolicyLabels) -> Times:
    entries = {entry.name: entry for entry in benchmark.policies}
    fastest, about = benchmark.float_path, benchmark.provenance
    medians = {name: entry.control_step_ms.p50 for name, entry in entries.items()}
    medians[fastest.name] = fastest.p50
    peaks = {name: one.peak_bytes for name, one in entries.items()}
    parts = [readable(part) for part in next(iter(entries.values())).stages_ms]
    return Times(
        peaks=_sizes("Peak memory of a control step [MiB]", peaks, labels),
        medians=_bars(
            "Time of a control step [ms], median", medians, {name: f"{ms:.1f}" for name, ms in medians.items()}, labels
        ),
        control_step=Table(
            caption="Control step [ms], and ratios to floating point with 95 % intervals",
            header=("policy", "median", "95 %", "99 %", f"of {fastest.name}", "of eager float32"),
            rows=[
                (
                    labels.marked(name),
                    *(f"{getattr(entry.control_step_ms, quantile):.1f}" for quantile in _QUANTILES),
                    estimate(benchmark.ratio_to_float_path[name]),
                    estimate(benchmark.ratio_to_eager[name]),
                )
                for name, entry in entries.items()
            ],
        ),
        parts=Table(
            caption="Parts of a control step [ms], medians",
            header=("policy", *parts),
            rows=[
                (labels.marked(name), *(f"{milliseconds:.1f}" for milliseconds in entry.stages_ms.values()))
                for name, entry in entries.items()
            ],
        ),
        repeats=about.repeats,
        threads=about.threads,
        device=_device(benchmark),
        fastest=fastest.name,
        candidates=len(benchmark.float_paths),
    )


def _device(benchmark: BenchmarkResult) -> str:
    """The device and, where the benchmark knew it, its name."""
    name = benchmark.device_name
    return benchmark.device if name is None else f"{benchmark.device} ({name})"


def _sizes(title: str, counts: Mapping[str, int], labels: PolicyLabels) -> Group:
    return _bars(title, counts, {name: mebibytes(count) for name, count in counts.items()}, labels)


def _bars(title: str, values: Mapping[str, float], texts: Mapping[str, str], labels: PolicyLabels) -> Group:
    largest = max(values.values(), default=0.0)
    lines = (
        Line(name=labels.marked(name), track=bar(value, largest, series=labels.marks.get(name)), number=texts[name])
        for name, value in values.items()
    )
    return Group(title=title, lines=tuple(lines))
