"""CSRC within a class of maps: heads by themselves, one gain for every pair, no cross-channel part, no shift."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from daptq.compensation.contract import InterfaceSample
from daptq.compensation.csrc import CsrcConfig, solve
from daptq.interfaces.map_class import MapClass, belongs
from daptq.numerics.moments import Moments

HEADS, SIZE = 2, 4
CHANNELS = HEADS * SIZE


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and covariances in full precision and after quantization."""
    roots = [torch.eye(CHANNELS).double() + 0.3 * normal(CHANNELS, CHANNELS, seed=seed) for seed in (1, 2)]
    fp, q = (root @ root.mT for root in roots)
    return normal(CHANNELS, seed=3), fp, normal(CHANNELS, seed=4), q


def test_every_head_is_an_interface_of_its_own() -> None:
    mean_fp, cov_fp, mean_q, cov_q = statistics()
    maps = solve(mean_fp, cov_fp, mean_q, cov_q, CsrcConfig(), "affine-per-head", HEADS)
    assert list(maps) == ["per-channel", "cross-channel"]
    for head in range(HEADS):
        own = slice(head * SIZE, (head + 1) * SIZE)
        alone = solve(mean_fp[own], cov_fp[own, own], mean_q[own], cov_q[own, own], CsrcConfig())
        for name, affine in maps.items():
            assert torch.equal(affine.matrix[own, own], alone[name].matrix)
            assert torch.equal(affine.shift[own], alone[name].shift)
    assert all(belongs(affine, "affine-per-head", HEADS) for affine in maps.values())


def test_a_pair_has_the_ratio_of_its_standard_deviations() -> None:
    mean_fp, cov_fp, mean_q, cov_q = statistics()
    (affine,) = solve(mean_fp, cov_fp, mean_q, cov_q, CsrcConfig(epsilon=0.0), "rotary", HEADS).values()
    assert belongs(affine, "rotary", HEADS)
    for head in range(HEADS):
        for i in range(SIZE // 2):
            first, second = head * SIZE + i, head * SIZE + i + SIZE // 2
            fp, q = (float(cov[first, first] + cov[second, second]) for cov in (cov_fp, cov_q))
            expected = min(max(math.sqrt(fp / q), 0.5), 2.0)
            assert float(affine.matrix[first, first]) == pytest.approx(expected, rel=1e-12)
            assert float(affine.matrix[second, second]) == pytest.approx(expected, rel=1e-12)
    assert affine.is_diagonal


def test_a_gain_has_no_shift() -> None:
    given = statistics()
    (diagonal,), (gain,) = (solve(*given, CsrcConfig(), name).values() for name in ("diagonal", "gain"))
    whole = solve(*given, CsrcConfig())["per-channel"]
    assert torch.equal(diagonal.matrix, whole.matrix)
    assert torch.equal(diagonal.shift, whole.shift)
    assert torch.equal(gain.matrix, whole.matrix)
    assert not gain.shift.any()


@pytest.mark.parametrize("name", ["affine", "affine-per-head", "rotary", "diagonal", "gain"])
def test_the_configuration_solves_from_samples(name: MapClass) -> None:
    rows = [normal(50, CHANNELS, seed=seed) for seed in (5, 6)]
    samples = []
    for one in rows:
        moments = Moments(CHANNELS)
        moments.update(one)
        samples.append(InterfaceSample(rows=one, moments=moments))
    maps = CsrcConfig().solve(samples[0], samples[1], None, name, HEADS)
    means = [one.moments.mean for one in samples]
    expected = solve(
        means[0], samples[0].moments.covariance(), means[1], samples[1].moments.covariance(), CsrcConfig(), name, HEADS
    )
    assert maps.keys() == expected.keys()
    assert all(torch.equal(maps[key].matrix, expected[key].matrix) for key in maps)
    assert all(belongs(affine, name, HEADS) for affine in maps.values())
