"""Runs the jobs of an evaluation, in this process or spread over worker processes.

A job is one episode, or several that share one call of the policy. Every process builds as many environments as the
largest job asks for, loads each policy once, and computes with one thread, so a record does not depend on which process
made it, nor on how many there are. The module knows how to run jobs, not which ones are needed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from typing_extensions import Self

from daptq.catalog import ENVIRONMENTS
from daptq.environments._base import Environment
from daptq.errors import DaptqError, InvalidInputError
from daptq.evaluation.plan import Episode
from daptq.evaluation.rollout import Branch, Record, run_branches, run_episodes
from daptq.packing.checkpoint import load_policy
from daptq.policies._base import Policy

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

    def run(self, environments: Sequence[Environment], policy: Policy) -> Sequence[Record]:
        """Does the job, in one environment for each episode."""
        return run_episodes(environments, policy, self.episodes, label=self.policy)

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

    def run(self, environments: Sequence[Environment], policy: Policy) -> Sequence[Record]:
        """Does the job, in one environment for each branch."""
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
        loaded: Policies that this process has loaded, by label.
    """

    environment_name: str
    image_size: Mapping[str, int]
    sources: Mapping[str, PolicySource]
    variant: str | None = None
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
            return job.run(environments, policy)
        except Exception as error:
            raise DaptqError(f"{job} must run to its end, got {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Closes the environments that were built."""
        while self._environments:
            self._environments.pop().close()


class Crew:
    """One or more processes that run jobs; a context manager.

    Args:
        workplace: What each process needs. With one worker it is used as it is, with more each worker has its own copy.
        workers: Number of processes, at least 1; with 1 the jobs run in this one.

    Raises:
        InvalidInputError: `workers` is less than 1.
    """

    def __init__(self, workplace: Workplace, workers: int) -> None:
        if workers < 1:
            raise InvalidInputError(f"workers must be at least 1, got {workers}. Use 1 to run in this process.")
        self.workplace = workplace
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.workers > 1:
            # A forked child would inherit the state of torch's thread pools and of the graphics driver.
            context = multiprocessing.get_context("spawn")
            place = self.workplace
            arguments = (place.environment_name, dict(place.image_size), dict(place.sources), place.variant)
            self._pool = ProcessPoolExecutor(self.workers, context, _start_worker, arguments)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def run(self, jobs: Iterable[Job]) -> Iterator[Record]:
        """Yields the records of each job as it is done, in any order.

        Raises:
            DaptqError: A job failed, or a worker process died; the jobs that had not started are dropped.
        """
        if self._pool is None:
            with one_thread():
                for job in jobs:
                    yield from self.workplace.run(job)
            return
        futures: list[Future[Sequence[Record]]] = [self._pool.submit(_run_in_worker, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield from future.result()
        except BrokenProcessPool as error:
            message = "worker processes must live to the end of the evaluation, got one that died (out of memory?)."
            raise DaptqError(message + " Use fewer workers.") from error


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


_workplace: Workplace | None = None


def _start_worker(
    environment: str, image_size: dict[str, int], sources: dict[str, PolicySource], variant: str | None
) -> None:
    global _workplace  # One workplace per process is the point.
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group: the parent answers it, and workers end with their current job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _workplace = Workplace(environment_name=environment, image_size=image_size, sources=sources, variant=variant)


def _end_with_parent() -> None:
    """Ends this process when its parent is gone; a killed parent cannot tell its workers to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(job: Job) -> Sequence[Record]:
    assert _workplace is not None
    return _workplace.run(job)
