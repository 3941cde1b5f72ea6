"""`sppo train RECIPE`: the whole run, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo.cli.options import parse, print_help, wants_help
from sppo.config import Config

USAGE = "sppo train RECIPE [--key value ...] [--resume] [--dry-run] [--print_config]"
FLAGS = {
    "RECIPE": "Name of a built-in recipe (see `sppo recipes`), or a file that ends in .yaml.",
    "--resume": "Go on from the last checkpoint in the run folder.",
    "--dry-run": "Check everything and show the plan, without loading weights.",
    "--print_config": "Print the recipe with the overrides in it, as YAML that can be run again.",
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        print_help(USAGE, "Trains a model with verifiable rewards.", FLAGS, arguments, options="all")
        return 0
    given = parse(arguments, USAGE, positional="RECIPE", switches=("resume", "dry_run", "print_config"))
    from sppo.config.recipes import load_recipe, to_yaml

    config = load_recipe(given.positional or "", given.overrides)
    if "print_config" in given.switches:
        print(to_yaml(config), end="")
        return 0
    if "dry_run" in given.switches:
        print_plan(config, resume="resume" in given.switches)
        return 0
    from rich.console import Console

    from sppo.cli.story import print_result

    summary = train_with_progress(config, resume="resume" in given.switches)
    print_result(Console(highlight=False), summary)
    return 0


def train_with_progress(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """Trains with the live display, draws the curves and returns the summary."""
    from sppo.cli.progress import make_progress
    from sppo.commands.train import train
    from sppo.report import write_curves

    progress = make_progress()
    try:
        summary: dict[str, Any] = train(config, resume=resume, progress=progress)
    finally:
        progress.close()
    write_curves(Path(summary["output"]))
    return summary


def print_plan(config: Config, *, resume: bool = False) -> None:
    """Prints what a run would do, or what is left of one that goes on."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sppo.commands.plan import plan

    table = Table(box=None, show_header=False, padding=(0, 2), pad_edge=False)
    for label, value in plan(config, resume=resume):
        table.add_row(f"[dim]{escape(label)}[/]", escape(value))
    console = Console(highlight=False)
    console.print(table)
    console.print("\nNothing was trained: this was a dry run.")
