"""The plan as it is registered before the runs: everything that decides them, and what counts as success.

    benchmarks/value_plan.json     experiments by name, written by `value.py register`
    benchmarks/value_tuned.json    settings of each method by batch size with their trials (`value.py tune`), and caps

A run is refused while the two don't agree with the registered plan, or while that is not committed.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sppo.config.options import flatten
from sppo.errors import ConfigError
from sppo.runs.files import read_json, write_json
from value_parts import plan
from value_parts.curves import RULE
from value_parts.designs import Experiment


def read_tuned(path: Path) -> dict[str, Any]:
    """{"settings": {method: {batch: {settings, trials}}}, "caps": {cell: {cap, ...}}}."""
    return read_json(path) or {"settings": {}, "caps": {}}


def settings_of(tuned: Mapping[str, Any], method: str, batch: int) -> dict[str, Any]:
    """The method's tuned settings at this batch size, else those of one that has not been tuned."""
    found = tuned["settings"].get(plan.METHODS[method].tuned_name, {}).get(str(batch))
    return dict(found["settings"]) if found else plan.untuned(batch)


def cap_of(tuned: Mapping[str, Any], cell: str) -> int | None:
    """Most responses of a run in this cell."""
    return plan.CELLS[cell].cap or tuned["caps"].get(cell, {}).get("cap")


def compose(name: str, tuned: Mapping[str, Any], *, untuned: bool = False) -> dict[str, Any]:
    """Everything that an experiment's runs depend on, as plain values.

    Args:
        name: of the experiment.
        tuned: as `read_tuned` reads it.
        untuned: whether settings and caps may lack.

    Raises:
        ConfigError: no such experiment; settings or caps are missing, or were found by unequal numbers of trials.
    """
    if name not in plan.EXPERIMENTS:
        raise ConfigError(f"There is no experiment {name!r}. Those that there are: {', '.join(plan.EXPERIMENTS)}.")
    experiment = plan.EXPERIMENTS[name]
    if experiment.tuned and not untuned:
        _require_tuned(experiment, tuned)
    methods = {method for listed in experiment.methods.values() for method in listed}
    entry = {
        "seeds": list(experiment.seeds),
        "ours": experiment.ours,
        "cells": {
            cell: {
                **asdict(plan.CELLS[cell]),
                "cap": cap_of(tuned, cell),
                "methods": {method: settings_of(tuned, method, plan.CELLS[cell].batch) for method in listed},
            }
            for cell, listed in experiment.methods.items()
        },
        "methods": {method: asdict(plan.METHODS[method]) for method in sorted(methods)},
        "targets": list(plan.TARGETS),
        "rule": RULE,
        "evaluation": {"every_responses": plan.EVALUATE_EVERY, "prompts": plan.HELD_OUT_PROMPTS},
        "pass_at_k": {"prompts": plan.PASS_PROMPTS, "k": plan.PASS_K},
        "result": "geometric mean over seeds of the opponent's cost over ours, with the 95% t interval of its "
        "logarithm; a run that doesn't get there counts as the cap, a lower bound",
        "criteria": [asdict(criterion) for criterion in experiment.criteria],
    }
    plain: dict[str, Any] = json.loads(json.dumps(entry))
    return plain


def _require_tuned(experiment: Experiment, tuned: Mapping[str, Any]) -> None:
    missing, trials = [], {}
    for cell, listed in experiment.methods.items():
        batch = plan.CELLS[cell].batch
        if cap_of(tuned, cell) is None:
            missing.append(f"the cap of {cell} (value.py cap {cell})")
        for method in listed:
            name = plan.METHODS[method].tuned_name
            found = tuned["settings"].get(name, {}).get(str(batch))
            if found is None:
                missing.append(f"{name} at {batch} a step (value.py tune {name} --cell {cell})")
            else:
                trials.setdefault(batch, {})[name] = len(found["trials"])
    if missing:
        raise ConfigError(f"Not tuned yet: {'; '.join(dict.fromkeys(missing))}.")
    for batch, counts in trials.items():
        if len(set(counts.values())) > 1:
            raise ConfigError(f"At {batch} a step the methods had unequal numbers of trials: {counts}.")


def register(name: str, path: Path, tuned: Mapping[str, Any], *, replace: bool = False) -> dict[str, Any]:
    """Adds an experiment to the plan's file.

    Raises:
        ConfigError: another plan is registered under this name.
    """
    entry, registered = compose(name, tuned), read_json(path) or {}
    if name in registered and not replace:
        differences = plan_differences(registered[name], entry)
        if differences:
            raise ConfigError(
                f"{path} has another plan of {name}: {'; '.join(differences)}. Register under another name, or, where "
                "nothing has been run yet, with --replace."
            )
    write_json(path, {**registered, name: entry})
    return entry


def registered(name: str, path: Path) -> tuple[dict[str, Any], str | None]:
    """Returns the registered plan, and the commit it stands in (None outside of git).

    Raises:
        ConfigError: it is not registered, or not committed.
    """
    entry = (read_json(path) or {}).get(name)
    if entry is None:
        raise ConfigError(f"{name} is not registered in {path}: run `value.py register {name}` and commit the file.")
    return entry, _commit(path)


def require_registered(name: str, path: Path, tuned: Mapping[str, Any]) -> None:
    """Refuses to run anything but what is registered; a plan that was run may differ from today's settings.

    Raises:
        ConfigError: it is not registered, differs from what would be run, or is not committed.
    """
    entry, _ = registered(name, path)
    differences = plan_differences(entry, compose(name, tuned))
    if differences:
        raise ConfigError(f"What would be run differs from the registered plan of {name}: {'; '.join(differences)}.")


def plan_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns "key: old -> new" for every value that differs."""
    before, after = flatten(dict(old)), flatten(dict(new))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _commit(path: Path) -> str | None:
    """The last commit that changed the file; refuses one with changes that are not committed."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(path.absolute().parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    if git("rev-parse", "--is-inside-work-tree") != "true":
        return None
    if git("status", "--porcelain", "--", path.name):
        raise ConfigError(f"{path} is not committed: commit it, so that what was planned is on record before the runs.")
    return git("log", "-1", "--format=%H", "--", path.name)
