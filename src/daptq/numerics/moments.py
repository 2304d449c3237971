"""Streaming mean and covariance in float64 that merge exactly (Chan, Golub and LeVeque 1979; Welford 1962).

Sums of squares are taken around the mean of what was seen so far, never around zero, so a mean of 1e6 with a standard
deviation of 1e-3 costs no digits. Merging two streams gives what one pass over both would have given, up to the last
few bits of float64. The module does not know where the samples come from.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Self

from daptq.errors import InvalidInputError

__all__ = ["Moments"]


class Moments:
    """Count, mean and covariance of a stream of vectors.

    Args:
        size: Number of channels d.
        device: Where the statistics are kept.

    Attributes:
        count: Number of samples seen.
        mean: float64 (d,), mean of the samples; zeros before the first.
    """

    def __init__(self, size: int, *, device: torch.device | str = "cpu") -> None:
        if size < 1:
            raise InvalidInputError(f"size of moments must be at least 1, got {size}. Give the number of channels.")
        self.count = 0
        self.mean: Float[Tensor, " d"] = torch.zeros(size, dtype=torch.float64, device=device)
        self._scatter: Float[Tensor, "d d"] = torch.zeros(size, size, dtype=torch.float64, device=device)

    @property
    def size(self) -> int:
        """Number of channels d."""
        return len(self.mean)

    def update(self, samples: Float[Tensor, "n d"]) -> None:
        """Takes in n samples, any floating dtype, n may be 0.

        Raises:
            InvalidInputError: The samples are no matrix with d columns, or not finite. Nothing was taken in.
        """
        if samples.dim() != 2 or samples.shape[1] != self.size:
            raise InvalidInputError(
                f"samples must have shape (n, {self.size}), got {tuple(samples.shape)}. Flatten batch and tokens."
            )
        if not bool(torch.isfinite(samples).all()):
            raise InvalidInputError("samples must be finite, got NaN or infinity. Check the model and its inputs.")
        if len(samples) == 0:
            return
        exact = samples.detach().to(device=self.mean.device, dtype=torch.float64)
        mean = exact.mean(dim=0)
        centred = exact - mean
        self._combine(len(exact), mean, centred.mT @ centred)

    def merge(self, other: Moments) -> None:
        """Takes in everything that `other` has seen.

        Raises:
            InvalidInputError: The two have different numbers of channels.
        """
        if other.size != self.size:
            raise InvalidInputError(
                f"moments to merge must have {self.size} channels, got {other.size}. Merge those of the same interface."
            )
        if other.count:
            device = self.mean.device
            self._combine(other.count, other.mean.to(device), other._scatter.to(device))

    def weighted(self, count: int) -> Self:
        """The same mean and covariance as if they were of `count` samples, at least 1.

        Raises:
            InvalidInputError: `count` is less than 1, or no sample has been seen.
        """
        if count < 1:
            raise InvalidInputError(f"count of weighted moments must be at least 1, got {count}. Leave them out.")
        scatter = self.covariance() * count
        return type(self).from_tensors({"count": torch.tensor(count), "mean": self.mean, "scatter": scatter})

    def covariance(self) -> Float[Tensor, "d d"]:
        """Covariance of the samples, divided by their number, float64 (d, d), symmetric.

        Raises:
            InvalidInputError: No sample has been seen.
        """
        if self.count == 0:
            raise InvalidInputError("covariance must be of at least one sample, got none. Update the moments first.")
        return (self._scatter + self._scatter.mT) / (2 * self.count)

    def std(self) -> Float[Tensor, " d"]:
        """Standard deviation of each channel, float64 (d,).

        Raises:
            InvalidInputError: No sample has been seen.
        """
        return self.covariance().diagonal().clamp_min(0).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that `from_tensors` needs, to be stored."""
        count = torch.tensor(self.count, dtype=torch.int64)
        return {"count": count, "mean": self.mean.clone(), "scatter": self._scatter.clone()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The moments that `tensors` described, bit for bit."""
        moments = cls(len(tensors["mean"]), device=tensors["mean"].device)
        moments.count = int(tensors["count"])
        moments.mean = tensors["mean"].to(torch.float64, copy=True)
        moments._scatter = tensors["scatter"].to(torch.float64, copy=True)
        return moments

    def _combine(self, count: int, mean: Float[Tensor, " d"], scatter: Float[Tensor, "d d"]) -> None:
        """Chan's formula for the union of two sets of samples."""
        total = self.count + count
        difference = mean - self.mean
        weight = self.count * count / total
        self._scatter = self._scatter + scatter + weight * torch.outer(difference, difference)
        self.mean = self.mean + difference * (count / total)
        self.count = total
