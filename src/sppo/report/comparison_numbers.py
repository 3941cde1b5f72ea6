"""What `sppo compare` found, in numbers, from the run folders alone.

A run's curve has a point for each evaluation on the held-out prompts: steps, responses and seconds spent by then, and
the accuracy. Seconds are the wall-clock time of the training phases (choice of prompts, rollout, grading, estimates,
critic, policy); evaluations, checkpoints and the warm start are left out. What a critic was fitted to beforehand counts
before the first step. A curve ends where the budget does.

Time to a target: linear interpolation between the last evaluation below it and the first at or above it. A run that
never gets there counts as infinitely slow in the median and the range.

Final accuracy is the mean over S seeds of each run's last evaluation. With e_s its standard error in seed s, clustered
by prompt, and v the variance of the accuracies between seeds:

    standard error = sqrt(mean(e_s^2) + v / S)

The prompts' part is not divided by S, as the held-out prompts may be the same for every seed. The formula is
conservative: the noise of sampling is in both parts. Two algorithms share prompts and warm starts, so their
difference is surer than their intervals look: it is taken seed by seed, with the standard error over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from sppo.runs.folder import read_metrics

UNITS = {"steps": "steps", "responses": "responses", "seconds": "seconds of training"}
"""What a budget is counted in and curves are drawn against, and the axis label of each."""
CONVENTIONS = {"prompts": "the same prompts a step", "responses": "the same responses a step"}
"""What a step of group algorithms has in common with the others."""
_NOT_TRAINING = {"time/step", "time/evaluate", "time/checkpoint"}
Point = dict[str, float]
Run = Mapping[str, Any]


def step_seconds(line: Mapping[str, Any]) -> float:
    """Seconds of a step's training phases, from its line of metrics.jsonl; of step 0, those of a pre-fit."""
    return sum(value for name, value in line.items() if name.startswith("time/") and name not in _NOT_TRAINING)


def read_run(folder: Path, unit: str, amount: float) -> dict[str, Any]:
    """Returns a run's points within the budget, and its median seconds and responses a step.

    Args:
        folder: run folder; one that was never made has no points.
        unit: steps, responses or seconds.
        amount: of that unit.
    """
    points: list[Point] = []
    took, before, responses, seconds = [], 0.0, 0.0, 0.0
    for line in read_metrics(folder):
        seconds += step_seconds(line)
        responses = line.get("responses/total", responses)
        if line["step"] > 0:
            took.append(step_seconds(line))
        else:
            before = responses
        spent = {"steps": line["step"], "responses": responses, "seconds": round(seconds, 3)}
        if "eval/accuracy" in line and spent[unit] <= amount:
            known = {"accuracy": line["eval/accuracy"], "stderr": line.get("eval/accuracy_stderr", 0.0)}
            points.append({**spent, **known})
    return {
        "points": points,
        "seconds_per_step": median(took) if took else None,
        "responses_per_step": (responses - before) / len(took) if took else None,
    }


def reach(points: Sequence[Point], target: float, unit: str) -> float | None:
    """What a run had spent when its held-out accuracy reached the target; None where it never did."""
    before: Point | None = None
    for point in points:
        if point["accuracy"] >= target:
            if before is None:
                return point[unit]
            share = (target - before["accuracy"]) / (point["accuracy"] - before["accuracy"])
            return before[unit] + share * (point[unit] - before[unit])
        before = point
    return None


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Median, lowest and highest over seeds; None is infinity: a run that never got there."""
    numbers = [math.inf if value is None else value for value in values]
    found = {"median": median(numbers), "low": min(numbers), "high": max(numbers)}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def final_accuracy(accuracies: Sequence[float], errors: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds and its standard error; see the top of the file."""
    between = stdev(accuracies) ** 2 / len(accuracies) if len(accuracies) > 1 else 0.0
    return {
        "mean": fmean(accuracies),
        "stderr": math.sqrt(fmean([error**2 for error in errors]) + between),
        "by_seed": list(accuracies),
    }


def summarise(runs: Sequence[Run], convention: str, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Returns one row for each label, in the order of the runs; the first is what the others are held against."""
    mine = [run for run in runs if convention in run["conventions"]]
    rows: list[dict[str, Any]] = []
    first: dict[int, Run] = {}
    for label in dict.fromkeys(run["label"] for run in mine):
        of_label = [run for run in mine if run["label"] == label]
        good = {run["seed"]: run for run in of_label if run["error"] is None and run["points"]}
        row: dict[str, Any] = {
            "label": label,
            "samples_per_prompt": of_label[0]["samples_per_prompt"],
            "prompts_per_step": of_label[0]["prompts_per_step"],
            "seeds": sorted(good),
            "failed": len(of_label) - len(good),
        }
        if good:
            row |= _numbers(list(good.values()))
            row["targets"] = [_target(good, first, target) for target in targets]
            row["difference"] = _difference(good, first)
        first = first or good
        rows.append(row)
    return rows


def _numbers(runs: Sequence[Run]) -> dict[str, Any]:
    last = [run["points"][-1] for run in runs]
    memory = {name: [run[name] for run in runs if run.get(name)] for name in ("peak_memory_bytes", "peak_gpu_bytes")}
    return {
        "start_accuracy": fmean([run["points"][0]["accuracy"] for run in runs]),
        "final_accuracy": final_accuracy([point["accuracy"] for point in last], [point["stderr"] for point in last]),
        **{unit: median([point[unit] for point in last]) for unit in UNITS},
        "seconds_per_step": median([run["seconds_per_step"] for run in runs if run["seconds_per_step"]] or [0.0]),
        **{name: max(values, default=None) for name, values in memory.items()},
    }


def _target(good: Mapping[int, Run], first: Mapping[int, Run], target: float) -> dict[str, Any]:
    """What it took to reach a target, and how many times what the first algorithm needed from the same start."""
    reached = {unit: {seed: reach(run["points"], target, unit) for seed, run in good.items()} for unit in UNITS}
    found: dict[str, Any] = {
        "target": target,
        "reached": sum(value is not None for value in reached["steps"].values()),
        "of": len(good),
        **{unit: spread(list(values.values())) for unit, values in reached.items()},
    }
    for unit in ("seconds", "responses"):
        needed = {seed: reach(run["points"], target, unit) for seed, run in first.items()}
        # A model that begins above the target needs nothing, and there is no ratio to nothing.
        ratios = [_ratio(reached[unit][seed], needed[seed]) for seed in good if needed.get(seed)]
        found[f"{unit}_ratio"] = spread(ratios) if ratios else None
    return found


def _ratio(value: float | None, baseline: float | None) -> float | None:
    assert baseline, "the caller asks for a baseline above 0"
    return None if value is None else value / baseline


def _difference(good: Mapping[int, Run], first: Mapping[int, Run]) -> dict[str, float | None] | None:
    """Final accuracy less that of the first algorithm, over the seeds that both have."""
    pairs = [(run["points"][-1], first[seed]["points"][-1]) for seed, run in good.items() if seed in first]
    gaps = [mine["accuracy"] - theirs["accuracy"] for mine, theirs in pairs]
    if not gaps:
        return None
    return {"mean": fmean(gaps), "stderr": stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None}
