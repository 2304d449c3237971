"""How much more quantization costs on variants of an environment than in the nominal scene.

The robustness gap of a candidate is a number: its success minus the baseline's on the variants, minus that difference
in the nominal scene. Below 0, quantization costs more where the scene is not the one that policies were trained in.
Each episode runs under every condition from the same initial state, so the gap is a difference of paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from daptq.evaluation.comparison import Comparison
from daptq.evaluation.result import EvaluationResult
from daptq.evaluation.variant_result import RobustnessGap, VariantPolicy, VariantResult
from daptq.statistics.clustered import clustered_difference_interval
from daptq.statistics.paired_proportions import gap_interval

__all__ = ["robustness_gap", "with_variants"]


def with_variants(
    nominal: EvaluationResult, results: Mapping[str, EvaluationResult], descriptions: Mapping[str, str]
) -> EvaluationResult:
    """Puts results of the same episodes in the nominal scene and on variants together.

    Args:
        nominal: The result in the nominal scene.
        results: The results on variants, by name, at least one.
        descriptions: What is different on each of them.
    """
    variants = tuple(
        VariantResult(
            variant=name,
            description=descriptions[name],
            policies=tuple(
                VariantPolicy(**{field: getattr(policy, field) for field in VariantPolicy.model_fields})
                for policy in result.policies
            ),
            comparisons=result.comparisons,
            robustness_gap=robustness_gap(nominal, [result]),
            monitor=result.monitor,
        )
        for name, result in results.items()
    )
    gap = robustness_gap(nominal, list(results.values()))
    return nominal.model_copy(update={"variants": variants, "robustness_gap": gap})


def robustness_gap(nominal: EvaluationResult, variants: Sequence[EvaluationResult]) -> tuple[RobustnessGap, ...]:
    """The gap of every candidate over some variants together; none without a baseline.

    Args:
        nominal: Result in the nominal scene.
        variants: Results on variants, at least one; with several, the variants of one episode are a cluster.
    """
    entries = []
    for number, comparison in enumerate(nominal.comparisons):
        before = _differences(comparison)
        after = [_differences(result.comparisons[number]) for result in variants]
        if len(after) == 1:
            interval = gap_interval(after[0], before)
        else:
            gaps = np.concatenate([(one - before).astype(np.float64) for one in after])
            interval = clustered_difference_interval(gaps, np.tile(np.arange(len(before)), len(after)))
        entries.append(
            RobustnessGap(
                policy=comparison.policy,
                against=comparison.against,
                value=100.0 * float(np.mean(np.stack(after) - before)),
                low=100.0 * interval.low,
                high=100.0 * interval.high,
                n=len(before),
                variants=len(after),
            )
        )
    return tuple(entries)


def _differences(comparison: Comparison) -> NDArray[np.int64]:
    """Candidate's success minus the baseline's in every episode, int64 (n,) in {-1, 0, 1}."""
    paired = comparison.paired
    assert paired is not None  # variants are run with whole episodes
    differences: NDArray[np.int64] = np.zeros(paired.n, dtype=np.int64)
    differences[list(paired.only_candidate_episodes)] = 1
    differences[list(paired.only_baseline_episodes)] = -1
    return differences
