"""What an evaluation says of one variant of the environment, and how much more quantization costs there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from daptq.evaluation.comparison import Comparison
from daptq.json_model import JsonModel, Positive, absent
from daptq.metrics.success import Rates
from daptq.monitoring.summary import MonitorSummary

__all__ = ["NamedPolicy", "RobustnessGap", "VariantPolicy", "VariantResult"]


class NamedPolicy(JsonModel):
    """One policy of an evaluation.

    Attributes:
        name: Its label, the same in every part of the result.
        role: Whether the others are compared with it.
    """

    name: str
    role: Literal["baseline", "candidate"]


class VariantPolicy(Rates, NamedPolicy):  # the fields of the last base come first
    """Success of one policy on a variant.

    Attributes:
        per_task: The rates of each task.
    """

    per_task: dict[str, Rates]


class RobustnessGap(JsonModel):
    """Difference on variants minus difference in the nominal scene, percentage points.

    Attributes:
        policy: Name of the candidate.
        against: Name of the baseline.
        value: The gap; below 0, quantization costs more on the variants.
        low: Lower limit of the 95 % interval.
        high: Upper limit.
        n: Episodes per condition.
        variants: Number of variants.
    """

    policy: str
    against: str
    value: float
    low: float
    high: float
    n: Annotated[int, Field(ge=2)]
    variants: Positive


class VariantResult(JsonModel):
    """What an evaluation says of one variant.

    Attributes:
        variant: Name of the variant.
        description: What is different there.
        policies: Success of each policy, the baseline first.
        comparisons: One per candidate.
        robustness_gap: One per candidate.
        monitor: What a monitor says, where one was asked for.
    """

    variant: str
    description: str
    policies: tuple[VariantPolicy, ...]
    comparisons: tuple[Comparison, ...]
    robustness_gap: tuple[RobustnessGap, ...]
    monitor: MonitorSummary | SkipJsonSchema[None] = absent()
