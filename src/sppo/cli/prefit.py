"""`sppo prefit RECIPE`: a critic fitted to the starting policy, for several runs to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sppo.cli.options import parse, print_help, wants_help

USAGE = "sppo prefit RECIPE --critic.prefit.samples N [--key value ...] [--print_config]"
FLAGS = {
    "RECIPE": "Name of a built-in recipe, or a file that ends in .yaml, of the runs that are to have the critic.",
    "--print_config": "Print the recipe with the overrides in it, as YAML that can be run again.",
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        print_help(USAGE, "Fits a critic to responses of the starting policy, for several runs.", FLAGS, arguments)
        return 0
    given = parse(arguments, USAGE, positional="RECIPE", switches=("print_config",))
    from sppo.config.recipes import load_recipe, to_yaml

    config = load_recipe(given.positional or "", given.overrides)
    if "print_config" in given.switches:
        print(to_yaml(config), end="")
        return 0
    from rich.console import Console

    from sppo.cli.progress import make_progress
    from sppo.cli.story import print_result
    from sppo.commands.train import prefit

    progress = make_progress()
    try:
        summary = prefit(config, progress=progress)
    finally:
        progress.close()
    console = Console(highlight=False, soft_wrap=True)
    print_result(console, summary)
    last = Path(summary["output"]) / "checkpoints" / "last" / "policy"
    console.print("\nTrain with it:", markup=False)
    # With a folder of its own, as RECIPE's is this one; RECIPE may ask for a pre-fit itself.
    console.print(
        f"  sppo train RECIPE --model.path {last} --sft.phases [] --critic.prefit.samples 0 "
        f"--critic.prefit.path {summary['output']} --output NAME",
        markup=False,
    )
    return 0
