"""`sppo train RECIPE`: the whole run, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo.cli.recipe import run_recipe, with_progress
from sppo.config import Config
from sppo.runs import ranks

USAGE = "sppo train RECIPE [--key value ...] [--resume] [--dry-run] [--print_config]"
FLAGS = {
    "RECIPE": "Name of a built-in recipe (see `sppo recipes`), or a file that ends in .yaml.",
    "--resume [step_N]": "Go on from the last checkpoint in the run folder, or from that one.",
    "--dry-run": "Check everything and show the plan, without loading weights.",
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    about = "Trains a model with verifiable rewards."
    run_recipe(arguments, USAGE, about, FLAGS, train_with_progress, options="all", plan=print_plan)
    return 0


def train_with_progress(config: Config, *, resume: bool | str = False) -> dict[str, Any]:
    """Trains with the live display, draws the curves and returns the summary."""
    from sppo.commands.train import train
    from sppo.report import write_curves

    summary = with_progress(train, config, resume=resume)
    if ranks.is_main():
        write_curves(Path(summary["output"]))
    return summary


def print_plan(config: Config, *, resume: bool | str = False) -> None:
    """Prints what a run would do, or what is left of one that goes on."""
    from rich.markup import escape
    from rich.table import Table

    from sppo.cli.console import Screen
    from sppo.cli.preview import print_examples
    from sppo.commands.plan import plan

    found = plan(config, resume=resume)
    table = Table(box=None, show_header=False, padding=(0, 2), pad_edge=False)
    for label, value in found.rows:
        table.add_row(f"[dim]{escape(label)}[/]", escape(value))
    console = Screen()
    console.print(table)
    print_examples(console, found.examples)
    console.print("\nNothing was trained: this was a dry run.")
