"""The bit map: the bits of every linear layer, by role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from daptq.evaluation.description import LinearLayer
from daptq.evaluation.result import EvaluationResult, PolicyResult
from daptq.report.elements import Section
from daptq.report.labels import PolicyLabels
from daptq.report.wording import readable

LOW_BITS = 4
MIDDLE_BITS = 8
KEPT_BITS = 16


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One layer: its bits, their shade, and its name, which shows when pointed at."""

    bits: int
    shade: str
    title: str


@dataclass(frozen=True, kw_only=True)
class RoleBits:
    """Neighbouring layers of one role.

    Attributes:
        role: The role in words.
        counts: How many layers have which bits.
        cells: The layers in the order in which they run.
    """

    role: str
    counts: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class PolicyBits:
    """The layers of a policy.

    Attributes:
        policy: Its label.
        mean_bits: Mean bits per weight without scales.
        layers: Number of layers.
        floating_point: Bits of all layers, where the policy is in floating point.
        roles: The layers by role; empty where the policy is in floating point.
    """

    policy: str
    mean_bits: float
    layers: int
    floating_point: int | None
    roles: tuple[RoleBits, ...]


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """The layers of every policy, and the shades of their cells with what they mean."""

    shades: tuple[tuple[str, str], ...]
    policies: tuple[PolicyBits, ...]


def layer_bits_section(result: EvaluationResult, labels: PolicyLabels) -> Section:
    """Bits of every linear layer, by role, in the order in which they run."""
    shades = (("low", f"{LOW_BITS} bits or fewer"), ("middle", f"up to {MIDDLE_BITS}"), ("high", "more"))
    policies = tuple(_policy(labels.label(policy.name), policy.layers) for policy in result.policies)
    view = LayerBits(shades=shades, policies=policies)
    title = "Bits of each linear layer"
    return Section(anchor="bits", link="Bits", title=title, template="layer_bits.html", view=view)


def is_quantized(policy: PolicyResult) -> bool:
    """Whether a policy has layers of fewer bits than are kept in floating point."""
    return any(layer.num_bits < KEPT_BITS for layer in policy.layers)


def _policy(label: str, layers: Sequence[LinearLayer]) -> PolicyBits:
    widths = {layer.num_bits for layer in layers}
    whole = min(widths) if len(widths) == 1 and min(widths) >= KEPT_BITS else None
    groups = [(role, list(group)) for role, group in groupby(layers, key=lambda layer: layer.role)]
    weights = sum(layer.parameters for layer in layers)
    bits = sum(layer.parameters * layer.num_bits for layer in layers)
    return PolicyBits(
        policy=label,
        mean_bits=bits / max(1, weights),
        layers=len(layers),
        floating_point=whole,
        roles=() if whole is not None else tuple(_role(role, group) for role, group in groups),
    )


def _role(role: str, layers: Sequence[LinearLayer]) -> RoleBits:
    counts = sorted(Counter(layer.num_bits for layer in layers).items())
    return RoleBits(
        role=readable(role),
        counts=", ".join(f"{count} at {bits} bits" for bits, count in counts),
        cells=tuple(_cell(layer) for layer in layers),
    )


def _cell(layer: LinearLayer) -> Cell:
    bits = layer.num_bits
    shade = "low" if bits <= LOW_BITS else "middle" if bits <= MIDDLE_BITS else "high"
    return Cell(bits=bits, shade=shade, title=f"{layer.name}: {bits} bits, {layer.parameters} weights")
