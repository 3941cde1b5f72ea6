"""Plain data between a program and its tests, one line of JSON a message.

Only values of exactly these types cross: None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset and
dict. What arrives is made anew from what it says, so nothing that overloads equality, and no code, ever reaches the
tests. Counters and the like arrive as plain dicts, generators as iterators over what they gave. Both sides of it run in
sandboxes, and import the standard library alone.
"""

from __future__ import annotations

import collections
import json
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"l": list, "t": tuple, "s": set, "z": frozenset, "g": iter}
_TAGS: dict[type, str] = {
    list: "l", tuple: "t", set: "s", frozenset: "z", types.GeneratorType: "g",
    type(iter([])): "g", map: "g", filter: "g", zip: "g", enumerate: "g", reversed: "g",
}  # fmt: skip
_DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_SAFE_IN_JSON = 2**53


class NotPlain(Exception):
    """A value that is no plain data, or a message that is no encoded value."""


def encode(value: Any) -> Any:
    """Returns a value as what JSON can say.

    Raises:
        NotPlain: it holds something that is of none of the types, a subclass of one included.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_SAFE_IN_JSON <= value <= _SAFE_IN_JSON else ["i", hex(value)]
    if kind is float:
        return ["f", value.hex()]
    if kind in _TAGS:
        return [_TAGS[kind], [encode(element) for element in value]]
    if any(kind is known for known in _DICTS):
        return ["d", [[encode(key), encode(element)] for key, element in dict.items(value)]]
    if kind is bytes:
        return ["b", value.hex()]
    if kind is complex:
        return ["c", value.real.hex(), value.imag.hex()]
    raise NotPlain(f"a value of type {kind.__name__}, which is no plain data")


def decode(message: Any) -> Any:
    """Returns the value that a message says.

    Raises:
        NotPlain: the message is not what `encode` makes.
    """
    if message is None or type(message) in (bool, str, int):
        return message
    try:
        tag, content, *rest = message
        if tag in _SEQUENCES:
            return _SEQUENCES[tag]([decode(element) for element in content])
        if tag == "d":
            return {decode(key): decode(element) for key, element in content}
        if tag == "f":
            return float.fromhex(content)
        if tag == "i":
            return int(content, 16)
        if tag == "b":
            return bytes.fromhex(content)
        if tag == "c":
            return complex(float.fromhex(content), float.fromhex(rest[0]))
    except (TypeError, ValueError, IndexError, OverflowError) as failure:
        raise NotPlain(f"a message that says nothing ({type(failure).__name__})") from None
    raise NotPlain("a message of an unknown kind")


def to_line(message: dict[str, Any]) -> bytes:
    """Returns a message as a line."""
    return json.dumps(message).encode("ascii") + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """Returns the message of a line.

    Raises:
        NotPlain: it is no JSON object.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise NotPlain("a line that is no message") from None
    if type(message) is not dict:
        raise NotPlain("a line that is no message")
    return message
