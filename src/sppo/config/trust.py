"""Whose word counts for options that make code run or take a guard away: a person's, not a file's.

A recipe may come from a stranger, and so may a run folder with its config.yaml. What such a file says of these options
(`ranges.CodePlace` and `ranges.Trust` mark them) is no more than a request, which a person grants by saying the same on
the command line, or in Python. What nobody granted is refused before anything runs; nobody is asked, as one who starts
many runs answers yes to all of them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sppo.config.keys import find
from sppo.config.options import Config, to_dict
from sppo.errors import ConfigError

_ELSEWHERE = "addresses", "folder"
"""Of an engine's own options: machines that prompts are sent to, and where weights are written for them."""
HANDED_OVER = "handed over by a Python program: "
"""Begins data.reward of a run whose reward function was only in a program's memory: no place to load it from."""


def requests(config: Config) -> dict[str, Any]:
    """Returns {dotted key: value} of the options that make code run or take a guard away, as far as they are set."""
    asked = {key: value for key, value in _leaves(to_dict(config), "") if _asks(key, value)}
    places = {name: config.engine.options.get(name) for name in _ELSEWHERE}
    return asked | {f"engine.options.{name}": place for name, place in places.items() if place}


def require_granted(config: Config, source: str, said: Collection[str]) -> None:
    """Refuses what a file asks for and no person has said.

    Args:
        config: what the file says, with what a person said over it.
        source: the file, as errors name it.
        said: keys that a person has set; that of a section or list counts for all that is in it.

    Raises:
        ConfigError: names the flags to repeat.
    """
    asked = {key: value for key, value in requests(config).items() if not _covered(key, said)}
    if asked:
        raise ConfigError(
            f"{source} sets {' and '.join(asked)}, which {_would(asked)}. A file alone can't allow that, as it may be "
            f"somebody else's: where you trust it, repeat {flags(asked)}."
        )


def require_repeated(before: Config, now: Config, folder: str) -> None:
    """Refuses to go on with a run whose code or missing guards nobody has named again.

    Raises:
        ConfigError: names the flags to repeat.
    """
    again = requests(now)
    lacking = {key: value for key, value in requests(before).items() if key not in again}
    if lacking:
        raise ConfigError(
            f"{folder} was made with {' and '.join(lacking)}, which {_would(lacking)} and so holds only where it is "
            f"said again. To go on so, repeat {flags(lacking)}."
        )


def flags(asked: Mapping[str, Any]) -> str:
    """What grants it, as on the command line."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in asked.items()}
    return " ".join(f"--{key} {shlex.quote(text)}" for key, text in texts.items())


def _would(asked: Mapping[str, Any]) -> str:
    if all(key.startswith("engine.") for key in asked):
        return "sends prompts, or writes the weights, elsewhere"
    runs = any(not isinstance(value, bool) or key.endswith("trust_remote_code") for key, value in asked.items())
    return "makes code run" if runs else "takes the sandbox away"


def _asks(key: str, value: Any) -> bool:
    option = find(Config, key)
    is_name = isinstance(value, str) and value.startswith(HANDED_OVER)
    return option is not None and option.only_a_person and bool(value) and not is_name


def _covered(key: str, said: Collection[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in said)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is in nested sections and lists, places in lists being numbers."""
    if isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{key}.{name}".removeprefix("."))
    else:
        yield key, value
