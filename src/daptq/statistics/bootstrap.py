"""Intervals of any statistic by resampling, where values of one cluster (episode) stay together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from daptq.errors import InvalidInputError
from daptq.statistics.estimate import Estimate
from daptq.statistics.interval import CONFIDENCE, Interval

__all__ = ["Statistic", "bootstrap_estimate", "bootstrap_interval", "mean", "median", "root_mean_square"]

# Turns samples along the last axis into one number each, all other axes at once.
Statistic = Callable[[Float[np.ndarray, "... n"]], Float[np.ndarray, "..."]]

# Numbers that are resampled at a time, 32 MiB of them.
_RESAMPLED_AT_ONCE = 2**22


def bootstrap_interval(
    values: Float[np.ndarray, " n"],
    clusters: Int[np.ndarray, " n"],
    statistic: Statistic,
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
) -> Interval:
    """Percentile interval of a statistic under resampling of whole clusters: values of one episode stay together.

    Args:
        values: float64 (n,), the measured values.
        clusters: int64 (n,), the cluster (episode) of each value.
        statistic: Maps float64 (..., m) values to float64 (...), as `mean`, `median` and `root_mean_square` do.
        seed: Seed of the resampling; the same seed gives the same interval.
        confidence: Coverage aimed at, between 0 and 1.
        resamples: Number of bootstrap samples.

    Returns:
        The (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of the resampled statistic. With one cluster both
        ends are the statistic itself: one episode says nothing of the spread between episodes.

    Raises:
        InvalidInputError: No values, or `clusters` is not as long as `values`.
    """
    if len(values) == 0 or len(values) != len(clusters):
        message = f"values and clusters must be non-empty and equally long, got {len(values)} and {len(clusters)}."
        raise InvalidInputError(message + " Give every value the cluster it came from.")
    groups = [values[clusters == cluster] for cluster in np.unique(clusters)]
    generator = np.random.default_rng(seed)
    picks = generator.integers(len(groups), size=(resamples, len(groups)))
    if len({len(group) for group in groups}) == 1:
        table = np.stack(groups)  # Clusters of one size, the usual case, are picked out of a table at once.
        rows = max(1, _RESAMPLED_AT_ONCE // table.size)
        parts = [picks[start : start + rows] for start in range(0, resamples, rows)]
        estimates = np.concatenate([statistic(table[part].reshape(len(part), -1)) for part in parts])
    else:
        estimates = np.array([statistic(np.concatenate([groups[index] for index in pick])) for pick in picks])
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(estimates, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def bootstrap_estimate(
    values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"], statistic: Statistic, *, seed: int
) -> Estimate:
    """A statistic with its interval; see `bootstrap_interval`."""
    low, high = bootstrap_interval(values, clusters, statistic, seed=seed)
    return Estimate(value=float(statistic(values)), low=low, high=high)


def mean(values: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    """Mean over the last axis."""
    return np.mean(values, axis=-1)


def median(values: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    """Median over the last axis."""
    return np.median(values, axis=-1)


def root_mean_square(values: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    """Root of the mean of the squares over the last axis."""
    return np.sqrt(np.mean(np.square(values), axis=-1))
