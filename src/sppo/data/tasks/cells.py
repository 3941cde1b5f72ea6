"""What stands in a cell of a published row, as prompt, answer or worked response: the forms that data sets have."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sppo.config.data import SourceConfig
from sppo.data.tasks.problem import Row, RowError, optional, plain, required
from sppo.types import Message

_SHOWN = 60
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
"""ShareGPT's names of roles; others are the names of chat templates already."""


@dataclass(frozen=True)
class Answers:
    """The gold answers of one row."""

    golds: tuple[str, ...]
    """Each of them is right; none where the row has no usable one."""
    why_none: str = "the gold answer is missing"
    """What is said of the row where a verifier needs one."""

    @property
    def fields(self) -> dict[str, Any]:
        """As a Problem has them."""
        first, *others = self.golds or (None,)
        return {"gold": first, "other_golds": tuple(others), "why_no_gold": self.why_none}


def answers_of(row: Row, path: str, config: SourceConfig) -> Answers:
    """Reads the gold answers in the column `path`; dots reach into structs.

    A list is of answers of which any is right, or which are right together, as data.answers says.
    """
    try:
        value = required(row, path)
    except RowError as error:
        return Answers((), f"{error}, so the gold answer is missing")
    try:
        texts = answer_texts(value)
    except RowError as error:
        return Answers((), f"the gold answer in column {path!r} is {error}")
    return Answers((", ".join(texts),) if config.answers == "all" and texts else texts)


def answer_texts(value: Any) -> tuple[str, ...]:
    """Returns a cell's answers as stripped texts; none of a missing, empty or not-a-number one.

    Raises:
        RowError: the value is neither text nor number, nor a list of such; says what it is.
    """
    value = _unpacked(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        if any(isinstance(_unpacked(one), (list, tuple, set, frozenset)) for one in value):
            raise RowError(f"a list of lists, not of answers: {_shown(value)}")
        found = [text for one in value for text in answer_texts(one)]
        return tuple(dict.fromkeys(found))
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, value)) or "none"
        raise RowError(f"a dict with the keys {keys}, not text or a number: name the one that holds the answer")
    text = _answer_text(value)
    return () if text is None else (text,)


def _unpacked(value: Any) -> Any:
    """The value out of what it is wrapped in: an array, a dict of "target" alone, a list of texts as JSON."""
    if isinstance(value, Mapping) and list(value) == ["target"]:
        value = value["target"]
    value = plain(value)
    if isinstance(value, str) and value.strip()[:2] in ('["', "['"):
        from sppo.verifiers.columns import as_struct  # heavy

        listed = as_struct(value)
        # An interval or a point of numbers is an answer itself.
        if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
            return listed
    return value


def _answer_text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, numbers.Integral):
        return str(value)
    if isinstance(value, Decimal):
        return format(value.normalize(), "f") if value.is_finite() else None
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isnan(number):
            return None
        return str(int(number)) if number.is_integer() else repr(number)
    raise RowError(f"of type {type(value).__name__}, not text or a number: {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@dataclass(frozen=True)
class Asked:
    """What a prompt cell holds."""

    content: str | tuple[Message, ...]
    """Plain text, or chat messages that end with the user's turn."""
    demonstration: str | None = None
    """The assistant's turn behind them, where the chat ends with one."""


def asked_of(value: Any) -> Asked:
    """Reads a prompt cell: text, or chat messages of role and content, or of ShareGPT's from and value.

    Raises:
        RowError: the cell is empty, or neither text nor chat messages that end with the user's or the assistant's turn.
    """
    if isinstance(value, str):
        if not value.strip():
            raise RowError("prompt is empty")
        return Asked(value)
    if value is None:
        raise RowError("prompt is missing")
    if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        raise RowError(f"prompt is of type {type(value).__name__}, not text or a list of chat messages")
    messages = [_message(turn) for turn in value]
    answer = None
    if len(messages) > 1 and messages[-1]["role"] == "assistant":
        answer = messages.pop()["content"].strip() or None
    if not messages:
        raise RowError("prompt is empty")
    if messages[-1]["role"] != "user":
        raise RowError(f"prompt ends with a message of role {messages[-1]['role']!r}, not 'user'")
    if not messages[-1]["content"].strip():
        raise RowError("prompt is empty")
    return Asked(tuple(messages), answer)


def _message(turn: Any) -> Message:
    if isinstance(turn, Mapping) and "from" in turn and "role" not in turn:
        turn = {"role": _ROLES.get(str(turn["from"]).lower(), turn["from"]), "content": turn.get("value")}
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise RowError(f"prompt holds a chat message without role and content: {_shown(turn)}")
    return {"role": turn["role"], "content": _content(turn.get("content"))}


def _content(content: Any) -> str:
    """A message's text, which may come in parts."""
    if isinstance(content, str):
        return content
    content = plain(content)
    if isinstance(content, (list, tuple)) and content:
        texts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content
        ]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise RowError(f"prompt holds a chat message whose content is not text: {_shown(content)}")


def user_message(value: Any) -> tuple[Message, ...]:
    """Returns a problem's text as a chat of one user message.

    Raises:
        RowError: the value is not text, or empty.
    """
    if value is not None and not isinstance(value, str):
        raise RowError(f"problem is of type {type(value).__name__}, not text")
    content = asked_of(value).content
    return ({"role": "user", "content": str(content)},)


def demonstration_of(row: Row) -> str | None:
    """Returns a row's worked response: column demonstration or completion, text or the assistant's turn."""
    for name in ("demonstration", "completion"):
        value: Any = optional(row, name)
        if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], Mapping):
            value = value[0].get("content")
        if isinstance(value, str) and value.strip():
            return value
    return None
