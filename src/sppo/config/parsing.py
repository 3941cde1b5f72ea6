"""From YAML and `--key.sub value` to typed sections, with errors that name the key and the value.

pydantic makes the sections and finds what is wrong; here are the reading of texts, the merging of what several places
say, and the words of the errors.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sppo.config.gone import gone
from sppo.config.keys import Option, adapter, find, options
from sppo.config.options import Config, to_dict
from sppo.config.ranges import Section
from sppo.errors import ConfigError

SectionType = TypeVar("SectionType", bound=Section)


class NoValue(str):
    """Stands for the value of a key that was given without one: true, for an option that is true or false."""

    __slots__ = ()


_MOST_LEVELS = 50
_MOST_VALUES = 10_000
_MOST_CHARACTERS = 200_000
"""What a file of options may hold, each alias counted as all that it stands for; a run's own config has some 300."""


class _Loader(yaml.SafeLoader):
    """YAML, with traps mended: 1e-5 is a number, a key given twice is an error, and so is what no options can be.

    A few hundred bytes of aliases of aliases stand for more than any memory holds, and levels without end for more than
    Python's stack does.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._sizes: dict[int, int] = {}
        """Values in each node that is whole, by its id."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self._level += 1
        if self._level > _MOST_LEVELS:
            raise yaml.composer.ComposerError(None, None, f"more than {_MOST_LEVELS} levels deep", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._level -= 1
        if is_alias and id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias within what it stands for", mark)
        if node is not None and not is_alias:
            self._sizes[id(node)] = self._size(node, mark)
        return node

    def _size(self, node: yaml.Node, mark: yaml.Mark) -> int:
        parts = node.value if isinstance(node.value, list) else []
        inner = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
        size = 1 + sum(self._sizes[id(one)] for one in inner)
        if size > _MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {_MOST_VALUES:,} values, with its aliases", mark)
        return size

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            # A date that there is not, a number of too many digits, `!!bool 3`.
            said = f"{str(node.value)[:60]!r} can't be read as {node.tag.rpartition(':')[2]}: {error}"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark) from error

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
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{name} has {len(text):,} characters, but options have {_MOST_CHARACTERS:,} at most.")
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ConfigError(f"{name} is not YAML that can be read: {said}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds {_shown(values)}, but options are a mapping of keys, as in `steps: 100`.")
    # What one alias stands for must not change where another is overridden.
    return {key: _plain(value) for key, value in values.items()}


def read_yaml_file(path: Path, name: str) -> dict[str, Any]:
    """Returns the mapping that a file holds; raises as `read_yaml`."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not text in UTF-8: {error}.") from error


def split_arguments(
    arguments: Sequence[str], switches: Collection[str] = ()
) -> tuple[list[str], list[tuple[str, str]]]:
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
            pairs.append((key, text))
        elif key not in switches and waiting and not waiting[0].startswith("--"):
            pairs.append((key, waiting.pop(0)))
        else:
            pairs.append((key, NoValue("true")))
    return positionals, pairs


def set_text(values: dict[str, Any], key: str, text: str) -> None:
    """Sets a key of the run's options from text of the command line, read as the key's type asks for.

    Raises:
        ConfigError: a key that needs a value has none, or the key leads into something that has no keys.
    """
    set_value(values, key, _read_text(find(Config, key), key, text))


def _read_text(option: Option | None, key: str, text: str) -> Any:
    if option is None:
        return _read_plain(text)
    kind = option.schema.get("type")
    if isinstance(text, NoValue):
        if kind != "boolean":
            raise ConfigError(f"--{key} has no value: write --{key} VALUE.")
        return True
    if option.nullable and text == "null":
        return None
    if kind == "string":
        return text
    if kind in ("integer", "number", "boolean"):
        value = _read_plain(text)
        return value if isinstance(value, (int, float)) else text  # as typed, for the error
    bare = kind == "array" and not option.inner and not text.startswith("[")
    return _read_plain(f"[{text}]" if bare else text)


def _read_plain(text: str) -> Any:
    try:
        return yaml.load(str(text), _Loader)
    except yaml.YAMLError:
        return text


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
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


def merge(values: dict[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Puts overrides over the nested values of a run's options, in place; returns the dotted keys that it has set.

    Keys are dotted or nested, which is the same: {"data": {"limit": 5}} changes data.limit and leaves the rest of data
    as it was. So it is in mappings of any keys: {"data.options": {"prompts": 5}} leaves the task's other options. An
    empty mapping changes nothing in a section, and empties a mapping of any keys: {"data.options": {}}. A section goes
    back to its defaults key by key; one that may be null is left out by None. Lists are replaced as wholes.
    """
    said: list[str] = []
    for key, value in overrides.items():
        option = find(Config, key)
        if isinstance(value, Mapping) and (value or (option is not None and option.is_section)):
            said += merge(values, {f"{key}.{sub}": item for sub, item in value.items()})
        else:
            set_value(values, key, _plain(value))
            said.append(key)
    return said


def _plain(value: Any) -> Any:
    """What Python programs hand over as what YAML would hold: paths are text, tuples lists, numpy's numbers numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def build(section: type[SectionType], values: Mapping[str, Any], prefix: str = "") -> SectionType:
    """Makes the dataclass `section` from plain values; `prefix` is the dotted key of the section, with its last dot.

    Raises:
        ConfigError: unknown keys, and values of the wrong type or out of their range.
    """
    try:
        made: SectionType = adapter(section).validate_python(values)
    except ValidationError as error:
        found = [_said(section, problem, prefix) for problem in error.errors(include_url=False)]
        raise ConfigError(" ".join(dict.fromkeys(found))) from error
    return made


def check_ranges(section: Section, prefix: str = "") -> None:
    """Checks types and ranges of a section that was made by hand; raises as `build`."""
    build(type(section), to_dict(section), prefix)


def _said(section: type, problem: Any, prefix: str) -> str:
    """One mistake in our words."""
    kind, place = problem["type"], problem["loc"]
    if kind == "missing":  # of a list that is too short
        place = place[:-1]
    key = ".".join(map(str, place))
    if kind in ("unexpected_keyword_argument", "invalid_key"):
        return _unknown_key(section, key, prefix)
    wanted, option = _WANTED[kind].format(**problem.get("ctx", {})), find(section, key)
    if option is not None and option.inner:
        is_list = option.schema.get("type") == "array"
        wanted = f"{'a list of sections of' if is_list else 'a section of keys, such as'} {', '.join(option.inner[:4])}"
    elif option is not None and kind in _OUT_OF_RANGE:
        wanted = option.range or wanted
    null = " or null" if option is not None and option.nullable else ""
    return f"{prefix}{key} is {_shown(problem['input'])}, but must be {wanted}{null}."


_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
_WANTED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "finite_number": "a finite number", "bool_type": "true or false", "string_type": "text",
    "literal_error": "{expected}", "list_type": "a list", "tuple_type": "a list", "missing": "a longer list",
    "too_long": "a list of {max_length}", "dict_type": "a mapping of keys, as in {{size: 3}}",
    "dataclass_type": "a section of keys", "greater_than": "greater than {gt}", "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}", "less_than_equal": "at most {le}",
}  # fmt: skip
"""What a value must be, by pydantic's name for what is wrong with it."""
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


def _unknown_key(section: type, key: str, prefix: str) -> str:
    """Names the keys that are near: known elsewhere as this, spelled alike here, or of the same last name elsewhere."""
    went = gone(key)
    if section is Config and went is not None:
        return f"{key} is no longer an option. {went.instead}"
    place, _, last = key.rpartition(".")
    known_as = _KNOWN_ELSEWHERE_AS.get(last, ()) if section is Config else ()
    if known_as:
        return f"{key} is not an option. Did you mean {' or '.join(known_as)}?{_ALL_LISTED}"
    known = [
        name
        for name, option in options(section).items()
        if option.listed and not option.is_heading and ".N." not in name
    ]
    parent = find(section, place)
    names = parent.inner if parent is not None else [name for name in options(section) if "." not in name]
    siblings = {name: f"{place}.{name}" if place else name for name in names}
    near = [siblings[name] for name in difflib.get_close_matches(last, siblings, n=3, cutoff=0.7)]
    near += [name for name in known if name.rpartition(".")[2] == last and name not in near][:3]
    if not near and not place:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.7)
    hint = f" Did you mean {' or '.join(prefix + name for name in near)}?"
    if not near:
        hint = f" There are {', '.join(prefix + name for name in siblings.values())}."
    return f"{prefix}{key} is not an option.{hint}{_ALL_LISTED if section is Config else ''}"


def _position(text: str, entries: list[Any], key: str) -> int:
    if not (text.isdecimal() and int(text) < len(entries)):
        there = f"0 to {len(entries) - 1}" if entries else "none"
        raise ConfigError(f"--{key}: {text!r} is no position in the list; there are {there}.")
    return int(text)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
