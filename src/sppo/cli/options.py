"""What the commands share: their own flags told apart from overrides, and help made from the config's docstrings."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import textwrap
import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sppo.config import Config
from sppo.config.parsing import NoValue, split_arguments, without_none
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
    if near and name not in typing.get_type_hints(Config):
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
    from rich.console import Console
    from rich.markup import escape

    asked = _section_asked_for(arguments, Config) if options != "none" else None
    console = Console(highlight=False)
    console.print(f"Usage: [bold]{escape(usage)}[/]\n\n{escape(about)}\n", soft_wrap=True)
    for flag, text in flags.items():
        console.print(f"  [bold]{escape(flag)}[/]")
        _print_indented(console, text)
    if options == "none":
        return
    console.print("\nOptions: keys of the recipe, set as [bold]--key value[/] or [bold]--key=value[/].")
    console.print("For one section alone, name it: [bold]--help optimizer[/].")
    if options == "named" and asked is None:
        sections = [prefix.rstrip(".") for _, _, prefix in _sections(Config) if prefix.count(".") == 1]
        _print_indented(console, f"Sections: {', '.join(sections)}. All of them: sppo train --help.", 0)
        return
    for title, section, prefix in _sections(Config):
        if asked is not None and prefix.split(".")[0] != asked:
            continue
        console.print(f"\n[bold cyan]{escape(title)}[/]", soft_wrap=True)
        for key, kind, default, text in _rows(section, prefix):
            console.print(f"  [bold]--{key}[/] [dim]{escape(kind)}[/]  (default: {escape(default)})", soft_wrap=True)
            _print_indented(console, text + _names_for(key))


def _section_asked_for(arguments: Sequence[str], config: type) -> str | None:
    """The section named right after --help, "" for the run's own options; None where none is named."""
    place = next(index for index, argument in enumerate(arguments) if argument in ("--help", "-h")) + 1
    if place >= len(arguments) or arguments[place].startswith("-"):
        return None
    name = arguments[place].split(".")[0]
    hints = typing.get_type_hints(config)
    sections = [key for key, hint in hints.items() if dataclasses.is_dataclass(hint)]
    if name not in hints:
        raise ConfigError(f"--help {arguments[place]}: there is no such section.{did_you_mean(name, sections)}")
    return name if name in sections else ""


def _print_indented(console: Console, text: str, indent: int = 6) -> None:
    """Wraps by hand: rich would fill each line up to the right edge with spaces."""
    for line in textwrap.wrap(text, max(console.width - indent, 20)):
        console.print(" " * indent + line, markup=False, soft_wrap=True)


def _names_for(key: str) -> str:
    """What may be given for an option that is a name in a table of ours."""
    from sppo.data.tasks import TASKS
    from sppo.data.tasks.chain_arithmetic import Options
    from sppo.rollouts.engines import ENGINES
    from sppo.verifiers import VERIFIERS

    if key == "data.options":
        return f" chain_arithmetic takes {', '.join(option.name for option in dataclasses.fields(Options))}."
    tables: dict[str, Collection[str]] = {
        "data.task": TASKS,
        "data.verifier": VERIFIERS,
        "engine.name": ENGINES,
        "algorithm.name": _names_in_source("sppo.algorithms.table", "Algorithm"),
    }
    return f" Known: {', '.join(tables[key])}." if tables.get(key) else ""


def _names_in_source(module: str, kind: str) -> list[str]:
    """Returns the first arguments of all `kind("name", ...)` in a module, which would take torch to import."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is ours"
    assert spec.origin is not None, f"{module} has a file"
    calls = [node for node in ast.walk(ast.parse(Path(spec.origin).read_text("utf-8"))) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == kind and call.args]
    return [str(call.args[0].value) for call in named if isinstance(call.args[0], ast.Constant)]


def _sections(section: type, title: str = "The run", prefix: str = "") -> Iterator[tuple[str, type, str]]:
    """Yields (title, dataclass, prefix) of a dataclass of options, of its sections, and of what its lists hold."""
    yield title, section, prefix
    for name, hint in typing.get_type_hints(section).items():
        item = next(iter(typing.get_args(hint)), None)
        if dataclasses.is_dataclass(hint):
            inner, place = typing.cast(type, hint), f"{prefix}{name}"
        elif typing.get_origin(hint) is list and dataclasses.is_dataclass(item):
            inner, place = typing.cast(type, item), f"{prefix}{name}.N"
        else:
            continue
        yield from _sections(inner, f"{place.removesuffix('.N')}: {_summary(inner)}", f"{place}.")


def _rows(section: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Yields (key, kind of value, default, help) of a dataclass's own options."""
    hints, help_texts = typing.get_type_hints(section), _attribute_docstrings(section)
    for option in dataclasses.fields(section):
        hint, _ = without_none(hints[option.name])
        if dataclasses.is_dataclass(hints[option.name]):
            continue
        default = option.default
        if option.default_factory is not dataclasses.MISSING:
            default = option.default_factory()
        text = help_texts[option.name]
        if dataclasses.is_dataclass(hint):
            text += (
                f" Takes the keys of a section {typing.cast(type, hint).__name__}, as in --{prefix}{option.name}.KEY."
            )
        yield f"{prefix}{option.name}", _kind(hint), _plain(default), text


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (list, tuple):
        return "[...]"
    return {int: "INT", float: "NUMBER", bool: "true|false", str: "TEXT"}.get(hint, "{...}")


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if value != "" else '""'


def _summary(section: type) -> str:
    return (inspect.getdoc(section) or "").split("\n")[0]


def _attribute_docstrings(section: type) -> dict[str, str]:
    """Returns {field: the string literal on the line under it}; Python itself throws these away."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for line, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(following, ast.Expr):
            texts[line.target.id] = " ".join(str(ast.literal_eval(following.value)).split())
    return texts
