"""The jobs of an evaluation: one episode or branch, or several that share one call of the policy.

The module knows neither which jobs are needed nor which process does them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from daptq.closed_loop.episodes import Episode
from daptq.closed_loop.interface_stream import watch_episodes
from daptq.closed_loop.rollout import Branch, Record, run_branches, run_episodes, run_watched
from daptq.environments.contract import Environment
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.policies.contract import Policy


@dataclass(frozen=True, kw_only=True)
class EpisodeJob:
    """Run whole episodes side by side.

    Attributes:
        policy: Label of the policy.
        episodes: What to run, at least one.
    """

    policy: str
    episodes: tuple[Episode, ...]

    def __len__(self) -> int:
        return len(self.episodes)

    def run(
        self, environments: Sequence[Environment], policy: Policy, reference: InterfaceReference | None
    ) -> Sequence[Record]:
        """Does the job, in one environment for each episode; with a reference, the policy's interfaces are watched."""
        if reference is None:
            return run_episodes(environments, policy, self.episodes, label=self.policy)
        watch = partial(watch_episodes, policy)
        watched = run_watched(environments, policy, self.episodes, label=self.policy, watch=watch)
        return [replace(record, interface=reference.reading(stream)) for record, stream in zip(*watched, strict=True)]

    def __str__(self) -> str:
        what = ", ".join(f"{episode.index} ({episode.task})" for episode in self.episodes)
        return f"episode {what} of {self.policy}"


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchJob:
    """Continue for a few steps from saved states, side by side.

    Attributes:
        policy: Label of the policy.
        branches: Where to continue from, at least one.
        steps: Number of control steps to run.
    """

    policy: str
    branches: tuple[Branch, ...]
    steps: int

    def __len__(self) -> int:
        return len(self.branches)

    def run(
        self, environments: Sequence[Environment], policy: Policy, reference: InterfaceReference | None
    ) -> Sequence[Record]:
        """Does the job, in one environment for each branch; branches are not watched."""
        del reference
        return run_branches(environments, policy, self.branches, steps=self.steps, label=self.policy)

    def __str__(self) -> str:
        what = ", ".join(f"{one.step} of episode {one.episode.index} ({one.episode.task})" for one in self.branches)
        return f"branch at step {what} of {self.policy}"


Job = EpisodeJob | BranchJob
