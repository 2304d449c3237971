"""Joint verification of a bit plan: measure what all its layers do together, and promote layers until a gate holds.

Layer costs do not add up: two groups of layers that cost little alone can cost a multiple of their sum together. So a
plan is measured as a whole, and as long as the measurement is above the gate, the layer whose cost falls most per
resource gets its next larger number of bits.

A promotion that does not lower the measurement is kept while the search goes on, because its gain may only show once
another layer is promoted, too; without a budget the gate is therefore reached whenever the plan of the largest bits
reaches it. Once the gate holds, such promotions are taken back, last first, wherever the gate holds without them. No
layer ends below the plan that was given. The module does not know what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from daptq.allocation.plan import BitPlan, LayerBits
from daptq.errors import InvalidInputError, RecipeError
from daptq.methods import Method, Needs

__all__ = ["Step", "Verification", "VerificationConfig", "promote"]

PROMOTED = "verification"


@dataclass(frozen=True, kw_only=True)
class VerificationConfig(Method):
    """How a plan is verified.

    Attributes:
        gate_mm: Largest acceptable root mean square drift of a chunk under the drift model [mm]; None measures only.
        states: Calibration states that are replayed.
        max_rounds: Largest number of promotions.
    """

    method: ClassVar[str] = "replay"

    gate_mm: float | None = None
    states: int = 64
    max_rounds: int = 50

    def __post_init__(self) -> None:
        if self.gate_mm is not None and not 0 <= self.gate_mm < math.inf:
            raise RecipeError(f"gate_mm must be 0 or more millimetres, got {self.gate_mm}. Leave it out to measure.")
        if self.states < 1 or self.max_rounds < 0:
            raise RecipeError(
                f"states must be at least 1 and max_rounds not negative, got {self.states} and {self.max_rounds}. "
                "Choose for example 64 and 50."
            )

    @property
    def needs(self) -> Needs:
        """Layers are promoted by what rounding costs, until the drift under the metric is small enough."""
        return Needs(costs=True, metric=True)


# As in the allocation: a sum that exceeds the budget by this fraction of it does so by rounding.
_ROUNDING = 1e-12

Table = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One change of the plan and what it did.

    Attributes:
        layer: The layer whose bits changed.
        before_bits: Its bits before.
        after_bits: Its bits after, if the change was kept.
        before: Measurement before the change.
        after: Measurement with the change.
        kept: Whether the plan went on with the change.
        reason: Why the change was made, and why it was kept or not.
    """

    layer: str
    before_bits: int
    after_bits: int
    before: float
    after: float
    kept: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What became of a plan.

    Attributes:
        plan: The final plan; promoted layers have the reason ``"verification"``.
        measured: Measurement of the final plan.
        gate: The largest measurement that is acceptable.
        holds: Whether `measured` is at most `gate`.
        reason: Why the search ended, in one sentence.
        steps: Every change that was measured, in order.
    """

    plan: BitPlan
    measured: float
    gate: float
    holds: bool
    reason: str
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """The record without the plan, as JSON."""
        obj = asdict(self)
        del obj["plan"]
        return {**obj, "steps": [asdict(step) for step in self.steps]}


def promote(
    plan: BitPlan,
    costs: Table,
    resources: Table,
    measure: Callable[[BitPlan], float],
    *,
    gate: float,
    budget: float | None,
    max_rounds: int,
) -> Verification:
    """Promotes layers until the jointly measured drift is at most `gate`, or nothing more can be promoted.

    Args:
        plan: The plan to start from.
        costs: Predicted drift cost of a layer at each of its possible bits, in mm^2. Layers without an entry, and
            layers whose bits are the largest of theirs, are never promoted.
        resources: What a layer needs at the same bits; when there is a budget, of every layer that it counts.
        measure: Runs a plan and returns its drift in mm; the same plan must give the same drift.
        gate: Largest acceptable drift in mm.
        budget: Largest total resource, or None.
        max_rounds: Largest number of promotions. Taking them back costs at most one more measurement for each.

    Returns:
        The final plan and how it came about. `holds` says whether the gate holds, whatever the reason for stopping.

    Raises:
        InvalidInputError: The gate or the number of rounds is negative, a layer's own bits have no cost, or a
            measurement is NaN.
    """
    if not gate >= 0 or max_rounds < 0:
        raise InvalidInputError(
            f"gate and max_rounds must not be negative, got {gate} and {max_rounds}. Choose 0 or more."
        )
    if missing := sorted(x.name for x in plan.layers if x.name in costs and x.num_bits not in costs[x.name]):
        raise InvalidInputError(f"costs must hold the bits of the plan, got others for {missing}. Add these bits.")
    search = _Search(plan, costs, resources, measure, gate, budget)
    reason = search.climb(max_rounds)
    if search.measured <= gate:
        search.take_back()
    return Verification(
        plan=search.plan,
        measured=search.measured,
        gate=gate,
        holds=search.measured <= gate,
        reason=f"drift {search.measured:.6g} mm, gate {gate:.6g} mm: {reason}",
        steps=tuple(search.steps),
    )


class _Search:
    """The plan while it is being promoted."""

    def __init__(
        self,
        plan: BitPlan,
        costs: Table,
        resources: Table,
        measure: Callable[[BitPlan], float],
        gate: float,
        budget: float | None,
    ) -> None:
        self.plan, self.costs, self.resources = plan, costs, resources
        self.measure, self.gate = measure, gate
        self.limit = math.inf if budget is None else budget * (1 + _ROUNDING)
        self.steps: list[Step] = []
        self.idle: list[tuple[LayerBits, LayerBits]] = []  # promotions that did not help, as (before, after)
        self.measured = self._measured(plan)

    def climb(self, max_rounds: int) -> str:
        """Promotes until the gate holds, and returns why it stopped."""
        while self.measured > self.gate:
            if len(self.steps) == max_rounds:
                return f"stopped after {max_rounds} promotions, the most that were allowed"
            candidates, unaffordable = self._candidates()
            if not candidates:
                return (
                    "no promotion fits into the budget any more"
                    if unaffordable
                    else "every layer that may be promoted has its largest number of bits"
                )
            _, name, after = min(candidates, key=lambda candidate: (-candidate[0], candidate[1]))
            self._promote(self.plan[name], after)
        return "the gate holds"

    def take_back(self) -> None:
        """Undoes promotions that did not help, last first, wherever the gate holds without them."""
        for before, after in reversed(self.idle):
            if self.plan[after.name] != after:
                continue  # Promoted further since, so it was needed on the way.
            candidate = self.plan.replaced(before)
            measured, earlier = self._measured(candidate), self.measured
            kept = measured <= self.gate
            outcome = "taken back, because the gate holds without it" if kept else "stays, because the gate needs it"
            self._record(after, before, earlier, measured, kept=kept, reason=f"promotion that did not help: {outcome}")
            if kept:
                self.plan, self.measured = candidate, measured

    def _promote(self, before: LayerBits, after: LayerBits) -> None:
        """Promotes one layer and measures."""
        gain = self.costs[before.name][before.num_bits] - self.costs[before.name][after.num_bits]
        self.plan, earlier = self.plan.replaced(after), self.measured
        self.measured = self._measured(self.plan)
        helped = self.measured < earlier
        if not helped:
            self.idle.append((before, after))
        outcome = "lowers the drift" if helped else "does not lower the drift by itself"
        reason = f"largest predicted gain for its resources ({gain:.3g} mm^2); {outcome}"
        self._record(before, after, earlier, self.measured, kept=True, reason=reason)

    def _candidates(self) -> tuple[list[tuple[float, str, LayerBits]], bool]:
        """Promotions within the budget by their gain per resource, and whether any did not fit."""
        counted = (layer for layer in self.plan.layers if layer.name in self.resources)
        used = math.fsum(self.resources[layer.name][layer.num_bits] for layer in counted)
        fitting, unaffordable = [], False
        for layer in self.plan.layers:
            larger = [bits for bits in self.costs.get(layer.name, {}) if bits > layer.num_bits]
            if not larger:
                continue
            bits, cost = min(larger), self.costs[layer.name]
            extra = self.resources[layer.name][bits] - self.resources[layer.name][layer.num_bits]
            if used + extra > self.limit:
                unaffordable = True
                continue
            gain = cost[layer.num_bits] - cost[bits]
            after = LayerBits(name=layer.name, num_bits=bits, reason=PROMOTED, score=cost[bits])
            fitting.append((gain / extra if extra > 0 else math.inf, layer.name, after))
        return fitting, unaffordable

    def _measured(self, plan: BitPlan) -> float:
        measured = self.measure(plan)
        if math.isnan(measured):
            raise InvalidInputError("measured drift must be a number, got NaN. Check the policy's actions.")
        return measured

    def _record(
        self, before: LayerBits, after: LayerBits, earlier: float, measured: float, *, kept: bool, reason: str
    ) -> None:
        self.steps.append(
            Step(
                layer=before.name,
                before_bits=before.num_bits,
                after_bits=after.num_bits,
                before=earlier,
                after=measured,
                kept=kept,
                reason=reason,
            )
        )
