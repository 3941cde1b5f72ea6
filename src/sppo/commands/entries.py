"""What `sppo compare` is asked to compare: algorithms, and variants of them with options of their own."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sppo.algorithms.table import get_algorithm
from sppo.errors import ConfigError

SAME_FOR_ALL = ("model.", "data.", "evaluation.", "sft.", "seed", "output", "steps", "prompts_per_step", "device")
"""What an entry of --algorithms may not change, for the comparison to be one of algorithms."""


@dataclass(frozen=True)
class Entry:
    """One line of the comparison: an algorithm, its name in tables, and options of its own."""

    algorithm: str
    label: str
    options: tuple[str, ...] = ()
    """key=value, as on the command line."""


def parse_algorithms(text: str) -> list[Entry]:
    """Reads --algorithms: "sppo,grpo" or "sppo,sppo:small,critic.config.hidden_size=16,grpo".

    Raises:
        ConfigError: an unknown algorithm, an option without one, a label twice or that can't be a folder's name.
    """
    entries: list[Entry] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if "=" not in part:
            name, _, label = part.partition(":")
            entries.append(Entry(get_algorithm(name).name, label or name))
        elif not entries:
            raise ConfigError(f"--algorithms starts with the option {part!r}: name the algorithm it belongs to first.")
        elif part.startswith(SAME_FOR_ALL):
            raise ConfigError(
                f"--algorithms: {part} of {entries[-1].label!r} would change what all runs have to share. "
                f"Give it for all of them, as in --{part}."
            )
        else:
            entries[-1] = replace(entries[-1], options=(*entries[-1].options, part))
    if not entries:
        raise ConfigError("--algorithms is empty: name at least one, as in --algorithms sppo,grpo.")
    labels = [entry.label for entry in entries]
    for label in labels:
        if not re.fullmatch(r"\w[\w.-]*", label):
            raise ConfigError(f"--algorithms: the label {label!r} may have letters, digits, '_', '-' and '.' alone.")
        if labels.count(label) > 1:
            raise ConfigError(f"--algorithms names {label!r} twice: label one of them, as in {label}:other,key=value.")
    return entries
