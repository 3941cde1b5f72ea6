"""`sppo compare RECIPE`: several algorithms from the same start, as tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sppo.cli.options import parse, print_help, wants_help
from sppo.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

USAGE = (
    "sppo compare RECIPE --algorithms NAME,NAME,... [--seeds 0,1,2] [--budget UNIT=N] [--match prompts|responses|both] "
    "[--samples G] [--targets 0.5,0.8,0.9] [--output FOLDER] [--key value ...]"
)
FLAGS = {
    "RECIPE": "Name of a built-in recipe, or a file that ends in .yaml; model, data and all else that runs share.",
    "--algorithms NAME,NAME,...": "What to compare, the first being what the others are held against. "
    "NAME:LABEL,KEY=VALUE is a variant with options of its own, as in sppo,sppo:small,critic.config.hidden_size=16. "
    "What one algorithm alone can have, such as selection.name or critic.share, is given so, or stands in a recipe of "
    "that algorithm; as --key value it is asked of all.",
    "--seeds 0,1,2": "Seeds; each has one warm start that all algorithms go on from. Default: 0.",
    "--budget UNIT=N": "What each run spends: steps=N, responses=N or seconds=N (of training). Default: the recipe's "
    "steps.",
    "--match prompts|responses|both": "A step of a group algorithm has the same prompts as the others' (G times the "
    "responses), or the same responses (a G-th of the prompts). Default: both, each a run.",
    "--samples G": "Responses to each prompt in group algorithms. Default: 8.",
    "--targets 0.5,0.8,0.9": "Held-out accuracies whose cost is reported. These are the default.",
    "--output FOLDER": "Where runs, tables and pictures go; what is complete there is not repeated, so the same "
    "command goes on with a comparison that was broken off. Default: runs/compare.",
}
Number = TypeVar("Number", int, float)


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 1 where a run failed."""
    if wants_help(arguments):
        print_help(USAGE, "Compares algorithms, honestly.", FLAGS, arguments)
        return 0
    names = ("algorithms", "seeds", "budget", "match", "samples", "targets", "output")
    given = parse(arguments, USAGE, positional="RECIPE", settings=names)
    flags = given.settings
    if "algorithms" not in flags:
        raise ConfigError(f"--algorithms is missing. Usage: {USAGE}")
    seeds = _numbers("seeds", flags.get("seeds", "0"), int)
    samples = _numbers("samples", flags.get("samples", "8"), int)
    targets = _numbers("targets", flags.get("targets", "0.5,0.8,0.9"), float)
    if len(samples) != 1:
        raise ConfigError(f"--samples is {flags['samples']!r}, but must be one whole number.")
    from rich.markup import escape

    from sppo.cli.console import steady_screen
    from sppo.cli.progress import make_progress
    from sppo.commands.compare import compare

    output = flags.get("output", "runs/compare")
    progress = make_progress()
    try:
        found = compare(
            given.positional or "",
            flags["algorithms"],
            seeds=seeds,
            budget=flags.get("budget"),
            match=flags.get("match", "both"),
            samples=samples[0],
            targets=targets,
            output=output,
            overrides=given.overrides,
            progress=progress,
        )
    finally:
        progress.close()
    console = steady_screen()
    print_comparison(console, found)
    console.print(f"\n[dim]tables and pictures[/]  {escape(output)}", soft_wrap=True)
    return 1 if any(run["error"] for run in found["runs"]) else 0


def print_comparison(console: Console, found: Mapping[str, Any]) -> None:
    """Prints final accuracies and times to the targets; comparison.md has all the rest."""
    from rich.markup import escape
    from rich.table import Table

    from sppo.report.comparison_numbers import CONVENTIONS
    from sppo.report.comparison_text import number, reached

    for convention, rows in found["results"].items():
        table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
        table.add_column("algorithm")
        targets = [f"s to {target:.0%}" for target in found["settings"]["targets"]]
        for heading in ("final accuracy", "s a step", *targets):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            cells = ["failed"]
            if "final_accuracy" in row:
                final = row["final_accuracy"]
                cells = [f"{final['mean']:.1%} ± {100 * final['stderr']:.1f}", number(row["seconds_per_step"])]
                cells += [reached(entry["seconds"]["median"]) for entry in row["targets"]]
            table.add_row(escape(row["label"]), *cells)
        console.print(f"\n[bold]{CONVENTIONS[convention].capitalize()}[/] [dim](medians over seeds)[/]")
        console.print(table)


def _numbers(flag: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """Reads numbers separated by commas."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--{flag} is {text!r}, but must be numbers separated by commas, as in 1,2.") from error
