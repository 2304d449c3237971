"""The interval of a mean difference whose pairs come in clusters. It sees values with the cluster of each one."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from daptq.errors import InvalidInputError
from daptq.statistics.interval import CONFIDENCE, Interval, normal_quantile

__all__ = ["clustered_difference_interval"]


def clustered_difference_interval(
    differences: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"], confidence: float = CONFIDENCE
) -> Interval:
    """Interval of a mean difference when pairs of one cluster (task) resemble each other (Liang and Zeger 1986).

    With s_g the sum of (difference - mean) over cluster g, the mean's variance is G / (G - 1) sum_g s_g^2 / n^2, and
    the interval takes Student's t with G - 1 degrees of freedom. It speaks about tasks drawn like these ones, so with
    few tasks it is wide.

    Args:
        differences: float64 (n,), candidate minus baseline of every pair.
        clusters: int64 (n,), the cluster of every pair.
        confidence: Coverage aimed at, between 0 and 1.

    Returns:
        Limits of the mean difference.

    Raises:
        InvalidInputError: Fewer than two clusters, `clusters` is not as long as `differences`, or the confidence is
            not between 0 and 1.
    """
    normal_quantile(confidence)  # Refuses a confidence out of range.
    if len(differences) != len(clusters):
        message = f"differences and clusters must be equally long, got {len(differences)} and {len(clusters)}."
        raise InvalidInputError(message + " Give every pair the cluster it came from.")
    names, numbers = np.unique(clusters, return_inverse=True)
    if len(names) < 2:
        message = f"clusters must be at least 2, got {len(names)}."
        raise InvalidInputError(message + " Take `paired_difference_interval` for the pairs of one task.")
    mean = float(np.mean(differences))
    sums = np.bincount(numbers, weights=differences - mean)
    scale = len(names) / (len(names) - 1)
    error = math.sqrt(scale * float(np.sum(np.square(sums)))) / len(differences)
    half = float(stats.t.ppf(0.5 + confidence / 2.0, len(names) - 1)) * error
    return Interval(mean - half, mean + half)
