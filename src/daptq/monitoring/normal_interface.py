"""What is normal at one interface: mean and covariance of its representation in episodes that count as normal.

The distance of an episode is the mean over its predictions of the squared Mahalanobis distance from the mean of the
fitted episodes with the same instruction, under the covariance of single representations within instructions. What an
episode is about (where the objects lie) moves a representation along directions of large variance, a changed camera off
them too, and those weigh most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.numerics.moments import Moments

__all__ = ["NormalInterface"]

RIDGE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class NormalInterface:
    """Statistics of normal episodes.

    Attributes:
        moments: Mean and covariance of single representations, by instruction.
        fitted: The same of the episodes that distances are measured from.
        spread: float64 (d,), standard deviation of the mean of an episode within instructions.
    """

    moments: Mapping[str, Moments]
    fitted: Mapping[str, Moments]
    spread: Float[Tensor, " d"]

    @classmethod
    def of(cls, groups: Mapping[str, Sequence[Moments]]) -> NormalInterface:
        """From the moments of every episode, by instruction; every other one is fitted."""
        means = [torch.stack([one.mean for one in group]) for group in groups.values()]
        squares = sum((rows - rows.mean(dim=0)).square().sum(dim=0) for rows in means)
        episodes = sum(len(group) for group in groups.values())
        return cls(
            moments={name: _merged(group) for name, group in groups.items()},
            fitted={name: _merged(group[0::2]) for name, group in groups.items()},
            spread=torch.as_tensor(squares / (episodes - len(groups))).sqrt(),
        )

    def distance(self, episode: Moments, instruction: str) -> float:
        """How far an episode is from what is normal; see the module."""
        error = episode.mean - self.fitted[instruction].mean
        within = (self._precision * episode.covariance()).sum()
        return float(within + error @ self._precision @ error)

    def moved(self, episode: Moments, instruction: str) -> Float[Tensor, " d"]:
        """By how many standard deviations of an episode's mean each channel has moved, with its sign."""
        change = episode.mean - self.moments[instruction].mean
        return torch.where(change == 0, 0.0, change / self.spread)  # a channel that never varies has not moved

    def mixed(self, counts: Mapping[str, int]) -> Moments:
        """Moments of a mixture of instructions.

        Args:
            counts: Number of representations of each instruction in the mixture; only their ratios matter.
        """
        total = Moments(len(self.spread))
        for instruction, count in counts.items():
            total.merge(self.moments[instruction].weighted(count))
        return total

    @cached_property
    def _precision(self) -> Float[Tensor, "d d"]:
        count = sum(moments.count for moments in self.fitted.values())
        pooled = sum(moments.covariance() * (moments.count / count) for moments in self.fitted.values())
        covariance = torch.as_tensor(pooled)
        # With fewer predictions than channels some directions have no variance: the ridge keeps their weight finite.
        ridge = RIDGE * float(covariance.diagonal().mean()) + torch.finfo(torch.float64).tiny
        precision: Tensor = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64))
        return precision


def _merged(group: Sequence[Moments]) -> Moments:
    total = Moments(group[0].size)
    for moments in group:
        total.merge(moments)
    return total
