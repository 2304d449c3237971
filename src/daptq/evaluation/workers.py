"""The jobs of an evaluation, and what a worker process needs to do them.

A job is one episode, or several that share one call of the policy. Every process builds as many environments as the
largest job asks for, loads each policy once, and computes with one thread, so a record does not depend on which process
made it, nor on how many there are. The module knows neither which jobs are needed nor which process does them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from daptq.catalog import ENVIRONMENTS
from daptq.closed_loop.interface_stream import only_interface, watch_episodes
from daptq.closed_loop.plan import Episode
from daptq.closed_loop.rollout import Branch, Record, run_branches, run_episodes, run_watched
from daptq.environments.contract import Environment
from daptq.errors import DaptqError
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.packing.checkpoint import load_policy
from daptq.policies.contract import Policy

PolicySource = str | Path | Policy


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
        """Does the job, in one environment for each episode; with a reference, the policy's interface is watched."""
        if reference is None:
            return run_episodes(environments, policy, self.episodes, label=self.policy)
        watch = partial(watch_episodes, policy, only_interface(policy))
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


@dataclass(kw_only=True)
class Workplace:
    """What one process needs to run jobs; built when the first job asks for it.

    Attributes:
        environment_name: Name of the environment in the catalog.
        image_size: Edge length [px] of each camera.
        sources: Name, folder or loaded policy, by label.
        variant: Variant of the environment; None for the nominal scene.
        references: What is normal at the interface of policies whose episodes are watched, by label.
        loaded: Policies that this process has loaded, by label.
    """

    environment_name: str
    image_size: Mapping[str, int]
    sources: Mapping[str, PolicySource]
    variant: str | None = None
    references: Mapping[str, InterfaceReference] | None = None
    loaded: dict[str, Policy] = field(default_factory=dict)
    _environments: list[Environment] = field(default_factory=list)

    def environments(self, count: int) -> Sequence[Environment]:
        """The first `count` environments of this process."""
        while len(self._environments) < count:
            module = ENVIRONMENTS.load(self.environment_name)
            chosen = {} if self.variant is None else {"variant": self.variant}
            self._environments.append(module.make(image_size=dict(self.image_size), **chosen))
        return self._environments[:count]

    def policy(self, label: str) -> Policy:
        """The policy called `label`."""
        if label not in self.loaded:
            self.loaded[label] = open_policy(self.sources[label])
        return self.loaded[label]

    def run(self, job: Job) -> Sequence[Record]:
        """Does one job.

        Raises:
            DaptqError: Anything went wrong in the environment or the policy; the message says in which episode.
        """
        environments, policy = self.environments(len(job)), self.policy(job.policy)
        try:
            return job.run(environments, policy, (self.references or {}).get(job.policy))
        except Exception as error:
            raise DaptqError(f"{job} must run to its end, got {type(error).__name__}: {error}") from error

    def answer(self, job: Job) -> Sequence[Record] | Exception:
        """Does one job for another process; what went wrong is sent to it, too."""
        try:
            return self.run(job)
        except Exception as error:  # noqa: BLE001
            return error

    def for_another_process(self) -> Workplace:
        """The same without what belongs to this process."""
        return replace(self, loaded={}, _environments=[])

    def close(self) -> None:
        """Closes the environments that were built."""
        while self._environments:
            self._environments.pop().close()


def open_policy(source: PolicySource) -> Policy:
    """Loads a policy by name or folder, ready to act; a loaded one is returned as it is."""
    policy = source if isinstance(source, Policy) else load_policy(source)
    return policy.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread inside, as every worker does, so that sums are taken in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
