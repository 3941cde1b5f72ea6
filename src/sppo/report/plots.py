"""curves.png: one picture of a run, drawn from metrics.jsonl and summary.json and from nothing else.

A panel whose metrics are missing says so instead of failing, so a run of one step or one that was cut short has a
picture too. Where a critic could choose prompts there are two more: what choosing gains, and how V is calibrated now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.runs.files import whole_file
from sppo.runs.folder import read_metrics, read_summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#3465a4", "#d9822b", "#3a8f5c", "#b8433f", "#8a8f98"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#c4c8ce",
    "axes.labelcolor": "#4a4f57",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8eaed",
    "xtick.color": "#6b7079",
    "ytick.color": "#6b7079",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    # A dollar in the name of a run is no formula.
    "text.parse_math": False,
}
_LEGEND: dict[str, Any] = {"borderpad": 0.2, "handlelength": 1.2, "handletextpad": 0.5, "columnspacing": 1.1}
_COUNT: dict[str, Any] = {"fontsize": 8, "color": "#6b7079"}
_THRESHOLD: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": 7.5, "color": BLUE}
_RECENT = 10
"""Steps that noisy metrics are averaged over."""
_MEAN = f" (mean of {_RECENT} steps)"
"""Said in the title of a panel that shows such means."""
Metrics = Sequence[Mapping[str, Any]]


def write_curves(folder: Path) -> Path:
    """Draws a run and returns the path of the picture, `curves.png` in the run folder.

    Args:
        folder: A run folder, of a run that ended or one that is still going.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure = draw_curves(folder)
        path = folder / "curves.png"
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=130)
        plt.close(figure)
    return path


def draw_curves(folder: Path) -> Figure:
    """The picture, in matplotlib's present style."""
    import matplotlib.pyplot as plt

    metrics, summary = read_metrics(folder), read_summary(folder)
    chose = any("selection/control_share" in line for line in metrics)
    figure, axes = plt.subplots(2, 4 if chose else 3, figsize=(18.6 if chose else 14, 7.6))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1, hspace=0.04, wspace=0.03)
    figure.suptitle(_title(folder, metrics, summary), x=0.012, ha="left", fontsize=13, fontweight="bold")
    first, second = [_reward, _value_against_reward, _critic], [_policy, _length, _reliability]
    panels = [*first, _choice, *second, _now] if chose else [*first, *second]
    for draw, axis in zip(panels, axes.flat, strict=True):
        draw(axis, metrics, summary)
    return figure


def _title(folder: Path, metrics: Metrics, summary: Mapping[str, Any]) -> str:
    name = folder.resolve().name
    before, after = summary.get("accuracy_before"), summary.get("accuracy_after")
    if before is not None and after is not None:
        measure = summary.get("measure", "accuracy")
        shown = ".1%" if measure == "accuracy" else ".3f"
        return f"{name}: held-out {measure} {before:{shown}} before, {after:{shown}} after"
    return f"{name}: at step {metrics[-1]['step']}" if metrics else f"{name}: nothing recorded yet"


def _series(metrics: Metrics, key: str) -> tuple[list[float], list[float]]:
    """Returns (steps, values) of the lines that have the metric; a null or non-finite value is left out."""
    points = [
        (line["step"], float(line[key]))
        for line in metrics
        if isinstance(line.get(key), (int, float)) and abs(line[key]) < float("inf")
    ]
    return [step for step, _ in points], [value for _, value in points]


def _line(axis: Axes, metrics: Metrics, key: str, label: str, color: str, **style: Any) -> bool:
    steps, values = _series(metrics, key)
    if values:
        axis.plot(steps, values, label=label, color=color, marker=_dot(values), ms=4, **style)
    return bool(values)


def _dot(values: Sequence[float]) -> str | None:
    """The marker of a line: a single value makes none."""
    return "o" if len(values) == 1 else None


def _smoothed(axis: Axes, metrics: Metrics, key: str, label: str, color: str, **style: Any) -> None:
    """The mean of the last `_RECENT` values at each step, and faintly the values themselves."""
    steps, values = _series(metrics, key)
    if len(values) > 1:
        axis.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
    means = [sum(part) / len(part) for part in (values[max(0, n - _RECENT) : n] for n in range(1, len(values) + 1))]
    smooth = [{"step": step, key: mean} for step, mean in zip(steps, means, strict=True)]
    _line(axis, smooth, key, label, color, **style)


def _plain_numbers(axis: Axis) -> None:
    """Labels a logarithmic axis with numbers as they are: formulas are not drawn, as names may hold their dollars."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(labelOnlyBase=False))


def _finish(axis: Axes, title: str, *, share: bool = False, xlabel: str = "step", columns: int = 4) -> None:
    """Titles the panel, its legend between title and plot; `share` makes the y axis 0 to 100%."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis.set_title(title, pad=26)
    if not axis.has_data():
        axis.text(0.5, 0.5, "not recorded", ha="center", va="center", color=GREY, transform=axis.transAxes)
        axis.set(xticks=[], yticks=[])
        return
    axis.set_xlabel(xlabel)
    # Rewards may be any number (critic.loss mse, or no critic): those get an axis of their own.
    if share and -0.05 <= axis.dataLim.y0 <= axis.dataLim.y1 <= 1.05:
        axis.set_ylim(-0.02, 1.02)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    if xlabel == "step":
        left, right = axis.get_xlim()
        if right - left < 2:
            axis.set_xlim(left - 1, right + 1)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    if axis.get_legend_handles_labels()[1]:
        axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, **_LEGEND)


def _reward(axis: Axes, metrics: Metrics, summary: Mapping[str, Any]) -> None:
    chosen = any(line.get("selection/control_share", 1) < 1 for line in metrics)
    if chosen:
        _smoothed(axis, metrics, "selection/chosen_reward", "chosen prompts", BLUE)
        # A control group is a tenth of a step's prompts, so a single step's reward says little.
        _smoothed(axis, metrics, "selection/control_reward", "prompts nobody chose", RED)
    else:
        _line(axis, metrics, "reward/mean", "training reward", BLUE, alpha=0.85)
    steps, accuracy = _series(metrics, "eval/accuracy")
    measure = summary.get("measure", "accuracy")
    if accuracy:
        error = {line["step"]: line.get("eval/accuracy_stderr") or 0.0 for line in metrics}
        low = [value - 2 * error[step] for step, value in zip(steps, accuracy, strict=True)]
        high = [value + 2 * error[step] for step, value in zip(steps, accuracy, strict=True)]
        axis.plot(
            steps,
            accuracy,
            color=ORANGE,
            marker="o",
            ms=4,
            label=f"held-out {measure}" + ("" if chosen else " ± 2 s.e."),
        )
        axis.fill_between(steps, low, high, color=ORANGE, alpha=0.18, linewidth=0)
    _finish(axis, f"Reward{_MEAN if chosen else ''} and held-out {measure}", share=True)


def _value_against_reward(axis: Axes, metrics: Metrics, summary: Mapping[str, Any]) -> None:
    _line(axis, metrics, "reward/mean", "mean reward R", BLUE)
    _line(axis, metrics, "critic/value_mean", "mean value V", GREEN, linestyle=(0, (4, 1.5)))
    _finish(axis, "What the critic expected, and what came", share=True)


def _critic(axis: Axes, metrics: Metrics, summary: Mapping[str, Any]) -> None:
    _line(axis, metrics, "critic/pearson", "Pearson (V, R)", GREEN)
    _line(axis, metrics, "critic/bce", "cross-entropy", RED)
    _line(axis, metrics, "critic/brier", "Brier score", ORANGE)
    _line(axis, metrics, "critic/ece", "ECE", BLUE)
    _finish(axis, "Critic")


def _now(axis: Axes, metrics: Metrics, summary: Mapping[str, Any]) -> None:
    """How V is calibrated at each step, as it lags behind the policy: all of training says nothing of that."""
    if _series(metrics, "critic/bias")[1]:
        axis.axhline(0, color=GREY, linewidth=1, linestyle="--")
    _smoothed(axis, metrics, "critic/bias", "bias, V - R", GREEN)
    _smoothed(axis, metrics, "critic/brier", "Brier score", ORANGE)
    _smoothed(axis, metrics, "critic/brier_text", "the same of V of the text", GREY)
    _finish(axis, f"Calibration of V now{_MEAN}")


def _choice(axis: Axes, metrics: Metrics, summary: Mapping[str, Any]) -> None:
    """Dead prompts, what choosing gains, and how hard it was; shaded where prompts were chosen."""
    from matplotlib.ticker import PercentFormatter

    _smoothed(axis, metrics, "selection/dead_share", "dead (left axis)", GREY)
    axis.set_ylim(-0.02, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    steps, gains = _series(metrics, "selection/gain")
    judged = _series(metrics, "selection/candidates")
    if gains or judged[1]:
        right = axis.twinx()
        right.plot(*judged, color=GREEN, linewidth=1, drawstyle="steps-mid", marker=_dot(judged[1]), ms=4)
        right.plot(steps, gains, color=BLUE, marker=_dot(gains), ms=4)
        levels = (summary.get("selection") or {}).get("auto_from") or {}
        right.set_ylim(0, max(1.2 * max(levels.values(), default=0), 1.1 * max(gains + judged[1])))
        right.grid(visible=False)
        for values, color, name in ((gains, BLUE, "gain"), (judged[1], GREEN, "candidates")):
            if values:
                axis.plot([], [], color=color, label=name)
        for rule, level in levels.items():
            right.axhline(level, color=BLUE, linewidth=0.7, linestyle=(0, (2, 2)))
            right.text(0.01, level, f"auto: {rule}", transform=right.get_yaxis_transform(), **_THRESHOLD)
    shares = [(line["step"], line["selection/control_share"]) for line in metrics if "selection/control_share" in line]
    for number, (start, end) in enumerate(_runs([step for step, share in shares if share < 1])):
        axis.axvspan(start - 0.5, end + 0.5, color=GREEN, alpha=0.1, lw=0, label="" if number else "prompts chosen")
    _finish(axis, "Choice of prompts")


def _runs(steps: Sequence[int]) -> list[tuple[int, int]]:
    """The first and last of each stretch of steps that follow one another."""
    found: list[tuple[int, int]] = []
    for step in steps:
        if found and step == found[-1][1] + 1:
            found[-1] = (found[-1][0], step)
        else:
            found.append((step, step))
    return found


def _policy(axis: Axes, metrics: Metrics, summary: Mapping[str, Any]) -> None:
    _line(axis, metrics, "policy/entropy", "entropy, nats", BLUE)
    _line(axis, metrics, "policy/grad_norm", "gradient norm", GREY)
    _line(axis, metrics, "policy/clipfrac", "clip fraction", ORANGE)
    _line(axis, metrics, "policy/approx_kl", "approx. KL", RED)
    keys = ("policy/entropy", "policy/grad_norm", "policy/clipfrac", "policy/approx_kl")
    if any(value > 0 for key in keys for value in _series(metrics, key)[1]):
        # These four differ by orders of magnitude; on a linear axis all but one would lie on zero.
        axis.set_yscale("log", nonpositive="mask")
        _plain_numbers(axis.yaxis)
    _finish(axis, "Policy")


def _length(axis: Axes, metrics: Metrics, summary: Mapping[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if _line(axis, metrics, "response/length_mean", "mean length (left axis)", BLUE):
        # From 0, so that a change by a token doesn't look like a landslide.
        axis.set_ylim(0, 1.15 * max(_series(metrics, "response/length_mean")[1]) or 1)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    steps, clipped = _series(metrics, "response/clipped_share")
    if clipped:
        right = axis.twinx()
        right.plot(steps, clipped, color=ORANGE, marker="o" if len(clipped) == 1 else None, ms=4)
        right.set_ylim(0, max(0.05, 1.25 * max(clipped)))
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.grid(visible=False)
        axis.plot([], [], color=ORANGE, label="cut at the limit (right axis)")
    _finish(axis, "Response length, in tokens")


def _reliability(axis: Axes, metrics: Metrics, summary: Mapping[str, Any]) -> None:
    """Solve rate against V in bins; a dot's size says how many are in it, and for the first series its number too."""
    kinds = (
        ("calibration_in_training", "training, V before each update", BLUE),
        ("calibration", "held-out, after", GREEN),
    )
    for key, label, color in kinds:
        bins = [entry for entry in summary.get(key) or [] if entry.get("count")]
        if not bins:
            continue
        most = max(entry["count"] for entry in bins)
        values = [entry["mean_value"] for entry in bins]
        rates = [entry["solve_rate"] for entry in bins]
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        axis.plot(values, rates, color=color, linewidth=1.2, marker="o", ms=4, label=label)
        axis.scatter(
            values,
            rates,
            s=[25 + 150 * entry["count"] / most for entry in bins],
            color=color,
            alpha=0.6,
            clip_on=False,
        )
        # Both series' numbers would run into one another where both have their dots.
        for entry in bins if not axis.texts else ():
            value, rate = entry["mean_value"], entry["solve_rate"]
            # On the far side of the diagonal, so that the number stays clear of it, and inside the panel.
            side, level = (1, "top") if rate < value else (-1, "bottom")
            offset, align = (side * 6, -side * 5), "left" if side == 1 else "right"
            if not 0.06 < rate < 0.94:
                offset, align, level = (0, 11 if rate < 0.5 else -11), "center", "bottom" if rate < 0.5 else "top"
            where: dict[str, Any] = {"ha": align, "va": level, "textcoords": "offset points"}
            axis.annotate(f"{entry['count']:,}", (value, rate), offset, **_COUNT, **where)
        axis.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), ylabel="share solved")
    critic = summary.get("critic") or {}
    names = (("pearson", "Pearson"), ("spearman", "Spearman"), ("brier", "Brier"), ("ece", "ECE"))
    scores = "  ".join(f"{name} {critic[key]:.3f}" for key, name in names if critic.get(key) is not None)
    _finish(axis, "Calibration of V", xlabel=f"V\nheld-out: {scores}" if scores else "V")
    # Wider than the panel at the common size, and the picture ends where the panel does.
    axis.xaxis.label.set_fontsize(7.5)
