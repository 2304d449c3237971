"""Solved maps are of the class that was asked for, and paired ones never fit worse than no map."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from daptq.compensation.contract import CompensationMethod, InterfaceSample
from daptq.compensation.csrc import CsrcConfig
from daptq.compensation.error import interface_error
from daptq.compensation.paired import PairedConfig
from daptq.interfaces.map_class import MapClass, belongs
from daptq.numerics.moments import Moments

CLASSES: tuple[MapClass, ...] = ("affine", "affine-per-head", "rotary", "diagonal", "gain")


def sample(rows: Tensor) -> InterfaceSample:
    moments = Moments(rows.shape[1])
    moments.update(rows)
    return InterfaceSample(rows=rows, moments=moments)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """Representations in full precision and quantized, a sensitivity, and a number of heads."""
    heads, half, rows = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 30))
    channels, generator = 2 * half * heads, torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    full, noise = (torch.randn(rows, channels, generator=generator).double() for _ in range(2))
    mixing, root = (torch.randn(channels, channels, generator=generator).double() for _ in range(2))
    scale = draw(st.floats(0.0, 2.0))
    root = root[:, : draw(st.integers(1, channels))]
    return full, full + scale * (noise + 0.3 * full @ mixing), root @ root.mT, heads


@given(case=cases(), name=st.sampled_from(CLASSES), paired=st.booleans(), ridge=st.floats(0.0, 1.0))
def test_maps_are_of_their_class_and_paired_ones_never_harm(
    case: tuple[Tensor, Tensor, Tensor, int], name: MapClass, paired: bool, ridge: float
) -> None:
    full, quantized, sensitivity, heads = case
    method: CompensationMethod = PairedConfig(ridge=ridge) if paired else CsrcConfig()
    maps = method.solve(sample(full), sample(quantized), sensitivity, name, heads)
    assert maps
    assert all(belongs(affine, name, heads) for affine in maps.values())
    if paired:
        for label, weight in (("paired, unweighted", None), ("paired", sensitivity)):
            before = interface_error(quantized, full, full.mean(0) + 1.0, weight)
            after = interface_error(maps[label](quantized), full, full.mean(0) + 1.0, weight)
            assert after <= before * (1 + 1e-9) + 1e-12
