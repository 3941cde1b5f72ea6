"""How well V(prompt) predicts solving: Brier score, ECE, correlations, reliability bins. All on probabilities."""

from __future__ import annotations

from collections.abc import Sequence
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


def binary_cross_entropy(values: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean BCE in nats; both [N]."""
    v, r = _pair(values, outcomes)
    v = np.clip(v, 1e-12, 1 - 1e-12)
    return float(-np.mean(r * np.log(v) + (1 - r) * np.log1p(-v)))


def reliability(values: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """Bins of equal width over [0, 1]; empty bins are left out."""
    v, r = _pair(values, outcomes)
    index = np.minimum((v * bins).astype(int), bins - 1)
    filled = [(b, index == b) for b in range(bins) if (index == b).any()]
    return [
        ReliabilityBin(b / bins, (b + 1) / bins, float(v[members].mean()), float(r[members].mean()), int(members.sum()))
        for b, members in filled
    ]


def expected_calibration_error(values: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> float:
    """ECE: the mean gap between V and the outcome over equal-width bins, weighted by their counts."""
    filled = reliability(values, outcomes, bins)
    total = sum(b.count for b in filled)
    return sum(b.count * abs(b.mean_value - b.solve_rate) for b in filled) / total


def explained_variance(values: ArrayLike, outcomes: ArrayLike) -> float:
    """1 - Var(R - V) / Var(R); nan where R does not vary."""
    v, r = _pair(values, outcomes)
    spread = np.var(r)
    return float(1 - np.var(r - v) / spread) if spread > 0 else float("nan")


def pearson(values: ArrayLike, outcomes: ArrayLike) -> float:
    """Linear correlation; nan where either side does not vary."""
    v, r = _pair(values, outcomes)
    # A constant of floats has a variance of rounding errors only, whose correlation would be noise.
    if np.ptp(v) < 1e-9 or np.ptp(r) < 1e-9:
        return float("nan")
    return float(np.corrcoef(v, r)[0, 1])


def spearman(values: ArrayLike, outcomes: ArrayLike) -> float:
    """Rank correlation, ties at their mean rank; nan where either side does not vary."""
    from scipy.stats import rankdata

    v, r = _pair(values, outcomes)
    if np.ptp(v) < 1e-9:
        return float("nan")
    return pearson(rankdata(v), rankdata(r))


def calibration_metrics(values: ArrayLike, outcomes: ArrayLike) -> dict[str, float]:
    """All scalar measures by name, without those that are undefined on this data."""
    measures = {
        "bce": binary_cross_entropy(values, outcomes),
        "brier": brier(values, outcomes),
        "ece": expected_calibration_error(values, outcomes),
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


def _pair(values: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, Floats]:
    v, r = np.asarray(values, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    assert v.shape == r.shape, f"values {v.shape} and outcomes {r.shape} differ in shape"
    assert v.ndim == 1, f"values have shape {v.shape}, not [N]"
    assert v.size > 0, "there are no values"
    return v, r
