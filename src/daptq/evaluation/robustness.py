"""Judges policies on variants of an environment, and how much more quantization costs there than in the nominal scene.

The robustness gap of a candidate is a number: its success minus the baseline's on the variants, minus that difference
in the nominal scene. Below 0, quantization costs more where the scene is not the one that policies were trained in.
Each episode runs under every condition from the same initial state, so the gap is a difference of paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daptq.catalog import ENVIRONMENTS
from daptq.errors import InvalidInputError
from daptq.evaluation.paired import Progress, check_variants, evaluate_many
from daptq.evaluation.worker_context import PolicySource
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.statistics.intervals import clustered_difference_interval, gap_interval

__all__ = ["ALL", "evaluate_variants", "robustness_gap", "with_variants"]

ALL = "all"

_SUCCESS = ("name", "role", "n", "successes", "success_rate", "low", "high", "at_last_step", "per_task")


def evaluate_variants(
    candidates: Mapping[str, PolicySource] | Sequence[PolicySource],
    *,
    variants: Sequence[str],
    against: PolicySource | None = None,
    environment: str = "tabletop",
    tasks: Sequence[str] | None = None,
    episodes: int = 100,
    seed: int = 0,
    workers: int = 1,
    batch: int = 1,
    ray: str | None = None,
    drift_states: int | None = None,
    monitor: InterfaceReference | None = None,
    progress: Progress | None = None,
    journal: Path | None = None,
) -> dict[str, Any]:
    """Evaluates policies in the nominal scene and on variants of it, on the same episodes.

    Args:
        candidates: Policies to judge, as in `evaluate_many`.
        variants: Names of variants, or ``"all"`` for all of the environment.
        against: The full-precision baseline; run once per condition.
        environment: Name of the environment in the catalog.
        tasks: Tasks to ask; None for all of the environment.
        episodes: Number of episodes per condition over all tasks together, at least 2.
        seed: Seed of the episodes.
        workers: Number of processes.
        batch: Episodes that share one call of the policy.
        ray: Address of a Ray cluster that the workers live on.
        drift_states: For the nominal scene; on variants policies do not continue from saved states.
        monitor: What is normal at the interface of the first candidate; it is watched anew in every condition.
        progress: Called after every episode, as in `evaluate_many`; it counts anew in every condition.
        journal: Folder that keeps finished episodes, in a file for each condition: ``nominal.jsonl``, and one named
            after each variant; a run that was killed continues from it.

    Returns:
        What `evaluate_many` returns for the nominal scene, and `variants`, one entry per variant with `variant`,
        `description`, `policies` (success), `comparisons` as for the nominal scene, `robustness_gap`, and `monitor`
        where one was given; and, with a baseline, `robustness_gap` over all variants, one entry per candidate:
        `policy`, `against`, `value`, `low` and `high` (95 %) in percentage points, `n` episodes per condition,
        `variants`.

    Raises:
        UnknownNameError: As in `evaluate_many`, or a variant is not known.
        InvalidInputError: As in `evaluate_many`, or no variant is named, or there are fewer than two episodes.
        DaptqError: An episode could not be run to its end.
    """
    known = named_variants(variants, environment)
    if episodes < 2:
        message = f"episodes must be at least 2 for an interval over episodes, got {episodes}."
        raise InvalidInputError(message + " Ask for more.")

    def run(variant: str | None) -> dict[str, Any]:
        kept = None if journal is None else journal / f"{variant or 'nominal'}.jsonl"
        return evaluate_many(
            candidates,
            against=against,
            environment=environment,
            variant=variant,
            tasks=tasks,
            episodes=episodes,
            seed=seed,
            workers=workers,
            batch=batch,
            ray=ray,
            drift_states=drift_states if variant is None else 0,
            monitor=monitor,
            progress=progress,
            journal=kept,
        )

    nominal = run(None)
    return with_variants(nominal, {name: run(name) for name in known}, known)


def named_variants(variants: Sequence[str], environment: str) -> dict[str, str]:
    """Descriptions of variants by name, each once.

    Args:
        variants: Names; `ALL` stands for every variant.
        environment: Name of the environment in the catalog.

    Raises:
        UnknownNameError: The environment or a variant is not known.
        InvalidInputError: No variant is named.
    """
    module = ENVIRONMENTS.load(environment)
    known = getattr(module, "VARIANTS", {})
    names = dict.fromkeys(name for given in variants for name in (known if given == ALL else [given]))
    check_variants(list(names), module)
    if not names:
        message = f"variants must name at least one variant of {environment}, got none."
        raise InvalidInputError(message + " Evaluate without variants for the nominal scene.")
    return {name: known[name].description for name in names}


def with_variants(
    nominal: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], descriptions: Mapping[str, str]
) -> dict[str, Any]:
    """Puts results of the same episodes in the nominal scene and on variants together; see `evaluate_variants`."""
    entries = [
        {
            "variant": name,
            "description": descriptions[name],
            "policies": [{key: policy[key] for key in _SUCCESS} for policy in result["policies"]],
            "comparisons": result["comparisons"],
            "robustness_gap": robustness_gap(nominal, [result]),
            **({"monitor": result["monitor"]} if "monitor" in result else {}),
        }
        for name, result in results.items()
    ]
    return {**nominal, "variants": entries, "robustness_gap": robustness_gap(nominal, list(results.values()))}


def robustness_gap(nominal: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The gap of every candidate over some variants together; see `evaluate_variants`.

    Args:
        nominal: Result in the nominal scene.
        variants: Results on variants, at least one; with several, the variants of one episode are a cluster.
    """
    entries = []
    for number, comparison in enumerate(nominal["comparisons"]):
        before = _differences(comparison)
        after = [_differences(result["comparisons"][number]) for result in variants]
        if len(after) == 1:
            interval = gap_interval(after[0], before)
        else:
            gaps = np.concatenate([(one - before).astype(np.float64) for one in after])
            interval = clustered_difference_interval(gaps, np.tile(np.arange(len(before)), len(after)))
        entries.append(
            {
                "policy": comparison["policy"],
                "against": comparison["against"],
                "value": 100.0 * float(np.mean(np.stack(after) - before)),
                "low": 100.0 * interval.low,
                "high": 100.0 * interval.high,
                "n": len(before),
                "variants": len(after),
            }
        )
    return entries


def _differences(comparison: Mapping[str, Any]) -> NDArray[np.int64]:
    """Candidate's success minus the baseline's in every episode, int64 (n,) in {-1, 0, 1}."""
    paired = comparison["paired"]
    differences: NDArray[np.int64] = np.zeros(paired["n"], dtype=np.int64)
    differences[paired["only_candidate_episodes"]] = 1
    differences[paired["only_baseline_episodes"]] = -1
    return differences
