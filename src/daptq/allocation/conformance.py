"""The public conformance suite of an allocation: its contract, checked on made-up layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from daptq.allocation.budget import Resource
from daptq.allocation.contract import AllocationMethod, Layers
from daptq.allocation.plan import BFLOAT16
from daptq.errors import require_check

__all__ = ["check_allocation"]

BLOCKS = 5
IDLE_BITS = 2
MIB = 2**20
KEPT = {"head.1.b": "folding", "elsewhere": "faster"}


def check_allocation(method: AllocationMethod) -> None:
    """Checks that a method, with settings that leave it a choice, keeps the contract of `AllocationMethod`.

    The made-up layers have about 4 MiB at 4 bits; a millisecond passes for each MiB.

    Raises:
        CheckFailedError: Something differs; the message names the first difference.
    """
    layers = _layers()
    method.check(layers)
    scores = _scores(layers, method) if method.needs.scores else {}
    for keep in ({}, KEPT) if method.keeps_layers else ({},):
        plan = method.allocate(layers, scores, keep)
        require_check(plan == method.allocate(layers, scores, keep), "a plan must be the same at each call")
        missing = sorted(set(layers.scored) - set(plan))
        require_check(not missing, f"a plan must decide about every layer, got none about {missing}")
        unknown = sorted(set(plan) - set(layers.role_bits))
        require_check(not unknown, f"a plan must decide about the given layers alone, got {unknown}")
        for name, decision in plan.items():
            allowed = {*method.candidate_bits, layers.role_bits[name], BFLOAT16, *layers.idle.values()}
            fits = decision.name == name and decision.num_bits in allowed
            require_check(fits, f"layer {name} must get bits among {sorted(allowed)}, got {decision}")
            kept = name not in keep or (decision.kept and decision.reason == keep[name])
            require_check(
                kept, f"layer {name} must stay in floating point for the reason {keep.get(name)}, got {decision}"
            )
        if method.budget is not None:
            bits = {name: (plan[name].num_bits if name in plan else layers.idle[name],) for name in layers.role_bits}
            needed = layers.measure(bits, method.budget.resource)
            used, most = sum(sum(row.values()) for row in needed.values()), method.budget.amount(layers.total_weights)
            require_check(used <= most * (1 + 1e-9), f"a plan must keep its budget of {most:.6g}, got {used:.6g}")


def _layers() -> Layers:
    names = [f"head.{block}.{part}" for block in range(BLOCKS) for part in ("a", "b", "c")]
    weights = {name: (1 + index % 4) * MIB // 4 for index, name in enumerate(names)}

    def measure(options: Mapping[str, tuple[int, ...]], per: Resource) -> dict[str, dict[int, float]]:
        unit = MIB if per == "ms" else 1
        return {name: {b: weights[name] * b / 8 / unit for b in several} for name, several in options.items()}

    return Layers(
        role_bits=dict.fromkeys(names, 4),
        idle={"head.2.c": IDLE_BITS},
        weights=weights,
        head_blocks=tuple(f"head.{block}" for block in range(BLOCKS)),
        measure=measure,
    )


def _scores(layers: Layers, method: AllocationMethod) -> dict[str, dict[int, float]]:
    """Scores that fall by a factor of 4 per bit, or the same at all bits for a method that needs no costs."""
    sizes = np.random.default_rng(0).lognormal(size=len(layers.scored))
    bits = sorted({*method.candidate_bits, *layers.role_bits.values(), BFLOAT16})
    falls = 1 if method.needs.costs else 0
    return {
        name: {b: 0.0 if b == BFLOAT16 else float(size) * 4.0 ** (-falls * b) for b in bits}
        for name, size in zip(layers.scored, sizes, strict=True)
    }
