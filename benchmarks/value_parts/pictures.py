"""The picture of an experiment: held-out accuracy by responses and by seconds, one row of panels a cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sppo.runs.files import whole_file
from value_parts import plan

_GRID = 60
_FAMILIES = (
    ("ours", "tab:blue"),
    ("ours, another choice", "tab:cyan"),
    ("groups with our choice", "tab:green"),
    ("groups", "tab:orange"),
    ("one response a prompt", "tab:grey"),
)


def draw(path: Path, entry: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Median over seeds, for ours with the range; a run that has ended keeps its last accuracy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(found), 2, figsize=(13, 4.4 * len(found)), squeeze=False, layout="constrained")
    for row, (cell, methods) in zip(panels, found.items(), strict=True):
        for panel, unit in zip(row, ("responses", "seconds"), strict=True):
            ends = []
            for method, runs in methods.items():
                curves = [run.curve for run in runs.values() if len(run.curve.accuracy) > 1]
                if curves:
                    ends.append(_line(panel, curves, unit, method, entry["ours"]))
            _name_ends(panel, ends)
            for target in entry["targets"]:
                panel.axhline(target, color="grey", linewidth=0.6, linestyle=":")
            panel.set(title=entry["cells"][cell]["title"], xlabel=unit, ylabel="held-out accuracy, median of seeds")
            panel.spines[["top", "right"]].set_visible(False)
        for family, colour in _FAMILIES:
            row[0].plot([], [], color=colour, label=family)
        row[0].legend(fontsize=8, loc="lower center", frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)


def _family(method: str, ours: str) -> int:
    if method == ours:
        return 0
    if method.startswith(ours):
        return 1
    if method in plan.WITH_CHOICE or method.endswith("_history"):
        return 2
    return 3 if plan.METHODS[method].samples > 1 else 4


def _line(panel: Any, curves: Any, unit: str, method: str, ours: str) -> tuple[float, float, str, str]:
    """Draws a method; returns where its line ends, its name and its colour."""
    last = min(getattr(curve, unit)[-1] for curve in curves) if unit == "seconds" else 0.0
    end = max(last, float(np.median([getattr(curve, unit)[-1] for curve in curves])))
    grid = np.linspace(0, end, _GRID)
    values = np.array([np.interp(grid, getattr(curve, unit), curve.accuracy) for curve in curves])
    middle, colour = np.median(values, axis=0), _FAMILIES[_family(method, ours)][1]
    panel.plot(grid, middle, color=colour, linewidth=2.8 if method == ours else 1.1, zorder=3 if method == ours else 2)
    if method == ours:
        panel.fill_between(grid, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0)
    return end, float(middle[-1]), method, colour


def _name_ends(panel: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Names in a column at the right, in the order of the lines' ends and as near to them as fits."""
    if not ends:
        return
    right, gap = max(end for end, *_ in ends) * 1.03, 0.024
    height = -np.inf
    for end, accuracy, name, colour in sorted(ends, key=lambda found: found[1]):
        height = max(accuracy, height + gap)
        panel.plot([end, right], [accuracy, height], color=colour, linewidth=0.4, alpha=0.6)
        panel.text(right, height, f" {name}", color=colour, fontsize=7, va="center")
    panel.set_xlim(0, right * 1.22)
