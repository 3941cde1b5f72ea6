"""The table of algorithms: each a pure function from rewards and estimates to credit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sppo.algorithms.sppo import sppo_credit
from sppo.batch import Batch, Credit, Estimates
from sppo.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Algorithm:
    """One line of the table. The trainer reads these fields and never the name."""

    name: str
    summary: str
    assign_credit: Callable[[Batch, Estimates], Credit]
    has_prompt_critic: bool
    """Whether it needs V(prompt)."""


ALGORITHMS = {
    "sppo": Algorithm("sppo", "A = R - V(prompt), one sample a prompt (arXiv 2604.08865)", sppo_credit, True),
}


def get_algorithm(name: str) -> Algorithm:
    """Returns the algorithm of that name.

    Raises:
        ConfigError: there is none; names the near ones.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"algorithm.name is {name!r}, which is no algorithm here.{did_you_mean(name, ALGORITHMS)}")
    return ALGORITHMS[name]
