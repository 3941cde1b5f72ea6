"""How well V(prompt) predicts solving: Brier score, ECE, correlations, AUROC, reliability bins. All on probabilities.

Outcomes are single responses' rewards or solve rates of prompts. A solve rate of n samples is itself uncertain, so even
a perfect V does not reach a correlation of 1 or a Brier score of 0 against it; `reachable_pearson` and
`sampling_noise` say how far it gets. A V that is not finite makes every measure nan and lies in no bin: it is for those
who train to say what happened. N prompts (or responses).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityBin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    mean_value: float
    """Mean V of the prompts in the bin."""
    solve_rate: float
    """Mean reward of the same prompts."""
    count: int


def brier(values: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared difference between V and the outcome (0 or 1, or a solve rate); both [N]."""
    v, r = _pair(values, outcomes)
    return float(np.mean((v - r) ** 2))


def bias(values: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean V less the mean outcome; both [N]. Above 0 where V expects too much."""
    v, r = _pair(values, outcomes)
    return float(v.mean() - r.mean())


def binary_cross_entropy(values: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean BCE in nats; both [N]."""
    v, r = _pair(values, outcomes)
    v = np.clip(v, 1e-12, 1 - 1e-12)
    return float(-np.mean(r * np.log(v) + (1 - r) * np.log1p(-v)))


def reliability(values: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """Bins of equal width over [0, 1]; empty bins are left out, and pairs that are not finite."""
    v, r = _pair(values, outcomes)
    finite = np.isfinite(v) & np.isfinite(r)
    v, r = v[finite], r[finite]
    index = np.minimum((v * bins).astype(int), bins - 1)
    filled = [(b, index == b) for b in range(bins) if (index == b).any()]
    return [
        ReliabilityBin(b / bins, (b + 1) / bins, float(v[members].mean()), float(r[members].mean()), int(members.sum()))
        for b, members in filled
    ]


def expected_calibration_error(values: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> float:
    """ECE: the mean gap between V and the outcome over equal-width bins, weighted by their counts."""
    if not _all_finite(values, outcomes):
        return float("nan")
    filled = reliability(values, outcomes, bins)
    total = sum(b.count for b in filled)
    return sum(b.count * abs(b.mean_value - b.solve_rate) for b in filled) / total


def explained_variance(values: ArrayLike, outcomes: ArrayLike) -> float:
    """1 - Var(R - V) / Var(R); nan where R does not vary."""
    if not _all_finite(values, outcomes):
        return float("nan")
    v, r = _pair(values, outcomes)
    spread = np.var(r)
    return float(1 - np.var(r - v) / spread) if spread > 0 else float("nan")


def pearson(values: ArrayLike, outcomes: ArrayLike) -> float:
    """Linear correlation; nan where either side does not vary."""
    if not _all_finite(values, outcomes):
        return float("nan")
    v, r = _pair(values, outcomes)
    # A constant of floats has a variance of rounding errors only, whose correlation would be noise.
    if np.ptp(v) < 1e-9 or np.ptp(r) < 1e-9:
        return float("nan")
    return float(np.corrcoef(v, r)[0, 1])


def spearman(values: ArrayLike, outcomes: ArrayLike) -> float:
    """Rank correlation, ties at their mean rank; nan where either side does not vary."""
    from scipy.stats import rankdata

    v, r = _pair(values, outcomes)
    if not _all_finite(v, r) or np.ptp(v) < 1e-9:
        return float("nan")
    return pearson(rankdata(v), rankdata(r))


def auroc(values: ArrayLike, outcomes: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Probability that V is higher for a solved response than for one that failed; equal values count half.

    Args:
        values: [N] V of each response; or of each prompt, with its solve rate as outcome.
        outcomes: [N] in [0, 1]. A solve rate p stands for responses of which the share p is solved.
        weights: [N] responses that each entry stands for; default: one.

    Returns:
        The area under the ROC curve, in [0, 1]; nan where all or none are solved.
    """
    if not _all_finite(values, outcomes):
        return float("nan")
    v, r = _pair(values, outcomes)
    w = np.ones_like(v) if weights is None else np.asarray(weights, dtype=np.float64)
    _, place = np.unique(v, return_inverse=True)
    solved, failed = np.bincount(place, w * r), np.bincount(place, w * (1 - r))
    pairs = solved.sum() * failed.sum()
    below = np.cumsum(failed) - failed
    return float((solved * (below + failed / 2)).sum() / pairs) if pairs > 0 else float("nan")


def sampling_noise(rewards: Sequence[Sequence[float]]) -> float:
    """Mean squared error of the solve rates themselves: the Brier score that a perfect V has against them.

    Args:
        rewards: the rewards of each of N prompts' samples.

    Returns:
        Mean over prompts of the unbiased variance of the mean reward, s^2 / n, for 0/1 rewards p (1 - p) / (n - 1);
        nan where a prompt has a single sample.
    """
    if any(len(of_prompt) < 2 for of_prompt in rewards):
        return float("nan")
    return float(np.mean([np.var(of_prompt, ddof=1) / len(of_prompt) for of_prompt in rewards]))


def reachable_pearson(rewards: Sequence[Sequence[float]]) -> float:
    """Correlation of the true solve rates with the measured ones: what a perfect V reaches.

    The square root of the reliability, 1 - noise / variance of the measured rates (Spearman 1904). A measured
    correlation divided by it is an estimate of the correlation with the true rates.

    Args:
        rewards: the rewards of each of N prompts' samples.

    Returns:
        In [0, 1]; nan where the rates do not vary or a prompt has a single sample.
    """
    rates = [float(np.mean(of_prompt)) for of_prompt in rewards]
    spread, noise = float(np.var(rates, ddof=1)) if len(rates) > 1 else 0.0, sampling_noise(rewards)
    if spread < 1e-12 or math.isnan(noise):
        return float("nan")
    return math.sqrt(max(0.0, 1 - noise / spread))


def bootstrap_interval(
    measure: Callable[..., float], *columns: ArrayLike, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """A 95% interval of a measure over other prompts: bias-corrected and accelerated bootstrap (Efron 1987).

    Prompts are drawn with replacement, each with all of its columns. The correction matters for ECE, which grows
    with noise, so that plain percentiles may lie above the estimate altogether. scipy.stats.bootstrap does the same,
    but gives nothing where a single draw is undefined, which is common once nearly all prompts are solved.

    Args:
        measure: such as `pearson`, of the columns; nan where it is undefined.
        columns: [N] each, such as V and solve rate of each prompt.
        resamples: draws of N prompts.
        seed: of the draws.

    Returns:
        Low and high; None where the measure is undefined, does not vary, or there are fewer than 3 prompts.
    """
    from scipy.stats import norm

    table = [np.asarray(column, dtype=np.float64) for column in columns]
    size, estimate = table[0].size, measure(*table)
    if not math.isfinite(estimate) or size < 3:
        return None
    rng = np.random.default_rng(seed)
    drawn = [measure(*(column[rows] for column in table)) for rows in rng.integers(size, size=(resamples, size))]
    # Undefined draws, such as one of solved prompts alone, say nothing; where they are common there is no interval.
    found = np.array([value for value in drawn if math.isfinite(value)])
    if found.size < 0.9 * resamples or np.ptp(found) < 1e-12:
        return None
    without_one = (measure(*(np.delete(column, row) for column in table)) for row in range(size))
    left = np.array([value for value in without_one if math.isfinite(value)])
    influence = left.sum() / max(left.size, 1) - left
    scale = float((influence**2).sum()) ** 1.5
    acceleration = float((influence**3).sum()) / (6 * scale) if scale > 0 else 0.0
    share = float((found < estimate).mean() + (found == estimate).mean() / 2)
    bias = float(norm.ppf(np.clip(share, 1 / resamples, 1 - 1 / resamples)))
    ends = bias + norm.ppf([0.025, 0.975])
    low, high = np.quantile(found, norm.cdf(bias + ends / (1 - acceleration * ends)))
    return float(low), float(high)


def calibration_metrics(values: ArrayLike, outcomes: ArrayLike) -> dict[str, float]:
    """All scalar measures by name, without those that are undefined on this data."""
    measures = {
        "bce": binary_cross_entropy(values, outcomes),
        "brier": brier(values, outcomes),
        "ece": expected_calibration_error(values, outcomes),
        "bias": bias(values, outcomes),
        "explained_variance": explained_variance(values, outcomes),
        "pearson": pearson(values, outcomes),
    }
    return {name: value for name, value in measures.items() if np.isfinite(value)}


def regression_metrics(values: ArrayLike, outcomes: ArrayLike) -> dict[str, float]:
    """Measures of a V that is no probability (critic.loss mse), by name, without those undefined on this data."""
    measures = {
        "mse": brier(values, outcomes),
        "explained_variance": explained_variance(values, outcomes),
        "pearson": pearson(values, outcomes),
    }
    return {name: value for name, value in measures.items() if np.isfinite(value)}


def reliability_rows(values: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> list[dict[str, Any]]:
    """`reliability` as plain dicts, for summary.json."""
    return [asdict(b) for b in reliability(values, outcomes, bins)]


def add_reliability(rows: Sequence[dict[str, Any]], more: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merges two sets of `reliability_rows`, as if their values had been binned together."""
    merged = {row["low"]: row for row in rows}
    for row in more:
        old = merged.get(row["low"])
        if old is None:
            merged[row["low"]] = row
            continue
        count = old["count"] + row["count"]
        means = {
            key: (old[key] * old["count"] + row[key] * row["count"]) / count for key in ("mean_value", "solve_rate")
        }
        merged[row["low"]] = {**row, **means, "count": count}
    return [merged[low] for low in sorted(merged)]


def _all_finite(values: ArrayLike, outcomes: ArrayLike) -> bool:
    return bool(np.isfinite(np.asarray(values)).all() and np.isfinite(np.asarray(outcomes)).all())


def _pair(values: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, Floats]:
    v, r = np.asarray(values, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    assert v.shape == r.shape, f"values {v.shape} and outcomes {r.shape} differ in shape"
    assert v.ndim == 1, f"values have shape {v.shape}, not [N]"
    assert v.size > 0, "there are no values"
    return v, r
