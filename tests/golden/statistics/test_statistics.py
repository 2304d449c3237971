"""Intervals and tests against published tables, SciPy, exact enumeration and an independent brute force."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from scipy import optimize, stats

from daptq.errors import InvalidInputError
from daptq.statistics import bootstrap as statistics
from daptq.statistics.bootstrap import bootstrap_interval, mean, median, root_mean_square
from daptq.statistics.clustered import clustered_difference_interval
from daptq.statistics.paired_proportions import mcnemar_exact, paired_difference_interval
from daptq.statistics.proportion import wilson_interval
from daptq.statistics.sequential import non_inferiority_power


class TestWilson:
    # Newcombe 1998, Stat. Med. 17:857, table I, method 3, printed to four decimals.
    @pytest.mark.parametrize(
        ("successes", "n", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_equals_newcombes_table(self, successes: int, n: int, low: float, high: float) -> None:
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)

    def test_equals_the_closed_form_for_every_count_and_several_levels(self) -> None:
        for n, confidence in product((1, 7, 40, 400), (0.8, 0.95, 0.99)):
            z = stats.norm.ppf(0.5 + confidence / 2)
            for k in range(n + 1):
                centre, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
                assert wilson_interval(k, n, confidence) == pytest.approx((centre - half, centre + half), abs=1e-12)

    def test_ends_are_exact(self) -> None:
        for n in range(1, 60):
            assert wilson_interval(0, n).low == 0.0
            assert wilson_interval(n, n).high == 1.0

    def test_limits_solve_the_score_equation(self) -> None:
        # The interval's definition: |k/n - p| = z sqrt(p (1 - p) / n) at both limits.
        z = stats.norm.ppf(0.975)
        for k, n in ((3, 10), (33, 40), (350, 400)):
            for p in wilson_interval(k, n):
                assert abs(k / n - p) == pytest.approx(z * math.sqrt(p * (1 - p) / n), rel=1e-9)

    def test_covers_the_truth_at_the_nominal_rate(self) -> None:
        n = 100
        limits = np.array([wilson_interval(k, n) for k in range(n + 1)])
        rates = np.linspace(0.02, 0.98, 193)
        covered = [(limits[:, 0] <= p) & (p <= limits[:, 1]) for p in rates]
        coverage = [
            float(stats.binom.pmf(np.arange(n + 1), n, p) @ inside) for p, inside in zip(rates, covered, strict=True)
        ]
        # Exact enumeration; Brown, Cai, DasGupta 2001 report a mean close to nominal, dips to about 0.9.
        assert np.mean(coverage) == pytest.approx(0.95, abs=0.005)
        assert min(coverage) > 0.88

    def test_the_wald_interval_would_fail_the_coverage_check(self) -> None:
        n = 100
        k = np.arange(n + 1)
        half = 1.96 * np.sqrt(k / n * (1 - k / n) / n)
        rate = 0.02
        inside = (k / n - half <= rate) & (rate <= k / n + half)
        assert float(stats.binom.pmf(k, n, rate) @ inside) < 0.88

    @pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (5, 4, 0.95), (-1, 4, 0.95), (1, 4, 1.0)])
    def test_refuses_impossible_counts(self, successes: int, n: int, confidence: float) -> None:
        with pytest.raises(InvalidInputError, match="must be"):
            wilson_interval(successes, n, confidence)


# What statsmodels 0.15.0 prints, so that it need not be installed: `proportion_confint(k, n, alpha, method="wilson")`,
# `mcnemar([[9, b], [c, 9]], exact=True).pvalue`, and `OLS(d, ones).fit(cov_type="cluster", cov_kwds={"groups": task,
# "use_correction": True}, use_t=True).conf_int(alpha)`.
class TestStatsmodels:
    @pytest.mark.parametrize(
        ("successes", "n", "confidence", "limits"),
        [
            (353, 400, 0.95, (0.8472450357843668, 0.9104780590498962)),
            (330, 400, 0.95, (0.7847212102757525, 0.8590957984069546)),
            (7, 40, 0.99, (0.07064423503673015, 0.3718333537431997)),
            (29, 29, 0.9, (0.9146665485165832, 1.0)),
        ],
    )
    def test_wilson(self, successes: int, n: int, confidence: float, limits: tuple[float, float]) -> None:
        assert wilson_interval(successes, n, confidence) == pytest.approx(limits, abs=1e-12)

    @pytest.mark.parametrize(
        ("b", "c", "p"), [(24, 47, 0.008554538502693429), (17, 22, 0.5223973804968411), (0, 9, 0.00390625)]
    )
    def test_mcnemar(self, b: int, c: int, p: float) -> None:
        assert mcnemar_exact(b, c) == pytest.approx(p, rel=1e-10)

    # Tasks as (pairs, gained, lost).
    @pytest.mark.parametrize(
        ("tasks", "confidence", "limits"),
        [
            (((100, 6, 9), (100, 3, 10), (100, 8, 17), (100, 7, 8)), 0.95, (-0.10810325, 0.00810325)),
            (((10, 1, 0), (30, 2, 5), (20, 0, 6)), 0.8, (-0.29460401, 0.02793734)),
            (
                ((25, 2, 1), (25, 1, 2), (25, 4, 0), (25, 0, 4), (25, 3, 3), (25, 1, 1)),
                0.95,
                (-0.10946373, 0.10946373),
            ),
        ],
    )
    def test_clustered_difference(
        self, tasks: tuple[tuple[int, int, int], ...], confidence: float, limits: tuple[float, float]
    ) -> None:
        differences = [[1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost) for n, gained, lost in tasks]
        clusters = np.repeat(np.arange(len(tasks)), [n for n, _, _ in tasks])
        interval = clustered_difference_interval(np.concatenate(differences), clusters, confidence)
        assert interval == pytest.approx(limits, abs=5e-9)  # printed to eight decimals


class TestMcNemar:
    def test_equals_published_values(self) -> None:
        # Fagerland, Lydersen, Laake, "Statistical Analysis of Contingency Tables", chapter 8: Cavo et al. 2012.
        assert mcnemar_exact(6, 16) == pytest.approx(0.052479, abs=5e-7)
        # The same chapter: Bentur et al. 2009; 2 (1 + 8) / 2^8.
        assert mcnemar_exact(1, 7) == pytest.approx(18 / 256, rel=1e-14)

    def test_equals_enumeration_of_all_coin_sequences(self) -> None:
        for b, c in product(range(7), range(7)):
            n = b + c
            heads = [sum(toss) for toss in product((0, 1), repeat=n)]
            as_extreme = sum(abs(Fraction(h) - Fraction(n, 2)) >= abs(Fraction(b) - Fraction(n, 2)) for h in heads)
            # A handful of float64 roundings in the tail of the binomial.
            assert mcnemar_exact(b, c) == pytest.approx(float(Fraction(as_extreme, 2**n)), rel=1e-14)

    def test_equals_exact_fractions_for_large_counts(self) -> None:
        for b, c in ((0, 40), (13, 27), (150, 86), (200, 200)):
            tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
            exact = min(Fraction(1), Fraction(2 * tail, 2 ** (b + c)))
            # The probability of k is computed through logarithms of factorials near 2000.
            assert mcnemar_exact(b, c) == pytest.approx(float(exact), rel=1e-10)

    def test_no_discordant_pair_is_no_evidence(self) -> None:
        assert mcnemar_exact(0, 0) == 1.0

    def test_refuses_negative_counts(self) -> None:
        with pytest.raises(InvalidInputError, match="at least 0"):
            mcnemar_exact(-1, 2)


def tango_reference(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's interval from its definition: the nuisance parameter by numerical maximisation, the limits by Brent."""
    z = stats.norm.ppf(0.5 + confidence / 2)

    def score(difference: float) -> float:
        def negative_log_likelihood(q: float) -> float:
            cells = ((b, q + difference), (c, q), (n - b - c, 1 - 2 * q - difference))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        q = optimize.minimize_scalar(
            negative_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-13}
        ).x
        return float((b - c - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference))))

    estimate = (b - c) / n
    high = optimize.brentq(lambda d: score(d) + z, estimate + 1e-9, 1 - 1e-9)
    low = optimize.brentq(lambda d: score(d) - z, -1 + 1e-9, estimate - 1e-9)
    return float(low), float(high)


class TestPairedDifference:
    def test_equals_the_published_table(self) -> None:
        # Fagerland, Lydersen, Laake, chapter 8, and its R package: Cavo et al. 2012, n = (59, 6; 16, 80).
        assert paired_difference_interval(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)

    @pytest.mark.parametrize(
        ("b", "c", "n"), [(6, 16, 161), (1, 7, 21), (40, 20, 160), (3, 0, 40), (0, 9, 40), (5, 5, 12), (2, 3, 400)]
    )
    def test_equals_brute_force(self, b: int, c: int, n: int) -> None:
        # The bounded minimiser finds q to about 1e-8 (square root of float64 precision); the limit inherits that.
        assert paired_difference_interval(b, c, n) == pytest.approx(tango_reference(b, c, n), abs=2e-6)

    def test_without_discordant_pairs_the_limits_have_a_closed_form(self) -> None:
        # T(d)^2 = n d / (1 - d) when q = 0, so |T| <= z up to d = z^2 / (n + z^2).
        z = stats.norm.ppf(0.975)
        for n in (1, 40, 400):
            limit = z * z / (n + z * z)
            assert paired_difference_interval(0, 0, n) == pytest.approx((-limit, limit), rel=1e-12)

    def test_all_pairs_discordant_one_way(self) -> None:
        low, high = paired_difference_interval(10, 0, 10)
        assert high == 1.0
        assert 0.0 < low < 1.0

    def test_exact_coverage_over_the_trinomial(self) -> None:
        n = 40
        counts = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
        limits = np.array([paired_difference_interval(b, c, n) for b, c in counts])
        table = np.array([(b, c, n - b - c) for b, c in counts])
        coverage = []
        for first, second in ((0.05, 0.05), (0.1, 0.02), (0.15, 0.05), (0.3, 0.1), (0.02, 0.2), (0.25, 0.25)):
            probability = stats.multinomial.pmf(table, n, (first, second, 1 - first - second))
            inside = (limits[:, 0] <= first - second) & (first - second <= limits[:, 1])
            coverage.append(float(probability @ inside))
        # Newcombe 1998 (Stat. Med. 17:2635) asks of a good method a mean near 0.95 and no collapse anywhere.
        assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)
        assert min(coverage) > 0.92

    @pytest.mark.parametrize("discordant", [0.08, 0.15, 0.3])
    @pytest.mark.parametrize("n", [100, 400])
    def test_a_loss_of_the_margin_passes_for_non_inferior_at_the_nominal_rate(self, n: int, discordant: float) -> None:
        # Exact enumeration at the edge of the claim: 2.5 % is the nominal error of the lower limit. The score interval
        # is approximate; discreteness moves the error by a few tenths of the nominal rate.
        error = non_inferiority_power(n, 0.05, discordant, difference=-0.05)
        assert 0.012 < error < 0.035

    @pytest.mark.parametrize(("b", "c", "n"), [(1, 1, 0), (3, 2, 4), (-1, 2, 4)])
    def test_refuses_impossible_counts(self, b: int, c: int, n: int) -> None:
        with pytest.raises(InvalidInputError, match="must be"):
            paired_difference_interval(b, c, n)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


class TestBootstrap:
    def test_equals_enumeration_of_all_resamples(self) -> None:
        # Three clusters have 27 equally likely resamples: the percentile interval of a mean can be listed.
        groups = ([1.0, 2.0], [10.0], [4.0, 5.0, 6.0])
        values = np.array([value for group in groups for value in group])
        clusters = np.repeat([7, 3, 5], [len(group) for group in groups])
        listed = [np.mean(np.concatenate(pick)) for pick in product(groups, repeat=3)]
        low, high = bootstrap_interval(values, clusters, mean, seed=0, resamples=20_000, confidence=0.5)
        # The quartiles of 27 atoms do not move when each atom's probability 1/27 is known to 0.2 percent.
        assert (low, high) == pytest.approx(tuple(np.quantile(np.repeat(listed, 999), [0.25, 0.75])), abs=1e-12)

    def test_equal_and_unequal_clusters_are_resampled_alike(self) -> None:
        # A NaN-padded statistic sees the same resamples whether the clusters are picked from a table or one by one.
        generator = np.random.default_rng(3)
        groups = generator.standard_normal((12, 3))
        clusters = np.repeat(np.arange(12), 3)
        padded = np.append(groups.ravel(), np.nan)
        equal = bootstrap_interval(groups.ravel(), clusters, mean, seed=1)
        unequal = bootstrap_interval(padded, np.append(clusters, 11), lambda v: np.nanmean(v, axis=-1), seed=1)
        assert equal == pytest.approx(unequal, rel=1e-12)

    def test_covers_the_mean_of_clustered_values(self) -> None:
        generator = np.random.default_rng(0)
        clusters = np.repeat(np.arange(40), 3)
        hits = {"clustered": 0, "independent": 0}
        for trial in range(200):
            values = np.repeat(generator.standard_normal(40), 3) + 0.1 * generator.standard_normal(120)
            for kind, groups in (("clustered", clusters), ("independent", np.arange(120))):
                low, high = bootstrap_interval(values, groups, mean, seed=trial, resamples=300)
                hits[kind] += low <= 0.0 <= high
        # 200 trials: standard error 1.5 points. Ignoring the clusters would cover about 74 percent only.
        assert 0.89 <= hits["clustered"] / 200 <= 0.99
        assert hits["independent"] / 200 < 0.85

    def test_resampling_in_parts_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = np.random.default_rng(0).standard_normal(60)
        clusters = np.repeat(np.arange(20), 3)
        for statistic, plain in ((mean, np.mean), (median, np.median), (root_mean_square, rms)):
            whole = bootstrap_interval(values, clusters, statistic, seed=4)
            with monkeypatch.context() as patch:
                patch.setattr(statistics, "_RESAMPLED_AT_ONCE", 7 * 60)
                assert bootstrap_interval(values, clusters, statistic, seed=4) == whole
            # The same resamples, one by one.
            picks = np.random.default_rng(4).integers(20, size=(2000, 20))
            listed = [plain(values.reshape(20, 3)[pick].ravel()) for pick in picks]
            assert whole == pytest.approx(tuple(np.quantile(listed, [0.025, 0.975])), rel=1e-12)

    def test_same_seed_same_interval(self) -> None:
        values, clusters = np.random.default_rng(1).standard_normal(30), np.arange(30)
        first = bootstrap_interval(values, clusters, mean, seed=5)
        assert first == bootstrap_interval(values, clusters, mean, seed=5)
        assert first != bootstrap_interval(values, clusters, mean, seed=6)

    def test_all_zero_stays_exactly_zero(self) -> None:
        assert bootstrap_interval(np.zeros(9), np.arange(9), mean, seed=0) == (0.0, 0.0)

    def test_refuses_empty_and_ragged_input(self) -> None:
        with pytest.raises(InvalidInputError, match="equally long"):
            bootstrap_interval(np.zeros(0), np.zeros(0, dtype=np.int64), mean, seed=0)
        with pytest.raises(InvalidInputError, match="equally long"):
            bootstrap_interval(np.zeros(3), np.arange(2), mean, seed=0)
