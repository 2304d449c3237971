"""The result of an evaluation, as `daptq.evaluate` returns it and `daptq evaluate --json` writes it.

Rates are fractions, differences percentage points, intervals 95 %; docs/reference/metrics.md defines every metric.
`daptq.json_model` says why these classes are pydantic's. The JSON Schema is made from them, see
`EvaluationResult.json_schema`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import Self

from daptq._provenance import Provenance
from daptq.evaluation.comparison import Comparison
from daptq.evaluation.description import BitPlan, LinearLayer, Weights
from daptq.evaluation.gate import Gate
from daptq.evaluation.variant_result import NamedPolicy, RobustnessGap, VariantResult
from daptq.json_model import Count, Fraction, JsonDocument, Positive, absent
from daptq.metrics.deviation import Drift
from daptq.metrics.pairs import Paired
from daptq.metrics.success import Rate, Rates, Success
from daptq.monitoring.summary import MonitorSummary

__all__ = ["EvaluationResult", "PolicyResult"]


class PolicyResult(NamedPolicy):
    """One policy: its success, and what it is made of. Without whole episodes it has no rates.

    Attributes:
        n: Number of episodes.
        successes: Episodes with success at any step.
        success_rate: successes / n.
        low: Lower limit of Wilson's interval.
        high: Upper limit.
        at_last_step: The same where success counts after the last step only.
        other_task: Episodes in which a task of the scene was fulfilled that was not asked.
        per_task: The rates of each task.
        family: Family in the catalog.
        weights: Size and hash of the weights.
        layers: Linear layers in execution order.
        plan: How the bits were chosen; null for a float policy and for one without a folder.
    """

    n: Positive | SkipJsonSchema[None] = absent()
    successes: Count | SkipJsonSchema[None] = absent()
    success_rate: Fraction | SkipJsonSchema[None] = absent()
    low: Fraction | SkipJsonSchema[None] = absent()
    high: Fraction | SkipJsonSchema[None] = absent()
    at_last_step: Rate | SkipJsonSchema[None] = absent()
    other_task: Rate | SkipJsonSchema[None] = absent()
    per_task: dict[str, Rates] | SkipJsonSchema[None] = absent()
    family: str
    weights: Weights
    layers: tuple[LinearLayer, ...]
    plan: BitPlan | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len({getattr(self, name) is None for name in Success.model_fields}) > 1:
            raise ValueError(f"either all of {', '.join(Success.model_fields)} are known, or none")
        return self

    @property
    def success(self) -> Success | None:
        """The rates together; None for a policy that ran no whole episodes."""
        if self.n is None:
            return None
        return Success.model_construct(**{name: getattr(self, name) for name in Success.model_fields})


class EvaluationResult(JsonDocument):
    """Result of an evaluation: what `daptq evaluate --json` writes and `daptq.evaluate` returns.

    Rates are fractions, differences percentage points, intervals 95 %.

    Attributes:
        schema_version: Version of this format.
        environment: Name of the environment.
        variant: The variant that was run, where it was one alone.
        tasks: The tasks that were asked.
        horizon: Control steps of the longest task.
        episodes: Paired episodes that were run.
        seed: Seed of the episodes.
        batch: Episodes that shared one call of the policy.
        success_rule: When an episode counts as a success.
        confidence: Coverage of the intervals.
        policies: The policies, the baseline first.
        comparisons: One per candidate; none without a baseline.
        paired: Success of the first comparison.
        drift: Drift of the first comparison.
        monitor: What a monitor says of the first candidate, where one was asked for.
        provenance: Versions, machine, seed and time.
        variants: One entry per variant, where variants were asked for.
        robustness_gap: Over all variants together, one entry per candidate, where variants were asked for.
    """

    DOCUMENT: ClassVar[str] = "evaluation"
    SCHEMA_VERSION: ClassVar[int] = 1
    KEYS: ClassVar[tuple[str, ...]] = ("policies", "comparisons")

    schema_version: Literal[1] = 1
    environment: str
    variant: str | SkipJsonSchema[None] = absent()
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    horizon: Positive
    episodes: Positive
    seed: Count
    batch: Positive
    success_rule: Literal["at any step"] = "at any step"
    confidence: Fraction
    policies: Annotated[tuple[PolicyResult, ...], Field(min_length=1)]
    comparisons: tuple[Comparison, ...]
    paired: Paired | None
    drift: Drift | None
    monitor: MonitorSummary | SkipJsonSchema[None] = absent()
    provenance: Provenance
    variants: tuple[VariantResult, ...] | SkipJsonSchema[None] = absent()
    robustness_gap: tuple[RobustnessGap, ...] | SkipJsonSchema[None] = absent()

    def judged(self, gate: Gate) -> Self:
        """The same with the gate's verdict about every comparison.

        Raises:
            InvalidInputError: A comparison lacks what a limit is about.
        """
        judged = tuple(one.model_copy(update={"gate": gate.verdict(one)}) for one in self.comparisons)
        return self.model_copy(update={"comparisons": judged})
