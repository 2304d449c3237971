"""The calibration set of a monitor: what passes a policy's interface in episodes that count as normal.

It is taken from the policy that will run, quantized or not, in closed loop: demonstrations visit other states, and
states drawn one by one say nothing of how far a whole episode strays. Half of the episodes of every instruction choose
the score, the other half say which scores are normal.

The score of an episode is the mean over its predictions of the squared Mahalanobis distance from the mean of the fitted
episodes with the same instruction, under the covariance of single representations within instructions. What an episode
is about (where the objects lie) moves a representation along directions of large variance, a changed camera off them
too, and those weigh most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.artifacts import provenance, read_artifact, write_artifact
from daptq.closed_loop.interface_stream import EpisodeStream, Reading, only_interface
from daptq.errors import InvalidInputError
from daptq.numerics.moments import Moments
from daptq.policies.contract import Policy

__all__ = ["REFERENCE_KIND", "InterfaceReference"]

REFERENCE_KIND = "interface-reference"
LEAST_EPISODES = 4
RIDGE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class InterfaceReference:
    """What is normal at one interface.

    Attributes:
        observed: Module path that names the interface.
        moments: Mean and covariance of single representations, by instruction.
        fitted: The same of the episodes that choose the score.
        scores: Scores of the other episodes, by instruction.
        spread: float64 (d,), standard deviation of the mean of an episode within instructions.
        episodes: Number of episodes.
    """

    observed: str
    moments: Mapping[str, Moments]
    fitted: Mapping[str, Moments]
    scores: Mapping[str, Sequence[float]]
    spread: Float[Tensor, " d"]
    episodes: int

    @classmethod
    def of(cls, observed: str, episodes: Sequence[EpisodeStream]) -> InterfaceReference:
        """The reference that these episodes make.

        Raises:
            InvalidInputError: There are fewer than four episodes of an instruction.
        """
        groups: dict[str, list[Moments]] = {}
        for episode in episodes:
            groups.setdefault(episode.instruction, []).append(episode.moments)
        few = {instruction: len(group) for instruction, group in groups.items() if len(group) < LEAST_EPISODES}
        if few or not groups:
            raise InvalidInputError(
                f"a reference must hold at least {LEAST_EPISODES} episodes of every instruction, got {few}. Run more."
            )
        fitted = {name: _merged(group[0::2]) for name, group in groups.items()}
        means = {name: torch.stack([one.mean for one in group]) for name, group in groups.items()}
        squares = sum((rows - rows.mean(dim=0)).square().sum(dim=0) for rows in means.values())
        score = _Score(fitted)
        return cls(
            observed=observed,
            moments={name: _merged(group) for name, group in groups.items()},
            fitted=fitted,
            scores={name: [score(one, name) for one in group[1::2]] for name, group in groups.items()},
            spread=torch.as_tensor(squares / (len(episodes) - len(groups))).sqrt(),
            episodes=len(episodes),
        )

    def score(self, episode: EpisodeStream) -> float:
        """How strange an episode is; see the module.

        Raises:
            InvalidInputError: No episode of the reference had this instruction.
        """
        self.require(episode.instruction)
        return self._score(episode.moments, episode.instruction)

    @cached_property
    def _score(self) -> _Score:
        return _Score(self.fitted)

    def reading(self, episode: EpisodeStream) -> Reading:
        """How an episode differs from what is normal.

        Raises:
            InvalidInputError: No episode of the reference had this instruction.
        """
        score = self.score(episode)
        change = episode.moments.mean - self.moments[episode.instruction].mean
        moved = torch.where(change == 0, 0.0, change / self.spread)  # a channel that never varies has not moved
        channel = int(moved.abs().argmax())
        return Reading(instruction=episode.instruction, score=score, channel=channel, moved=float(moved[channel]))

    def require_interface(self, policy: Policy) -> None:
        """Refuses a policy whose interface is another one.

        Raises:
            InvalidInputError: It is such a one, or has none or several.
        """
        observed = only_interface(policy).name
        if observed != self.observed:
            raise InvalidInputError(
                f"reference must be of the interface {observed}, got {self.observed}. Take one from this policy."
            )

    def require(self, instruction: str) -> None:
        """Refuses an instruction that no episode of the reference had.

        Raises:
            InvalidInputError: It is such a one.
        """
        if instruction not in self.moments:
            known = ", ".join(map(repr, self.moments))
            raise InvalidInputError(
                f"instruction must be one of the reference, {known}, got {instruction!r}. Take a reference with it."
            )

    def mixed(self, counts: Mapping[str, int]) -> Moments:
        """Moments of a mixture of instructions.

        Args:
            counts: Number of representations of each instruction in the mixture; only their ratios matter.

        Raises:
            InvalidInputError: No episode of the reference had one of the instructions.
        """
        for instruction in counts:
            self.require(instruction)
        total = Moments(len(self.spread))
        for instruction, count in counts.items():
            total.merge(self.moments[instruction].weighted(count))
        return total

    def save(self, directory: Path, *, seed: int | None = None) -> Path:
        """Writes the reference as a folder.

        Args:
            directory: Folder to create; may exist when empty.
            seed: Seed of the episodes, for the provenance.

        Raises:
            OutputExistsError: `directory` exists and is not empty.
            OutputWriteError: The disk refused a write.
        """
        content = [("spread", self.spread)]
        for label, group in (("moments", self.moments), ("fitted", self.fitted)):
            for index, moments in enumerate(group.values()):
                content += [(f"{label}/{index}/{key}", value) for key, value in moments.tensors().items()]
        metadata = {
            "observed": self.observed,
            "scores": {name: list(scores) for name, scores in self.scores.items()},
            "episodes": self.episodes,
            "provenance": provenance(seed=seed),
        }
        write_artifact(directory, kind=REFERENCE_KIND, tensors=iter(content), metadata=metadata)
        return directory

    @classmethod
    def load(cls, directory: Path) -> InterfaceReference:
        """The reference in a folder that `save` wrote.

        Raises:
            ForeignArtifactError: The folder holds something else.
            ArtifactError: The folder is damaged or incomplete.
        """
        artifact = read_artifact(directory, kind=REFERENCE_KIND)
        data = artifact.metadata

        def group(label: str) -> dict[str, Moments]:
            return {
                name: Moments.from_tensors(
                    {key: artifact.tensor(f"{label}/{index}/{key}") for key in ("count", "mean", "scatter")}
                )
                for index, name in enumerate(data["scores"])
            }

        return cls(
            observed=data["observed"],
            moments=group("moments"),
            fitted=group("fitted"),
            scores=data["scores"],
            spread=artifact.tensor("spread"),
            episodes=data["episodes"],
        )


class _Score:
    """Mean squared Mahalanobis distance of an episode's representations."""

    def __init__(self, fitted: Mapping[str, Moments]) -> None:
        self._means = {name: moments.mean for name, moments in fitted.items()}
        count = sum(moments.count for moments in fitted.values())
        pooled = sum(moments.covariance() * (moments.count / count) for moments in fitted.values())
        covariance = torch.as_tensor(pooled)
        # With fewer predictions than channels some directions have no variance: the ridge keeps their weight finite.
        ridge = RIDGE * float(covariance.diagonal().mean()) + torch.finfo(torch.float64).tiny
        self._precision = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64))

    def __call__(self, episode: Moments, instruction: str) -> float:
        error = episode.mean - self._means[instruction]
        within = (self._precision * episode.covariance()).sum()
        return float(within + error @ self._precision @ error)


def _merged(group: Sequence[Moments]) -> Moments:
    total = Moments(group[0].size)
    for moments in group:
        total.merge(moments)
    return total
