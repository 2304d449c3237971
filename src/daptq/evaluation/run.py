"""Evaluates policies in closed loop, against a full-precision baseline on the same episodes.

Paired means: the same initial state and the same diffusion noise at each step index for every policy. What differs
between two records of an episode is then the policy and nothing else; a policy against itself differs by exactly 0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from daptq.closed_loop.episodes import Episode, schedule_episodes
from daptq.environments.contract import Environment
from daptq.errors import UnknownNameError
from daptq.evaluation.describe import describe_policy
from daptq.evaluation.journal import Journal
from daptq.evaluation.outcome import Outcome
from daptq.evaluation.request import Evaluation
from daptq.evaluation.result import EvaluationResult
from daptq.evaluation.robustness import with_variants
from daptq.evaluation.schedule import Schedule
from daptq.evaluation.worker_context import PolicySource, WorkerContext, one_thread, open_policy, picture_sizes
from daptq.evaluation.workers import start_workers
from daptq.metrics.deviation import HEADLINE_STEPS
from daptq.metrics.drift import HORIZONS
from daptq.metrics.motion_metric import Control
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.packing.source import locate
from daptq.policies.contract import Policy
from daptq.progress import Progress

__all__ = ["evaluate", "run_evaluation"]


def evaluate(policy: PolicySource, *, progress: Progress | None = None, **settings: Any) -> EvaluationResult:
    """Evaluates one policy, optionally against a baseline.

    Args:
        policy: The policy to evaluate: a name, a folder or a loaded policy.
        progress: As in `run_evaluation`.
        **settings: Fields of `daptq.evaluation.request.Evaluation`, which explains them, such as ``against``,
            ``environment`` and ``episodes``; `inspect.signature` and `help` show all of them with their defaults.

    Returns:
        The result of the request; `run_evaluation` runs one with several candidates.

    Raises:
        UnknownNameError: As in `run_evaluation`, or there is no such setting.
        InvalidInputError: As in `run_evaluation`.
        DaptqError: An episode could not be run to its end.
    """
    known = [field.name for field in _settings()]
    for name in settings:
        if name not in known:
            raise UnknownNameError("setting of an evaluation", name, known)
    return run_evaluation(Evaluation(candidates=[policy], **settings), progress)


def _settings() -> list[Field[Any]]:
    """The fields of a request that `evaluate` takes."""
    return [field for field in fields(Evaluation) if field.name != "candidates"]


def _signature() -> inspect.Signature:
    """The signature of `evaluate` with the settings in full."""
    policy, progress, _ = inspect.signature(evaluate).parameters.values()
    settings = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in _settings()
    ]
    return inspect.Signature([policy, *settings, progress], return_annotation=EvaluationResult.__name__)


vars(evaluate)["__signature__"] = _signature()


def run_evaluation(request: Evaluation, progress: Progress | None = None) -> EvaluationResult:
    """Runs every policy on the same episodes and compares each candidate with the baseline, which is run once.

    Args:
        request: What is asked.
        progress: Called after every episode or branch with how many are done, how many there are at most, and what was
            done; it counts anew in every condition.

    Raises:
        UnknownNameError: A policy is not known.
        InvalidInputError: Two policies need different picture sizes, a policy cannot act in the environment (see
            `daptq.closed_loop.compatibility`), more states are asked for than there are places, or the monitor's
            reference is of another interface or does not hold the instruction of a task.
        DaptqError: An episode could not be run to its end.
    """
    if not request.variants:
        return _run_condition(request, progress)
    results = {variant: _run_condition(one, progress) for variant, one in request.conditions().items()}
    nominal = results.pop(None)
    variants = {variant: result for variant, result in results.items() if variant is not None}
    return with_variants(nominal, variants, request.described_variants)


def _run_condition(request: Evaluation, progress: Progress | None) -> EvaluationResult:
    """Runs the nominal scene or one variant."""
    loaded = {label: open_policy(source) for label, source in request.sources.items()}
    watched = _watched(request, loaded)
    context = WorkerContext(
        environment_name=request.environment,
        image_size=picture_sizes(loaded),
        sources=request.sources,
        variant=request.variant,
        references=watched,
        loaded=loaded if request.workers == 1 and request.ray is None else {},
    )
    first = context.environment_of(loaded)
    stride = math.lcm(*(policy.n_action_steps for policy in loaded.values()))
    schedule = Schedule(request=request, episodes=_episodes(request, first, stride))
    workers = start_workers(context, request.workers, ray=request.ray)
    with one_thread():
        descriptions = {
            label: describe_policy(one, _directory(request.sources[label])) for label, one in loaded.items()
        }
    chunk_steps = {label: policy.n_action_steps for label, policy in loaded.items()}
    del loaded
    identity = _identity(request, first, stride, watched)
    policies = {
        label: [label == request.baseline, one.weights.sha256, [layer.to_json() for layer in one.layers]]
        for label, one in descriptions.items()
    }
    try:
        for reference in watched.values():
            _check_instructions(reference, first, request.asked)
        with workers:  # Workers that cannot be started leave no file behind.
            records = Journal(request.journal, identity, policies)
            done = schedule.run(workers, records, progress)
    finally:
        context.close()
    return Outcome(
        schedule=schedule,
        done=done,
        records=records,
        descriptions=descriptions,
        horizon=_horizon(first, request.asked),
        controls={
            label: Control(frequency=first.control_frequency, chunk_steps=steps) for label, steps in chunk_steps.items()
        },
        references=watched,
    ).result()


def _episodes(request: Evaluation, environment: Environment, stride: int) -> tuple[Episode, ...]:
    """The episodes of a condition; states are saved where a chunk of every policy begins, every `stride` steps."""
    states = request.episodes if request.drift_states is None else request.drift_states
    shortest = min(environment.horizon_of(task) for task in request.asked)
    return schedule_episodes(
        request.asked,
        episodes=request.episodes,
        seed=request.seed,
        seeds_per_task=_own_seeds(environment, request.asked),
        drift_states=states if request.baseline is not None else 0,
        possible_steps=range(0, shortest - HEADLINE_STEPS + 1, stride),
    )


def _identity(
    request: Evaluation, environment: Environment, stride: int, watched: Mapping[str, InterfaceReference]
) -> dict[str, object]:
    """What every policy is asked: a journal holds records of one such identity alone."""
    identity: dict[str, object] = {
        "environment": request.environment,
        "tasks": list(request.asked),
        "horizon": _horizon(environment, request.asked),
        "episodes": request.episodes,
        "seed": request.seed,
        "batch": request.batch,
        "drift_states": request.drift_states,
        "stride": stride,
        "branch_steps": max(HORIZONS),
    }
    if request.variant is not None:
        identity["variant"] = request.variant
    if _own_seeds(environment, request.asked) and len(request.asked) > 1:
        identity["seeds_per_task"] = True
    if request.early_stop is not None:
        identity["looks"] = list(request.early_stop.looks)
    if watched:
        identity["monitor"] = {label: one.scores for label, one in watched.items()}
    return identity


def _horizon(environment: Environment, tasks: Sequence[str]) -> int:
    """Control steps of the longest task."""
    return max(environment.horizon_of(task) for task in tasks)


def _own_seeds(environment: Environment, tasks: Sequence[str]) -> bool:
    """Whether every task counts its own seeds, since they choose among fixed initial states."""
    return any(environment.initial_states_of(task) is not None for task in tasks)


def _watched(request: Evaluation, loaded: Mapping[str, Policy]) -> dict[str, InterfaceReference]:
    """The policy to be watched, and what is normal for it."""
    if request.monitor is None:
        return {}
    label = request.compared[0]
    request.monitor.require_interfaces(loaded[label])
    return {label: request.monitor}


def _check_instructions(reference: InterfaceReference, environment: Environment, tasks: Sequence[str]) -> None:
    """Refuses a reference without the instruction of a task before any episode is run."""
    for task in tasks:
        environment.reset(seed=0, options={"task": task})
        reference.require(environment.instruction)


def _directory(source: PolicySource) -> Path | None:
    return None if isinstance(source, Policy) else locate(source)
