"""Evaluates policies in closed loop, against a full-precision baseline on the same episodes.

Paired means: the same initial state and the same diffusion noise at each step index for every policy. What differs
between two records of an episode is then the policy and nothing else; a policy against itself differs by exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from daptq.catalog import ENVIRONMENTS
from daptq.closed_loop.episodes import schedule_episodes
from daptq.environments.contract import Environment
from daptq.errors import InvalidInputError, UnknownNameError
from daptq.evaluation.describe import describe_policy
from daptq.evaluation.journal import Journal
from daptq.evaluation.put_together import SCHEMA_VERSION, put_together
from daptq.evaluation.schedule import Progress, Schedule
from daptq.evaluation.worker_context import PolicySource, WorkerContext, one_thread, open_policy, picture_sizes
from daptq.evaluation.workers import start_workers
from daptq.metrics.deviation import HEADLINE_STEPS
from daptq.metrics.drift import HORIZONS
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.packing.source import locate
from daptq.policies.contract import Policy
from daptq.statistics.stopping import EarlyStop, looks

__all__ = ["SCHEMA_VERSION", "Progress", "check_request", "check_variants", "evaluate", "evaluate_many"]


def evaluate(
    policy: PolicySource,
    *,
    against: PolicySource | None = None,
    environment: str = "tabletop",
    tasks: Sequence[str] | None = None,
    episodes: int = 100,
    seed: int = 0,
    workers: int = 1,
    batch: int = 1,
    ray: str | None = None,
    stop_margin: float | None = None,
    drift_states: int | None = None,
    monitor: InterfaceReference | None = None,
    progress: Progress | None = None,
    journal: Path | None = None,
) -> dict[str, Any]:
    """Evaluates one policy, optionally against a baseline; see `evaluate_many`."""
    return evaluate_many(
        [policy],
        against=against,
        environment=environment,
        tasks=tasks,
        episodes=episodes,
        seed=seed,
        workers=workers,
        batch=batch,
        ray=ray,
        stop_margin=stop_margin,
        drift_states=drift_states,
        monitor=monitor,
        progress=progress,
        journal=journal,
    )


def evaluate_many(
    candidates: Mapping[str, PolicySource] | Sequence[PolicySource],
    *,
    against: PolicySource | None = None,
    environment: str = "tabletop",
    variant: str | None = None,
    tasks: Sequence[str] | None = None,
    episodes: int = 100,
    seed: int = 0,
    workers: int = 1,
    batch: int = 1,
    ray: str | None = None,
    stop_margin: float | None = None,
    drift_states: int | None = None,
    closed_loop: bool = True,
    monitor: InterfaceReference | None = None,
    progress: Progress | None = None,
    journal: Path | None = None,
) -> dict[str, Any]:
    """Runs every policy on the same episodes and compares each candidate with the baseline, which is run once.

    Args:
        candidates: Policies to judge: names, folders or loaded policies; a mapping gives them labels.
        against: The full-precision baseline; None for success rates alone.
        environment: Name of the environment in the catalog.
        variant: Variant of the environment; None for the nominal scene.
        tasks: Tasks to ask, in this order; None for all of the environment.
        episodes: Number of episodes over all tasks together.
        seed: Seed of the episodes.
        workers: Number of processes; the result does not depend on it. One that dies is replaced, its episode redone.
        batch: Episodes that run side by side in a process, predicted by one call of the policy. More is faster and
            changes actions by float rounding; a killed run loses at most these.
        ray: Address of a Ray cluster that the workers live on, as ``"host:6379"``; None for this machine.
        stop_margin: End as soon as it is settled, for every candidate, whether it loses more than this fraction of
            success; None to run every episode. See `daptq.statistics.stopping`.
        drift_states: Number of states, saved along the baseline's episodes, from which every policy continues; None for
            one per episode.
        closed_loop: Whether candidates run whole episodes; otherwise they only continue from the baseline's states, at
            a fifth of the cost, and what episodes would say about them is None.
        monitor: What is normal at the interface of the first candidate, whose episodes are watched; None watches none.
        progress: Called after every episode or branch with how many are done, how many there are at most, and what was
            done.
        journal: File that keeps finished episodes; a run that was killed continues from it.

    Returns:
        JSON object: `schema_version`, `environment`, `variant` (only on a variant), `tasks`, `horizon`, `episodes`,
        `seed`, `batch`, `success_rule`, `confidence`; `policies`, the baseline first (`name`, `role`, success as in
        `success_summary`, and `family`, `weights`, `layers` as in `describe_policy`); `comparisons`, one per candidate
        (`policy`, `against`, `paired` as in `paired_summary`, `motion` as in `motion_summary`, `drift` with
        `whole_episode` and `identical_states`, and `stopping` where that was asked for); `paired` and `drift` of the
        first candidate (None without a baseline); `monitor` as in `monitor_summary` where one was given; `provenance`.

    Raises:
        UnknownNameError: The environment, its variant, a task or a policy is not known.
        InvalidInputError: A count is out of range, no policy was given, two policies need different picture sizes, or
            the monitor's reference is of another interface or does not hold the instruction of a task.
        DaptqError: An episode could not be run to its end.
    """
    asked = check_request(environment, tasks, episodes=episodes, seed=seed, batch=batch)
    check_variants([] if variant is None else [variant], ENVIRONMENTS.load(environment))
    sources, baseline = _labelled(candidates, against)
    stop = _early_stop(stop_margin, episodes, len(asked), paired=baseline is not None and closed_loop)
    loaded = {label: open_policy(source) for label, source in sources.items()}
    watched = _watched(monitor, [label for label in loaded if label != baseline], loaded, closed_loop=closed_loop)
    context = WorkerContext(
        environment_name=environment,
        image_size=picture_sizes(loaded),
        sources=sources,
        variant=variant,
        references=watched,
        loaded=loaded if workers == 1 and ray is None else {},
    )
    (first,) = context.environments(1)
    horizons, frequency = [first.horizon_of(task) for task in asked], first.control_frequency
    own_seeds = any(first.initial_states_of(task) is not None for task in asked)
    stride = math.lcm(*(policy.n_action_steps for policy in loaded.values()))
    scheduled = schedule_episodes(
        asked,
        episodes=episodes,
        seed=seed,
        seeds_per_task=own_seeds,
        drift_states=(episodes if drift_states is None else drift_states) if baseline is not None else 0,
        possible_steps=range(0, min(horizons) - HEADLINE_STEPS + 1, stride),
    )
    settings = {
        "environment": environment,
        **({} if variant is None else {"variant": variant}),
        "tasks": list(asked),
        "horizon": max(horizons),
        "episodes": episodes,
        "seed": seed,
        "batch": batch,
    }
    started = start_workers(context, workers, ray=ray)
    with one_thread():
        descriptions = {label: describe_policy(one, _directory(sources[label])) for label, one in loaded.items()}
    chunk_steps = {label: policy.n_action_steps for label, policy in loaded.items()}
    del loaded
    identity = {label: [one["weights"]["sha256"], one["layers"]] for label, one in descriptions.items()}
    about = {**settings, "drift_states": drift_states, "stride": stride, "branch_steps": max(HORIZONS)}
    about |= {"seeds_per_task": True} if own_seeds and len(asked) > 1 else {}
    about |= {} if stop is None else {"looks": list(stop.looks)}
    about |= {"monitor": {label: one.scores for label, one in watched.items()}} if watched else {}
    schedule = Schedule(
        episodes=scheduled, labels=list(sources), baseline=baseline, batch=batch, closed_loop=closed_loop, stop=stop
    )
    try:
        for reference in watched.values():
            _check_instructions(reference, first, asked)
        with started:  # Workers that cannot be started leave no file behind.
            records = Journal(journal, about, {label: [label == baseline, *one] for label, one in identity.items()})
            done = schedule.run(started, records, progress)
    finally:
        context.close()
    return put_together(
        {**settings, "episodes": len(done)},
        schedule,
        done,
        records,
        descriptions,
        frequency=frequency,
        chunk_steps=chunk_steps,
        references=watched,
    )


def _watched(
    monitor: InterfaceReference | None, candidates: Sequence[str], loaded: Mapping[str, Policy], *, closed_loop: bool
) -> dict[str, InterfaceReference]:
    """The policy to be watched, and what is normal for it."""
    if monitor is None:
        return {}
    if not closed_loop:
        raise InvalidInputError("a monitor must have whole episodes to watch, got states alone. Leave one of them out.")
    monitor.require_interface(loaded[candidates[0]])
    return {candidates[0]: monitor}


def _check_instructions(reference: InterfaceReference, environment: Environment, tasks: Sequence[str]) -> None:
    """Refuses a reference without the instruction of a task before any episode is run."""
    for task in tasks:
        environment.reset(seed=0, options={"task": task})
        reference.require(environment.instruction)


def check_request(
    environment: str, tasks: Sequence[str] | None, *, episodes: int, seed: int, batch: int
) -> tuple[str, ...]:
    """Refuses counts and tasks that no evaluation can have; call it before policies are loaded and before long work.

    Args:
        environment: Name of the environment in the catalog.
        tasks: Tasks to ask, None for all of the environment.
        episodes: Number of episodes over all tasks together.
        seed: Seed of the episodes.
        batch: Episodes that run side by side.

    Returns:
        The tasks, each once.

    Raises:
        UnknownNameError: The environment or a task is not known.
        InvalidInputError: A count is out of range.
    """
    asked = _checked_tasks(tasks, ENVIRONMENTS.load(environment).TASKS)
    schedule_episodes(asked, episodes=episodes, seed=seed)
    if batch < 1:
        raise InvalidInputError(f"batch must be at least 1, got {batch}. Use 1 to run episodes one by one.")
    return asked


def _checked_tasks(tasks: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(known if tasks is None else tasks))
    if not asked:
        raise InvalidInputError("tasks must name at least one task, got none. Leave them out to ask all.")
    for task in asked:
        if task not in known:
            raise UnknownNameError("task", task, known)
    return asked


def _early_stop(margin: float | None, episodes: int, tasks: int, *, paired: bool) -> EarlyStop | None:
    if margin is None:
        return None
    if not paired:
        raise InvalidInputError(
            "stop_margin must come with a baseline and whole episodes. Name the baseline, or drop it."
        )
    return EarlyStop(margin=margin, looks=looks(episodes, tasks))


def check_variants(names: Sequence[str], module: Any) -> None:
    """Refuses variants that the environment in `module` does not have.

    Raises:
        UnknownNameError: It does not have one of them, or none at all.
    """
    known = getattr(module, "VARIANTS", {})
    for name in names:
        if name not in known:
            raise UnknownNameError("variant", name, known)


def _labelled(
    candidates: Mapping[str, PolicySource] | Sequence[PolicySource], against: PolicySource | None
) -> tuple[dict[str, PolicySource], str | None]:
    """Sources by label, the baseline first, and the baseline's label."""
    named = candidates.items() if isinstance(candidates, Mapping) else [(_name(one), one) for one in candidates]
    if not named:
        raise InvalidInputError("candidates must hold at least one policy, got none. Name a policy or a folder.")
    sources: dict[str, PolicySource] = {}
    baseline = None
    if against is not None:
        baseline = _name(against)
        sources[baseline] = against
    for name, source in named:
        label, copies = name, 1
        while label in sources:
            copies += 1
            label = f"{name} ({copies})"
        sources[label] = source
    return sources, baseline


def _name(source: PolicySource) -> str:
    return source.name if isinstance(source, Policy) else str(source)


def _directory(source: PolicySource) -> Path | None:
    return None if isinstance(source, Policy) else locate(source)
