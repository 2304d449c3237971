"""Keeps the most sensitive fraction of the layers in floating point (arXiv 2604.11572, eq. 20).

    b_l = BF16 if l is among the top k % by phi_l, else W4

The paper leaves open whether "k % of the layers" counts layers or parameters (both are selectable) and how the layers
that are never quantized enter: here the ranking runs over all layers, and the layers of `keep` are kept in addition,
so the number of layers kept *for their score* never exceeds the fraction. The module does not know where the scores
come from.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from daptq.allocation.contract import AllocationMethod, Layers
from daptq.allocation.plan import BFLOAT16, BitPlan, LayerBits
from daptq.errors import InvalidInputError, RecipeError, require_one_of
from daptq.methods import Needs

__all__ = ["ALLOCATION", "TopFractionConfig", "allocate"]

By = Literal["count", "parameters"]
Scope = Literal["action_head", "all"]

# A fraction such as 0.29 has no exact binary form: 0.29 * 100 is 28.999999999999996 and means 29.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class TopFractionConfig(AllocationMethod):
    """Settings of eq. 20.

    Attributes:
        fraction: Fraction of the layers in scope that stay BF16 for their score, in [0, 1].
        by: Whether the fraction counts layers or parameters.
        keep_last_blocks: Number of last transformer blocks of the action head that are never quantized.
        scope: Which layers are ranked: those of the action head (Algorithm 1), or every layer to be quantized.
    """

    method: ClassVar[str] = "top-fraction"

    fraction: float = 0.3
    by: By = "count"
    keep_last_blocks: int = 2
    scope: Scope = "action_head"

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise RecipeError(f"keep_fraction must be between 0 and 1, got {self.fraction}. The paper keeps 0.3.")
        require_one_of("by", self.by, get_args(By), RecipeError)
        if self.keep_last_blocks < 0:
            raise RecipeError(f"keep_last_blocks must be at least 0, got {self.keep_last_blocks}. The paper keeps 2.")
        require_one_of("scope", self.scope, get_args(Scope), RecipeError)

    @property
    def needs(self) -> Needs:
        """A score of every layer."""
        return Needs(scores=True)

    @property
    def head_only(self) -> bool:
        """As the scope says."""
        return self.scope == "action_head"

    def allocate(
        self, layers: Layers, scores: Mapping[str, Mapping[int, float]], keep: Mapping[str, str]
    ) -> dict[str, LayerBits]:
        """Ranks the layers by their score at the bits of their role, see the function `allocate`."""
        names = layers.scored
        kept_blocks = layers.head_blocks[max(len(layers.head_blocks) - self.keep_last_blocks, 0) :]
        last = [n for n in names if any(n == block or n.startswith(f"{block}.") for block in kept_blocks)]
        reasons = {**dict.fromkeys(last, "last block"), **{n: keep[n] for n in names if n in keep}}
        plan = allocate(
            {name: scores[name][layers.role_bits[name]] for name in names},
            self.fraction,
            bits=layers.role_bits,
            keep=reasons,
            by=self.by,
            sizes=layers.weights,
        )
        return {decision.name: decision for decision in plan.layers}


ALLOCATION = TopFractionConfig


def allocate(
    scores: Mapping[str, float],
    fraction: float,
    *,
    bits: Mapping[str, int],
    keep: Mapping[str, str] | Collection[str] = (),
    by: By = "count",
    sizes: Mapping[str, int] | None = None,
) -> BitPlan:
    """Keeps the top `fraction` of the layers by score in BF16, eq. 20; each of the rest gets its bits.

    Ties are broken by name, so the plan does not depend on the order of `scores`.

    Args:
        scores: Sensitivity phi of each layer, finite.
        fraction: Largest fraction that is kept for its score, in [0, 1].
        bits: Bits of each layer if it is not kept.
        keep: Layers that are kept whatever their score; a mapping gives the reason for each, otherwise ``"always"``.
        by: ``"count"`` keeps the first floor(fraction * n) layers of the ranking; ``"parameters"`` the longest prefix
            of the ranking whose sizes sum up to at most the fraction of all sizes.
        sizes: Number of weights of each layer; needed for ``"parameters"``.

    Returns:
        A plan for the layers of `scores`, in their order; reasons are ``"score"``, ``"rest"`` and those of `keep`.

    Raises:
        InvalidInputError: The fraction is outside [0, 1], a score is not finite, `keep` names a layer without score, or
            sizes are missing.
    """
    if not 0 <= fraction <= 1:
        raise InvalidInputError(f"fraction must be between 0 and 1, got {fraction}. Choose for example 0.3.")
    require_one_of("by", by, get_args(By))
    if bad := sorted(name for name, score in scores.items() if not math.isfinite(score)):
        raise InvalidInputError(f"scores must be finite, got NaN or infinity for {bad}. Check the calibration data.")
    reasons = dict(keep) if isinstance(keep, Mapping) else dict.fromkeys(keep, "always")
    if unknown := sorted(set(reasons) - set(scores)):
        raise InvalidInputError(f"layers to keep must have a score, got {unknown} without one. Check the names.")
    ranking = sorted(scores, key=lambda name: (-scores[name], name))
    top = set(ranking[: _prefix(ranking, fraction, by, sizes)])

    def decide(name: str) -> LayerBits:
        if name in reasons:
            return LayerBits(name=name, num_bits=BFLOAT16, reason=reasons[name], score=scores[name])
        if name in top:
            return LayerBits(name=name, num_bits=BFLOAT16, reason="score", score=scores[name])
        return LayerBits(name=name, num_bits=bits[name], reason="rest", score=scores[name])

    return BitPlan(tuple(decide(name) for name in scores))


def _prefix(ranking: list[str], fraction: float, by: By, sizes: Mapping[str, int] | None) -> int:
    """Length of the prefix of the ranking that the fraction allows."""
    if by == "count":
        return math.floor(fraction * len(ranking) + _ROUNDING)
    if sizes is None or set(ranking) - set(sizes):
        raise InvalidInputError("sizes must be given for every layer when by is 'parameters', got none. Pass sizes.")
    allowed = fraction * sum(sizes[name] for name in ranking) * (1 + _ROUNDING)
    used, length = 0, 0
    for name in ranking:
        used += sizes[name]
        if used > allowed:
            break
        length += 1
    return length
