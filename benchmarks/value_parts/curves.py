"""A run's curve from its folder, and what it took to reach a target.

A point is an evaluation on the held-out prompts: responses, tokens and seconds spent by then, and the accuracy. Seconds
are those of whole steps (`time/step`: critic, choice and all bookkeeping included). What responses, tokens and seconds
were spent before the first step, as for a critic that is fitted beforehand, is counted too. Evaluations, checkpoints
and loading are left out.

Reaching a target. An accuracy of 256 samples has a standard error of .025, so the first evaluation above the target
comes too early by luck. The rule, for every run and method alike: fit the nondecreasing curve that is nearest to the
accuracies in squares (isotonic regression, pool adjacent violators); a target is reached if at least two evaluations
are fitted at or above it; the cost is read off the line through the middles of the fit's level stretches. On
accuracies that only rise this is plain linear interpolation.

Beside it a curve is fitted (ScaleRL, arXiv 2510.13786): accuracy = a0 + (A - a0) / (1 + (m / x)^B), A the asymptote, B
the efficiency, m where half of the way is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sppo.runs.folder import read_metrics, read_summary

RULE = "isotonic fit; two evaluations fitted at or above the target; line through the middles of level stretches"
_AT_LEAST = 2
UNITS = ("responses", "tokens", "seconds")


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, and what it spent in all."""

    accuracy: list[float]
    responses: list[float]
    tokens: list[float]
    seconds: list[float]
    total: dict[str, float]
    """By unit, at the run's last step."""
    step_seconds: list[float]
    shares: dict[str, float]
    """Of the steps' seconds, by phase."""

    def cost(self, target: float, unit: str) -> float | None:
        """What it took to reach the target; None where it never was."""
        return crossing(getattr(self, unit), self.accuracy, target)


def read_curve(folder: Path) -> Curve:
    """Reads metrics.jsonl, and from the summary what was spent before the first step."""
    return curve_of(read_metrics(folder), read_summary(folder).get("ended", {}).get("before", {}))


def curve_of(lines: Sequence[dict[str, Any]], before: Mapping[str, float]) -> Curve:
    """The curve of a run's lines of metrics, and of what was spent before the first step, by unit."""
    spent = {unit: float(before.get(unit, 0.0)) for unit in UNITS}
    points: dict[str, list[float]] = {name: [] for name in ("accuracy", *UNITS)}
    took: list[float] = []
    phases: dict[str, float] = {}
    for line in lines:
        if line["step"]:
            took.append(line["time/step"])
            for name, value in line.items():
                if name.startswith("time/") and name not in ("time/step", "time/evaluate", "time/checkpoint"):
                    phases[name.removeprefix("time/")] = phases.get(name.removeprefix("time/"), 0.0) + value
        spent["seconds"] += line["time/step"] if line["step"] else 0.0
        spent["responses"] = line.get("responses/total", spent["responses"])
        spent["tokens"] = line.get("tokens/total", spent["tokens"])
        if "eval/accuracy" in line:
            points["accuracy"].append(line["eval/accuracy"])
            for unit in UNITS:
                points[unit].append(spent[unit])
    whole = sum(took) or 1.0
    return Curve(**points, total=spent, step_seconds=took, shares={name: s / whole for name, s in phases.items()})


def isotonic(accuracies: Sequence[float]) -> NDArray[np.float64]:
    """The nondecreasing values nearest to the accuracies in squares."""
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(np.asarray(accuracies, dtype=np.float64)).x)


def crossing(spent: Sequence[float], accuracies: Sequence[float], target: float) -> float | None:
    """What had been spent when the accuracy reached the target, by the rule at the top; None where it never did."""
    if len(accuracies) < _AT_LEAST:
        return None
    fitted = isotonic(accuracies)
    if int((fitted >= target).sum()) < _AT_LEAST:
        return None
    levels, start = np.unique(fitted, return_index=True)
    middles = [float(np.mean(part)) for part in np.split(np.asarray(spent, dtype=np.float64), start[1:])]
    first = int(np.argmax(levels >= target))
    if first == 0:
        return float(spent[0])
    share = (target - levels[first - 1]) / (levels[first] - levels[first - 1])
    return float(middles[first - 1] + share * (middles[first] - middles[first - 1]))


def fitted_curve(spent: Sequence[float], accuracies: Sequence[float]) -> dict[str, float] | None:
    """Asymptote A, efficiency B and middle m of the curve at the top, by least squares; None below 5 points."""
    from scipy.optimize import least_squares

    x, y = np.asarray(spent, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if len(x) < 5 or x[-1] <= 0:
        return None
    start, x, y = float(y[0]), x[1:], y[1:]

    def gaps(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        asymptote, efficiency, middle = parameters[0], parameters[1], np.exp(parameters[2])
        return np.asarray(start + (asymptote - start) / (1 + (middle / x) ** efficiency) - y)

    largest = float(np.log(10 * x[-1]))
    low = [min(start, 0.99), 0.2, float(np.log(x[0])) - 3]
    guess = [max(float(y.max()), low[0] + 1e-3), 2.0, float(np.log(x[-1] / 2))]
    best = least_squares(gaps, np.clip(guess, low, [1.0, 10.0, largest]), bounds=(low, [1.0, 10.0, largest]))
    asymptote, efficiency, middle = best.x
    error = float(np.sqrt(np.mean(best.fun**2)))
    return {
        "asymptote": float(asymptote),
        "efficiency": float(efficiency),
        "middle": float(np.exp(middle)),
        "error": error,
    }
