"""Turns episode records into the numbers of a result: success with intervals, and paired comparisons.

Rates are fractions in [0, 1]; differences are percentage points. The module does not run anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from daptq.closed_loop.rollout import EpisodeRecord
from daptq.statistics.intervals import (
    clustered_difference_interval,
    mcnemar_exact,
    paired_difference_interval,
    wilson_interval,
)


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
        `only_baseline`, `mcnemar_p`, the indices of discordant episodes, and `clustered_by_task` (`tasks`, `low`,
        `high`: an interval about tasks like these ones, None for a single task); the same under `at_last_step`;
        and `discordant`, one entry per episode in which just one of the two succeeds at any step: `index`, `task`,
        `seed`, `succeeds` (``"baseline"`` or ``"candidate"``) and `first_success`, the steps that it took.
    """
    result = _paired(
        baseline,
        [record.success_any_step for record in baseline],
        [record.success_any_step for record in candidate],
    )
    result["at_last_step"] = _paired(
        baseline,
        [record.success_last_step for record in baseline],
        [record.success_last_step for record in candidate],
    )
    result["discordant"] = [
        _discordant(*pair)
        for pair in zip(baseline, candidate, strict=True)
        if pair[0].success_any_step != pair[1].success_any_step
    ]
    return result


def _discordant(baseline: EpisodeRecord, candidate: EpisodeRecord) -> dict[str, Any]:
    succeeds, record = ("baseline", baseline) if baseline.success_any_step else ("candidate", candidate)
    about = {"index": record.index, "task": record.task, "seed": record.seed}
    return {**about, "succeeds": succeeds, "first_success": record.first_success}


def _both_rules(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    at_last_step = _rate(record.success_last_step for record in records)
    return {**_rate(record.success_any_step for record in records), "at_last_step": at_last_step}


def _rate(outcomes: Iterable[bool]) -> dict[str, Any]:
    listed = list(outcomes)
    successes, n = sum(listed), len(listed)
    low, high = wilson_interval(successes, n)
    return {"n": n, "successes": successes, "success_rate": successes / n, "low": low, "high": high}


def _paired(records: Sequence[EpisodeRecord], baseline: Sequence[bool], candidate: Sequence[bool]) -> dict[str, Any]:
    """Compares outcomes; `records` tell which episode and task each pair is of."""
    pairs = list(zip(baseline, candidate, records, strict=True))
    gained = [record.index for before, after, record in pairs if after and not before]
    lost = [record.index for before, after, record in pairs if before and not after]
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
        "clustered_by_task": _clustered([(int(after) - int(before), record.task) for before, after, record in pairs]),
    }


def _clustered(differences: Sequence[tuple[int, str]]) -> dict[str, Any] | None:
    """Interval of the mean difference, clustered by task; at each end the wider of it and the one that pools pairs.

    A spread between few tasks may come out too small by chance, down to 0, so it may only widen the interval (Angrist
    and Pischke 2009, "Mostly Harmless Econometrics", section 8.2).
    """
    values = np.array([value for value, _ in differences], dtype=np.float64)
    tasks, numbers = np.unique([task for _, task in differences], return_inverse=True)
    if len(tasks) < 2:
        return None
    pooled = paired_difference_interval(int((values > 0).sum()), int((values < 0).sum()), len(values))
    clustered = clustered_difference_interval(values, numbers)
    low, high = min(pooled.low, clustered.low), max(pooled.high, clustered.high)
    return {"tasks": len(tasks), "low": 100.0 * max(low, -1.0), "high": 100.0 * min(high, 1.0)}
