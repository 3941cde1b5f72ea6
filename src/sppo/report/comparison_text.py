"""comparison.md: the tables of `sppo compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sppo.errors import visible
from sppo.report.comparison_numbers import CONVENTIONS, UNITS

_NOTES = """\
- Every run of a seed starts from the same warm start and is measured on the same held-out prompts. Each is a process of
  its own; they ran one after the other on one machine.
- Seconds are the wall-clock time of the training phases: choice of prompts, rollout, grading, estimates, critic and
  policy. Evaluations, checkpoints and the warm start are left out. Responses and seconds that a critic was fitted to
  beforehand are counted before the first step.
- Final accuracy: mean over seeds ± standard error, sqrt(mean over seeds of the squared standard error over prompts +
  variance between seeds / number of seeds). The difference to {first} is taken seed by seed, ± its standard error over
  seeds.
- To a target: interpolated between evaluations; median over seeds (lowest to highest). A run that never got there
  counts as infinitely slow. "x {first}" is the median over seeds of the ratio to {first}'s run from the same start.
- Peak memory: the most that one process of the run held, evaluations included; the highest over seeds.
"""


def as_markdown(found: Mapping[str, Any]) -> str:
    """Returns the whole page: what was run, tables for each convention, what the numbers are."""
    settings = found["settings"]
    budget = settings["budget"]
    lines = [
        f"# {settings['recipe']}: algorithms compared",
        "",
        f"Each run spends {budget['amount']:,} {budget['unit']}; seeds {', '.join(map(str, settings['seeds']))}.",
    ]
    if settings.get("held_out_prompts"):
        lines[-1] += (
            f" Accuracy on {settings['held_out_prompts']:,} held-out prompts, "
            f"{settings['final_samples_per_prompt']} responses to each at the end."
        )
    first = next((row["label"] for rows in found["results"].values() for row in rows), "the first")
    for convention, rows in found["results"].items():
        lines += ["", f"## {CONVENTIONS[convention].capitalize()}", "", *_overview(rows, first)]
        lines += ["", *_targets(rows, first)]
    lines += ["", "## Curves", ""]
    lines += [f"![Held-out accuracy against {axis}](accuracy_against_{unit}.png)\n" for unit, axis in UNITS.items()]
    failed = [run for run in found["runs"] if run["error"] is not None]
    if failed:
        lines += ["## Runs that failed", ""]
        lines += [f"- {run['label']}, seed {run['seed']} ({run['folder']}): {run['error']}" for run in failed] + [""]
    lines += ["## What the numbers are", "", _NOTES.format(first=first)]
    return visible("\n".join(lines))


def _overview(rows: Sequence[Mapping[str, Any]], first: str) -> list[str]:
    headings = ["algorithm", "prompts x samples a step", "steps", "responses", "seconds", "seconds a step"]
    headings += ["accuracy before", "final accuracy", f"less {first}", "peak memory", "seeds"]
    gpu = any(row.get("peak_gpu_bytes") for row in rows)
    if gpu:
        headings.insert(-1, "peak GPU memory")
    table = []
    for row in rows:
        cells = [row["label"], f"{row['prompts_per_step']:,} x {row['samples_per_prompt']}"]
        if "final_accuracy" in row:
            final, difference = row["final_accuracy"], row["difference"]
            cells += [f"{row['steps']:,.0f}", f"{row['responses']:,.0f}", number(row["seconds"])]
            cells += [number(row["seconds_per_step"]), f"{row['start_accuracy']:.1%}"]
            cells += [f"{final['mean']:.1%} ± {100 * final['stderr']:.1f}", _points(difference)]
            cells += [_memory(row["peak_memory_bytes"])] + [_memory(row["peak_gpu_bytes"])] * gpu
        else:
            cells += ["–"] * (len(headings) - 3)
        failed = f", {row['failed']} failed" if row["failed"] else ""
        table.append([*cells, f"{len(row['seeds'])}{failed}"])
    return _table(headings, table)


def _targets(rows: Sequence[Mapping[str, Any]], first: str) -> list[str]:
    headings = ["to", "algorithm", "reached", "seconds", f"x {first}", "responses", f"x {first}", "steps"]
    table = []
    for index in range(max((len(row.get("targets", ())) for row in rows), default=0)):
        for row in rows:
            if "targets" not in row:
                continue
            entry = row["targets"][index]
            ratios = {unit: entry[f"{unit}_ratio"] for unit in ("seconds", "responses")}
            table.append([
                f"{entry['target']:.0%}",
                row["label"],
                f"{entry['reached']} of {entry['of']}",
                _range(entry["seconds"]),
                _ratio(ratios["seconds"]),
                _range(entry["responses"]),
                _ratio(ratios["responses"]),
                _range(entry["steps"]),
            ])  # fmt: skip
    return _table(headings, table) if table else []


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return [line(headings), line(["---"] * len(headings)), *map(line, rows)]


def number(value: float) -> str:
    """Three digits, and no exponent."""
    digits = 0 if value >= 100 or value == 0 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def reached(value: float | None) -> str:
    """A number, or that a target was never reached."""
    return "not reached" if value is None else number(value)


def _range(entry: Mapping[str, float | None]) -> str:
    if entry["low"] is None:
        return "not reached"
    middle, low, high = (reached(entry[name]) for name in ("median", "low", "high"))
    return low if low == high else f"{middle} ({low} to {high})"


def _ratio(entry: Mapping[str, float | None] | None) -> str:
    if entry is None or entry["median"] is None:
        return "–"
    return f"{entry['median']:.2f}"


def _points(difference: Mapping[str, float | None] | None) -> str:
    if difference is None or difference["mean"] is None:
        return "–"
    error = "" if difference["stderr"] is None else f" ± {100 * difference['stderr']:.1f}"
    return f"{100 * difference['mean']:+.1f}{error}"


def _memory(count: float | None) -> str:
    return "–" if count is None else f"{count / 2**20:,.0f} MiB"
