"""What the commands share: their own flags told apart from overrides, and help made from the sections of options."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from sppo.config import Config
from sppo.config.keys import Option, find
from sppo.config.keys import options as config_options
from sppo.config.parsing import NoValue, split_arguments
from sppo.config.ranges import Section
from sppo.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console


SHORTCUTS = {"unsafe_code": "verification.code.unsafe_code"}
"""Switches of every command that set an option to true."""


@dataclass(frozen=True)
class Arguments:
    """A command's arguments, sorted."""

    positionals: tuple[str, ...] = ()
    """The recipe, run or model; more where the command takes more."""
    switches: frozenset[str] = frozenset()
    """Flags without a value that were given."""
    settings: dict[str, str] = field(default_factory=dict)
    """The command's own flags with a value."""
    overrides: list[str] = field(default_factory=list)
    """--key=value of the config, as `load_recipe` takes them."""

    @property
    def positional(self) -> str | None:
        """The first of them; None where none was given."""
        return self.positionals[0] if self.positionals else None


def parse(
    arguments: Sequence[str],
    usage: str,
    *,
    positional: str | None = None,
    switches: Collection[str] = (),
    settings: Collection[str] = (),
    most: int = 1,
) -> Arguments:
    """Sorts a command's arguments. Dashes and underscores are the same in the command's own flags.

    Args:
        arguments: What follows the command's name.
        usage: One line, shown where something is missing.
        positional: What the positional argument is; None where the command takes none.
        switches: Names of flags without a value, with underscores.
        settings: Names of flags with a value, with underscores.
        most: Positional arguments that the command takes at most; it needs one.

    Raises:
        ConfigError: a positional argument is missing or too many are given, or a flag lacks its value.
    """
    spellings = {name for switch in (*switches, *SHORTCUTS) for name in (switch, switch.replace("_", "-"))}
    positionals, pairs = split_arguments(arguments, spellings)
    wanted = 0 if positional is None else most
    if len(positionals) > wanted:
        raise ConfigError(f"{positionals[wanted]!r} is one argument too many. Usage: {usage}")
    if wanted and not positionals:
        raise ConfigError(f"{positional} is missing. Usage: {usage}")
    given: set[str] = set()
    own: dict[str, str] = {}
    overrides = []
    for key, text in pairs:
        name = key.replace("-", "_")
        if name in switches:
            given.add(name)
        elif name in settings:
            if isinstance(text, NoValue):
                raise ConfigError(f"--{key} has no value. Usage: {usage}")
            own[name] = str(text)
        elif name in SHORTCUTS:
            overrides.append(f"--{SHORTCUTS[name]}={'true' if isinstance(text, NoValue) else text}")
        else:
            _refuse_misspelt(key, name, (*switches, *settings))
            overrides.append(f"--{key}" if isinstance(text, NoValue) else f"--{key}={text}")
    return Arguments(tuple(positionals), frozenset(given), own, overrides)


def _refuse_misspelt(key: str, name: str, flags: Collection[str]) -> None:
    """Refuses what is no option of the config but nearly a flag of the command, before anything is looked at."""
    near = difflib.get_close_matches(name, flags, n=1, cutoff=0.8)
    if near and find(Config, name) is None:
        raise ConfigError(f"--{key} is not an option. Did you mean --{near[0]}?")


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the user asks for help rather than for the command."""
    return "--help" in arguments or "-h" in arguments


def print_help(
    usage: str,
    about: str,
    flags: dict[str, str],
    arguments: Sequence[str],
    *,
    options: Literal["all", "named", "none"] = "named",
) -> None:
    """Prints a command's help: its own flags, then options of the config.

    Args:
        usage: one line.
        about: what the command does.
        flags: {flag: its help}.
        arguments: as given; the word behind --help is a section of the config, which is then shown.
        options: all of the config; only the section named, and where the others are told; or none.

    Raises:
        ConfigError: what follows --help names no section.
    """
    from rich.markup import escape

    from sppo.cli.console import Screen

    asked = None if options == "none" else _section_asked_for(arguments)
    console = Screen()
    console.print(f"Usage: [bold]{escape(usage)}[/]\n\n{escape(about)}\n", soft_wrap=True)
    for flag, text in flags.items():
        console.print(f"  [bold]{escape(flag)}[/]", soft_wrap=True)
        _print_indented(console, text)
    if options == "none":
        return
    console.print("\nOptions: keys of the recipe, set as [bold]--key value[/] or [bold]--key=value[/].")
    console.print("For one section alone, name it: [bold]--help optimizer[/].")
    if options == "named" and asked is None:
        _print_indented(console, f"Sections: {', '.join(_sections())}. All of them: sppo train --help.", 0)
        return
    for section in ["", *_sections()] if asked is None else [asked]:
        _print_section(console, section)


def _sections() -> list[str]:
    return [key for key, option in config_options(Config).items() if option.is_heading and "." not in key]


def _section_asked_for(arguments: Sequence[str]) -> str | None:
    """The section named right after --help, "" for the run's own options; None where none is named."""
    place = next(index for index, argument in enumerate(arguments) if argument in ("--help", "-h")) + 1
    if place >= len(arguments) or arguments[place].startswith("-"):
        return None
    name = arguments[place].split(".")[0]
    if find(Config, name) is None:
        raise ConfigError(f"--help {arguments[place]}: there is no such section.{did_you_mean(name, _sections())}")
    return name if name in _sections() else ""


def _print_section(console: Console, section: str) -> None:
    """Prints the options of a section, "" being the run's own, then those of the sections within it."""
    from rich.markup import escape

    inside = find(Config, section.removesuffix(".N"))
    console.print(f"\n[bold cyan]{escape(f'{section}: {inside.title}' if inside else 'The run')}[/]", soft_wrap=True)
    within = [option for option in config_options(Config).values() if option.listed and option.parent == section]
    for option in within:
        if not option.is_heading:
            alone = (
                " A recipe's word is not enough: say it on the command line, or in Python."
                if option.only_a_person
                else ""
            )
            _print_option(console, option, option.help + _names_for(option.key) + alone)
            for own, owners in _own_options(option.key):
                _print_option(console, own, f"{owners}: {own.help}")
    for option in within if section else []:
        if option.inner and not option.is_section:
            _print_section(console, f"{option.key}.N")
        elif option.is_heading:
            _print_section(console, option.key)


def _print_option(console: Console, option: Option, text: str) -> None:
    from rich.markup import escape

    default = escape(_plain(option.default))
    console.print(f"  [bold]--{option.key}[/] [dim]{escape(option.sign)}[/]  (default: {default})", soft_wrap=True)
    _print_indented(console, text)


def _own_options(key: str) -> list[tuple[Option, str]]:
    """What stands in a mapping of options that belong to one algorithm, task or engine, and to which ones."""
    from sppo.algorithms.options import ALGORITHM_OPTIONS, JointOptions
    from sppo.data.tasks import TASKS
    from sppo.rollouts.engines import ENGINES

    sections: list[tuple[str, type[Section]]] = []
    if key == "data.options":
        sections = [(name, task.options) for name, task in TASKS.items() if task.options]
    elif key == "algorithm.options":
        sections = [*ALGORITHM_OPTIONS.items(), ("ratio joint", JointOptions)]
    elif key == "engine.options":
        sections = [(name, kind.options) for name, kind in ENGINES.items()]
    found: list[tuple[Option, list[str]]] = []
    for name, section in sections:
        for option in config_options(section).values():
            # One name may have another default or meaning for another owner.
            owners = next((owners for same, owners in found if same == option), None)
            if owners is None:
                found.append((option, [name]))
            else:
                owners.append(name)
    return [(replace(option, key=f"{key}.{option.key}"), ", ".join(owners)) for option, owners in found]


def _names_for(key: str) -> str:
    """What may be given for an option that is a name in a table of ours."""
    from sppo.algorithms.options import ALGORITHM_OPTIONS
    from sppo.data.tasks import TASKS
    from sppo.rollouts.engines import ENGINES
    from sppo.verifiers import VERIFIERS

    tables: dict[str, Collection[str]] = {
        "data.task": TASKS,
        "data.verifier": VERIFIERS,
        "engine.name": ENGINES,
        "algorithm.name": ALGORITHM_OPTIONS,
    }
    return f" Known: {', '.join(tables[key])}." if key in tables else ""


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'


def _print_indented(console: Console, text: str, indent: int = 6) -> None:
    """Wraps by hand: rich would fill each line up to the right edge with spaces."""
    for line in textwrap.wrap(text, max(console.width - indent, 20)):
        console.print(" " * indent + line, markup=False, soft_wrap=True)
