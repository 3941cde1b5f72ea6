"""The picture of an experiment: held-out accuracy by responses and by seconds, one row of panels a cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sppo.runs.files import whole_file

_GRID = 60


def draw(path: Path, entry: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Median over seeds, and their range as a band; a run that has ended keeps its last accuracy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(found), 2, figsize=(12, 3.6 * len(found)), squeeze=False, layout="constrained")
    names = list(dict.fromkeys(method for methods in found.values() for method in methods))
    colours = dict(zip(names, pyplot.get_cmap("tab20")(np.linspace(0, 1, max(len(names), 2))), strict=False))
    for row, (cell, methods) in zip(panels, found.items(), strict=True):
        for panel, unit in zip(row, ("responses", "seconds"), strict=True):
            for method, runs in methods.items():
                curves = [run.curve for run in runs.values() if len(run.curve.accuracy) > 1]
                if curves:
                    ours = method == entry["ours"]
                    _line(panel, curves, unit, method, colours[method], 2.5 if ours else 1.2)
            for target in entry["targets"]:
                panel.axhline(target, color="grey", linewidth=0.6, linestyle=":")
            panel.set(title=entry["cells"][cell]["title"], xlabel=unit, ylabel="held-out accuracy")
        handles, labels = row[0].get_legend_handles_labels()
        if handles:
            row[1].legend(handles, labels, fontsize=7, loc="lower right")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)


def _line(panel: Any, curves: Any, unit: str, name: str, colour: Any, width: float) -> None:
    ends = max(getattr(curve, unit)[-1] for curve in curves)
    grid = np.linspace(0, ends, _GRID)
    values = np.array([np.interp(grid, getattr(curve, unit), curve.accuracy) for curve in curves])
    panel.plot(grid, np.median(values, axis=0), label=name, color=colour, linewidth=width)
    panel.fill_between(grid, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.1, linewidth=0)
