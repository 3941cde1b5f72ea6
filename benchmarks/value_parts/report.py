"""What an experiment's runs say: numbers, Markdown tables and criteria; and value_NAME.json, .md and .png.

Costs are those of curves.py, ratios those of ratios.py. Every cell and every method that was registered is a row,
also where runs are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from sppo.runs.files import read_json, write_json, write_text
from sppo.runs.folder import read_summary
from value_parts.curves import UNITS, Curve, fitted_curve, read_curve
from value_parts.pictures import draw
from value_parts.ratios import Cost, Ratio, judge, paired_ratio
from value_parts.running import FAILED

Entry = Mapping[str, Any]
Runs = dict[int, "Outcome"]


class Outcome:
    """One run that has ended."""

    def __init__(self, folder: Path, cap: int) -> None:
        self.curve: Curve = read_curve(folder)
        self.summary = read_summary(folder)
        self.failed = (read_json(folder / FAILED) or {}).get("error")
        self.cap = cap

    def cost(self, target: float, unit: str) -> Cost:
        """What the target took; where the run never got there, what the cap takes at the run's own pace."""
        reached = self.curve.cost(target, unit)
        if reached is not None:
            return Cost(reached, True)
        total = self.curve.total
        scale = self.cap / total["responses"] if total["responses"] else 1.0
        return Cost(float(self.cap) if unit == "responses" else total[unit] * scale, False)


def read_runs(entry: Entry, results: Path) -> dict[str, dict[str, Runs]]:
    """By cell, method and seed: the runs that have ended."""
    found: dict[str, dict[str, Runs]] = {}
    for cell, described in entry["cells"].items():
        found[cell] = {method: {} for method in described["methods"]}
        for method, runs in found[cell].items():
            for seed in entry["seeds"]:
                folder = results / "runs" / cell / method / f"seed_{seed}"
                if (folder / "summary.json").is_file() or (folder / FAILED).is_file():
                    runs[seed] = Outcome(folder, described["cap"])
    return found


def ratio(runs: Mapping[str, Runs], method: str, ours: str, target: float, unit: str) -> Ratio | None:
    """What the method needed over what ours did."""
    costs = [{seed: run.cost(target, unit) for seed, run in runs.get(name, {}).items()} for name in (method, ours)]
    return paired_ratio(costs[0], costs[1])


def numbers(entry: Entry, results: Path) -> dict[str, Any]:
    """Rows by cell and method, and the criteria."""
    found = read_runs(entry, results)
    cells = {cell: [_row(method, runs, found[cell], entry) for method, runs in found[cell].items()] for cell in found}
    criteria = []
    for wanted in entry["criteria"]:
        runs = found[wanted["cell"]]
        against = {
            name: ratio(runs, name, wanted["ours"], wanted["target"], wanted["unit"]) for name in wanted["against"]
        }
        complete = all(len(runs.get(name, {})) == len(entry["seeds"]) for name in (*against, wanted["ours"]))
        criteria.append({**wanted, **judge(against, wanted["at_least"]), "complete": complete})
    return {"cells": cells, "criteria": criteria}


def _row(method: str, runs: Runs, of_cell: Mapping[str, Runs], entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": method,
        "seeds": sorted(runs),
        "failed": {s: r.failed for s, r in runs.items() if r.failed},
    }
    if not runs:
        return row
    row["targets"] = {str(target): _target(method, runs, of_cell, target, entry["ours"]) for target in entry["targets"]}
    ended = [run.summary["ended"] for run in runs.values() if "ended" in run.summary]
    solved = [end["pass_at_k"] for end in ended if end["pass_at_k"]]
    steps = [seconds for run in runs.values() for seconds in run.curve.step_seconds]
    row |= {
        "pass_1": fmean(s["pass_1"] for s in solved) if solved else None,
        "pass_k": fmean(s["pass_k"] for s in solved) if solved else None,
        "final_accuracy": fmean(run.curve.accuracy[-1] for run in runs.values() if run.curve.accuracy),
        "step_seconds": median(steps) if steps else None,
        "shares": {name: fmean(r.curve.shares.get(name, 0.0) for r in runs.values()) for name in _phases(runs)},
        "curve": _fits(runs),
        "processor_share": min((end["processor_share"] for end in ended), default=None),
        "load": [min(end["load"][0] for end in ended), max(end["load"][1] for end in ended)] if ended else None,
    }
    return row


def _target(method: str, runs: Runs, of_cell: Mapping[str, Runs], target: float, ours: str) -> dict[str, Any]:
    """What the target took, and over ours, by unit."""
    found: dict[str, Any] = {
        "reached": sum(run.cost(target, "responses").reached for run in runs.values()),
        "ratio": {},
    }
    for unit in UNITS:
        by_seed = {seed: run.cost(target, unit).value for seed, run in runs.items()}
        found[unit] = {"median": median(by_seed.values()), "by_seed": by_seed}
        over = ratio(of_cell, method, ours, target, unit)
        found["ratio"][unit] = None if over is None else {**over.as_dict(), "shown": over.shown()}
    return found


def _phases(runs: Runs) -> list[str]:
    return sorted({name for run in runs.values() for name in run.curve.shares})


def _fits(runs: Runs) -> dict[str, float] | None:
    """Medians over seeds of the fitted curves' asymptote, efficiency and middle."""
    fits = [fit for run in runs.values() if (fit := fitted_curve(run.curve.responses, run.curve.accuracy))]
    return {name: median(fit[name] for fit in fits) for name in fits[0]} if fits else None


def write_report(name: str, entry: Entry, results: Path, machine: Mapping[str, Any], commit: str | None) -> str:
    """Writes JSON, Markdown and picture into the folder of results, and returns the Markdown."""
    found = numbers(entry, results)
    text = markdown(entry, found)
    write_json(
        results / f"value_{name}.json", {"machine": machine, "registered_commit": commit, "plan": entry, **found}
    )
    write_text(results / f"value_{name}.md", text)
    draw(results / f"value_{name}.png", entry, read_runs(entry, results))
    return text


def markdown(entry: Entry, found: Mapping[str, Any]) -> str:
    """Tables of cells, and of criteria."""
    parts = []
    for cell, rows in found["cells"].items():
        described = entry["cells"][cell]
        parts += [
            f"\n### {described['title']}\n",
            f"{described['batch']} responses a step, cap {described['cap']:,}.\n",
        ]
        for target in entry["targets"]:
            parts += [*_table(rows, str(target), len(entry["seeds"]), entry["ours"]), ""]
        parts += [*_more(rows), ""]
    if found["criteria"]:
        parts += [
            "\n### What counted as success\n",
            "| criterion | goal | best opponent | ratio | met |",
            "|---|---|---|---|---|",
        ]
        parts += [_criterion(criterion) for criterion in found["criteria"]]
    return "\n".join(parts) + "\n"


def _table(rows: list[dict[str, Any]], target: str, seeds: int, ours: str) -> list[str]:
    share = f"{float(target):.0%}"
    lines = [
        f"| to {share} | got there | responses | tokens | seconds | responses / {ours}'s | tokens | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not row["seeds"]:
            lines.append(f"| {row['method']} | no runs yet | | | | | | |")
            continue
        at = row["targets"][target]
        # The median is a run that got there only where more than half of them did.
        bound = "" if 2 * at["reached"] > len(row["seeds"]) else ">"
        costs = [f"{bound}{at[unit]['median']:,.{1 if unit == 'seconds' else 0}f}" for unit in UNITS]
        ratios = [at["ratio"][unit]["shown"] if at["ratio"][unit] else "" for unit in UNITS]
        if row["method"] == ours:
            ratios = ["1"] * 3
        lines.append(f"| {row['method']} | {at['reached']} of {len(row['seeds'])} | {' | '.join([*costs, *ratios])} |")
    return lines


def _more(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| | pass@1 | pass@8 | asymptote | efficiency | s a step | critic | choice | failed | processor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["seeds"]:
            fit = row["curve"] or {}
            cells = [
                _number(row["pass_1"], ".3f"), _number(row["pass_k"], ".3f"), _number(fit.get("asymptote"), ".2f"),
                _number(fit.get("efficiency"), ".1f"), _number(row["step_seconds"], ".3f"),
                _number(row["shares"].get("critic", 0.0) + row["shares"].get("value", 0.0), ".0%"),
                _number(row["shares"].get("select", 0.0), ".0%"), str(len(row["failed"])),
                _number(row["processor_share"], ".0%"),
            ]  # fmt: skip
            lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return lines


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _criterion(found: Mapping[str, Any]) -> str:
    goal = f"{found['at_least']:.2f} x in {found['unit']} to {found['target']:.0%}"
    if found["ratio"] is None:
        return f"| {found['name']} | {goal} | | | can't be told |"
    said = Ratio(**found["ratio"]).shown()
    met = {True: "yes", False: f"no, {found['short'] or 1:.2f} x short", None: "can't be told"}[found["met"]]
    missing = "" if found["complete"] else " (runs missing)"
    return f"| {found['name']} | {goal} | {found['opponent']} | {said} | {met}{missing} |"
