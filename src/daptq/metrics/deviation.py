"""The drift of a candidate from its baseline as a result holds it; `daptq.metrics.drift` measures it.

Every field ending in ``_mm`` is a distance of the end-effectors, in ``_deg`` the angle between their orientations.
"""

from __future__ import annotations

from pydantic import model_validator
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import Self

from daptq.json_model import Count, JsonModel, NotNegative, Positive, absent
from daptq.statistics.estimate import Estimate

__all__ = [
    "Drift",
    "DriftAfter",
    "EpisodeDeviation",
    "EpisodeSpread",
    "GrowthAfter",
    "IdenticalStates",
    "Spread",
    "UntilContactDiffers",
    "WholeEpisode",
]

# The one that tables and gates speak of; states are saved where an episode has at least this many steps left.
HEADLINE_STEPS = 16


class Spread(JsonModel):
    """A deviation over states.

    Attributes:
        median: Median.
        mean: Mean.
        rms: Root mean square.
    """

    median: Estimate
    mean: Estimate
    rms: Estimate


class EpisodeSpread(JsonModel):
    """A deviation over whole episodes.

    Attributes:
        rms: Root mean square over all steps of all episodes.
        median_of_episodes: Median over episodes of the root mean square over an episode's steps.
    """

    rms: Estimate
    median_of_episodes: Estimate


class UntilContactDiffers(JsonModel):
    """Drift over the steps before one policy first holds an object that the other does not; medians over episodes.

    Attributes:
        n: Episodes with such steps; without any, nothing else is known.
        steps: Number of these steps.
        position_mm: Root mean square over these steps.
        rotation_deg: The same of the rotation.
    """

    n: Count
    steps: Estimate | SkipJsonSchema[None] = absent()
    position_mm: Estimate | SkipJsonSchema[None] = absent()
    rotation_deg: Estimate | SkipJsonSchema[None] = absent()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if any((one is None) == (self.n > 0) for one in (self.steps, self.position_mm, self.rotation_deg)):
            raise ValueError("all medians are known where n > 0, and none where n = 0")
        return self


class EpisodeDeviation(JsonModel):
    """Deviation over one episode, root mean square over its steps.

    Attributes:
        index: Number of the episode.
        position_mm_rms: Of the position.
        rotation_deg_rms: Of the rotation.
    """

    index: Count
    position_mm_rms: NotNegative
    rotation_deg_rms: NotNegative


class WholeEpisode(JsonModel):
    """Drift over whole episodes that start from the same initial state.

    Attributes:
        n: Number of episodes.
        position_mm: Deviation of the position.
        rotation_deg: Deviation of the rotation.
        until_contact_differs: The same before one policy first holds an object that the other does not.
        per_episode: Each episode by itself.
    """

    n: Positive
    position_mm: EpisodeSpread
    rotation_deg: EpisodeSpread
    until_contact_differs: UntilContactDiffers
    per_episode: tuple[EpisodeDeviation, ...]


class DriftAfter(JsonModel):
    """Drift after a number of control steps from common states.

    Attributes:
        steps: Number of control steps.
        n: Number of states.
        position_mm: Deviation of the position.
        rotation_deg: Deviation of the rotation.
        per_state_mm: Deviation of the position from every state, in order.
    """

    steps: Positive
    n: Positive
    position_mm: Spread
    rotation_deg: Spread
    per_state_mm: tuple[NotNegative, ...]


class GrowthAfter(JsonModel):
    """Median drift after a number of control steps from common states.

    Attributes:
        steps: Number of control steps.
        position_mm: Median deviation of the position.
        rotation_deg: Median deviation of the rotation.
    """

    steps: Positive
    position_mm: Estimate
    rotation_deg: Estimate


class IdenticalStates(JsonModel):
    """Drift of two policies that continue from the same states with the same noise.

    Attributes:
        n: Number of states.
        episodes: Number of episodes that they come from.
        after_steps: Drift after some numbers of steps.
        growth: Medians after every number of steps.
    """

    n: Count
    episodes: Count
    after_steps: tuple[DriftAfter, ...]
    growth: tuple[GrowthAfter, ...]

    @property
    def headline(self) -> DriftAfter | None:
        """The entry that tables and gates speak of; None when no state was saved."""
        return next((entry for entry in self.after_steps if entry.steps == HEADLINE_STEPS), None)


class Drift(JsonModel):
    """Drift of a candidate from its baseline.

    Attributes:
        whole_episode: Over whole episodes; null where the candidate ran none.
        identical_states: From common states.
    """

    whole_episode: WholeEpisode | None
    identical_states: IdenticalStates
