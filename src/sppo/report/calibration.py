"""calibration.png: V of a run's critic against solve rates, drawn from what `sppo calibrate` left and nothing else.

One dot a prompt, the reliability curve through bins of V, and along the edges how V and the solve rates are
distributed: a critic that bunches in the middle where the truth lies at 0 and 1 shows as two different shapes. Where
the critic has history, a second row shows prompts of the pool, by V of their text and by the belief.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.errors import RunFolderError
from sppo.report.plots import BLUE, GREEN, GREY, ORANGE, STYLE
from sppo.runs.files import read_json, whole_file
from sppo.runs.records import JsonLines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 20
_MEASURES = (
    ("V and solve rate, by prompt", None, None),
    ("Pearson", "of_prompts", "pearson"),
    ("Spearman", "of_prompts", "spearman"),
    ("Brier score", "of_prompts", "brier"),
    ("ECE", "of_prompts", "ece"),
    ("Bias", "of_prompts", "bias"),
    ("V and R, by response", None, None),
    ("Brier score", "of_responses", "brier"),
    ("AUROC", "of_responses", "auroc"),
)
_COLUMNS = (0.0, 0.42, 0.55, 0.88, 1.06)
Records = Sequence[Mapping[str, Any]]


def write_calibration(folder: Path) -> Path:
    """Draws a calibration and returns the path of the picture, `calibration.png` in its folder.

    Args:
        folder: RUN/calibration/CHECKPOINT.

    Raises:
        RunFolderError: the folder holds no finished calibration.
    """
    result = read_json(folder / "result.json")
    if result is None:
        raise RunFolderError(f"{folder} holds no finished calibration: sppo calibrate RUN makes one.")
    return _draw(folder, result)


def _records(file: Path, measured: Mapping[str, Any]) -> Records:
    """The prompts that were measured, of those in a file, which may hold more."""
    asked = set(measured["prompt_ids"])
    found = [line for line in JsonLines(file).read() if line["prompt_id"] in asked]
    return [record for record in found if record["solve_rate"] is not None]


def _draw(folder: Path, result: Mapping[str, Any]) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        pool = result.get("pool")
        figure = plt.figure(figsize=(11, 11.2 if pool else 6.2), layout="constrained")
        title = f"{Path(result['run']).resolve().name}, {result['checkpoint']}: what the critic foresees"
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
        rows: Any = figure.subfigures(2, 1, height_ratios=(6.2, 5)) if pool else [figure]
        halves = rows[0].subfigures(1, 2, width_ratios=(1.25, 1))
        _joint(halves[0], result, _records(folder / "prompts.jsonl", result))
        _numbers(halves[1].subplots(), result)
        if pool:
            halves = rows[1].subfigures(1, 2, width_ratios=(1.25, 1))
            _with_and_without(halves[0].subplots(), _records(folder / "pool.jsonl", pool["belief"]), result)
            _pool_numbers(halves[1].subplots(), pool)
        path = folder / "calibration.png"
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=130)
        plt.close(figure)
    return path


def _joint(figure: Any, result: Mapping[str, Any], records: Records) -> None:
    """Scatter and reliability curve, with a histogram along each edge."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    values = np.array([record["value"] for record in records])
    rates = np.array([record["solve_rate"] for record in records])
    axes = figure.subplots(2, 2, width_ratios=(4, 1), height_ratios=(1, 4), squeeze=False)
    main, top, side = axes[1, 0], axes[0, 0], axes[1, 1]
    axes[0, 1].axis("off")
    main.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfect")
    main.scatter(values, rates, s=16, color=BLUE, alpha=0.35, linewidth=0, clip_on=False, label="a prompt")
    _reliability(main, values, rates)
    main.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="V(prompt)")
    main.set_ylabel(f"solve rate of {result['samples_per_prompt']} samples")
    main.legend(loc="upper left", framealpha=0.85, frameon=True, edgecolor="none")
    edges = np.linspace(0, 1, _BINS + 1)
    top.hist(values, edges, color=GREEN, alpha=0.75)
    side.hist(rates, edges, color=ORANGE, alpha=0.75, orientation="horizontal")
    top.set(xlim=main.get_xlim(), ylabel="prompts", title="V(prompt); dotted: the mean")
    side.set(ylim=main.get_ylim(), xlabel="prompts", title="solve rate")
    for axis, mean, draw in ((top, values.mean(), top.axvline), (side, rates.mean(), side.axhline)):
        draw(mean, color="#4a4f57", linewidth=1.2, linestyle=":")
        axis.tick_params(labelbottom=axis is side, labelleft=axis is top)
        axis.title.set_fontsize(9)
    top.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    side.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=2))


def _with_and_without(axis: Axes, records: Records, result: Mapping[str, Any]) -> None:
    """Prompts of the pool, by V of their text and by the belief that counts their outcomes."""
    import numpy as np

    rates = np.array([record["solve_rate"] for record in records])
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for key, label, color in (("text_value", "V of the text", GREEN), ("value", "with history", BLUE)):
        values = np.array([record[key] for record in records])
        axis.scatter(values, rates, s=16, color=color, alpha=0.4, linewidth=0, clip_on=False)
        _reliability(axis, values, rates, color=color, label=f"{label}, bins ± 95%")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="V(prompt)", title="Prompts of the pool")
    axis.set_ylabel(f"solve rate of {result['samples_per_prompt']} samples")
    axis.legend(loc="upper left", framealpha=0.85, frameon=True, edgecolor="none")


def _reliability(axis: Axes, values: Any, rates: Any, color: str = "#2b2f36", label: str = "bins of V, ± 95%") -> None:
    """Mean solve rate of the prompts in ten bins of V, with 95% intervals where a bin has 3 prompts or more."""
    import numpy as np

    index = np.minimum((values * 10).astype(int), 9)
    points = []
    for b in np.unique(index):
        inside = rates[index == b]
        error = 1.96 * inside.std(ddof=1) / np.sqrt(inside.size) if inside.size > 2 else 0.0
        points.append((values[index == b].mean(), inside.mean(), error))
    x, y, errors = map(np.array, zip(*points, strict=True))
    spread = np.clip([errors, errors], 0, [y, 1 - y])
    axis.errorbar(x, y, yerr=spread, color=color, marker="o", ms=5, capsize=2, linewidth=1.3, label=label)


def _numbers(axis: Axes, result: Mapping[str, Any]) -> None:
    """The measures as a table."""
    write = _writer(axis)
    row, step = 0.94, 0.065
    for name, group, key in _MEASURES:
        if group is None:
            write((name,), row, fontweight="bold")
            grey = {"color": GREY, "fontsize": 8.5}
            write(("", "V", "", "95% interval", "perfect V"), row - step * 0.85, **grey)
            row -= 1.75 * step
            continue
        measure = result[group].get(key, {"value": None, "low": None, "high": None})
        low, high = _number(measure["low"]), _number(measure["high"])
        interval = "–" if measure["low"] is None else f"{low} to {high}"
        write((name, _number(measure["value"]), "", interval, _number(measure.get("reachable"))), row)
        row -= step if name not in ("Bias", "AUROC") else 1.6 * step
    axis.text(0, row - 0.02, _remarks(result), va="top", fontsize=8.5, color="#4a4f57", linespacing=1.6)


def _writer(axis: Axes) -> Callable[..., None]:
    """Makes an axis a sheet, and returns what writes a row of cells on it, at a height."""
    axis.axis("off")
    axis.set(xlim=(0, 1.08), ylim=(0, 1))

    def write(cells: Sequence[str], level: float, **style: Any) -> None:
        for place, text in zip(_COLUMNS, cells, strict=False):
            axis.text(
                place, level, text, ha="left" if place == 0 else "right", va="center", **{"fontsize": 10, **style}
            )

    return write


def _pool_numbers(axis: Axes, pool: Mapping[str, Any]) -> None:
    """V of the text and the belief beside one another."""
    write = _writer(axis)
    text, belief, row, step = pool["text"]["of_prompts"], pool["belief"]["of_prompts"], 0.93, 0.08
    write(("What history adds",), row, fontweight="bold")
    write(("", "", "V of text", "with history", "perfect V"), row - 0.85 * step, color=GREY, fontsize=8.5)
    row -= 1.75 * step
    names = [(name, key, "value") for name, group, key in _MEASURES if group == "of_prompts"]
    names.insert(3, ("   above perfect V", "brier", "corrected"))
    for name, key, part in names:
        perfect = _number(belief[key].get("reachable")) if part == "value" else ""
        write((name, "", *(_number(measures[key].get(part)) for measures in (text, belief)), perfect), row)
        row -= step
    brier = pool["difference"]["brier"]
    lines = [
        f"{pool['belief']['prompts']:,} prompts of the pool with outcomes in training.",
        f"Mean V of the text {pool['text']['mean_value']:.3f}, with history {pool['belief']['mean_value']:.3f}, "
        f"mean solve rate {pool['belief']['mean_solve_rate']:.3f}.",
    ]
    if brier["low"] is not None:
        low, high = _number(brier["low"]), _number(brier["high"])
        lines.append(f"Brier score with history, less without: {_number(brier['value'])} ({low} to {high}).")
    axis.text(0, row - 0.02, "\n".join(lines), va="top", fontsize=8.5, color="#4a4f57", linespacing=1.6)


def _remarks(result: Mapping[str, Any]) -> str:
    pearson = result["of_prompts"]["pearson"].get("corrected")
    n = result["samples_per_prompt"]
    lines = [
        f"{result['prompts']:,} prompts, {result['responses']:,} responses.",
        f"Mean V {result['mean_value']:.3f}, mean solve rate {result['mean_solve_rate']:.3f}.",
        f"A rate of {n} samples is uncertain: perfect V is what the",
        "true solve rates would have. Correlations, AUROC: 1 is best.",
        "Brier score, ECE: 0 is best. Intervals: other prompts.",
    ]
    if pearson is not None:
        lines.append(f"Pearson with the true solve rates, estimated: {pearson:.3f}.")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
