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
    def element(self) -> Option:
        """What is known of the elements of a list."""
        item = self.schema["items"] if "items" in self.schema else self.schema["prefixItems"][0]
        return Option(f"{self.key}.N", item, False, None, "", inner=self.inner)

    @property
    def kind(self) -> str:
        """What it must be, for errors: "a whole number or null"."""
        return _kind(self.schema, self.inner) + (" or null" if self.nullable else "")

    @property
    def range(self) -> str:
        """The range that a number must lie in, for errors: "at least 1"; empty where any will do."""
        words = _range(self.schema)
        return f"{words} (or null)" if words and self.nullable else words

    @property
    def sign(self) -> str:
        """What stands for its value in help: INT, NUMBER, one|other, with the range."""
        if "enum" in self.schema:
            return "|".join(map(str, self.schema["enum"]))
        sign = _SIGNS.get(self.schema.get("type", ""), "{...}")
        words = _range(self.schema)
        return f"{sign} {words}" if words else sign


_SIGNS = {"integer": "INT", "number": "NUMBER", "boolean": "true|false", "string": "TEXT", "array": "[...]"}
_KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}


def _kind(schema: Schema, inner: tuple[str, ...] = ()) -> str:
    some = ", ".join(inner[:4])
    if schema.get("type") == "array":
        if inner:
            return f"a list of sections of {some}"
        if "prefixItems" in schema:
            return f"a list of {schema['maxItems']}, each {_kind(schema['prefixItems'][0])}"
        return f"a list, each {_kind(schema['items'])}"
    if inner:
        return f"a section of keys, such as {some}"
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    return _KINDS.get(schema["type"], "a mapping of keys, as in {size: 3}")


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if high is None and below is None:
        if above is not None:
            return f"greater than {above:g}"
        return "" if low is None else "0 or more" if low == 0 else f"at least {low:g}"
    left = f"[{low:g}" if above is None else f"({above:g}"
    return f"in {left}, " + (f"{high:g}]" if below is None else f"{below:g})")


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
    inherited = [options(base) for base in section.__mro__[1:] if "__dataclass_fields__" in vars(base)]
    found = {option.key: option for option in _walk(schema, schema.get("$defs", {}), "", True)}
    for base in inherited:
        # The text under a field of a base class is not in the schema of the class itself.
        found.update({key: option for key, option in base.items() if not found[key].help})
    return found


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
        )
        if inner:
            yield from _walk(
                inner, definitions, f"{prefix}{name}.{'N.' if is_list else ''}", listed and (is_list or not nullable)
            )
