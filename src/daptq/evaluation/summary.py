"""Turns episode records into the numbers of a result: success with intervals, and paired comparisons.

Rates are fractions in [0, 1]; differences are percentage points. The module does not run anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from daptq.evaluation.rollout import EpisodeRecord
from daptq.evaluation.statistics import mcnemar_exact, paired_difference_interval, wilson_interval


def success_summary(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Success of one policy over all episodes and per task.

    Args:
        records: The policy's records, at least one, in episode order.

    Returns:
        JSON object: `n`, `successes`, `success_rate`, `low`, `high` (Wilson, 95 %) by the rule "at any step"; the same
        under `at_last_step` by the rule "after the last step"; `other_task`, the rate of episodes in which another task
        of the scene was fulfilled; `per_task` with the first two per task.
    """
    tasks = list(dict.fromkeys(record.task for record in records))
    return {
        **_both_rules(records),
        "other_task": _rate(bool(record.other_tasks) for record in records),
        "per_task": {task: _both_rules([record for record in records if record.task == task]) for task in tasks},
    }


def paired_summary(baseline: Sequence[EpisodeRecord], candidate: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Compares two policies episode by episode.

    Args:
        baseline: Records of the policy compared with.
        candidate: Records of the other policy for the same episodes, in the same order.

    Returns:
        JSON object by the rule "at any step": `difference` (candidate minus baseline), `low`, `high` (Tango's score
        interval, 95 %), all three in percentage points, `n`, the counts `both`, `neither`, `only_candidate`,
        `only_baseline`, `mcnemar_p`, and the indices of discordant episodes; the same under `at_last_step`.
    """
    result = _paired(
        [record.success_any_step for record in baseline],
        [record.success_any_step for record in candidate],
        [record.index for record in baseline],
    )
    result["at_last_step"] = _paired(
        [record.success_last_step for record in baseline],
        [record.success_last_step for record in candidate],
        [record.index for record in baseline],
    )
    return result


def _both_rules(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    at_last_step = _rate(record.success_last_step for record in records)
    return {**_rate(record.success_any_step for record in records), "at_last_step": at_last_step}


def _rate(outcomes: Iterable[bool]) -> dict[str, Any]:
    listed = list(outcomes)
    successes, n = sum(listed), len(listed)
    low, high = wilson_interval(successes, n)
    return {"n": n, "successes": successes, "success_rate": successes / n, "low": low, "high": high}


def _paired(baseline: Sequence[bool], candidate: Sequence[bool], indices: Sequence[int]) -> dict[str, Any]:
    pairs = list(zip(baseline, candidate, indices, strict=True))
    gained = [index for before, after, index in pairs if after and not before]
    lost = [index for before, after, index in pairs if before and not after]
    both = sum(before and after for before, after, _ in pairs)
    low, high = paired_difference_interval(len(gained), len(lost), len(pairs))
    return {
        "difference": 100.0 * (len(gained) - len(lost)) / len(pairs),
        "low": 100.0 * low,
        "high": 100.0 * high,
        "n": len(pairs),
        "both": both,
        "neither": len(pairs) - both - len(gained) - len(lost),
        "only_candidate": len(gained),
        "only_baseline": len(lost),
        "mcnemar_p": mcnemar_exact(len(gained), len(lost)),
        "only_candidate_episodes": gained,
        "only_baseline_episodes": lost,
    }
