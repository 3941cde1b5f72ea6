"""What the built-in tasks share: their splits and kinds of demonstrations, their options, and drawing in turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from sppo.config import DataConfig
from sppo.config.parsing import build
from sppo.config.ranges import Section
from sppo.errors import ConfigError, did_you_mean

KINDS = ("full", "terse")
"""Kinds of demonstrations."""
SPLITS = ("train", "held_out")
"""Splits, disjoint as prompts."""
Options = TypeVar("Options", bound=Section)


def read_section(kind: type[Options], config: DataConfig, key: str, **of_held_out: Any) -> Options:
    """Returns data.options as the task's section.

    Args:
        kind: the section.
        config: with the split and the options.
        key: the section that they came from, as errors name it.
        of_held_out: what options of split held_out are unless set.

    Raises:
        ConfigError: an unknown option or split, or a value out of range.
    """
    if config.split not in SPLITS:
        raise ConfigError(f"{key}.split is {config.split!r}.{did_you_mean(config.split, SPLITS)}")
    own = of_held_out if config.split == "held_out" else {}
    return build(kind, {**own, **config.options}, f"{key}.options.")


def seed_of_split(asked: int | None, split: str, run_seed: int) -> int:
    """Returns the seed of a split's prompts: what is asked for, or the run's, but one for all runs' held-out ones."""
    if asked is not None:
        return asked
    return run_seed if split == "train" else 0


def rounds(sources: Sequence[Iterator[str]]) -> Iterator[list[str]]:
    """Yields one text of each source, round after round; of those that are left, once some are exhausted."""
    while sources:
        drawn = [(source, next(source, None)) for source in sources]
        yield [text for _, text in drawn if text is not None]
        sources = [source for source, text in drawn if text is not None]
