"""`sppo sft RECIPE`: the recipe's phases of supervised fine-tuning alone."""

from __future__ import annotations

from collections.abc import Sequence

from sppo.cli.options import parse, print_help, wants_help

USAGE = "sppo sft RECIPE [--key value ...] [--resume] [--print_config]"
FLAGS = {
    "RECIPE": "Name of a built-in recipe, or a file that ends in .yaml; its sft.phases say what is done.",
    "--resume": "Go on from the last checkpoint in the run folder.",
    "--print_config": "Print the recipe with the overrides in it, as YAML that can be run again.",
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        print_help(USAGE, "Fine-tunes a model on demonstrations.", FLAGS, arguments)
        return 0
    given = parse(arguments, USAGE, positional="RECIPE", switches=("resume", "print_config"))
    from sppo.config.recipes import load_recipe, to_yaml

    config = load_recipe(given.positional or "", given.overrides)
    if "print_config" in given.switches:
        print(to_yaml(config), end="")
        return 0
    from rich.console import Console

    from sppo.cli.progress import make_progress
    from sppo.cli.story import print_result
    from sppo.commands.train import fine_tune

    progress = make_progress()
    try:
        summary = fine_tune(config, resume="resume" in given.switches, progress=progress)
    finally:
        progress.close()
    print_result(Console(highlight=False), summary)
    return 0
