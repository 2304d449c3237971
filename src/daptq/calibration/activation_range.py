"""Watches the range of the inputs of linear layers while a policy runs, and changes nothing.

The largest magnitude of every channel is exact. Percentiles of |x| come from a histogram with 64 bins to the octave
whose edges are the float32 numbers with six bits of fraction, so no value ever falls into the wrong bin: a percentile
is never less than the exact one and at most 1/64 more. Magnitudes below 2^-40 count as 2^-40. Nothing but the counts is
kept, however long the stream. The module does not know how many bits an activation will have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from daptq.errors import CalibrationDataError, InvalidInputError
from daptq.layers.watching import watch
from daptq.policies.contract import DenoisingStep

__all__ = ["ActivationRanges", "Histogram", "observe_ranges"]

# Bits of a float32 below the six leading ones of its fraction, and the number of the bin that starts at 2^-40.
_DROPPED = 23 - 6
_FIRST = (127 - 40) << 6


class Histogram:
    """Counts of magnitudes.

    Attributes:
        count: Number of values seen.
        largest: Largest magnitude seen, exact; 0 before the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.largest = 0.0
        self._bins: Int[Tensor, " bins"] = torch.zeros(0, dtype=torch.int64)

    def update(self, magnitudes: Float[Tensor, "*shape"]) -> None:
        """Takes in float32 values that are finite and not negative."""
        if magnitudes.numel() == 0:
            return
        self.count += magnitudes.numel()
        self.largest = max(self.largest, float(magnitudes.max()))
        # Read as integers, positive floats keep their order.
        numbers = (magnitudes.contiguous().view(torch.int32) >> _DROPPED).sub_(_FIRST).clamp_min_(0)
        bins = torch.bincount(numbers.flatten()).cpu()
        length = max(len(bins), len(self._bins))
        self._bins = _padded(self._bins, length) + _padded(bins, length)

    def merge(self, other: Histogram) -> None:
        """Takes in everything that `other` has seen."""
        length = max(len(self._bins), len(other._bins))
        self._bins = _padded(self._bins, length) + _padded(other._bins, length)
        self.count += other.count
        self.largest = max(self.largest, other.largest)

    def percentile(self, percent: float) -> float:
        """A magnitude that at least `percent` of all values do not exceed.

        Args:
            percent: More than 0, at most 100; 100 gives the largest magnitude.

        Returns:
            At least the smallest such magnitude and at most 1/64 more, and never more than the largest one seen.

        Raises:
            InvalidInputError: `percent` is out of range, or nothing was seen.
        """
        if not 0 < percent <= 100:
            raise InvalidInputError(f"percentile must lie in (0, 100], got {percent}. Choose for example 99.9.")
        if self.count == 0:
            raise InvalidInputError("range must be taken from at least one value, got none. Run the layer first.")
        # Rounded first: 99.9 % of 1000 values are 999, whatever the last bit of the product says.
        rank = min(self.count, math.ceil(round(percent / 100 * self.count, 6)))
        number = int((self._bins.cumsum(0) < rank).sum())
        if number == len(self._bins) - 1:
            return self.largest
        edge = torch.tensor((number + 1 + _FIRST) << _DROPPED, dtype=torch.int32).view(torch.float32)
        return min(float(edge), self.largest)


class ActivationRanges:
    """Ranges of the inputs of layers."""

    def __init__(self) -> None:
        self._absmax: dict[str, Float[Tensor, " in"]] = {}
        self._steps: dict[str, dict[int, Histogram]] = {}

    def add(self, name: str, x: Float[Tensor, "n in"], quantized: Float[Tensor, "n in"], step: int) -> None:
        """Takes in the input of one forward.

        Args:
            name: The layer.
            x: Float (n, in), its input.
            quantized: Float (n, in), what the layer quantizes in its place.
            step: Denoising step, counted from 0.

        Raises:
            CalibrationDataError: A value is not finite. Nothing was taken in.
        """
        magnitudes = quantized.to(torch.float32).abs()
        absmax = x.to(torch.float32).abs().amax(dim=0)
        if not bool(torch.isfinite(absmax).all() & torch.isfinite(magnitudes).all()):
            raise CalibrationDataError(f"inputs of layer {name} must be finite, got other values. Check the batch.")
        self._absmax[name] = torch.maximum(self._absmax[name], absmax) if name in self._absmax else absmax
        self._steps.setdefault(name, {}).setdefault(step, Histogram()).update(magnitudes)

    def absmax(self, name: str) -> Float[Tensor, " in"]:
        """Largest |x| of each input channel, float32 (in,), before any transform.

        Raises:
            InvalidInputError: The layer was not seen.
        """
        self._require_seen(name)
        return self._absmax[name]

    def percentile(self, name: str, percent: float, *, steps: int = 1) -> Float[Tensor, " steps"]:
        """The percentile of what the layer quantizes.

        Args:
            name: The layer.
            percent: More than 0, at most 100.
            steps: 1 for one range over everything that was seen, otherwise the number of denoising steps, for one range
                in each.

        Returns:
            float32 (steps,), at least the exact percentile and at most 1/64 more.

        Raises:
            InvalidInputError: The layer was not seen, or not in every denoising step.
        """
        self._require_seen(name)
        histograms = self._steps[name]
        if steps == 1:
            whole = Histogram()
            for histogram in histograms.values():
                whole.merge(histogram)
            return torch.tensor([whole.percentile(percent)], dtype=torch.float32)
        if missing := sorted(set(range(steps)) - set(histograms)):
            raise InvalidInputError(
                f"layer {name} must run in each of {steps} denoising steps, got no call in {missing}. Ask for one "
                "range, or observe the whole denoising loop."
            )
        return torch.tensor([histograms[step].percentile(percent) for step in range(steps)], dtype=torch.float32)

    def _require_seen(self, name: str) -> None:
        if name not in self._absmax:
            raise InvalidInputError(
                f"layer {name} must run while its inputs are observed, got no call of it. Observe it while the policy "
                "runs."
            )


@contextmanager
def observe_ranges(
    policy: nn.Module,
    names: Sequence[str],
    *,
    step: DenoisingStep,
    transforms: Mapping[str, Callable[[Float[Tensor, "n in"]], Float[Tensor, "n in"]]],
) -> Iterator[ActivationRanges]:
    """Within the block, every run of the named layers adds to the ranges of their inputs.

    Args:
        policy: The policy to watch; its outputs are not changed, and the hooks are gone after the block.
        names: Module paths of linear layers.
        step: The policy's denoising step. A layer outside the denoising loop runs at whatever step the loop was left
            in: ask for one range of such a layer.
        transforms: What a layer will do to its input before it quantizes it, by module path; nothing where missing.
    """
    ranges = ActivationRanges()

    def add(name: str, values: Tensor) -> None:
        x = values.detach().reshape(-1, values.shape[-1])
        ranges.add(name, x, transforms[name](x) if name in transforms else x, step.index)

    with watch(policy, names, add):
        yield ranges


def _padded(bins: Int[Tensor, " bins"], length: int) -> Int[Tensor, " length"]:
    return nn.functional.pad(bins, (0, length - len(bins)))
