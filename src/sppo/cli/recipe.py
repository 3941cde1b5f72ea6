"""What `sppo sft` and `sppo prefit` share: a recipe with overrides, run to its summary with the live display."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sppo.cli.options import parse, print_help, wants_help

PRINT_CONFIG = {"--print_config": "Print the recipe with the overrides in it, as YAML that can be run again."}


def run_recipe(
    arguments: Sequence[str], usage: str, about: str, flags: Mapping[str, str], work: Callable[..., dict[str, Any]]
) -> dict[str, Any] | None:
    """Shows help or the recipe where that is asked for, else does the work and prints what came of it.

    Args:
        arguments: of the command.
        usage: one line.
        about: what the command does, for its help.
        flags: beside the recipe's own options; --resume is handed to the work.
        work: from a config, with `progress` (and `resume`), to a summary.

    Returns:
        The summary; None where nothing was done.
    """
    if wants_help(arguments):
        print_help(usage, about, {**flags, **PRINT_CONFIG}, arguments)
        return None
    resumes = "--resume" in flags
    given = parse(arguments, usage, positional="RECIPE", switches=(*(["resume"] if resumes else []), "print_config"))
    from sppo.config.recipes import load_recipe, to_yaml

    config = load_recipe(given.positional or "", given.overrides)
    if "print_config" in given.switches:
        print(to_yaml(config), end="")
        return None
    from rich.console import Console

    from sppo.cli.progress import make_progress
    from sppo.cli.story import print_result

    progress = make_progress()
    try:
        summary = work(config, progress=progress, **({"resume": "resume" in given.switches} if resumes else {}))
    finally:
        progress.close()
    print_result(Console(highlight=False), summary)
    return summary
