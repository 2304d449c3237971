"""How a metric of motion changes from a baseline to a candidate."""

from __future__ import annotations

from pydantic import model_validator
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import Self

from daptq.json_model import Count, JsonModel, absent
from daptq.statistics.estimate import Estimate

__all__ = ["MotionChange"]


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
