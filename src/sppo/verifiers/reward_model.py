"""The `reward_model` verifier: a sequence-classification model scores prompt and response.

    reward = sigmoid(scale * (score - shift))      squash sigmoid: in [0, 1], so that a critic may be a probability
    reward = score                                 squash none: any number, for a critic that learns by squares

The score is the output of a model with one label; of one with two it is logit 1 - logit 0, whose sigmoid is the
probability of label 1. The model itself is `sppo.models.scoring`, handed in by the tools: this room is without torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sppo.config.verification import RewardModelOptions, VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Message, Submission, Verdict
from sppo.verifiers.tools import Tools

NAME = "reward_model"


@dataclass(frozen=True)
class Exchange:
    """What a model scores."""

    content: str | tuple[Message, ...]
    """The prompt: plain text or chat turns."""
    response: str


@dataclass(frozen=True)
class Score:
    """What it says."""

    value: float | None
    """None where the exchange is longer than the model reads."""
    tokens: int
    """Length of the exchange in the model's tokens."""


class Scorer(Protocol):
    """A loaded model."""

    max_tokens: int | None
    """Longest exchange that it reads."""

    def scores(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """One score an exchange, in order."""


def prepare(tools: Tools) -> None:
    """Loads the model.

    Raises:
        SppoError: no model is named, or it can't be loaded.
    """
    scorer_of(tools)


def check(options: VerificationConfig) -> None:
    """Refuses options that name no model.

    Raises:
        ConfigError: names the option.
    """
    if options.reward_model.path is None:
        raise ConfigError(
            "verification.reward_model.path is not set, but the verifier reward_model needs a model: give the folder "
            "or hub name of a sequence-classification model."
        )


def scorer_of(tools: Tools) -> Scorer:
    """The model, loaded once and kept.

    Raises:
        ConfigError: none is named, or these tools can't load models.
        ModelError: it can't be loaded, or is no sequence classifier with one label or two.
    """
    if NAME not in tools.loaded:
        check(tools.options)
        if tools.load_scorer is None:
            raise ConfigError("The verifier reward_model runs in training and evaluation alone: it needs a model.")
        tools.loaded[NAME] = tools.load_scorer(tools.options.reward_model, tools.device)
    scorer: Scorer = tools.loaded[NAME]
    return scorer


def grade(submissions: Sequence[Submission], tools: Tools) -> list[Verdict]:
    """One verdict a submission; an error where prompt and response are longer than the model reads."""
    scorer = scorer_of(tools)
    exchanges = [Exchange(given.messages or given.prompt, given.response) for given in submissions]
    return [_verdict(score, scorer.max_tokens, tools.options.reward_model) for score in scorer.scores(exchanges)]


def _verdict(score: Score, limit: int | None, options: RewardModelOptions) -> Verdict:
    if score.value is None:
        return Verdict(None, error=f"{score.tokens} tokens, but the reward model reads at most {limit}")
    if not math.isfinite(score.value):
        return Verdict(None, error=f"the reward model's score is {score.value}", caused_by="verifier")
    reward = squashed(score.value, options) if options.squash == "sigmoid" else score.value
    return Verdict(reward, reason=f"score {score.value:.4g}")


def squashed(score: float, options: RewardModelOptions) -> float:
    """sigmoid(scale * (score - shift)), without overflow."""
    logit = options.scale * (score - options.shift)
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
