"""What the commands share: their own flags told apart from overrides, and help made from the config's docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sppo.errors import ConfigError
from sppo.recipes.options import split_arguments, without_none


@dataclass(frozen=True)
class Arguments:
    """A command's arguments, sorted."""

    positional: str | None = None
    """The recipe, run or model; None where none was given."""
    switches: frozenset[str] = frozenset()
    """Flags without a value that were given."""
    settings: dict[str, str] = field(default_factory=dict)
    """The command's own flags with a value."""
    overrides: list[str] = field(default_factory=list)
    """--key=value of the config, as `load_recipe` takes them."""


def parse(
    arguments: Sequence[str],
    usage: str,
    *,
    positional: str | None = None,
    switches: Collection[str] = (),
    settings: Collection[str] = (),
) -> Arguments:
    """Sorts a command's arguments. Dashes and underscores are the same in the command's own flags.

    Args:
        arguments: What follows the command's name.
        usage: One line, shown where something is missing.
        positional: What the one positional argument is; None where the command takes none.
        switches: Names of flags without a value, with underscores.
        settings: Names of flags with a value, with underscores.

    Raises:
        ConfigError: a positional argument is missing or too many are given.
    """
    spellings = {name for switch in switches for name in (switch, switch.replace("_", "-"))}
    positionals, pairs = split_arguments(arguments, spellings)
    wanted = 0 if positional is None else 1
    if len(positionals) > wanted:
        raise ConfigError(f"{positionals[wanted]!r} is one argument too many. Usage: {usage}")
    if len(positionals) < wanted:
        raise ConfigError(f"{positional} is missing. Usage: {usage}")
    given: set[str] = set()
    own: dict[str, str] = {}
    overrides = []
    for key, text in pairs:
        name = key.replace("-", "_")
        if name in switches:
            given.add(name)
        elif name in settings:
            own[name] = str(text)
        else:
            overrides.append(f"--{key}={text}")
    return Arguments(positionals[0] if wanted else None, frozenset(given), own, overrides)


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the user asks for help rather than for the command."""
    return "--help" in arguments or "-h" in arguments


def print_help(
    usage: str, about: str, flags: dict[str, str], arguments: Sequence[str], *, options: bool = True
) -> None:
    """Prints a command's help: its own flags, then every option of the config (or of the sections named)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    from sppo.config import Config

    console = Console(highlight=False)
    console.print(f"Usage: [bold]{escape(usage)}[/]\n\n{escape(about)}\n")
    for flag, text in flags.items():
        console.print(f"  [bold]{escape(flag)}[/]")
        console.print(Padding(escape(text), (0, 0, 0, 6)))
    if not options:
        return
    asked = {argument.lstrip("-") for argument in arguments} & set(typing.get_type_hints(Config))
    console.print("\nOptions: keys of the recipe, set as [bold]--key value[/] or [bold]--key=value[/].", end=" ")
    console.print("For one section alone, name it: [bold]--help optimizer[/].")
    for title, section, prefix in _sections(Config):
        if asked and prefix.split(".")[0] not in asked:
            continue
        console.print(f"\n[bold cyan]{escape(title)}[/]")
        for key, kind, default, text in _rows(section, prefix):
            console.print(f"  [bold]--{key}[/] [dim]{escape(kind)}[/]  (default: {escape(default)})", soft_wrap=True)
            console.print(Padding(escape(text), (0, 0, 0, 6)))


def _sections(config: type) -> Iterator[tuple[str, type, str]]:
    """Yields (title, dataclass, prefix) of the config itself, of its sections, and of what lists hold."""
    yield "The run", config, ""
    for name, hint in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(hint):
            section = typing.cast(type, hint)
            yield f"{name}: {_summary(section)}", section, f"{name}."
            for inner, inner_hint in typing.get_type_hints(section).items():
                item = next(iter(typing.get_args(inner_hint)), None)
                if typing.get_origin(inner_hint) is list and dataclasses.is_dataclass(item):
                    entry = typing.cast(type, item)
                    yield f"{name}.{inner}: {_summary(entry)}", entry, f"{name}.{inner}.N."


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
