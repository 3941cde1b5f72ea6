"""`sppo prefit RECIPE`: a critic fitted to the starting policy, for several runs to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo.cli.recipe import run_recipe, with_progress
from sppo.config import Config

USAGE = "sppo prefit RECIPE --critic.prefit.samples N [--key value ...] [--resume] [--print_config]"
FLAGS = {
    "RECIPE": "Name of a built-in recipe, or a file that ends in .yaml, of the runs that are to have the critic.",
    "--resume": "Measure again what a folder holds; one that was stopped while it sampled starts over.",
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    about = "Fits a critic to responses of the starting policy, for several runs."
    summary = run_recipe(arguments, USAGE, about, FLAGS, _prefit)
    if summary is not None:
        from sppo.cli.console import say

        policy = Path(summary["output"]) / "checkpoints" / "last" / "policy"
        # With a folder of its own, as RECIPE's is this one; RECIPE may ask for a pre-fit itself.
        say(
            f"\nTrain with it:\n  sppo train RECIPE --model.path {policy} --sft.phases [] --critic.prefit.samples 0 "
            f"--critic.prefit.path {summary['output']} --output NAME"
        )
    return 0


def _prefit(config: Config, *, resume: bool | str) -> dict[str, Any]:
    from sppo.commands.train import prefit

    return with_progress(prefit, config, resume=resume)
