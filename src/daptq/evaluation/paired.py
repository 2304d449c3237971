"""Evaluates policies in closed loop, against a full-precision baseline on the same episodes.

Paired means: the same initial state and the same diffusion noise at each step index for every policy. What differs
between two records of an episode is then the policy and nothing else; a policy against itself differs by exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from daptq.artifacts import provenance
from daptq.catalog import ENVIRONMENTS
from daptq.errors import InvalidInputError, UnknownNameError
from daptq.evaluation.describe import describe_policy
from daptq.evaluation.drift import HEADLINE_STEPS, HORIZONS, branch_drift, episode_drift
from daptq.evaluation.journal import Journal
from daptq.evaluation.motion import motion_summary
from daptq.evaluation.plan import Episode, plan_episodes
from daptq.evaluation.rollout import Branch, BranchRecord, EpisodeRecord
from daptq.evaluation.statistics import CONFIDENCE
from daptq.evaluation.summary import paired_summary, success_summary
from daptq.evaluation.workers import BranchJob, Crew, EpisodeJob, Job, PolicySource, Workplace, one_thread, open_policy
from daptq.packing._source import locate
from daptq.policies._base import Policy

SCHEMA_VERSION = 1

Progress = Callable[[int, int, str], None]
T = TypeVar("T")


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
    drift_states: int | None = None,
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
        drift_states=drift_states,
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
    drift_states: int | None = None,
    closed_loop: bool = True,
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
        workers: Number of processes; the result does not depend on it.
        batch: Episodes that run side by side in a process, predicted by one call of the policy. More is faster and
            changes actions by float rounding; a killed run loses at most these.
        drift_states: Number of states, saved along the baseline's episodes, from which every policy continues; None for
            one per episode.
        closed_loop: Whether candidates run whole episodes; otherwise they only continue from the baseline's states, at
            a fifth of the cost, and what episodes would say about them is None.
        progress: Called after every episode or branch with how many are done, how many there are, and what was done.
        journal: File that keeps finished episodes; a run that was killed continues from it.

    Returns:
        JSON object: `schema_version`, `environment`, `variant` (only on a variant), `tasks`, `horizon`, `episodes`,
        `seed`, `batch`, `success_rule`, `confidence`; `policies`, the baseline first (`name`, `role`, success as in
        `success_summary`, and `family`, `weights`, `layers` as in `describe_policy`); `comparisons`, one per candidate
        (`policy`, `against`, `paired` as in `paired_summary`, `motion` as in `motion_summary`, `drift` with
        `whole_episode` and `identical_states`); `paired` and `drift` of the first candidate (None without a baseline);
        `provenance`.

    Raises:
        UnknownNameError: The environment, its variant, a task or a policy is not known.
        InvalidInputError: A count is out of range, no policy was given, or two policies need different picture sizes.
        DaptqError: An episode could not be run to its end.
    """
    module = ENVIRONMENTS.load(environment)
    asked = _checked_tasks(tasks, module.TASKS)
    check_variants([] if variant is None else [variant], module)
    plan_episodes(asked, episodes=episodes, seed=seed)  # Refuse bad counts before policies are loaded.
    if batch < 1:
        raise InvalidInputError(f"batch must be at least 1, got {batch}. Use 1 to run episodes one by one.")
    sources, baseline = _labelled(candidates, against)
    loaded = {label: open_policy(source) for label, source in sources.items()}
    place = Workplace(
        environment_name=environment,
        image_size=_image_size(loaded),
        sources=sources,
        variant=variant,
        loaded=loaded if workers == 1 else {},
    )
    (first,) = place.environments(1)
    horizon, frequency = first.horizon, first.control_frequency
    stride = math.lcm(*(policy.n_action_steps for policy in loaded.values()))
    plan = plan_episodes(
        asked,
        episodes=episodes,
        seed=seed,
        drift_states=(episodes if drift_states is None else drift_states) if baseline is not None else 0,
        possible_steps=range(0, horizon - HEADLINE_STEPS + 1, stride),
    )
    settings = {
        "environment": environment,
        **({} if variant is None else {"variant": variant}),
        "tasks": list(asked),
        "horizon": horizon,
        "episodes": episodes,
        "seed": seed,
        "batch": batch,
    }
    crew = Crew(place, workers)
    with one_thread():
        descriptions = {label: describe_policy(one, _directory(sources[label])) for label, one in loaded.items()}
    chunk_steps = {label: policy.n_action_steps for label, policy in loaded.items()}
    del loaded
    identity = {label: [one["weights"]["sha256"], one["layers"]] for label, one in descriptions.items()}
    about = {**settings, "drift_states": drift_states, "stride": stride, "branch_steps": max(HORIZONS)}
    records = Journal(journal, about, {label: [label == baseline, *one] for label, one in identity.items()})
    try:
        with crew:
            _run(crew, plan, list(sources), baseline, records, progress, batch=batch, closed_loop=closed_loop)
    finally:
        place.close()
    return _result(
        settings,
        plan,
        descriptions,
        baseline,
        records,
        closed_loop=closed_loop,
        frequency=frequency,
        chunk_steps=chunk_steps,
    )


def _checked_tasks(tasks: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(known if tasks is None else tasks))
    if not asked:
        raise InvalidInputError("tasks must name at least one task, got none. Leave them out to ask all.")
    for task in asked:
        if task not in known:
            raise UnknownNameError("task", task, known)
    return asked


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


def _image_size(policies: Mapping[str, Policy]) -> dict[str, int]:
    """Edge length [px] of each camera that at least one policy looks through."""
    sizes: dict[str, int] = {}
    for label, policy in policies.items():
        for camera, size in policy.cameras.items():
            if sizes.setdefault(camera, size) != size:
                message = f"pictures of camera {camera!r} must have one size, got {sizes[camera]} and {size} ({label})."
                raise InvalidInputError(message + " Evaluate these policies separately.")
    return sizes


def _run(
    crew: Crew,
    plan: Sequence[Episode],
    labels: Sequence[str],
    baseline: str | None,
    records: Journal,
    progress: Progress | None,
    *,
    batch: int,
    closed_loop: bool,
) -> None:
    """Runs what the journal does not hold yet: the baseline's episodes first: branches start from their states."""
    driving = [label for label in labels if closed_loop or label == baseline]
    total = len(driving) * len(plan) + len(labels) * sum(len(episode.branch_steps) for episode in plan)

    def run(jobs: Sequence[Job]) -> None:
        for record in crew.run(jobs):
            records.add(record)
            if progress is not None:
                what = f"{record.policy}: {'episode' if isinstance(record, EpisodeRecord) else 'drift'} {record.index}"
                progress(len(records.records), total, what)

    def missing(label: str) -> list[Job]:
        # Groups are the same in a run that continues: who shares a call decides the rounding.
        return [
            EpisodeJob(policy=label, episodes=group)
            for group in _groups(plan, batch)
            if any((label, episode.index, None) not in records.records for episode in group)
        ]

    first = [] if baseline is None else [baseline]
    run([job for label in first for job in missing(label)])
    jobs = [job for label in driving for job in missing(label)]
    branches = [
        Branch(episode=episode, step=step, state=state)
        for episode in (plan if baseline is not None else ())
        for step, state in _saved(records, baseline, episode).items()
    ]
    jobs += [
        BranchJob(policy=label, branches=group, steps=max(HORIZONS))
        for group in _groups(branches, batch)
        for label in labels
        if any((label, branch.episode.index, branch.step) not in records.records for branch in group)
    ]
    run(jobs)


def _groups(items: Sequence[T], size: int) -> list[tuple[T, ...]]:
    """The items in order, `size` at a time."""
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def _saved(records: Journal, baseline: str | None, episode: Episode) -> Mapping[int, NDArray[np.float64]]:
    """States that were saved along the baseline's episode, by step."""
    source = records.records[baseline or "", episode.index, None]
    assert isinstance(source, EpisodeRecord)
    return source.states


def _result(
    settings: Mapping[str, Any],
    plan: Sequence[Episode],
    descriptions: Mapping[str, Mapping[str, Any]],
    baseline: str | None,
    records: Journal,
    *,
    closed_loop: bool,
    frequency: float,
    chunk_steps: Mapping[str, int],
) -> dict[str, Any]:
    """Puts the JSON object together from the complete records."""
    episodes: dict[str, list[EpisodeRecord]] = {label: [] for label in descriptions}
    branches: dict[str, list[BranchRecord]] = {label: [] for label in descriptions}
    for label in descriptions:
        for episode in plan:
            for step in (None, *episode.branch_steps):
                record = records.records.get((label, episode.index, step))
                if isinstance(record, EpisodeRecord):
                    if closed_loop or label == baseline:
                        episodes[label].append(record)
                elif record is not None:
                    branches[label].append(record)
    seed = int(settings["seed"])
    comparisons = [
        {
            "policy": label,
            "against": baseline,
            "paired": paired_summary(episodes[baseline], episodes[label]) if episodes[label] else None,
            "motion": (
                motion_summary(
                    episodes[baseline],
                    episodes[label],
                    frequency=frequency,
                    chunk_steps=(chunk_steps[baseline], chunk_steps[label]),
                    seed=seed,
                )
                if episodes[label]
                else None
            ),
            "drift": {
                "whole_episode": (
                    episode_drift(episodes[baseline], episodes[label], seed=seed) if episodes[label] else None
                ),
                "identical_states": branch_drift(branches[baseline], branches[label], horizons=HORIZONS, seed=seed),
            },
        }
        for label in descriptions
        if baseline is not None and label != baseline
    ]
    policies = [
        {
            "name": label,
            "role": "baseline" if label == baseline else "candidate",
            **(success_summary(episodes[label]) if episodes[label] else {}),
            **description,
        }
        for label, description in descriptions.items()
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        **settings,
        "success_rule": "at any step",
        "confidence": CONFIDENCE,
        "policies": policies,
        "comparisons": comparisons,
        "paired": comparisons[0]["paired"] if comparisons else None,
        "drift": comparisons[0]["drift"] if comparisons else None,
        "provenance": provenance(seed=seed),
    }
