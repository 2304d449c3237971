"""Puts the JSON object of an evaluation together from the records of its episodes and branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daptq.artifacts import provenance
from daptq.closed_loop.episodes import Episode
from daptq.closed_loop.rollout import BranchRecord, EpisodeRecord
from daptq.evaluation.journal import Journal
from daptq.evaluation.schedule import Schedule
from daptq.metrics.drift import HORIZONS, branch_drift, episode_drift
from daptq.metrics.motion import motion_summary
from daptq.metrics.summary import paired_summary, success_summary
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.monitoring.shift_detector import monitor_summary
from daptq.statistics.intervals import CONFIDENCE

SCHEMA_VERSION = 1


def put_together(
    settings: Mapping[str, Any],
    schedule: Schedule,
    done: Sequence[Episode],
    records: Journal,
    descriptions: Mapping[str, Mapping[str, Any]],
    *,
    frequency: float,
    chunk_steps: Mapping[str, int],
    references: Mapping[str, InterfaceReference],
) -> dict[str, Any]:
    """The result of `evaluate_many`.

    Args:
        settings: What the evaluation was asked.
        schedule: What was to be run at most.
        done: The episodes that were run.
        records: What came of them.
        descriptions: What each policy is made of, by label.
        frequency: Control steps per second [Hz].
        chunk_steps: Control steps that each policy executes of a chunk, by label.
        references: What is normal for the policy that was watched, by its label.
    """
    baseline = schedule.baseline
    episodes: dict[str, list[EpisodeRecord]] = {label: [] for label in descriptions}
    branches: dict[str, list[BranchRecord]] = {label: [] for label in descriptions}
    for label in descriptions:
        for episode in done:
            for step in (None, *episode.branch_steps):
                record = records.records.get((label, episode.index, step))
                if isinstance(record, EpisodeRecord):
                    if schedule.closed_loop or label == baseline:
                        episodes[label].append(record)
                elif record is not None:
                    branches[label].append(record)
    seed = int(settings["seed"])
    comparisons = [
        {
            "policy": label,
            "against": baseline,
            **({"stopping": _stopping(schedule, label, done, records)} if schedule.stop else {}),
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
    monitors = [
        monitor_summary(label, reference, episodes[label], horizon=len(schedule.episodes), seed=seed)
        for label, reference in references.items()
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
        **({"monitor": monitors[0]} if monitors else {}),
        "provenance": provenance(seed=seed),
    }


def _stopping(schedule: Schedule, label: str, done: Sequence[Episode], records: Journal) -> dict[str, Any]:
    """The decision about one candidate, and how many pairs there would have been at most."""
    return {**schedule.decision(label, records, len(done)).to_json(), "planned": len(schedule.episodes)}
