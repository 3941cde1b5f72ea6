"""`sppo demo`: the whole method on a tiny model, with the story of what happened at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sppo.cli.options import parse, print_help, wants_help
from sppo.runs.folder import goes_on

USAGE = "sppo demo [--key value ...] [--resume]"
FLAGS = {"--resume": "Go on with the newest demo that was broken off. Without it, each demo has a folder of its own."}


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        print_help(
            USAGE, "Trains the built-in recipe `demo`: a tiny model, from nothing, on the CPU.", FLAGS, arguments
        )
        return 0
    given = parse(arguments, USAGE, switches=("resume",))
    from sppo.config.recipes import load_recipe

    config = load_recipe("demo", given.overrides)
    named = any(override.startswith("--output=") for override in given.overrides)
    newest = config.output if named else demo_folder(config.output, newest=True)
    resume = "resume" in given.switches or goes_on(Path(newest))
    if not named:
        config = dataclasses.replace(config, output=demo_folder(config.output, newest=resume))
    from sppo.cli.console import steady_screen
    from sppo.cli.story import print_story
    from sppo.cli.train import train_with_progress

    console = steady_screen()
    console.print("[bold]sppo demo[/]: first a warm start stands in for pretraining; then the model learns from")
    console.print("rewards alone, one response a prompt, with a critic that reads only the prompt.\n")
    print_story(console, train_with_progress(config, resume=resume))
    return 0


def demo_folder(wanted: str, *, newest: bool = False) -> str:
    """Returns the first of wanted, wanted-2, wanted-3, ... that does not exist; or the last that does."""
    last, fresh, number = wanted, wanted, 1
    while Path(fresh).exists():
        number += 1
        last, fresh = fresh, f"{wanted}-{number}"
    return last if newest else fresh
