"""What an engine is: rows of token ids in, sampled token ids with their log-probabilities out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sppo.config.ranges import Section
from sppo.errors import ConfigError, ModelError
from sppo.types import Completion, TokenIds

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class EngineSetup:
    """What an engine is built with beside the policy: what it has to hold, and what it may take for that."""

    max_rows: int
    """Responses decoded at one time."""
    max_tokens: int
    """Longest sequence, prompt and response together, in tokens."""
    dtype: torch.dtype
    """Precision that the policy computes in, for weights and cache of the engine's own."""
    memory_share: float
    """Share of the device's memory for weights and cache of the engine's own."""
    options: Section = field(default_factory=Section)
    """The engine's own options, of the class that the table names."""


@dataclass(frozen=True)
class SamplingParameters:
    """How one call samples. Applied in this order: temperature, top_k, top_p, each on what the one before left."""

    max_tokens: int
    """Longest response, in tokens, the stop token included."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Sample from the smallest set of most likely tokens with at least this much probability; 1 is all."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 is all."""
    stop_token_ids: frozenset[int] = frozenset()
    """Ids that end a response; empty: every response runs to max_tokens."""

    def __post_init__(self) -> None:
        for name, value, holds, wanted in (
            ("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "a finite number, 0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("stop_token_ids", sorted(self.stop_token_ids), all(i >= 0 for i in self.stop_token_ids), "0 or more each"),
        ):
            if not holds:
                raise ConfigError(f"sampling {name} is {value}, but must be {wanted}.")


class Engine(Protocol):
    """Samples responses from a policy whose weights the trainer hands over whenever they have changed.

    An engine is built with the policy's weights. It may share the trainer's own tensors, or keep a copy, perhaps in
    another precision, process or machine.
    """

    @property
    def version(self) -> int:
        """Version of the weights that `generate` samples from, as given to `load_weights`; 0 at the start."""

    def awake(self) -> AbstractContextManager[None]:
        """A context around calls of `generate`; outside it an engine may sleep, so that an update has its memory.

        Ranks enter it together, those without a row too: an engine may read the weights of a sharded policy then.
        """
        ...

    def generate(
        self, prompts: Sequence[TokenIds], sampling: SamplingParameters, *, seeds: Sequence[int]
    ) -> list[Completion]:
        """Samples one response to each row.

        Args:
            prompts: rows of token ids, none empty.
            sampling: length, distribution and stop ids, the same for all rows.
            seeds: one a row, in [0, 2^63). Row, seed, sampling and weights make the response, but for rounding; the
                other rows, and how they are batched, don't.

        Returns:
            One completion a row, in the rows' order.

        Raises:
            ConfigError: the longest prompt and max_tokens together exceed the model's context.
            ModelError: an empty prompt, or a model that gives logits which are not finite.
        """
        ...

    def load_weights(self, model: nn.Module, version: int) -> None:
        """Makes `generate` sample from `model`'s present weights, and notes their version; awake or not.

        An engine with weights of its own reads them with `sppo.models.adapters.plain_weights`, which adds an adapter to
        them where it is switched on. The model's own module is as it is now until the next call.
        """

    def close(self) -> None:
        """Releases memory and processes; `generate` must not be called afterwards."""


def require_room(prompts: Sequence[TokenIds], max_tokens: int, limit: int | None, of_what: str) -> None:
    """Refuses rows that an engine can't take.

    Args:
        prompts: rows of token ids.
        max_tokens: of each response.
        limit: tokens that prompt and response may have together; None: any number.
        of_what: what has that limit, for the message.

    Raises:
        ModelError: an empty prompt.
        ConfigError: the longest prompt and a response of `max_tokens` exceed the limit.
    """
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ModelError(f"prompt {row} of {len(prompts)} has no tokens; a model needs at least one to go on.")
    longest = max(map(len, prompts), default=0)
    if limit is not None and longest + max_tokens > limit:
        raise ConfigError(
            f"the longest prompt has {longest} tokens and sampling.max_response_tokens is {max_tokens}: "
            f"together {longest + max_tokens}, more than the {limit} tokens {of_what}. "
            f"Set sampling.max_response_tokens to at most {max(limit - longest, 0)}, or lower data.max_prompt_tokens."
        )


def require_finite(completions: Sequence[Completion], rows: Iterable[int]) -> None:
    """Refuses responses to `rows` of a call, the same number of both, whose log-probabilities are nan or infinite.

    Raises:
        ModelError: names the first such row.
    """
    for completion, row in zip(completions, rows, strict=True):
        if not np.isfinite(completion.logprobs).all():
            raise ModelError(
                f"the model's logits are not finite (nan or inf) while sampling the response to row {row}, so its "
                "weights are damaged, or its precision is too low. Look for a step whose loss or gradient norm "
                "exploded, and resume from before it."
            )
