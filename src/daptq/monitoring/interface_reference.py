"""The calibration set of a monitor: what passes a policy's interfaces in episodes that count as normal.

It is taken from the policy that will run, quantized or not, in closed loop: demonstrations visit other states, and
states drawn one by one say nothing of how far a whole episode strays. Half of the episodes of every instruction choose
the score, the other half say which scores are normal.

The score of an episode is the sum of its distances at all interfaces, see `daptq.monitoring.normal_interface`. There is
one score for all of them, so that a false-alarm rate holds for the policy, however many interfaces it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from daptq.artifacts import Artifact, provenance, read_artifact, write_artifact
from daptq.closed_loop.interface_stream import EpisodeStream, Reading
from daptq.errors import ForeignArtifactError, InvalidInputError
from daptq.monitoring.normal_interface import NormalInterface
from daptq.numerics.moments import Moments
from daptq.policies.contract import Policy

__all__ = ["REFERENCE_KIND", "InterfaceReference"]

REFERENCE_KIND = "interface-reference"
LEAST_EPISODES = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class InterfaceReference:
    """What is normal at the interfaces of one policy.

    Attributes:
        interfaces: What is normal at each, by the interface's name.
        scores: Scores of the episodes that chose nothing, by instruction.
        episodes: Number of episodes.
    """

    interfaces: Mapping[str, NormalInterface]
    scores: Mapping[str, Sequence[float]]
    episodes: int

    @classmethod
    def of(cls, episodes: Sequence[EpisodeStream]) -> InterfaceReference:
        """The reference that these episodes make.

        Raises:
            InvalidInputError: There are fewer than four episodes of an instruction.
        """
        groups: dict[str, list[EpisodeStream]] = {}
        for episode in episodes:
            groups.setdefault(episode.instruction, []).append(episode)
        few = {instruction: len(group) for instruction, group in groups.items() if len(group) < LEAST_EPISODES}
        if few or not groups:
            raise InvalidInputError(
                f"a reference must hold at least {LEAST_EPISODES} episodes of every instruction, got {few}. Run more."
            )
        interfaces = {
            name: NormalInterface.of({key: [one.moments[name] for one in group] for key, group in groups.items()})
            for name in episodes[0].moments
        }
        scores = {key: [_score(interfaces, one) for one in group[1::2]] for key, group in groups.items()}
        return cls(interfaces=interfaces, scores=scores, episodes=len(episodes))

    @property
    def names(self) -> str:
        """The names of the interfaces, for a message."""
        return ", ".join(self.interfaces)

    def score(self, episode: EpisodeStream) -> float:
        """How unusual an episode is; see the module.

        Raises:
            InvalidInputError: No episode of the reference had this instruction.
        """
        self.require(episode.instruction)
        return _score(self.interfaces, episode)

    def reading(self, episode: EpisodeStream) -> Reading:
        """How an episode differs from what is normal.

        Raises:
            InvalidInputError: No episode of the reference had this instruction.
        """
        score, most = self.score(episode), -1.0
        reading: Reading | None = None
        for name, normal in self.interfaces.items():
            moved = normal.moved(episode.moments[name], episode.instruction)
            channel = int(moved.abs().argmax())
            if abs(float(moved[channel])) > most:
                most = abs(float(moved[channel]))
                reading = Reading(
                    instruction=episode.instruction,
                    score=score,
                    interface=name,
                    channel=channel,
                    moved=float(moved[channel]),
                )
        assert reading is not None
        return reading

    def require_interfaces(self, policy: Policy) -> None:
        """Refuses a policy with other interfaces.

        Raises:
            InvalidInputError: The policy has other interfaces.
        """
        names = [interface.name for interface in policy.interfaces()]
        if names != list(self.interfaces):
            raise InvalidInputError(
                f"reference must be of the interfaces {', '.join(names) or 'of the policy, which has none'}, got "
                f"{self.names}. Take one from this policy."
            )

    def require(self, instruction: str) -> None:
        """Refuses an instruction that no episode of the reference had.

        Raises:
            InvalidInputError: The reference does not hold the instruction.
        """
        if instruction not in self.scores:
            known = ", ".join(map(repr, self.scores))
            raise InvalidInputError(
                f"instruction must be one of the reference, {known}, got {instruction!r}. Take a reference with it."
            )

    def save(self, directory: Path, *, seed: int | None = None) -> Path:
        """Writes the reference as a folder.

        Args:
            directory: Folder to create; may exist when empty.
            seed: Seed of the episodes, for the provenance.

        Raises:
            OutputExistsError: `directory` exists and is not empty.
            OutputWriteError: The disk refused a write.
        """
        content: list[tuple[str, Tensor]] = []
        for number, normal in enumerate(self.interfaces.values()):
            content.append((f"{number}/spread", normal.spread))
            for label, group in (("moments", normal.moments), ("fitted", normal.fitted)):
                for index, moments in enumerate(group.values()):
                    content += [(f"{number}/{label}/{index}/{key}", value) for key, value in moments.tensors().items()]
        metadata = {
            "interfaces": list(self.interfaces),
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
            ForeignArtifactError: The folder holds something else, or a reference in the form of an earlier version.
            ArtifactError: The folder is damaged or incomplete.
        """
        artifact = read_artifact(directory, kind=REFERENCE_KIND)
        data = artifact.metadata
        if "interfaces" not in data:
            raise ForeignArtifactError(
                f"{directory} must hold a reference that names its interfaces, got one of an earlier version. Take the "
                "reference again."
            )
        return cls(
            interfaces={
                name: _loaded(artifact, number, tuple(data["scores"])) for number, name in enumerate(data["interfaces"])
            },
            scores=data["scores"],
            episodes=data["episodes"],
        )


def _score(interfaces: Mapping[str, NormalInterface], episode: EpisodeStream) -> float:
    return sum(normal.distance(episode.moments[name], episode.instruction) for name, normal in interfaces.items())


def _loaded(artifact: Artifact, number: int, instructions: Sequence[str]) -> NormalInterface:
    """One interface of a reference."""

    def group(label: str) -> dict[str, Moments]:
        return {
            name: Moments.from_tensors(
                {key: artifact.tensor(f"{number}/{label}/{index}/{key}") for key in ("count", "mean", "scatter")}
            )
            for index, name in enumerate(instructions)
        }

    return NormalInterface(moments=group("moments"), fitted=group("fitted"), spread=artifact.tensor(f"{number}/spread"))
