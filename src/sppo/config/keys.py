"""Every key that can be set, with its type, range, default and help, read from the sections of options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Option:
    """One key."""

    key: str
    """Dotted; N stands for a place in a list, as in sft.phases.N.steps."""
    schema: Schema
    """JSON schema of a value that is not null."""
    nullable: bool
    default: Any
    help: str
    title: str = ""
    """What a section, or each section of a list, is about."""
    inner: tuple[str, ...] = ()
    """Names of the keys in a section, or in each section of a list."""
    listed: bool = True
    """Whether help lists it: not the keys of a section that may be null, which are those of another section."""
    only_a_person: bool = False
    """Whether it makes code run or takes a guard away, so that a file's word does not count, see `config.trust`."""

    @property
    def parent(self) -> str:
        """The dotted key of the section that it is in; "" for the run's own options."""
        return self.key.rpartition(".")[0]

    @property
    def is_section(self) -> bool:
        """Whether it is a section of keys rather than a value."""
        return bool(self.inner) and self.schema.get("type") != "array"

    @property
    def is_heading(self) -> bool:
        """Whether it is a section that is always there, and so nothing to set itself."""
        return self.is_section and not self.nullable

    @property
    def range(self) -> str:
        """The range that a number must lie in: "at least 1", "in (0, 1]"; empty where any will do."""
        get = self.schema.get
        low, high, above, below = get("minimum"), get("maximum"), get("exclusiveMinimum"), get("exclusiveMaximum")
        if high is None and below is None:
            if above is not None:
                return f"greater than {above:g}"
            return "" if low is None else "0 or more" if low == 0 else f"at least {low:g}"
        left = f"[{low:g}" if above is None else f"({above:g}"
        return f"in {left}, " + (f"{high:g}]" if below is None else f"{below:g})")

    @property
    def sign(self) -> str:
        """What stands for its value in help: INT, NUMBER, one|other, with the range."""
        if "enum" in self.schema:
            return "|".join(map(str, self.schema["enum"]))
        return f"{_SIGNS.get(self.schema.get('type', ''), '{...}')} {self.range}".rstrip()


_SIGNS = {"integer": "INT", "number": "NUMBER", "boolean": "true|false", "string": "TEXT", "array": "[...]"}


def adapter(section: type) -> TypeAdapter[Any]:
    """What makes the section from plain values."""
    return _adapter(section)


def options(section: type) -> dict[str, Option]:
    """Returns every key below a section of options, sections themselves among them, in the order of the fields."""
    return _options(section)


@cache
def _adapter(section: type) -> TypeAdapter[Any]:
    return TypeAdapter(section)


@cache
def _options(section: type) -> dict[str, Option]:
    schema = adapter(section).json_schema()
    return {option.key: option for option in _walk(schema, schema.get("$defs", {}), "", True)}


def find(section: type, key: str) -> Option | None:
    """Returns what is known of a dotted key; None for one that there is not, and inside of a mapping of any keys."""
    return options(section).get(with_n(key))


def with_n(key: str) -> str:
    """The key with N for every place in a list: sft.phases.0.steps is sft.phases.N.steps."""
    return re.sub(r"\.\d+(?=\.|$)", ".N", key)


def _walk(schema: Schema, definitions: Mapping[str, Schema], prefix: str, listed: bool) -> Iterator[Option]:
    for name, node in schema.get("properties", {}).items():
        parts = node.get("anyOf", [node])
        (value,) = [part for part in parts if part.get("type") != "null"]
        nullable = len(parts) > 1
        is_list = value.get("type") == "array"
        reference = (value["items"] if is_list and "items" in value else value).get("$ref")
        inner = definitions[reference.rpartition("/")[2]] if reference else {}
        yield Option(
            key=f"{prefix}{name}",
            schema=value,
            nullable=nullable,
            default=node.get("default", [] if is_list else {} if value.get("type") == "object" else None),
            help=" ".join(node.get("description", "").split()),
            title=inner.get("description", "").partition("\n")[0],
            inner=tuple(inner.get("properties", {})),
            listed=listed,
            only_a_person=node.get("only_a_person", False),
        )
        if inner:
            yield from _walk(
                inner, definitions, f"{prefix}{name}.{'N.' if is_list else ''}", listed and (is_list or not nullable)
            )
