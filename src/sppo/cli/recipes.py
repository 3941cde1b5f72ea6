"""`sppo recipes`: the built-in recipes, by name."""

from __future__ import annotations

from collections.abc import Sequence

from sppo.cli.options import parse, print_help, wants_help

USAGE = "sppo recipes"


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        print_help(USAGE, "Lists the built-in recipes.", {}, arguments, options="none")
        return 0
    given = parse(arguments, USAGE, switches=())
    if given.overrides:
        from sppo.errors import ConfigError

        raise ConfigError(f"{given.overrides[0].partition('=')[0]} is no flag of this command. Usage: {USAGE}")
    from rich.markup import escape
    from rich.table import Table

    from sppo.cli.console import Screen
    from sppo.config.recipes import list_recipes

    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    table.add_column("recipe", no_wrap=True, style="bold")
    table.add_column("what it does")
    for name, description in list_recipes().items():
        table.add_row(name, escape(description))
    console = Screen()
    console.print(table)
    console.print("\nRun one: [bold]sppo train NAME[/]. Keep one to change: [bold]sppo train NAME --print_config[/]")
    return 0
