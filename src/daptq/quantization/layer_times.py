"""What one product with each layer of a policy takes on this machine, and which layers are faster in floating point.

A layer is measured by itself, with random weights, at the number of rows that it multiplies at one observation. A plan
that depends on times depends on the machine that measured them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from daptq.allocation.plan import BFLOAT16
from daptq.layers.choices import MARGIN
from daptq.layers.timing import measure_layer_times
from daptq.layers.watching import watch
from daptq.observations import ACTION
from daptq.policies.contract import Policy
from daptq.quantization.recipe import Recipe

__all__ = ["FASTER", "faster_in_float", "layer_times", "rows_of_layers"]

FASTER = "faster"


def layer_times(policy: Policy, recipe: Recipe, options: Mapping[str, tuple[int, ...]]) -> dict[str, dict[int, float]]:
    """Median milliseconds of one product with each layer at each of its bits; layers that are alike are measured once.

    Args:
        policy: Full-precision policy.
        recipe: Gives groups, zero points and activations.
        options: Bits of each layer, 16 for bfloat16.
    """
    roles, rows, shapes = policy.linear_layers(), rows_of_layers(policy), _shapes(policy, options)
    bits = tuple(sorted({b for several in options.values() for b in several}))
    alike: dict[tuple[int, int], list[str]] = {}
    for name in options:
        alike.setdefault((rows[name], recipe.activation_bits.of(roles[name])), []).append(name)
    times: dict[str, dict[int, float]] = {}
    for (count, activation_bits), names in alike.items():
        measured = measure_layer_times(
            {shapes[name] for name in names},
            bits,
            count,
            group_size=recipe.rounding.group_size,
            asymmetric=recipe.rounding.asymmetric,
            activation_bits=activation_bits,
        )
        times |= {name: {b: measured[shapes[name]][b] for b in options[name]} for name in names}
    return {name: times[name] for name in options}


def faster_in_float(times: Mapping[str, Mapping[int, float]]) -> dict[str, str]:
    """Layers that bfloat16 multiplies faster, by more than 5 %, than any of their low bits, with that as the reason.

    Args:
        times: Milliseconds of each layer by bits, 16 among them.
    """
    return {
        name: FASTER
        for name, by_bits in times.items()
        if min(time for bits, time in by_bits.items() if bits != BFLOAT16) > MARGIN * by_bits[BFLOAT16]
    }


def rows_of_layers(policy: Policy) -> dict[str, int]:
    """Rows that each linear layer multiplies at one observation, the most of its calls; 1 if it is not called."""
    rows = dict.fromkeys(policy.linear_layers(), 1)

    def note(name: str, x: Tensor) -> None:
        rows[name] = max(rows[name], x.numel() // x.shape[-1])

    batch = {
        key: value[:1].to(policy.device) if isinstance(value, Tensor) else value[:1]
        for key, value in policy.example_batch(0).items()
        if key != ACTION
    }
    with watch(policy, rows, note), torch.inference_mode():
        policy.predict_chunk(batch, torch.Generator().manual_seed(0))
    return rows


def _shapes(policy: Policy, names: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of each layer."""
    layers: dict[str, Any] = {name: policy.get_submodule(name) for name in names}
    return {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
