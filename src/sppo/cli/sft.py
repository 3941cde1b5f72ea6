"""`sppo sft RECIPE`: the recipe's phases of supervised fine-tuning alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sppo.cli.recipe import run_recipe, with_progress
from sppo.config import Config

USAGE = "sppo sft RECIPE [--key value ...] [--resume] [--print_config]"
FLAGS = {
    "RECIPE": "Name of a built-in recipe, or a file that ends in .yaml; its sft.phases say what is done.",
    "--resume [step_N]": "Go on from the last checkpoint in the run folder, or from that one.",
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    run_recipe(arguments, USAGE, "Fine-tunes a model on demonstrations.", FLAGS, _fine_tune)
    return 0


def _fine_tune(config: Config, *, resume: bool | str) -> dict[str, Any]:
    from sppo.commands.train import fine_tune

    return with_progress(fine_tune, config, resume=resume)
