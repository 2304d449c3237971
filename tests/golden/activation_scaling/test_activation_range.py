"""Ranges of layer inputs against sorted values, and the static scales made of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from daptq.activation_scaling.percentile import static_scale
from daptq.activation_scaling.static import StaticConfig
from daptq.calibration.activation_range import Histogram, observe_ranges
from daptq.errors import CalibrationDataError, InvalidInputError, RecipeError
from daptq.kernels.linear.arithmetic import quantize_activations
from daptq.policies.contract import DenoisingStep

magnitudes = st.floats(2.0**-40, 2.0**100, width=32)


def exact_percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed."""
    for candidate in sorted(values):
        if 100 * sum(value <= candidate for value in values) >= percent * len(values):
            return candidate
    raise AssertionError


@given(values=st.lists(magnitudes, min_size=1, max_size=40), percent=st.integers(1, 100), cut=st.integers(0, 40))
def test_percentile_is_exact_up_to_a_bin(values: list[float], percent: int, cut: int) -> None:
    whole, left, right = Histogram(), Histogram(), Histogram()
    whole.update(torch.tensor(values))
    left.update(torch.tensor(values[:cut]))
    right.update(torch.tensor(values[cut:]))
    left.merge(right)
    exact = exact_percentile(values, percent)
    assert exact <= whole.percentile(percent) <= exact * (1 + 1 / 64)
    assert whole.percentile(100) == whole.largest == max(values)
    assert left.percentile(percent) == whole.percentile(percent)
    assert (left.count, left.largest) == (whole.count, whole.largest)


def test_known_percentiles() -> None:
    histogram = Histogram()
    histogram.update(torch.arange(1000, dtype=torch.float32))
    histogram.update(torch.full((1,), 1e6))
    # 1001 values: the 1000th of them is 999; bins there are 8 wide.
    assert histogram.percentile(99.9) == 1000.0
    assert histogram.percentile(99.95) == 1e6
    tiny = Histogram()
    tiny.update(torch.tensor([0.0, 1e-45, 2.0**-41, 1.0]))
    assert tiny.percentile(50) == 2.0**-40 * (1 + 1 / 64)


def test_percentiles_that_cannot_be_are_refused() -> None:
    histogram = Histogram()
    histogram.update(torch.zeros(0))
    with pytest.raises(InvalidInputError, match="range must be taken from at least one value"):
        histogram.percentile(50)
    for percent in (0, -1, 100.1):
        with pytest.raises(InvalidInputError, match=r"percentile must lie in \(0, 100\]"):
            histogram.percentile(percent)
        with pytest.raises(RecipeError, match=r"percentile must lie in \(0, 100\]"):
            StaticConfig(percentile=percent)


class Net(nn.Module):
    """A layer before a denoising loop and one inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside, self.idle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.step = DenoisingStep()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.before(x)
        for index in range(3):
            self.step.index = index
            y = 3 * self.inside(y)
        return y


def test_ranges_of_layers_and_steps() -> None:
    net, batches = Net(), [torch.randn(5, 6, 4) * (seed + 1) for seed in range(4)]
    doubled = {"inside": lambda x: 2 * x}
    with torch.no_grad(), observe_ranges(net, ["before", "inside"], step=net.step, transforms=doubled) as ranges:
        outputs = [net(x) for x in batches]
    with torch.no_grad():
        assert all(torch.equal(net(x), y) for x, y in zip(batches, outputs, strict=True))
        inputs: list[list[Tensor]] = [[], [], []]
        for x in batches:
            y = net.before(x)
            for index in range(3):
                inputs[index].append(y.reshape(-1, 4))
                y = 3 * net.inside(y)
    rows = [torch.cat(parts) for parts in inputs]
    assert torch.equal(ranges.absmax("before"), torch.cat([x.reshape(-1, 4) for x in batches]).abs().amax(dim=0))
    assert torch.equal(ranges.absmax("inside"), torch.cat(rows).abs().amax(dim=0))
    table = ranges.percentile("inside", 90.0, steps=3)
    for value, row in zip(table.tolist(), rows, strict=True):
        exact = exact_percentile((2 * row).abs().flatten().tolist(), 90.0)
        assert exact <= value <= exact * (1 + 1 / 64)
    assert len(set(table.tolist())) == 3
    (single,) = ranges.percentile("inside", 90.0).tolist()
    exact = exact_percentile((2 * torch.cat(rows)).abs().flatten().tolist(), 90.0)
    assert exact <= single <= exact * (1 + 1 / 64)
    with pytest.raises(
        InvalidInputError, match=r"layer before must run in each of 3 denoising steps, got no call in \[1"
    ):
        ranges.percentile("before", 90.0, steps=3)
    with pytest.raises(InvalidInputError, match="layer idle must run while"):
        ranges.absmax("idle")
    with pytest.raises(InvalidInputError, match="layer idle must run while"):
        ranges.percentile("idle", 90.0)


def test_values_that_are_not_finite_are_refused() -> None:
    net = Net()
    with (
        observe_ranges(net, ["before"], step=net.step, transforms={}),
        pytest.raises(CalibrationDataError, match="inputs of layer before must be finite"),
    ):
        net(torch.full((2, 4), math.inf))


@pytest.mark.parametrize(("bits", "limit"), [(4, 7), (8, 127)])
def test_static_scale_puts_the_range_on_the_end_of_the_grid(bits: int, limit: int) -> None:
    ranges = torch.tensor([3.5, 0.0, 1e-45])
    scale = static_scale(ranges, bits)
    assert scale.tolist() == [float(torch.tensor(3.5 / limit)), 1.0, 1.0]
    integers, _ = quantize_activations(torch.tensor([[3.5, -3.5, 40.0, 0.0]]), bits, scale[0])
    assert integers.tolist() == [[limit, -limit, limit, 0]]
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(InvalidInputError, match="ranges must be finite and not negative"):
            static_scale(torch.tensor([1.0, wrong]), bits)
