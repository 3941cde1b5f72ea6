"""Paired ratios of what two methods needed from the same warm starts, where some runs never got there.

A run that doesn't reach the target counts as its cap, so where it is the opponent the ratio is a lower bound (">"),
where it is ours an upper bound ("<"), and where it is both it says nothing ("?"). The mean is geometric, its 95%
interval of Student's t on the logs, with percentiles of the bootstrap over seeds beside it. A bound passes on to mean
and interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Cost:
    """What one run needed to reach a target; where it never did, its cap."""

    value: float
    reached: bool


@dataclass(frozen=True)
class Ratio:
    """An opponent's cost over ours: the geometric mean over seeds."""

    mean: float
    low: float | None
    """Of the t interval; None for a single seed."""
    high: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None
    bound: str
    """"" for a ratio of runs that all got there; ">", "<" or "?" as at the top."""
    by_seed: dict[int, float]

    def shown(self) -> str:
        """As in tables: >2.31 (1.95 to 2.74)."""
        if self.bound == "?":
            return "none got there"
        interval = "" if self.low is None or self.high is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.bound}{self.mean:.2f}{interval}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def paired_ratio(theirs: Mapping[int, Cost], ours: Mapping[int, Cost]) -> Ratio | None:
    """The ratio over the seeds that both have; None where there are none, or where ours needed nothing.

    Args:
        theirs: the opponent's cost by seed.
        ours: likewise.
    """
    seeds = sorted(seed for seed in theirs.keys() & ours.keys() if ours[seed].value > 0 and theirs[seed].value > 0)
    if not seeds:
        return None
    ratios = {seed: theirs[seed].value / ours[seed].value for seed in seeds}
    logs = np.log(list(ratios.values()))
    low, high = t_interval(logs)
    boot_low, boot_high = bootstrap(logs)
    return Ratio(
        math.exp(float(logs.mean())),
        *(None if end is None else math.exp(end) for end in (low, high, boot_low, boot_high)),
        bound=bound_of([(theirs[seed].reached, ours[seed].reached) for seed in seeds]),
        by_seed=ratios,
    )


def bound_of(reached: Sequence[tuple[bool, bool]]) -> str:
    """What a mean of ratios is, from whether the opponent and ours got there, seed by seed."""
    above = any(not theirs for theirs, _ in reached)
    below = any(not ours for _, ours in reached)
    if above and below:
        return "?"
    return ">" if above else "<" if below else ""


def t_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """The 95% interval of a mean."""
    from scipy.stats import t

    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        return None, None
    half = float(t.ppf(0.975, x.size - 1)) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return float(x.mean()) - half, float(x.mean()) + half


def bootstrap(values: Sequence[float] | np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """The 95% percentiles of a mean over draws of the seeds."""
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        return None, None
    drawn = np.random.default_rng(0).choice(x, size=(RESAMPLES, x.size)).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def judge(ratios: Mapping[str, Ratio | None], at_least: float) -> dict[str, Any]:
    """Whether a criterion is met: by the opponent with the lowest ratio.

    Returns:
        met (None where it can't be told: an upper bound above the goal, or no ratio), opponent, ratio, and `short`, the
        factor that is missing where it isn't met.
    """
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None and ratio.bound != "?"}
    if not known:
        return {"met": None, "opponent": None, "ratio": None, "short": None}
    opponent = min(known, key=lambda name: known[name].mean)
    ratio = known[opponent]
    enough = ratio.mean >= at_least
    # A lower bound that falls short may still be a ratio that doesn't, and an upper bound that suffices may not be one.
    unclear = (ratio.bound == ">" and not enough) or (ratio.bound == "<" and enough)
    return {
        "met": None if unclear else enough,
        "opponent": opponent,
        "ratio": ratio.as_dict(),
        "short": None if enough else at_least / ratio.mean,
    }
