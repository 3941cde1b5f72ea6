"""What `sppo train`, `sppo sft` and `sppo prefit` share: a recipe with overrides, run to its summary."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sppo.cli import launch
from sppo.cli.options import parse, print_help, wants_help
from sppo.config import Config
from sppo.errors import ConfigError
from sppo.runs.folder import goes_on

_NEARLY = re.compile(r"(?:step[_-]?)?\d*(?<=.)", re.IGNORECASE)
_CHECKPOINT = re.compile(r"last|best|step_\d+")
PRINT_CONFIG = {"--print_config": "Print the recipe with the overrides in it, as YAML that can be run again."}


def run_recipe(
    arguments: Sequence[str],
    usage: str,
    about: str,
    flags: Mapping[str, str],
    work: Callable[..., dict[str, Any]],
    *,
    options: Literal["all", "named"] = "named",
    plan: Callable[..., None] | None = None,
) -> dict[str, Any] | None:
    """Shows help, the recipe or the plan where that is asked for, else does the work and prints what came of it.

    Args:
        arguments: of the command.
        usage: one line.
        about: what the command does, for its help.
        flags: beside the recipe's own options and --print_config.
        work: from a config, with `resume`, to a summary.
        options: of the config that help shows.
        plan: prints what --dry-run shows, from the same as the work; None: there is no such flag.

    Returns:
        The summary; None where nothing was done.
    """
    if wants_help(arguments):
        print_help(usage, about, {**flags, **PRINT_CONFIG, **launch.FLAGS}, arguments, options=options)
        return None
    dry_run = [] if plan is None else ["dry_run"]
    arguments, place = _checkpoint_named(arguments)
    given = parse(arguments, usage, positional="RECIPE", switches=("resume", *dry_run, "print_config"))
    from sppo.cli.console import say, steady_screen
    from sppo.config.recipes import load_recipe, to_yaml

    config = load_recipe(given.positional or "", given.overrides)
    resume = place or "resume" in given.switches or goes_on(Path(config.output))
    if "print_config" in given.switches:
        say(to_yaml(config), end="")
        return None
    if plan is not None and "dry_run" in given.switches:
        plan(config, resume=resume)
        return None
    from sppo.cli.story import print_result

    summary = work(config, resume=resume)
    print_result(steady_screen(), summary)
    return summary


def with_progress(work: Callable[..., dict[str, Any]], config: Config, *, resume: bool | str) -> dict[str, Any]:
    """Does the work with the live display and returns its summary."""
    from sppo.cli.progress import make_progress

    progress = make_progress()
    try:
        return work(config, resume=resume, progress=progress)
    finally:
        progress.close()


def _checkpoint_named(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without `--resume step_5`, and the checkpoint that it names; None where it names none."""
    rest = list(arguments)
    for place, argument in enumerate(rest):
        flag, equals, name = argument.partition("=")
        if flag != "--resume":
            continue
        if not equals:
            name = rest[place + 1] if place + 1 < len(rest) else ""
        if _CHECKPOINT.fullmatch(name):
            return [*rest[:place], *rest[place + (1 if equals else 2) :]], name
        if equals or _NEARLY.fullmatch(name):
            raise ConfigError(f"--resume is {name!r}, but names a checkpoint of the run: last, best, or step_5.")
    return rest, None
