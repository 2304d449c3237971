"""A candidate against the baseline on the same episodes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.json_schema import SkipJsonSchema

from daptq.json_model import JsonModel, Percentage, Positive, absent
from daptq.metrics.deviation import Drift
from daptq.metrics.motion import METRICS
from daptq.metrics.motion_change import MotionChange
from daptq.metrics.pairs import Paired
from daptq.statistics.stopping import Verdict

__all__ = ["Comparison", "GateCheck", "GateLimits", "GateVerdict", "Motion", "Stopping"]


class Stopping(JsonModel):
    """How an early end came about.

    Attributes:
        verdict: Whether the candidate loses less than the margin (non-inferior), more (inferior), or neither is shown.
        margin: Largest loss of success that is accepted, a fraction.
        pairs: Number of pairs at the look that decided, or at the last one.
        low: Lower limit of candidate minus baseline, percentage points; it holds at all looks together.
        high: Upper limit.
        planned: Number of pairs there would have been at most.
    """

    verdict: Verdict
    margin: Annotated[float, Field(gt=0.0, lt=1.0)]
    pairs: Positive
    low: Percentage
    high: Percentage
    planned: Positive


class GateLimits(JsonModel):
    """The limits of a gate that are set.

    Attributes:
        margin: Largest loss of success, a fraction.
        drift: Largest median drift after 16 steps from identical states [mm].
        jerk: Largest median ratio of the jerk to the baseline's.
    """

    margin: float | SkipJsonSchema[None] = absent()
    drift: float | SkipJsonSchema[None] = absent()
    jerk: float | SkipJsonSchema[None] = absent()


class GateCheck(JsonModel):
    """One limit against one comparison.

    Attributes:
        name: The limit.
        passed: Whether the whole interval keeps it.
        reason: What was measured, and what is allowed.
    """

    name: Literal["margin", "drift", "jerk"]
    passed: bool
    reason: str


class GateVerdict(JsonModel):
    """What a gate decides about a comparison.

    Attributes:
        passed: Whether every limit holds.
        limits: The limits.
        checks: Each limit by itself.
    """

    passed: bool
    limits: GateLimits
    checks: tuple[GateCheck, ...]


def _named(motion: dict[str, MotionChange]) -> dict[str, MotionChange]:
    if list(motion) != list(METRICS):
        raise ValueError(f"metrics are {', '.join(METRICS)}, in this order")
    return motion


Motion = Annotated[
    dict[str, MotionChange],
    AfterValidator(_named),
    Field(json_schema_extra={"propertyNames": {"enum": [*METRICS]}, "required": [*METRICS]}),
]


class Comparison(JsonModel):
    """A candidate against the baseline.

    Attributes:
        policy: Name of the candidate.
        against: Name of the baseline.
        stopping: How the evaluation came to its end, where it might stop early.
        paired: Success; null where the candidate ran no whole episodes.
        motion: Every metric of motion by its name; null where the candidate ran no whole episodes.
        drift: Drift of the end-effector.
        gate: The gate's verdict, where one was asked for.
    """

    policy: str
    against: str
    stopping: Stopping | SkipJsonSchema[None] = absent()
    paired: Paired | None
    motion: Motion | None
    drift: Drift
    gate: GateVerdict | SkipJsonSchema[None] = absent()
