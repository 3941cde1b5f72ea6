"""The files of `sppo compare`: comparison.json, comparison.md, and accuracy_against_{steps,responses,seconds}.png.

In the pictures one line an algorithm, the median over seeds; the band is their range. One panel a convention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.report.comparison_numbers import CONVENTIONS, UNITS, read_run, summarise
from sppo.report.comparison_text import as_markdown
from sppo.report.plots import STYLE
from sppo.runs.files import whole_file, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = (
    "#1f5fbf", "#d9822b", "#3a8f5c", "#b8433f", "#7d5ba6", "#8c6d46",
    "#d06aa8", "#5f6670", "#a8a323", "#2fa3b5", "#e0a0a0", "#27408b",
)  # fmt: skip
_SQUEEZED = 3
"""Ratio of the longest curve to the shortest from which an axis is logarithmic."""
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))


def write_comparison(output: Path, settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reads the runs and writes comparison.json, comparison.md and accuracy_against_*.png.

    Args:
        output: folder to write to.
        settings: budget {"unit", "amount"}, conventions, targets, seeds, recipe.
        runs: label, conventions, seed, samples_per_prompt, prompts_per_step, folder, error (None where it went well),
            and peak_memory_bytes, peak_gpu_bytes where known.

    Returns:
        What comparison.json holds: settings, runs (with their points) and results, a list of rows a convention.
    """
    budget = settings["budget"]
    runs = [{**run, **read_run(Path(run["folder"]), budget["unit"], budget["amount"])} for run in runs]
    results = {name: summarise(runs, name, settings["targets"]) for name in settings["conventions"]}
    found = {"settings": dict(settings), "results": results, "runs": runs}
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "comparison.json", found)
    write_text(output / "comparison.md", as_markdown(found))
    _write_pictures(output, found)
    return found


def _write_pictures(output: Path, found: Mapping[str, Any]) -> None:
    """Draws the three pictures from what comparison.json holds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        for unit in UNITS:
            figure = _figure(unit, found)
            with whole_file(output / f"accuracy_against_{unit}.png") as temporary:
                figure.savefig(temporary, dpi=130)
            plt.close(figure)


def _figure(unit: str, found: Mapping[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    settings = found["settings"]
    conventions = settings["conventions"]
    figure, axes = plt.subplots(
        1, len(conventions), figsize=(1.9 + 5.4 * len(conventions), 4.6), sharey=True, squeeze=False
    )
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08, wspace=0.03)
    seeds = len(settings["seeds"])
    over = f"\nmedian of {seeds} seeds, and their range" if seeds > 1 else ""
    title = f"{settings['recipe']}: held-out accuracy against {UNITS[unit]}{over}"
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
    labels = list(dict.fromkeys(run["label"] for run in found["runs"]))
    handles = {}
    for axis, convention in zip(axes.flat, conventions, strict=True):
        left = _logarithmic_from([run["points"] for run in found["runs"] if convention in run["conventions"]], unit)
        for index, label in enumerate(labels):
            curves = [
                run["points"]
                for run in found["runs"]
                if run["label"] == label and convention in run["conventions"] and not run["error"] and run["points"]
            ]
            if curves:
                handles[label] = _curve(axis, curves, unit, index, left)
        _finish(axis, unit, CONVENTIONS[convention], settings["targets"])
        _scale(axis, unit, left)
    axes.flat[0].set_ylabel("held-out accuracy")
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside right center", handlelength=2.6)
    return figure


def _logarithmic_from(curves: Sequence[Sequence[Mapping[str, float]]], unit: str) -> float | None:
    """Where a logarithmic axis begins; None for a linear one.

    It is logarithmic where some algorithms spend many times what others do, which would squeeze those into a corner.
    """
    spent = [[point[unit] for point in points if point[unit] > 0] for points in curves]
    ends = [places[-1] for places in spent if places]
    if not ends or max(ends) <= _SQUEEZED * min(ends):
        return None
    return 0.5 * min(places[0] for places in spent if places)


def _curve(
    axis: Axes, curves: Sequence[Sequence[Mapping[str, float]]], unit: str, index: int, left: float | None
) -> Any:
    """Draws the median and the range over seeds, as far as every seed goes, and returns the line."""
    import numpy as np

    end = min(points[-1][unit] for points in curves)
    places = np.array(sorted({point[unit] for points in curves for point in points if point[unit] <= end}))
    if left is not None and end > left:
        # What is straight between two evaluations is curved here, and its beginning lies at minus infinity.
        places = np.union1d(places[places >= left], np.geomspace(left, end, 200))
    accuracy = np.array([
        np.interp(places, [point[unit] for point in points], [point["accuracy"] for point in points])
        for points in curves
    ])  # [seeds, places]  # fmt: skip
    color, dashes = _COLORS[index % len(_COLORS)], _DASHES[index // 4 % len(_DASHES)]
    if len(curves) > 1:
        axis.fill_between(places, accuracy.min(axis=0), accuracy.max(axis=0), color=color, alpha=0.1, linewidth=0)
    marker: dict[str, Any] = {"marker": "o", "ms": 4} if len(places) == 1 else {}
    middle = np.median(accuracy, axis=0)
    (line,) = axis.plot(places, middle, color=color, linestyle=dashes, linewidth=2.4 if index == 0 else 1.5, **marker)
    axis.plot(places[-1], middle[-1], "o", color=color, ms=3.5)
    return line


def _finish(axis: Axes, unit: str, title: str, targets: Sequence[float]) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_title(title[0].upper() + title[1:])
    low, high = axis.get_ylim()
    for target in targets:
        # A target that no run came near would only stretch the axis.
        if low <= target <= high:
            axis.axhline(target, color="#9aa0a8", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _scale(axis: Axes, unit: str, left: float | None) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if left is None:
        axis.set_xlim(left=0)
        axis.set_xlabel(UNITS[unit])
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=unit != "seconds"))
    else:
        axis.set_xscale("log")
        axis.set_xlim(left=left)
        axis.set_xlabel(f"{UNITS[unit]} (logarithmic)")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
