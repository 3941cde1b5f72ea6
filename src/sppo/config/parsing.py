"""From YAML and `--key.sub value` to typed dataclasses, with errors that name the key and the value.

The walk over sections, lists of sections and option dicts is here; jsonargparse converts the values at its leaves.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Union

import yaml

from sppo.config import Config
from sppo.errors import ConfigError


class CommandLineText(str):
    """A value as typed on the command line: its type is still to be read from it."""

    __slots__ = ()


class NoValue(CommandLineText):
    """Stands for the value of a key that was given without one: true, for an option that is true or false."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """YAML, with two traps mended: 1e-5 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_EXPONENT = re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read_yaml(text: str, name: str) -> dict[str, Any]:
    """Returns the mapping that a YAML file holds; `name` is what errors call it.

    Raises:
        ConfigError: not YAML, or not a mapping.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML that can be read: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds {_shown(values)}, but a recipe is a mapping of keys, as in `steps: 100`.")
    return values


def split_arguments(
    arguments: Sequence[str], switches: Collection[str] = ()
) -> tuple[list[str], list[tuple[str, CommandLineText]]]:
    """Sorts arguments into positionals and (key, text) pairs, from `--key value`, `--key=value` and `--switch`.

    A key in `switches` takes no value; any other key that has none gets a `NoValue`.

    Raises:
        ConfigError: an option with a single dash.
    """
    positionals, pairs = [], []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if re.match(r"-[A-Za-z]", argument):
            raise ConfigError(f"{argument!r} has a single dash: write -{argument}.")
        if not argument.startswith("--"):
            positionals.append(argument)
            continue
        key, separator, text = argument[2:].partition("=")
        if separator:
            pairs.append((key, CommandLineText(text)))
        elif key not in switches and waiting and not waiting[0].startswith("--"):
            pairs.append((key, CommandLineText(waiting.pop(0))))
        else:
            pairs.append((key, NoValue("true")))
    return positionals, pairs


def set_option(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets "section.key" in nested values, in place; a number steps into a list, as in sft.phases.0.steps."""
    *sections, last = key.split(".")
    here: Any = values
    for index, section in enumerate(sections):
        if isinstance(here, list):
            here = here[_position(section, here, key)]
        else:
            if not isinstance(here.get(section), (dict, list)):
                here[section] = {}
            here = here[section]
        if not isinstance(here, (dict, list)):
            raise ConfigError(f"--{key}: {'.'.join(sections[: index + 1])} is {_shown(here)}, which has no keys.")
    here[_position(last, here, key) if isinstance(here, list) else last] = value


def merge(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Puts overrides (dotted or nested keys) over nested values, in place; a dict is merged, all else replaced."""
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            merge(values, {f"{key}.{sub}": item for sub, item in value.items()})
        else:
            set_option(values, key, value)


def build(section: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Makes the dataclass `section` from plain values; `prefix` is the dotted key of the section, with its last dot.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type.
    """
    hints = typing.get_type_hints(section)
    for key in values:
        if key not in hints:
            raise _unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in hints])
    return section(**{key: _convert(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, key: str) -> Any:
    base, optional = without_none(hint)
    if isinstance(value, NoValue) and base is not bool:
        raise ConfigError(f"--{key} has no value: write --{key} VALUE.")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if optional and (value is None or (isinstance(value, CommandLineText) and value == "null")):
        return None
    item = (typing.get_args(base) or (None,))[0]
    holds_sections = dataclasses.is_dataclass(base) or (
        typing.get_origin(base) is list and dataclasses.is_dataclass(item)
    )
    if holds_sections and isinstance(value, CommandLineText):
        value = _resolve(value)
    if dataclasses.is_dataclass(base):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is {_shown(value)}, but must be a section of keys, such as {_some_keys(base)}.")
        return build(typing.cast(type, base), value, f"{key}.")
    if holds_sections:
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            raise ConfigError(f"{key} is {_shown(value)}, but must be a list of sections of {_some_keys(item)}.")
        return [build(typing.cast(type, item), entry, f"{key}.{index}.") for index, entry in enumerate(value)]
    return _leaf(base, value, key, optional)


def _leaf(hint: Any, value: Any, key: str, optional: bool) -> Any:
    """One value, converted by jsonargparse: "5" to 5, "[a, b]" to a list, 1 to 1.0, but not 1.5 to 1."""
    from jsonargparse import ArgumentParser

    problem = ConfigError(f"{key} is {_shown(value)}, but must be {_in_words(hint)}{' or null' if optional else ''}.")
    if typing.get_origin(hint) is dict:
        value = _resolve(value)
    if typing.get_origin(hint) in (list, tuple) and isinstance(value, CommandLineText) and not value.startswith("["):
        value = f"[{value}]"
    if value is None:
        raise problem
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_object({"value": str(value) if isinstance(value, CommandLineText) else value}).value
    except Exception as error:  # jsonargparse raises argparse's ArgumentError, whose text names its own types
        raise problem from error


def _resolve(value: Any) -> Any:
    """The value with every text of the command line in it read as YAML."""
    if isinstance(value, CommandLineText):
        try:
            return yaml.load(str(value), _Loader)
        except yaml.YAMLError:
            return str(value)
    if isinstance(value, Mapping):
        return {key: _resolve(item) for key, item in value.items()}
    return value


def without_none(hint: Any) -> tuple[Any, bool]:
    """Returns (X, True) for X | None, and (hint, False) for any other type."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        (base,) = [part for part in typing.get_args(hint) if part is not type(None)]
        return base, True
    return hint, False


def _in_words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if typing.get_origin(hint) is list:
        return f"a list, each {_in_words(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is tuple:
        return f"a list of {len(typing.get_args(hint))}, each {_in_words(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return "a mapping of keys, as in {size: 3}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


def _position(text: str, entries: list[Any], key: str) -> int:
    if not (text.isdecimal() and int(text) < len(entries)):
        there = f"0 to {len(entries) - 1}" if entries else "none"
        raise ConfigError(f"--{key}: {text!r} is no position in the list; there are {there}.")
    return int(text)


_ALL_LISTED = " `sppo train --help` lists all of them."
_KNOWN_ELSEWHERE_AS = {
    "lr": ("optimizer.learning_rate", "critic.learning_rate"),
    "batch_size": ("prompts_per_step", "optimizer.minibatch_size"),
    "train_batch_size": ("prompts_per_step",),
    "mini_batch_size": ("optimizer.minibatch_size",),
    "max_tokens": ("sampling.max_response_tokens",),
    "max_new_tokens": ("sampling.max_response_tokens",),
    "max_completion_length": ("sampling.max_response_tokens",),
    "max_prompt_length": ("data.max_prompt_tokens",),
    "n": ("sampling.samples_per_prompt",),
    "num_generations": ("sampling.samples_per_prompt",),
    "group_size": ("sampling.samples_per_prompt",),
    "max_steps": ("steps",),
    "output_dir": ("output",),
    "model_name_or_path": ("model.path",),
    "dataset": ("data.path", "data.task"),
    "clip_range": ("algorithm.clip_low", "algorithm.clip_high"),
    "beta": ("algorithm.kl_coefficient",),
}
"""Names that other programs give to options of ours, as far as none here is spelled like them."""


def _unknown_key(key: str, siblings: list[str]) -> ConfigError:
    """Names the keys that are near: known elsewhere as this, spelled alike here, or of the same last name elsewhere."""
    section, _, last = key.rpartition(".")
    known_as = [known for known in _KNOWN_ELSEWHERE_AS.get(last, ()) if known in all_keys(Config)]
    if known_as:
        return ConfigError(f"{key} is not an option. Did you mean {' or '.join(known_as)}?{_ALL_LISTED}")
    by_last_name = {sibling.rpartition(".")[2]: sibling for sibling in siblings}
    near = [by_last_name[name] for name in difflib.get_close_matches(last, by_last_name, n=3, cutoff=0.7)]
    near += [known for known in all_keys(Config) if known.rpartition(".")[2] == last and known not in near][:3]
    if not near and not section:
        near = difflib.get_close_matches(key, all_keys(Config), n=3, cutoff=0.7)
    hint = f" Did you mean {' or '.join(near)}?" if near else f" There are {', '.join(siblings)}."
    return ConfigError(f"{key} is not an option.{hint}{_ALL_LISTED}")


def all_keys(section: type, prefix: str = "") -> list[str]:
    """Returns every dotted key of a dataclass of options, sections left out."""
    keys = []
    for name, hint in typing.get_type_hints(section).items():
        base, optional = without_none(hint)
        inner = dataclasses.is_dataclass(base) and not optional
        keys += all_keys(typing.cast(type, base), f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return keys


def _some_keys(section: Any) -> str:
    return ", ".join([field.name for field in dataclasses.fields(section)][:4])


def _shown(value: Any) -> str:
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
