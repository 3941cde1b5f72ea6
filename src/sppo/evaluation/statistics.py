"""What n samples to each of P problems say: pass@k, maj@k, means with 95% intervals, paired tests. No torch.

Samples of one problem are not independent, so everything is clustered by problem. Two questions have two intervals:

- *total*: how would the mean come out on other problems of this kind? The spread of the problems' own means holds the
  spread of their samples too. Student's t with P - 1 degrees of freedom, since a benchmark may have 30 problems, where
  the normal quantile is too short; a bootstrap over so few clusters is too short as well, and adds noise.
- *sampling*: how would it come out on the same problems with other samples? Variances inside the problems, added up;
  Student's t with Satterthwaite's degrees of freedom.

Where every mean is 0 (or 1) the spread is 0, which proves nothing: the interval then ends at the exact bound.

P problems, n samples a problem, c of them right, k samples looked at, Q points of a quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
MOST_SAMPLES = 1024
"""n of maj@k: the number of subsets of 1,030 samples is beyond a float."""
_RESAMPLES = 9999
_BATCH = 1000


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends inside."""

    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """How exactly a mean is known: a variance and the degrees of freedom it was estimated with."""

    variance: float
    """Of the mean, not of one observation."""
    freedom: float
    """Degrees of freedom; infinite where nothing varied."""
    slack: float = 0.0
    """Exact 95% bound on the distance to the truth where nothing varied; 0 where the variance says it."""

    @property
    def stderr(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(self.variance)

    def margin(self) -> float:
        """Half of the 95% interval's width."""
        if self.variance == 0:
            return self.slack
        from scipy.stats import t

        return math.hypot(float(t.ppf((1 + CONFIDENCE) / 2, self.freedom)) * self.stderr, self.slack)

    def interval(self, mean: float, low: float = 0.0, high: float = 1.0) -> Interval:
        """The 95% interval around `mean`, cut to what is possible."""
        margin = self.margin()
        return Interval(max(low, mean - margin), min(high, mean + margin))


def total_spread(means: ArrayLike, low: float = 0.0, high: float = 1.0) -> Spread | None:
    """Spread of the mean of [P] problem means when the problems are a draw from many; None for a single problem.

    Where all means are 0, their expectation m satisfies P(all are 0) <= (1 - m)^P for any values in [0, 1], so that m
    is at most 1 - 0.025^(1/P); the same from above where all are 1. Where all are c, another problem's may lie as far
    off as the farther end of [low, high], and the bound is that many times as large.
    """
    x = np.asarray(means, dtype=np.float64)
    if x.size < 2:
        return None
    if np.ptp(x) == 0:
        farthest = max(high - float(x[0]), float(x[0]) - low)
        return Spread(0.0, x.size - 1, farthest * _exact_bound(x.size))
    return Spread(float(x.var(ddof=1)) / x.size, x.size - 1)


def sampling_spread(variances: ArrayLike, samples: ArrayLike, k: int = 1) -> Spread | None:
    """Spread of the mean over P problems when the problems are fixed and only their samples vary.

    Args:
        variances: [P] estimated variance of each problem's own mean, or pass@k.
        samples: [P] samples that each was estimated from.
        k: of pass@k.

    Returns:
        None where every problem has a single sample, which says nothing of the spread inside it; one that was left
        with a single sample takes the mean variance of the others. Where no problem's samples differ, all errors e_i
        of the problems' rates satisfy P(no error seen) = prod (1 - e_i)^n_i, which bounds their mean by
        1 - 0.025^(1 / (P n)), n the least of the n_i. For errors of pass@k the exponents are at least n_i / k: all
        samples of a problem fail with (1 - p)^n = (1 - pass@k)^(n / k).
    """
    v, n = np.asarray(variances, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    told = n >= 2
    if not told.any():
        return None
    if not v[told].any():
        return Spread(0.0, math.inf, _exact_bound(v.size * float(n.min()) / k))
    v = np.where(told, v, (v * n)[told].mean() / n)
    freedom = float(v[told].sum()) ** 2 / float((v[told] ** 2 / (n[told] - 1)).sum())
    return Spread(float(v.sum()) / v.size**2, freedom)


def mean_spread(spreads: Sequence[Spread | None]) -> Spread | None:
    """Spread of the unweighted mean of independent means, such as an average over benchmarks.

    Returns:
        None where one of them is not known. Satterthwaite's degrees of freedom; the exact bounds of means that did not
        vary add up as independent errors do.
    """
    known = [spread for spread in spreads if spread is not None]
    if not known or len(known) < len(spreads):
        return None
    total = sum(spread.variance for spread in known)
    squares = sum(spread.variance**2 / spread.freedom for spread in known)
    slack = math.hypot(*(spread.slack for spread in known)) / len(known)
    return Spread(total / len(known) ** 2, total**2 / squares if squares > 0 else math.inf, slack)


def _exact_bound(trials: float) -> float:
    return 1 - ((1 - CONFIDENCE) / 2) ** (1 / trials)


def mean_variances(rewards: Sequence[Sequence[float]]) -> list[float]:
    """Estimated variance of each problem's mean reward: its samples' variance (n - 1) over n; 0 for one sample."""
    return [float(np.var(r, ddof=1)) / len(r) if len(r) > 1 else 0.0 for r in rewards]


def powers_of_two(n: int) -> list[int]:
    """Returns [1, 2, 4, ...] up to n."""
    return [1 << exponent for exponent in range(n.bit_length())] if n > 0 else []


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples is right: 1 - C(n-c, k) / C(n, k).

    Unbiased (Chen et al. 2021, arXiv 2107.03374): the share of all k-subsets of the n samples with a right one.
    """
    assert 0 <= c <= n, f"{c} of {n} right"
    assert 1 <= k <= n, f"k is {k}, but there are {n} samples"
    return 1 - math.comb(n - c, k) / math.comb(n, k)


@lru_cache(maxsize=100_000)
def pass_variance(n: int, c: int, k: int) -> float:
    """Estimated variance of `pass_at_k` over other draws of n samples to the same problem.

    The exact bootstrap: the variance of pass@k for c drawn from Binomial(n, c/n), times n / (n - 1), which for k = 1
    is the usual unbiased estimate. It is 0 where the samples agree, and for a single sample.
    """
    if n < 2 or c in (0, n):
        return 0.0
    from scipy.stats import binom

    probabilities = binom.pmf(np.arange(n + 1), n, c / n)
    values = np.array([pass_at_k(n, other, k) for other in range(n + 1)])
    mean = float(probabilities @ values)
    return float(probabilities @ (values - mean) ** 2) * n / (n - 1)


def majority_at_k(n: int, right: int, wrong: tuple[int, ...], k: int) -> float:
    """Probability that the most frequent answer of k samples is right; a tie is worth the right one's share of it.

    Exact, over all k-subsets of the n samples.

    Args:
        n: samples; those that are neither `right` nor in `wrong` gave no answer and do not vote.
        right: samples with the right answer.
        wrong: samples of each wrong answer.
        k: samples looked at.
    """
    assert right + sum(wrong) <= n, f"{right} + {sum(wrong)} votes of {n} samples"
    assert 1 <= k <= n, f"k is {k}, but there are {n} samples"
    if right in (0, n):
        return right / n
    return _favourable(n, right, wrong)[k] / math.comb(n, k)


@lru_cache(maxsize=100_000)
def _favourable(n: int, right: int, wrong: tuple[int, ...]) -> tuple[float, ...]:
    """Number of subsets, by size 0 to n, in which the right answer wins; a tie of j answers counts 1/j.

    With t votes for the right answer, the other answers are polynomials in x, the number of samples taken, whose
    coefficients count subsets with at most t votes. The integral of y^(j-1) over [0, 1] is 1/j, where y marks each
    other answer that has t votes too; Gauss-Legendre is exact for it.
    """
    silent = n - right - sum(wrong)
    totals = np.zeros(n + 1)
    for votes in range(1, right + 1):
        rivals = sum(count >= votes for count in wrong)
        points, weights = np.polynomial.legendre.leggauss(rivals // 2 + 1)
        others = _subsets(silent, n - votes, points)
        for count in wrong:
            others = _product(others, _at_most(count, votes, n - votes, (points + 1) / 2))
        totals[votes:] += math.comb(right, votes) * (weights / 2 @ others)
    return tuple(totals.tolist())


def _subsets(count: int, degree: int, points: Floats) -> Floats:
    """[Q, degree + 1] number of subsets of `count` samples by size; the same at each of the Q points."""
    return np.tile([float(math.comb(count, size)) for size in range(degree + 1)], (len(points), 1))


def _at_most(count: int, votes: int, degree: int, marks: Floats) -> Floats:
    """[Q, D] subsets of one wrong answer's samples by size, of up to `votes` of them; those of all `votes` times y."""
    subsets = _subsets(count, min(count, votes, degree), marks)
    if votes < subsets.shape[1]:
        subsets[:, votes] *= marks
    return subsets


def _product(left: Floats, right: Floats) -> Floats:
    """[Q, D] product of polynomials, cut to left's degree."""
    result = left * right[:, :1]
    for power in range(1, right.shape[1]):
        result[:, power:] += left[:, :-power] * right[:, power : power + 1]
    return result


def sign_flip_p_value(differences: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Two-sided p-value of "the differences are symmetric around 0", by flipping their signs.

    Where two models are equally good on every problem, each paired difference is as likely as its negative, so this
    test holds for any number of problems and any distribution, where a t-test needs a normal one. All sign patterns
    are tried where they are fewer than 10,000, else 9,999 random ones of a fixed seed.

    Args:
        differences: [P] paired differences, one a problem.
        weights: [P] weight of each in the mean that is tested; default: equal.
    """
    d = np.asarray(differences, dtype=np.float64)
    if weights is not None:
        d = d * np.asarray(weights, dtype=np.float64)
    d = d[d != 0]
    if d.size < 2:
        return 1.0
    from scipy.stats import permutation_test

    result = permutation_test(
        (d,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)
