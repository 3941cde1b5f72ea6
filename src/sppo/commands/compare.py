"""`sppo compare`: several algorithms in the one loop, from the same warm start, on the same held-out prompts.

    OUTPUT/warm_start/seed_S/        the model that every run of that seed starts from, made once
    OUTPUT/runs/LABEL/seed_S/        run folders; beside each its recipe, its log and its peak memory
    OUTPUT/comparison.json, .md      see `sppo.report.comparison`, which draws the pictures too

Each run is a process of its own, one at a time: its peak memory is its own, no two runs share the machine's cores, and
one that fails is reported and ends nothing. Seeds are the outer loop, so that a machine that slows down in the course
of hours slows all algorithms alike. Runs that are complete are not repeated; those cut short go on.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

from sppo.algorithms.table import get_algorithm
from sppo.commands.entries import Entry, parse_algorithms
from sppo.commands.runner import peak_memory, run_command
from sppo.config import Config, CriticConfig, flatten, to_dict
from sppo.config.compatibility import config_differences, goes_by_steps, written_config
from sppo.config.parsing import read_yaml
from sppo.config.recipes import list_recipes, load_recipe
from sppo.errors import ConfigError, RunFolderError, TrainingError
from sppo.report.comparison import write_comparison
from sppo.report.comparison_numbers import CONVENTIONS, UNITS, step_seconds
from sppo.runs.folder import read_metrics, read_summary
from sppo.runs.lock import lock
from sppo.runs.progress import NoProgress, Progress
from sppo.training.build import check
from sppo.training.given import Given
from sppo.training.prefit import read_prefit

SET_BY_COMPARE = {
    "seed": "--seeds", "output": "--output", "algorithm.name": "--algorithms",
    "sampling.samples_per_prompt": "--samples",
}  # fmt: skip
"""Keys that may not be overridden for all runs, and the flag to use instead."""
FIRST_STEPS = 3
"""Steps that are timed first where the budget is in seconds."""
_OF_BELIEFS = {
    f"critic.{key}": value
    for key, value in flatten(to_dict(CriticConfig())).items()
    if key.startswith(("source", "members", "recalibrate", "history", "known_rates", "prefit."))
}
"""Options that only critics of prompts have, as they are by default: those who choose no prompts may have none."""


@dataclass(frozen=True)
class Budget:
    """What each run may spend."""

    unit: str
    """steps, responses or seconds."""
    amount: int


@dataclass(frozen=True)
class Job:
    """One run, planned."""

    entry: Entry
    conventions: tuple[str, ...]
    """Those it stands for; with one sample a prompt both are the same run."""
    config: Config

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output)

    @property
    def name(self) -> str:
        """What people are told it is called, such as "grpo_same_prompts/seed_0"."""
        return f"{self.folder.parent.name}/{self.folder.name}"


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    recipe: str
    overrides: tuple[str, ...]
    base: Config
    """The recipe with the overrides."""
    conventions: tuple[str, ...]
    samples: int
    """G of group algorithms."""
    budget: Budget
    folder: Path


def compare(
    recipe: str | Path,
    algorithms: str,
    *,
    seeds: Sequence[int] = (0,),
    budget: str | None = None,
    match: str = "both",
    samples: int = 8,
    targets: Sequence[float] = (0.5, 0.8, 0.9),
    output: str | Path = "runs/compare",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains with each algorithm and each seed, and writes tables and pictures.

    Args:
        recipe: built-in recipe or file that all runs share.
        algorithms: names, or NAME:LABEL,KEY=VALUE,... for a variant, separated by commas.
        seeds: each has its own warm start and one run of each algorithm.
        budget: steps=N, responses=N or seconds=N a run; default: the recipe's steps.
        match: "prompts", "responses" or "both": what a step of group algorithms has in common with the others.
        samples: G of group algorithms.
        targets: held-out accuracies to time.
        output: folder of the comparison.
        overrides: --key=value for all runs.
        progress: told how far it is.

    Returns:
        What comparison.json holds.

    Raises:
        SppoError: before any run, for what can't work; or a warm start that failed.
    """
    progress = progress or NoProgress()
    _check_numbers(seeds, samples, targets)
    entries, conventions = parse_algorithms(algorithms), parse_match(match)
    base = _base_config(recipe, overrides)
    limit = parse_budget(budget or f"steps={base.steps}")
    setting = Setting(str(recipe), tuple(overrides), base, conventions, samples, limit, Path(output))
    starts = {seed: _warm_start(setting, seed) for seed in seeds}
    jobs = [job for seed in seeds for entry in entries for job in plan(setting, entry, seed, starts[seed])]
    for config in [*filter(None, starts.values()), *(job.config for job in jobs)]:
        _require_same(config)
    # A second process would take the first one's lock on a run for a failure of that run.
    with lock(setting.folder, progress.message):
        runs = _run_all(jobs, starts, limit, progress)
    settings = {
        "recipe": setting.recipe,
        "overrides": list(overrides),
        "algorithms": algorithms,
        "budget": {"unit": limit.unit, "amount": limit.amount},
        "conventions": list(conventions),
        "seeds": list(seeds),
        "targets": list(targets),
        "held_out_prompts": base.evaluation.prompts,
        "final_samples_per_prompt": base.evaluation_samples(base.evaluation.final_samples_per_prompt),
    }
    return write_comparison(setting.folder, settings, runs)


def _run_all(
    jobs: Sequence[Job], starts: Mapping[int, Config | None], limit: Budget, progress: Progress
) -> list[dict[str, Any]]:
    runs = []
    for number, job in enumerate(jobs, start=1):
        start = starts[job.config.seed]
        if start is not None:
            _make_warm_start(start, progress)
        error = _train(job, limit, f"run {number} of {len(jobs)}: {job.name}", progress)
        if error is not None:
            progress.message(f"{job.name} failed: {error}")
        runs.append(_described(job, error))
    return runs


def parse_budget(text: str) -> Budget:
    """Reads "steps=60", "responses=30720" or "seconds=120".

    Raises:
        ConfigError: anything else.
    """
    unit, _, number = text.partition("=")
    if unit not in UNITS or not re.fullmatch(r"[1-9]\d*", number):
        raise ConfigError(f"--budget is {text!r}, but must be steps=N, responses=N or seconds=N, N a whole number.")
    return Budget(unit, int(number))


def parse_match(text: str) -> tuple[str, ...]:
    """Returns the conventions that --match names.

    Raises:
        ConfigError: it names none.
    """
    if text not in (*CONVENTIONS, "both"):
        raise ConfigError(f"--match is {text!r}, but must be {', '.join(CONVENTIONS)} or both.")
    return tuple(CONVENTIONS) if text == "both" else (text,)


def plan(setting: Setting, entry: Entry, seed: int, start: Config | None) -> list[Job]:
    """Returns the runs of one algorithm and one seed: one for each convention, or one for both where they agree.

    Args:
        setting: what all runs share.
        entry: the algorithm.
        seed: of the run.
        start: the warm start to go on from; None: from the recipe's own model.

    Raises:
        ConfigError: options that can't work.
    """
    size = _group_size(entry, setting.samples)
    jobs = []
    for convention in setting.conventions if size > 1 else setting.conventions[:1]:
        name = f"{entry.label}_same_{convention}" if size > 1 else entry.label
        options = [*_recommended(setting, entry), *setting.overrides, *_step_sizes(setting, size, convention)]
        config = load_recipe(setting.recipe, [*options, *(f"--{option}" for option in entry.options)])
        folder = setting.folder / "runs" / name / f"seed_{seed}"
        config = replace(config, seed=seed, output=str(folder), steps=_steps(setting.budget, config))
        if start is not None:
            # Absolute, so that the comparison can be gone on with from another folder.
            policy = os.path.abspath(Path(start.output) / "checkpoints" / "step_0" / "policy")
            model = replace(config.model, path=policy)
            config = replace(config, model=model, sft=replace(config.sft, phases=[]))
        jobs.append(Job(entry, (convention,) if size > 1 else setting.conventions, check(config, Given())))
    return jobs


def _check_numbers(seeds: Sequence[int], samples: int, targets: Sequence[float]) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds is {','.join(map(str, seeds))!r}: give at least one, and none twice.")
    if samples < 2:
        raise ConfigError(f"--samples is {samples}, but a group has at least 2 responses.")
    outside = [target for target in targets if not 0 < target <= 1]
    if outside:
        raise ConfigError(f"--targets has {outside[0]:g}, but accuracies to reach lie above 0 and up to 1.")


def _base_config(recipe: str | Path, overrides: Sequence[str]) -> Config:
    for override in overrides:
        key = override.lstrip("-").partition("=")[0]
        if key in SET_BY_COMPARE:
            raise ConfigError(f"--{key} is set by the comparison for each run: use {SET_BY_COMPARE[key]}.")
    return load_recipe(recipe, overrides)


def _warm_start(setting: Setting, seed: int) -> Config | None:
    """The run that makes the model a seed starts from; None where the recipe names a model and no fine-tuning."""
    if setting.base.model.path is not None and not setting.base.sft.phases:
        return None
    folder = setting.folder / "warm_start" / f"seed_{seed}"
    return check(replace(setting.base, seed=seed, output=str(folder)), Given())


def _group_size(entry: Entry, samples: int) -> int:
    """G: the entry's own, or --samples for algorithms that need groups, else 1."""
    size = samples if getattr(get_algorithm(entry.algorithm), "min_samples", 1) > 1 else 1
    for option in entry.options:
        key, _, text = option.partition("=")
        if key == "sampling.samples_per_prompt":
            if not re.fullmatch(r"[1-9]\d*", text):
                raise ConfigError(f"--algorithms: {option} of {entry.label!r} must be a whole number of at least 1.")
            size = int(text)
    return size


def _step_sizes(setting: Setting, size: int, convention: str) -> list[str]:
    """Overrides for P, G and the mini-batches, with as many optimiser steps a step as the recipe has."""
    base = setting.base
    prompts = base.prompts_per_step if convention == "prompts" else base.prompts_per_step // size
    if convention == "responses" and base.prompts_per_step % size:
        raise ConfigError(
            f"prompts_per_step is {base.prompts_per_step}, which {size} samples a prompt don't divide, so a step can't "
            "have the same number of responses. Choose another --samples, or --match prompts."
        )
    minibatches = {
        f"{section}.minibatch_size": prompts * size * getattr(base, section).minibatch_size // base.sequences_per_step
        for section in ("optimizer", "critic")
    }
    sizes = {"prompts_per_step": prompts, "sampling.samples_per_prompt": size, **minibatches}
    return [f"--{key}={value}" for key, value in sizes.items()]


def _recommended(setting: Setting, entry: Entry) -> list[str]:
    """Overrides that name the algorithm and set it up as its own recipe does, with its own way to choose prompts.

    Where RECIPE_NAME is a built-in recipe, those are its sections algorithm, critic and optimizer. Elsewhere it is
    the algorithm section of demo_NAME alone: the demo's learning rates are of no use to another model.
    """
    values: dict[str, Any] = {}
    if setting.base.algorithm.name != entry.algorithm:
        # The recipe's own options belong to its own algorithm, and another would refuse them.
        values |= {"algorithm.options": {}, "selection.name": None, "critic.share": 1.0, "sampling.adaptive_share": 0.0}
        if not any(option.startswith("selection.name=") and "uniform" not in option for option in entry.options):
            values |= _OF_BELIEFS
        own = f"{setting.recipe}_{entry.algorithm}"
        name = own if own in list_recipes() else f"demo_{entry.algorithm}"
        if name in list_recipes():
            file = resources.files("sppo") / "recipes" / f"{name}.yaml"
            recipe = read_yaml(file.read_text(encoding="utf-8"), file.name)
            for section in ("algorithm", "critic", "optimizer") if name == own else ("algorithm",):
                values |= {f"{section}.{key}": value for key, value in recipe.get(section, {}).items()}
    values["algorithm.name"] = entry.algorithm
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def _steps(budget: Budget, config: Config) -> int:
    """The steps that a budget buys; for seconds they are found out on the way."""
    if budget.unit == "seconds":
        key = goes_by_steps(flatten(to_dict(config)))
        if key is not None:
            raise ConfigError(
                f"--budget is in seconds, so that the number of steps is found out on the way, but {key} goes by that "
                "number. Give the budget in steps or responses, or leave that option out."
            )
        return FIRST_STEPS
    if budget.unit == "steps":
        return budget.amount
    made = config.critic.prefit
    before = made.samples if made.path is None else read_prefit(Path(made.path))["responses"]
    if budget.amount - before < config.sequences_per_step:
        fitted = f", after {before} of critic.prefit" if before else ""
        raise ConfigError(
            f"--budget is {budget.amount} responses, but one step has {config.sequences_per_step}{fitted}."
        )
    return int((budget.amount - before) // config.sequences_per_step)


def _require_same(config: Config) -> None:
    """Refuses to go on with a run that was made otherwise, before any other begins."""
    folder = Path(config.output)
    if (folder / "config.yaml").is_file():
        differences = config_differences(written_config(folder), config)
        if differences:
            raise RunFolderError(
                f"{folder} belongs to a comparison with other options: {'; '.join(differences)}. "
                "Give the same options, or another --output."
            )


def _make_warm_start(config: Config, progress: Progress) -> None:
    folder = Path(config.output)
    if read_summary(folder):
        return
    progress.phase(f"warm start of seed {config.seed}", None)
    error = run_command("sft", config, progress)
    if error is not None:
        raise TrainingError(f"The warm start in {folder} failed, so nothing can be compared: {error}")


def _train(job: Job, budget: Budget, title: str, progress: Progress) -> str | None:
    """Trains until the budget is spent; returns what went wrong, or None."""
    while (steps := _steps_missing(job, budget)) > 0:
        progress.phase(title, steps)
        error = run_command("train", replace(job.config, steps=steps), progress)
        if error is not None:
            return error
    return None


def _steps_missing(job: Job, budget: Budget) -> int:
    """The step to train to next; 0 where the run is complete.

    A budget of seconds is spent in rounds: a few steps are timed, then as many follow as should fill it.
    """
    done = int(read_summary(job.folder).get("steps", 0))
    if budget.unit != "seconds":
        return 0 if done >= job.config.steps else job.config.steps
    lines = [line for line in read_metrics(job.folder) if line["step"] <= done]
    took = [step_seconds(line) for line in lines if line["step"]]
    left = budget.amount - sum(map(step_seconds, lines))
    if left <= 0 and took:
        return 0
    return done + math.ceil(1.05 * left / median(took)) if took else FIRST_STEPS


def _described(job: Job, error: str | None) -> dict[str, Any]:
    return {
        "label": job.entry.label,
        "algorithm": job.entry.algorithm,
        "options": list(job.entry.options),
        "conventions": list(job.conventions),
        "seed": job.config.seed,
        "samples_per_prompt": job.config.sampling.samples_per_prompt,
        "prompts_per_step": job.config.prompts_per_step,
        "folder": str(job.folder),
        "error": error,
        **peak_memory(job.folder),
    }
