"""Drives a policy with its interfaces watched, and takes from nominal episodes what a monitor calls normal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

from daptq.closed_loop.episodes import schedule_episodes
from daptq.closed_loop.interface_stream import EpisodeStream, watch_episodes
from daptq.closed_loop.rollout import EpisodeRecord, run_watched
from daptq.evaluation.request import Evaluation
from daptq.evaluation.worker_context import WorkerContext, one_thread
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.policies.contract import Policy
from daptq.progress import Progress

__all__ = ["REFERENCE_SEED", "drive", "take_reference"]

REFERENCE_SEED = 1000


def take_reference(
    policy: Policy,
    *,
    environment: str = "tabletop",
    tasks: Sequence[str] | None = None,
    episodes: int = 80,
    seed: int = REFERENCE_SEED,
    batch: int = 8,
    progress: Progress | None = None,
) -> InterfaceReference:
    """Drives `policy` in the nominal scene and keeps what passes its interfaces.

    Args:
        policy: The policy that will run.
        environment: Name of the environment in the catalog.
        tasks: Tasks to ask, None for all; a monitor knows no other instruction.
        episodes: Number of episodes over all tasks together.
        seed: Seed of the episodes; another one than that of the episodes to be monitored.
        batch: Episodes that run side by side.
        progress: Called after every `batch` episodes with how many are done, how many there are, and what was done.

    Raises:
        UnknownNameError: The environment or a task is not known.
        InvalidInputError: The policy has no interface or cannot act in the environment, a count is out of range, or
            there are fewer than four episodes per task.
    """
    request = Evaluation(
        candidates=[policy], environment=environment, tasks=tasks, episodes=episodes, seed=seed, batch=batch
    )
    driven = drive(request, policy, partial(watch_episodes, policy))
    streams: list[EpisodeStream] = []
    for _, some in driven:
        streams += some
        if progress is not None:
            progress(len(streams), episodes, f"{policy.name}: normal episodes")
    return InterfaceReference.of(streams)


def drive(
    request: Evaluation,
    policy: Policy,
    watch: Callable[[Sequence[str]], AbstractContextManager[list[EpisodeStream]]],
    *,
    skip: int = 0,
) -> Iterator[tuple[list[EpisodeRecord], list[EpisodeStream]]]:
    """Runs the episodes of an evaluation in this process and watches the interfaces.

    Args:
        request: Which episodes, in which environment, and how many side by side.
        policy: The policy to run.
        watch: Watches the policy over episodes that run side by side, given their instructions.
        skip: Episodes at the beginning to leave out, a multiple of the request's `batch`.

    Yields:
        Records and streams of each group of episodes that ran side by side, in order.

    Raises:
        InvalidInputError: The policy cannot act in the environment, see `daptq.closed_loop.compatibility`.
    """
    context = WorkerContext(
        environment_name=request.environment,
        image_size=dict(policy.cameras),
        sources={},
        variant=request.variant,
    )
    try:
        first = context.environment_of({policy.name: policy})
        own_seeds = any(first.initial_states_of(task) is not None for task in request.asked)
        scheduled = schedule_episodes(
            request.asked, episodes=request.episodes, seed=request.seed, seeds_per_task=own_seeds
        )
        for start in range(skip, len(scheduled), request.batch):
            group = scheduled[start : start + request.batch]
            worlds = context.environments(len(group))
            with one_thread():
                driven = run_watched(worlds, policy, group, label=policy.name, watch=watch)
            yield driven
    finally:
        context.close()
