"""Watches the perception-to-action interfaces of a running policy: flags a shift, and can refresh gain and shift.

One assessment per episode. The false-alarm rate is a guarantee, not an estimate: if episodes are exchangeable with
those of the reference, the monitor flags a shift within `horizon` episodes with probability at most `false_alarm_rate`,
whatever the representation's distribution. Predictions within an episode resemble each other, so episodes are counted.

A flag says that what the policy perceives has changed, not that it fails; and not every failure changes perception.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from daptq.closed_loop.interface_stream import EpisodeStream, watch_episodes
from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.monitoring.refresh import RefreshConfig, Refreshed, folds_for_refresh, refreshed_maps
from daptq.monitoring.shift_detector import FALSE_ALARM_RATE, Assessment, ShiftDetector
from daptq.policies.contract import Policy

__all__ = ["InterfaceMonitor", "MonitorConfig"]


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Settings of a monitor.

    Attributes:
        false_alarm_rate: Largest probability of a flag within `horizon` episodes when nothing has changed.
        horizon: Number of episodes that the rate is about.
        seed: Seed of the numbers that break ties between scores.
        refresh: Limits of a refreshed correction.
    """

    false_alarm_rate: float = FALSE_ALARM_RATE
    horizon: int = 100
    seed: int = 0
    refresh: RefreshConfig = field(default_factory=RefreshConfig)


class InterfaceMonitor:
    """Watches one running policy.

    Args:
        policy: The policy; watching does not change its outputs.
        reference: What is normal, taken from this policy.
        config: Settings.

    Raises:
        InvalidInputError: The reference belongs to other interfaces, or a setting is not usable.
    """

    def __init__(self, policy: Policy, reference: InterfaceReference, config: MonitorConfig | None = None) -> None:
        self.config = config or MonitorConfig()
        self._policy, self._reference = policy, reference
        reference.require_interfaces(policy)
        self._detector = ShiftDetector(
            reference,
            false_alarm_rate=self.config.false_alarm_rate,
            horizon=self.config.horizon,
            seed=self.config.seed,
        )
        self._streams: list[EpisodeStream] = []
        self._refreshed: Refreshed | None = None

    @property
    def assessments(self) -> list[Assessment]:
        """One per watched episode, in order."""
        return self._detector.assessments

    @property
    def shifted(self) -> bool:
        """Whether a shift is flagged; it stays so until `restart` or a refresh."""
        return self._detector.shifted

    @property
    def refreshed(self) -> Refreshed | None:
        """The correction that is applied now."""
        return self._refreshed

    @contextmanager
    def watch(self, instructions: Sequence[str]) -> Iterator[list[EpisodeStream]]:
        """Within the block the policy drives one episode per instruction, side by side; then they are assessed.

        Args:
            instructions: Instruction of each episode, in the order of the rows of the policy's batch.

        Raises:
            InvalidInputError: An instruction is not one of the reference.
        """
        for instruction in instructions:
            self._reference.require(instruction)
        maps = {} if self._refreshed is None else self._refreshed.maps
        with watch_episodes(self._policy, instructions, maps) as streams:
            yield streams
        for stream in streams:
            self.assess(stream)

    def assess(self, stream: EpisodeStream) -> Assessment:
        """Takes in an episode that was watched, here or elsewhere.

        Raises:
            InvalidInputError: The instruction is not one of the reference.
        """
        reading = self._reference.reading(stream)
        self._streams.append(stream)
        return self._detector.assess(reading)

    def restart(self) -> None:
        """Lowers the flag and forgets the evidence so far."""
        self._detector.restart()

    def refresh(self, episodes: int) -> Mapping[str, AffineMap]:
        """Refreshes gain and shift from the last episodes, puts them into the policy, and restarts.

        Args:
            episodes: How many of the last episodes to take; all of them after the change.

        Returns:
            The maps that are applied now, from the unchanged policy's representations on, by interface.

        Raises:
            InvalidInputError: Fewer episodes have been watched since the last refresh, or an interface cannot be
                refreshed.
        """
        if not 1 <= episodes <= len(self._streams):
            raise InvalidInputError(
                f"episodes must be between 1 and {len(self._streams)}, those watched so far, got {episodes}. "
                "Drive more."
            )
        folds, recent = folds_for_refresh(self._policy), self._streams[-episodes:]
        maps = refreshed_maps(self._reference, recent, self.config.refresh, folds=folds)
        if self._refreshed is not None:
            before = self._refreshed.maps
            maps = {
                name: AffineMap(matrix=change.matrix @ before[name].matrix, shift=change(before[name].shift))
                for name, change in maps.items()
            }
            self._refreshed.undo()
        self._refreshed = Refreshed(self._policy, maps)
        self._streams.clear()
        self.restart()
        return maps

    def undo(self) -> None:
        """Takes the correction out of the policy again, bit for bit, and restarts."""
        if self._refreshed is not None:
            self._refreshed.undo()
            self._refreshed = None
        self._streams.clear()
        self.restart()
