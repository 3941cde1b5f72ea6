"""From a cell, a method and a seed to a run's options; and the warm start that all runs of a seed share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo.config import Config
from sppo.config.recipes import load_recipe
from sppo.errors import ConfigError
from sppo.training.build import check
from sppo.training.given import Given
from value_parts import plan
from value_parts.designs import Cell, Method


def warm_start_config(name: str, seed: int, results: Path) -> Config:
    """The fine-tuning that makes the model of a seed, whatever the cell's mixture is."""
    folder = results / "warm_start" / name / f"seed_{seed}"
    recipe, own = plan.WARM_STARTS[name]
    return load_recipe(recipe, {"seed": seed, "output": str(folder), "threads": 1, "device": "cpu", **own})


def run_config(
    cell: Cell, method: Method, seed: int, settings: Mapping[str, Any], cap: int, results: Path, kind: str = "runs"
) -> Config:
    """Returns the checked options of one run.

    Args:
        cell: what it is trained on.
        method: how.
        seed: of the run and of its warm start.
        settings: tuned ones, over all else.
        cap: most responses.
        results: folder of the experiment.
        kind: folder in it.

    Raises:
        ConfigError: options that can't work, or a batch that groups don't divide.
    """
    per_prompt = method.generated or method.samples
    if cell.batch % per_prompt:
        raise ConfigError(
            f"{cell.name} has {cell.batch} responses a step, which {method.name}'s {per_prompt} don't divide."
        )
    prompts = cell.batch // per_prompt
    rows = prompts * method.samples
    recipe, _ = plan.WARM_STARTS[cell.warm_start]
    start = Path(warm_start_config(cell.warm_start, seed, results).output)
    options = {
        **cell.options,
        **method.options,
        "seed": seed,
        "output": str(results / kind / cell.name / method.name / f"seed_{seed}"),
        "device": "cpu",
        "threads": 1,
        "steps": -(-cap // cell.batch),
        "prompts_per_step": prompts,
        "sampling.samples_per_prompt": method.samples,
        "optimizer.minibatch_size": rows,
        "model.path": str(start.absolute() / "checkpoints" / "step_0" / "policy"),
        "sft.phases": [],
        "evaluation.every": max(1, plan.EVALUATE_EVERY // cell.batch),
        "evaluation.prompts": plan.HELD_OUT_PROMPTS,
        "evaluation.samples_per_prompt": 1,
        "evaluation.final_samples_per_prompt": 1,
        "checkpoint.every": 0,
        "logging.rollouts_every": 0,
        **settings,
    }
    config = load_recipe(recipe, options)
    if rows % config.critic.minibatch_size:
        # A critic that the recipe cuts finer or coarser than this step can be.
        config = load_recipe(config, {"critic.minibatch_size": _largest_divisor(rows, config.critic.minibatch_size)})
    return check(config, Given())


def _largest_divisor(number: int, at_most: int) -> int:
    return next(size for size in range(min(number, at_most), 0, -1) if number % size == 0)
