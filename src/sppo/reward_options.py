"""Options of rewards that no single rule gives: reward models, rewards of several parts, rewards of steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RewardModelOptions:
    """The verifier reward_model: a sequence-classification model scores prompt and response."""

    path: str | None = None
    """Folder or hub name of a sequence-classification model with one label, or two (the second is the good one)."""
    squash: Literal["sigmoid", "none"] = "sigmoid"
    """sigmoid: the reward is sigmoid(scale * (score - shift)), in [0, 1]; none: it is the score itself, any number."""
    scale: float = 1.0
    """Multiplies scores before the sigmoid; below 1 keeps large scores apart."""
    shift: float = 0.0
    """Score whose reward is one half."""
    max_input_tokens: int | None = None
    """Longest prompt and response together, in the reward model's tokens; longer ones are errors, never cut. Default:
    what the model was made for."""
    tokens_per_microbatch: int = 16384
    """Tokens of the reward model in one forward pass; changes memory and speed, not the result."""
    trust_remote_code: bool = False
    """Allow the reward model's own Python code from the hub to run."""


@dataclass(frozen=True)
class CompositePart:
    """One part of a composite reward: a verifier, or a reward function of yours."""

    verifier: str | None = None
    """Name of a verifier."""
    reward: str | None = None
    """Your reward function, as package.module:function or path/to/file.py:function."""
    weight: float = 1.0
    """Weight of the part's reward in the mean; weights need not add up to 1."""
    gate: bool = False
    """Must be 1 before anything else counts: otherwise the whole reward is 0, and the parts after it are not asked."""


@dataclass(frozen=True)
class CompositeOptions:
    """The verifier composite: gates that must hold, and the weighted mean of parts."""

    parts: list[CompositePart] = field(default_factory=list)
    """Gates and parts, asked in this order, gates first."""


@dataclass(frozen=True)
class ProcessOptions:
    """Rewards of single steps, added as potential differences that leave the best policy what it is."""

    function: str | None = None
    """Your function f(prompts, completions, steps, **columns) -> one list of numbers in [0, 1] a completion, as
    package.module:function or path/to/file.py:function."""
    model: str | None = None
    """Folder or hub name of a step-reward model instead: token classification, or sequence classification that reads
    each beginning of the response; one label, or two (the second is the good one)."""
    weight: float = 0.5
    """What a step's score of 1 rather than 0 counts for, the reward of the whole response being up to 1."""
    split: Literal["blank_lines", "lines", "marker"] = "blank_lines"
    """Where a step ends: at a blank line, at the end of a line, or at a text of your own."""
    marker: str | None = None
    """The text that ends a step, for split marker."""
    tokens_per_microbatch: int = 16384
    """Tokens of the step-reward model in one forward pass; changes memory and speed, not the result."""
    trust_remote_code: bool = False
    """Allow the step-reward model's own Python code from the hub to run."""

    @property
    def used(self) -> bool:
        """Whether steps are scored at all."""
        return self.function is not None or self.model is not None
