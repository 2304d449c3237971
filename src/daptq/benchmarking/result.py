"""The result of a benchmark, as `daptq benchmark --json` writes it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from daptq._provenance import Provenance
from daptq.json_model import Count, JsonDocument, JsonModel, NotNegative, Positive, absent
from daptq.statistics.estimate import Estimate

__all__ = [
    "BenchmarkProvenance",
    "BenchmarkResult",
    "FastestPath",
    "MeasuredPath",
    "MeasuredPolicy",
    "Percentiles",
    "SkippedPath",
]


class Percentiles(JsonModel):
    """Times of one control step [ms].

    Attributes:
        p50: Median.
        p95: 95 % are shorter.
        p99: 99 % are shorter.
        n: Number of repetitions.
    """

    p50: NotNegative
    p95: NotNegative
    p99: NotNegative
    n: Positive


class MeasuredPolicy(JsonModel):
    """A policy, or the baseline.

    Attributes:
        name: Its label.
        captured: Whether its denoising loop is a CUDA graph.
        weight_bytes: Bytes of its weights in memory after a control step.
        peak_bytes: Bytes that loading it and one control step add to a fresh process at most.
        control_step_ms: Times of a control step [ms].
        stages_ms: Median time of each part of a control step [ms].
    """

    name: str
    captured: bool = False
    weight_bytes: Count
    peak_bytes: Count
    control_step_ms: Percentiles
    stages_ms: dict[str, NotNegative]


class FastestPath(JsonModel):
    """The fastest candidate in floating point.

    Attributes:
        name: Name of the candidate.
        p50: Median time of its control step [ms].
    """

    name: str
    p50: NotNegative


class MeasuredPath(JsonModel):
    """A candidate for the float path, or a 4-bit rival.

    Attributes:
        name: Name of the candidate.
        kind: Whether it computes in floating point or with another library's 4-bit weights.
        captured: Whether its denoising loop, or all of it, is one CUDA graph.
        control_step_ms: Times of a control step [ms].
        max_abs_difference: Largest difference of its chunk from that of float32 in eager mode, in physical units.
    """

    name: str
    kind: Literal["float", "4-bit"]
    captured: bool = False
    control_step_ms: Percentiles
    max_abs_difference: NotNegative


class SkippedPath(JsonModel):
    """A candidate that was left out.

    Attributes:
        name: Name of the candidate.
        reason: Why.
    """

    name: str
    reason: str


class BenchmarkProvenance(Provenance):
    """Where a benchmark comes from.

    Attributes:
        threads: Threads of torch and of every runtime.
        repeats: Measured repetitions.
        warmup: Repetitions before the measured ones.
        observation: Environment that was observed, or ``synthetic``.
    """

    threads: Positive
    repeats: Positive
    warmup: Count
    observation: str


class BenchmarkResult(JsonDocument):
    """Result of a benchmark: latency and memory of policies against floating point.

    Attributes:
        schema_version: Version of this format.
        device: What everything ran on.
        device_name: Model of the GPU or of the processor.
        policies: The policies that were named, then the baseline.
        float_path: The fastest candidate in floating point.
        ratio_to_float_path: Time divided by the fastest candidate's, by policy; less than 1 where the policy is faster.
        ratio_to_eager: Time divided by that of the baseline in eager mode, by policy.
        float_paths: Every candidate that ran.
        skipped: Candidates that were left out.
        provenance: Versions, machine, seed, time and how often.
    """

    DOCUMENT: ClassVar[str] = "benchmark"
    SCHEMA_VERSION: ClassVar[int] = 1
    KEYS: ClassVar[tuple[str, ...]] = ("policies", "float_path")

    schema_version: Literal[1] = 1
    device: str
    device_name: str | SkipJsonSchema[None] = absent()
    policies: Annotated[tuple[MeasuredPolicy, ...], Field(min_length=1)]
    float_path: FastestPath
    ratio_to_float_path: dict[str, Estimate]
    ratio_to_eager: dict[str, Estimate]
    float_paths: tuple[MeasuredPath, ...]
    skipped: tuple[SkippedPath, ...]
    provenance: BenchmarkProvenance
