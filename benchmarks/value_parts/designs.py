"""The words of the experiment: a method, a cell, a criterion, an experiment. plan.py says what there is of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

TUNED_KEYS = ("optimizer.learning_rate", "optimizer.learning_rate_warmup", "algorithm.negative_share")
"""What each method has tuned for it, by the same trials, at each batch size."""
Unit = Literal["responses", "tokens", "seconds"]


@dataclass(frozen=True)
class Method:
    """One way to train: an algorithm, its group size, and what else it changes in the recipe."""

    name: str
    options: Mapping[str, Any]
    """Over the recipe and the cell: {"algorithm.name": "rloo"}; dotted keys."""
    samples: int = 1
    """G."""
    generated: int = 0
    """Responses generated for each prompt where they are more than G, as with ReMax's greedy one; 0: G."""
    tuned_as: str = ""
    """Method whose tuned settings it takes, for a variant of it; default: its own."""

    @property
    def tuned_name(self) -> str:
        return self.tuned_as or self.name


@dataclass(frozen=True)
class Cell:
    """One place in the star: a task with its mixture, the pool, and the responses of a step."""

    name: str
    title: str
    """For tables and pictures."""
    warm_start: str = "skills"
    """A key of plan.WARM_STARTS: the recipe, and the models that runs start from."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Over the recipe: {"data.options.hopeless": 0.5}."""
    batch: int = 128
    """Responses a step, of all methods."""
    cap: int = 0
    """Most responses of a run; 0: from the tuning seeds, see `value.py cap`."""


@dataclass(frozen=True)
class Criterion:
    """What counts as success: a paired ratio, the opponent's cost over ours."""

    name: str
    cell: str
    against: tuple[str, ...]
    """Opponents; the one that comes out best, with the lowest ratio, is the one that counts."""
    at_least: float
    unit: Unit = "responses"
    target: float = 0.8
    """Held-out accuracy to reach."""
    ours: str = "sppo"


@dataclass(frozen=True)
class Experiment:
    """Runs that are registered together: which methods in which cells, with which seeds."""

    methods: Mapping[str, Sequence[str]]
    """By cell."""
    seeds: tuple[int, ...]
    criteria: tuple[Criterion, ...] = ()
    ours: str = "sppo"
    """The method that all others are held against."""
    tuned: bool = True
    """Whether it may be registered only with tuned settings and caps."""
