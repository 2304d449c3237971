"""The public conformance suite of a compensation: its contract, checked on made-up representations."""

from __future__ import annotations

from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.compensation.contract import CompensationMethod, InterfaceSample
from daptq.errors import CheckFailedError, InvalidInputError, require_check
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.map_class import MapClass, belongs
from daptq.numerics.moments import Moments

__all__ = ["check_compensation"]

ROWS, HEADS, CHANNELS = 60, 2, 8

# Largest entry of a map for equal representations beside the identity, and of a difference of means, both of numbers
# of size 1. A constant that keeps a method's divisions finite shows here.
TOLERANCE = 1e-5


def check_compensation(method: CompensationMethod) -> None:
    """Checks that a method keeps the contract of `CompensationMethod`, for every class of maps.

    Beside the contract it asks what every map must do: leave equal representations alone and, where the class has
    shifts, bring the mean of the quantized representation to that in full precision.

    Raises:
        CheckFailedError: Something differs; the message names the first difference.
    """
    full, quantized = _rows(), _rows(quantized=True)
    sensitivity = _sensitivity() if method.needs.interface_sensitivities else None
    for map_class in get_args(MapClass):
        maps = _solved(method, full, quantized, sensitivity, map_class)
        again = _solved(method, full, quantized, sensitivity, map_class)
        require_check(bool(maps) and "none" not in maps, f"maps must have names other than none, got {sorted(maps)}")
        require_check(list(maps) == list(again), "maps must have the same names at each call")
        for name, affine in maps.items():
            place = f"map {name!r} of the class {map_class!r}"
            fits = affine.matrix.dtype == affine.shift.dtype == torch.float64 and len(affine.shift) == CHANNELS
            require_check(fits, f"{place} must be float64 of {CHANNELS} channels")
            finite = bool(torch.isfinite(affine.matrix).all() and torch.isfinite(affine.shift).all())
            require_check(finite, f"{place} must be finite")
            require_check(belongs(affine, map_class, HEADS), f"{place} must be of this class")
            same = torch.equal(affine.matrix, again[name].matrix) and torch.equal(affine.shift, again[name].shift)
            require_check(same, f"{place} must be the same at each call")
            if map_class in ("affine", "affine-per-head", "diagonal"):
                off = float((affine(quantized).mean(dim=0) - full.mean(dim=0)).abs().max())
                require_check(off <= TOLERANCE, f"{place} must bring the means together, which stay {off:.3g} apart")
        for name, affine in _solved(method, full, full, sensitivity, map_class).items():
            identity = torch.eye(CHANNELS, dtype=torch.float64)
            moved = max(float((affine.matrix - identity).abs().max()), float(affine.shift.abs().max()))
            require_check(
                moved <= TOLERANCE,
                f"map {name!r} of the class {map_class!r} must leave equal representations alone, moved by {moved:.3g}",
            )
    _check_refusals(method, full, sensitivity)


def _check_refusals(
    method: CompensationMethod, full: Float[Tensor, "n d"], sensitivity: Float[Tensor, "d d"] | None
) -> None:
    wrong = {
        "samples of different width": (full[:, : CHANNELS // 2], sensitivity),
        "samples of different states": (full[: ROWS // 2], sensitivity),
    }
    if sensitivity is not None:
        wrong["a missing sensitivity"] = (full, None)
    for what, (other, given) in wrong.items():
        try:
            _solved(method, full, other, given, "affine")
        except InvalidInputError:
            continue
        raise CheckFailedError(f"{what} must be refused with an InvalidInputError.")


def _solved(
    method: CompensationMethod,
    full: Float[Tensor, "n d"],
    quantized: Float[Tensor, "n d"],
    sensitivity: Float[Tensor, "d d"] | None,
    map_class: MapClass,
) -> dict[str, AffineMap]:
    """What the method solves; fails when it changes what it is lent."""
    lent = [full.clone(), quantized.clone()]
    maps = method.solve(_sample(lent[0]), _sample(lent[1]), sensitivity, map_class, HEADS)
    require_check(torch.equal(lent[0], full) and torch.equal(lent[1], quantized), "samples must stay as they are")
    return maps


def _sample(rows: Float[Tensor, "n d"]) -> InterfaceSample:
    moments = Moments(rows.shape[1])
    moments.update(rows)
    return InterfaceSample(rows=rows, moments=moments)


def _rows(*, quantized: bool = False) -> Float[Tensor, "n d"]:
    """Correlated channels of size 1; quantized ones are mixed a little, noisy and off their mean."""
    generator = torch.Generator().manual_seed(0)
    mixing, error = (torch.randn(CHANNELS, CHANNELS, generator=generator).double() for _ in range(2))
    rows, noise = (torch.randn(ROWS, CHANNELS, generator=generator).double() for _ in range(2))
    full = rows + 0.3 * rows @ mixing
    return full + 0.2 * noise + 0.1 * full @ error + 0.5 if quantized else full


def _sensitivity() -> Float[Tensor, "d d"]:
    """Positive definite, with directions that count and others that hardly do."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(CHANNELS, CHANNELS, generator=generator).double() * torch.logspace(-1, 1, CHANNELS).double()
    return root @ root.mT
