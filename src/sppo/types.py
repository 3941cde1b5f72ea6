"""The values that flow through a run: Prompt -> Rollout -> Verdict.

Each is frozen and complete when it is made. The tensors that follow (Batch, Estimates, Credit) live in `batch.py`,
so that this file, the verifiers and the tasks import without torch. Tokens and their log-probabilities are arrays: as
Python tuples they took 68 bytes a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]
"""[T] ids of tokens, read-only."""
TokenMask = npt.NDArray[np.bool_]
TokenVersions = npt.NDArray[np.int32]
"""[T] True at some tokens, read-only."""

Message = Mapping[str, str]
"""One chat turn: {"role": "user", "content": "..."}."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Prompt:
    """One problem, before any tokenizer has seen it."""

    id: str
    """Unique within its data set; the response records and the evaluation group by it."""
    content: str | tuple[Message, ...]
    """Plain text, or chat messages that go through the model's chat template."""
    gold: str | None = None
    """The answer that the verifier holds the response against; None where a reward function needs none."""
    other_golds: tuple[str, ...] = ()
    """Answers that are right as well, where the row has several."""
    verifier: str = "math"
    """Name in `sppo.verifiers.VERIFIERS`. Routing is this field, never a guess from the data set's name."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Everything else the row held; passed to reward functions by name."""
    difficulty: str | None = None
    """Label that evaluations group by, such as "3 operations" or "Level 5"."""
    demonstration: str | None = None
    """A worked response for supervised fine-tuning, where the data has one."""
    source: str = ""
    """Name of the data set that it is from, where a run has several."""

    @property
    def golds(self) -> tuple[str | None, ...]:
        """All gold answers, of which any is right."""
        return (self.gold, *self.other_golds)

    @property
    def plain(self) -> str | list[dict[str, str]]:
        """The content as plain JSON values."""
        return self.content if isinstance(self.content, str) else [dict(message) for message in self.content]

    @property
    def text(self) -> str:
        """The prompt as one plain string (chat turns joined by newlines), for people and reward functions."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(message["content"] for message in self.content)


@dataclass(frozen=True, eq=False)
class Completion:
    """What follows one row of token ids: what the policy wrote and, in several turns, what it was answered.

    Equal where all of it is; without a hash.
    """

    token_ids: TokenIds
    """[T] ids in order, the stop token included where one was sampled."""
    logprobs: npt.NDArray[np.float32]
    """[T] log-probability, in nats, of each id under the distribution it was sampled from; nobody reads those of tokens
    that the policy didn't write."""
    finish_reason: FinishReason
    mask: TokenMask = field(default_factory=lambda: np.array(True))
    """[T] True on tokens that the policy itself wrote, False on tool output and on turns of others, which it only
    reads; default: it wrote all, which takes no memory."""
    versions: TokenVersions = field(default_factory=lambda: np.array(0, np.int32))
    """[T] version of the policy that each token was sampled from: optimiser steps that its weights had been through,
    those of fine-tuning included; 0 is the model that the run began with. One number stands for all, and takes no
    memory."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", as_token_ids(self.token_ids))
        object.__setattr__(self, "logprobs", _read_only(self.logprobs, np.float32))
        assert self.token_ids.shape == self.logprobs.shape == (len(self),), "one log-probability a token"
        for name, kind in (("mask", np.bool_), ("versions", np.int32)):
            given = np.asarray(getattr(self, name), kind)
            object.__setattr__(self, name, np.broadcast_to(given, self.token_ids.shape))

    def __len__(self) -> int:
        """T, whoever wrote the tokens: what a model has to read."""
        return len(self.token_ids)

    @property
    def written(self) -> int:
        """Tokens that the policy wrote."""
        return int(self.mask.sum())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Completion):
            return NotImplemented
        return self.finish_reason == other.finish_reason and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("token_ids", "logprobs", "mask", "versions")
        )


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled response with everything needed to train on it; token ids are kept all the way.

    Only itself is equal to it: the same response sampled twice is two.
    """

    prompt: Prompt
    prompt_token_ids: TokenIds
    """One array for all samples of the prompt."""
    completion: Completion
    text: str
    """The response decoded without special tokens; what verifiers read."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_token_ids", as_token_ids(self.prompt_token_ids))

    @property
    def policy_version(self) -> int:
        """The oldest version of the policy that one of its tokens was sampled from."""
        return int(self.completion.versions.min())

    @property
    def finished(self) -> bool:
        """Whether the response ended with a stop token rather than at the length limit."""
        return self.completion.finish_reason == "stop"


@dataclass(frozen=True)
class Submission:
    """One response as a verifier is given it."""

    response: str
    """The whole response as decoded, with the `<think>` that the chat template may have opened for it."""
    gold: str | None
    finished: bool = True
    """Whether the response ended by itself rather than at the length limit."""
    tokens: int | None = None
    """Tokens that the policy wrote, the stop token included; None where nobody counted."""
    prompt: str = ""
    """The prompt's text."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of the prompt's row."""
    messages: tuple[Message, ...] = ()
    """The prompt's chat turns; none where it is plain text."""
    prompt_id: str = ""
    """The prompt's id, for messages."""
    other_golds: tuple[str, ...] = ()
    """Answers that are right as well."""
    opening: str = ""
    """What the chat template wrote of the response before the first sampled token: "<think>", or nothing."""

    @property
    def sampled(self) -> str:
        """The response without what the chat template wrote of it."""
        return self.response.removeprefix(self.opening)


@dataclass(frozen=True)
class StepScores:
    """What a process reward says of the steps of one response."""

    ends: tuple[int, ...]
    """Place in the response of each step's last token, counted from 0; rising."""
    scores: tuple[float, ...]
    """Score of each step, in [0, 1]."""


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response. An error of the verifier is not a wrong answer."""

    reward: float | None
    """In [0, 1] for the built-in verifiers; None leaves the sample out of training and accuracy."""
    extracted: str | None = None
    """The answer found in the response, as compared."""
    reason: str = ""
    """Why, in a few words: "integers equal", "no boxed answer", "timed out after 3 s"."""
    error: str | None = None
    """Set where the verification failed; then `reward` is None, or 0 in an evaluation where the response caused it."""
    parts: Mapping[str, float | None] = field(default_factory=dict)
    """Where a reward is made of several: each one by name; None for one that was not asked for."""
    step_scores: StepScores | None = None
    """What the process reward says of the steps, where there is one; it is no part of `reward`."""
    caused_by: Literal["", "response", "verifier"] = ""
    """Whose doing the error is: the response's, if it failed again in the same way, alone in a fresh process; else the
    verifier's. Empty without an error, and for one that was not tried again."""


@dataclass(frozen=True)
class EvaluationRecord:
    """All samples of one held-out prompt."""

    prompt: Prompt
    rollouts: Sequence[Rollout]
    verdicts: Sequence[Verdict]
    value: float | None = None
    """V(prompt) of the critic, where there is one."""

    @property
    def solve_rate(self) -> float | None:
        """Mean reward over the samples that have one; None where every verdict is an error."""
        rewards = [verdict.reward for verdict in self.verdicts if verdict.reward is not None]
        return sum(rewards) / len(rewards) if rewards else None


@dataclass(frozen=True, eq=False)
class Beliefs:
    """How solvable prompts are, as far as is known: p ~ Beta(mean * worth, (1 - mean) * worth)."""

    mean: npt.NDArray[np.float64]
    """[N] solve rate in [0, 1]; nan where unknown."""
    worth: npt.NDArray[np.float64]
    """[N] what the mean is worth in samples."""

    def __post_init__(self) -> None:
        assert self.mean.ndim == 1, f"mean has shape {self.mean.shape}, not [N]"
        assert self.mean.shape == self.worth.shape, f"mean {self.mean.shape}, worth {self.worth.shape}"

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def spread(self) -> npt.NDArray[np.float64]:
        """[N] E[p (1 - p)] = mean (1 - mean) worth / (worth + 1): the expected square of the advantage of a response
        against the prompt's true solve rate."""
        return self.mean * (1 - self.mean) / (1 + 1 / np.maximum(self.worth, 1e-12))

    def __getitem__(self, places: slice | npt.NDArray[np.int64]) -> Beliefs:
        return Beliefs(self.mean[places], self.worth[places])

    @property
    def values(self) -> list[float | None]:
        """[N] the means; None where unknown."""
        return [mean if math.isfinite(mean) else None for mean in self.mean.tolist()]


def as_token_ids(ids: npt.ArrayLike) -> TokenIds:
    """Token ids as a read-only array; one that is such an array already is taken as it is, without a copy."""
    return _read_only(ids, np.int32)


def _read_only(values: npt.ArrayLike, kind: type[Any]) -> npt.NDArray[Any]:
    array = np.asarray(values, kind)
    array.setflags(write=False)
    return array
