"""Settings of each method by the same trials on tuning seeds, and caps from ours.

A setting's score is the mean logarithm over cell and seeds of the responses to the first target, where a run that
doesn't get there counts as twice its cap: where half of the seeds fail, any setting with which all get there is better.
Of settings with which none gets there, the one with the highest accuracy at the end is the best: what a run lacks of
the target is added to its logarithm.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from sppo.errors import ConfigError
from sppo.runs.files import write_json
from value_parts import plan
from value_parts.curves import isotonic, read_curve
from value_parts.designs import TUNED_KEYS
from value_parts.experiment import job_of
from value_parts.registered import read_tuned, settings_of
from value_parts.running import Job

Settings = dict[str, Any]
Run = Callable[[Sequence[Job]], list[str]]


def grid(rates: Sequence[float], warmups: Sequence[float], negative_shares: Sequence[float]) -> list[Settings]:
    """All combinations; what has no values isn't set."""
    values = (rates, [int(steps) for steps in warmups], negative_shares)
    given = [(key, found) for key, found in zip(TUNED_KEYS, values, strict=True) if found]
    combinations = itertools.product(*(found for _, found in given))
    return [dict(zip([key for key, _ in given], combination, strict=True)) for combination in combinations]


def score(costs: Sequence[float | None], cap: int, lacking: Sequence[float]) -> float:
    """Mean logarithm of the responses to the target; `lacking` is what each run's fitted accuracy has less than it."""
    return fmean(
        math.log(2 * cap) + less if cost is None else math.log(max(cost, 1.0))
        for cost, less in zip(costs, lacking, strict=True)
    )


def tune(arguments: argparse.Namespace, tried: Sequence[Settings], run: Run, tell: Callable[[str], None]) -> None:
    """Tries each setting with each method, and writes the best of each down with all trials.

    Raises:
        ConfigError: tuning seeds that an experiment has too.
    """
    require_tuning_seeds(arguments.seeds)
    cell, tuned = plan.CELLS[arguments.cell], read_tuned(arguments.tuned)
    cap = plan.TUNING_CAP
    methods = list(dict.fromkeys(plan.METHODS[name].tuned_name for name in arguments.methods))
    jobs = {
        (method, place, seed): job_of(
            cell.name, method, seed, settings, cap, arguments.output, f"tuning/{_label(settings)}",
            target=plan.TARGETS[0], pass_at=(0, 0),
        )
        for seed in arguments.seeds
        for place, settings in enumerate(tried)
        for method in methods
    }  # fmt: skip
    run(list(jobs.values()))
    for method in methods:
        trials = []
        for place, settings in enumerate(tried):
            costs = {
                seed: read_curve(jobs[method, place, seed].folder).cost(plan.TARGETS[0], "responses")
                for seed in arguments.seeds
            }
            ends = [isotonic(read_curve(jobs[method, place, seed].folder).accuracy)[-1] for seed in arguments.seeds]
            lacking = [max(plan.TARGETS[0] - float(end), 0.0) for end in ends]
            found = score(list(costs.values()), cap, lacking)
            trials.append({"settings": settings, "responses": costs, "lacking": lacking, "score": found})
        best = add_trials(tuned, method, cell.batch, trials)
        edge = (
            " (at the edge of the grid)" if _at_edge(best, tuned["settings"][method][str(cell.batch)]["trials"]) else ""
        )
        tell(f"{method} at {cell.batch} a step: {best}{edge}")
        for trial in trials:
            tell(f"    {trial['settings']}: {_shown(trial['responses'].values())}, score {trial['score']:.3f}")
    write_json(arguments.tuned, tuned)


def require_tuning_seeds(seeds: Sequence[int]) -> None:
    """Raises ConfigError for a seed that an experiment has too."""
    registered = {seed for experiment in plan.EXPERIMENTS.values() for seed in experiment.seeds}
    if taken := sorted(registered & set(seeds)):
        raise ConfigError(f"Seeds {taken} are an experiment's own: tune on others, as {list(plan.TUNING_SEEDS)}.")


def add_trials(tuned: dict[str, Any], method: str, batch: int, trials: Sequence[Mapping[str, Any]]) -> Settings:
    """Puts trials beside those of earlier calls, one of each setting, and keeps the best of all; returns it."""
    entry = tuned["settings"].setdefault(method, {}).setdefault(str(batch), {"settings": {}, "trials": []})
    new = [dict(trial) for trial in trials]
    tried = [trial["settings"] for trial in new]
    entry["trials"] = [trial for trial in entry["trials"] if trial["settings"] not in tried] + new
    best = min(entry["trials"], key=lambda trial: trial["score"])
    entry["settings"] = best["settings"]
    return dict(best["settings"])


def find_cap(arguments: argparse.Namespace, run: Run, tell: Callable[[str], None]) -> None:
    """Runs ours on the tuning seeds, and writes CAP_FACTOR times the median of its cost down as each cell's cap."""
    require_tuning_seeds(arguments.seeds)
    tuned = read_tuned(arguments.tuned)
    settings = {cell: settings_of(tuned, arguments.method, plan.CELLS[cell].batch) for cell in arguments.cells}
    jobs = {
        (cell, seed): job_of(
            cell, arguments.method, seed, settings[cell], plan.LARGEST_CAP, arguments.output,
            f"caps/{_label(settings[cell])}", pass_at=(0, 0), target=plan.TARGETS[0],
        )
        for seed in arguments.seeds
        for cell in arguments.cells
    }  # fmt: skip
    run(list(jobs.values()))
    for cell in arguments.cells:
        costs = [read_curve(jobs[cell, seed].folder).cost(plan.TARGETS[0], "responses") for seed in arguments.seeds]
        middle = median(math.inf if cost is None else cost for cost in costs)
        batch = plan.CELLS[cell].batch
        cap = plan.LARGEST_CAP if math.isinf(middle) else math.ceil(plan.CAP_FACTOR * middle / batch) * batch
        cap = min(cap, plan.LARGEST_CAP)
        tuned["caps"][cell] = {"cap": cap, "method": arguments.method, "seeds": arguments.seeds, "responses": costs}
        tell(f"{cell}: {_shown(costs)} responses, cap {cap}")
    write_json(arguments.tuned, tuned)


def _label(settings: Settings) -> str:
    """A folder's name: learning_rate_0.0005."""
    return "_".join(f"{key.rpartition('.')[2]}_{value:g}" for key, value in settings.items())


def _at_edge(best: Settings, trials: Sequence[Mapping[str, Any]]) -> bool:
    rates = [trial["settings"][TUNED_KEYS[0]] for trial in trials]
    return len(set(rates)) > 1 and best[TUNED_KEYS[0]] in (min(rates), max(rates))


def _shown(costs: Any) -> str:
    return ", ".join("never" if cost is None else f"{cost:.0f}" for cost in costs)
