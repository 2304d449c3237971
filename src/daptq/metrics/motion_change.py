"""How the metrics of motion change from a baseline to a candidate, episode by episode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import Self

from daptq.closed_loop.rollout import EpisodeRecord
from daptq.json_model import Count, JsonModel, absent
from daptq.metrics.motion import METRICS
from daptq.metrics.motion_metric import Control, MotionMetric
from daptq.statistics.bootstrap import bootstrap_estimate, mean, median
from daptq.statistics.estimate import Estimate

__all__ = ["MotionChange", "motion_summary"]


class MotionChange(JsonModel):
    """A metric of motion over the episodes in which it is defined for both policies.

    Attributes:
        n: Number of these episodes; without any, nothing else is known.
        baseline: The baseline's median, or mean for a count.
        candidate: The candidate's.
        change: Of candidate / baseline or candidate - baseline; docs/reference/metrics.md says which.
    """

    n: Count
    baseline: float | SkipJsonSchema[None] = absent()
    candidate: float | SkipJsonSchema[None] = absent()
    change: Estimate | SkipJsonSchema[None] = absent()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if any((one is None) == (self.n > 0) for one in (self.baseline, self.candidate, self.change)):
            raise ValueError("baseline, candidate and change are known where n > 0, and none where n = 0")
        return self


def motion_summary(
    baseline: Sequence[EpisodeRecord],
    candidate: Sequence[EpisodeRecord],
    *,
    controls: tuple[Control, Control],
    seed: int,
) -> dict[str, MotionChange]:
    """Compares how two policies move, by every metric of `daptq.metrics.motion`.

    Args:
        baseline: Records of the full-precision policy.
        candidate: Records of the other policy for the same episodes, in the same order.
        controls: How baseline and candidate controlled the robot.
        seed: Seed of the bootstrap over episodes.
    """
    return {name: _change(metric, baseline, candidate, controls, seed) for name, metric in METRICS.items()}


def _change(
    metric: MotionMetric,
    baseline: Sequence[EpisodeRecord],
    candidate: Sequence[EpisodeRecord],
    controls: tuple[Control, Control],
    seed: int,
) -> MotionChange:
    measured = [
        [metric.measure(record, control) for record in records]
        for records, control in zip((baseline, candidate), controls, strict=True)
    ]
    differs = metric.change == "difference"
    pairs = [
        (one, other)
        for one, other in zip(*measured, strict=True)
        if one is not None and other is not None and (differs or one > 0.0)
    ]
    if not pairs:
        return MotionChange(n=0)
    before, after = np.array(pairs, dtype=np.float64).T
    change: NDArray[np.float64] = after - before if differs else after / before
    average = mean if metric.average == "mean" else median
    return MotionChange(
        n=len(change),
        baseline=float(average(before)),
        candidate=float(average(after)),
        change=bootstrap_estimate(change, np.arange(len(change)), average, seed=seed),
    )
