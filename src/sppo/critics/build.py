"""The table of critics: what each kind is made from, when a run is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.options import PpoOptions, SpoOptions
from sppo.algorithms.table import Algorithm
from sppo.config import CriticConfig, OptimizerConfig, SamplingConfig
from sppo.critics.critic import Critic, NoCritic
from sppo.critics.models import Model, PromptCritic, TokenCritic, make_value_model
from sppo.critics.prompt import PromptModelCritic
from sppo.critics.token import TokenModelCritic
from sppo.critics.tracker import TrackerCritic
from sppo.errors import DataError, ModelError
from sppo.models.loading import context_length, embedded_tokens
from sppo.rollouts.encode import encode_many, require_context
from sppo.types import Prompt
from sppo.update.steps import StepGuard


@dataclass(frozen=True)
class Owner:
    """The run that a critic is made for."""

    policy: PreTrainedModel
    tokenizer: Tokenizer
    algorithm: Algorithm
    optimizer: OptimizerConfig
    """Micro-batches."""
    sampling: SamplingConfig
    max_prompt_tokens: int
    prompts: Sequence[Prompt]
    """All that it may have to value."""


def build_critic(
    kind: str | None, config: CriticConfig, owner: Owner, *, saved: Path | None, rows: int, guard: StepGuard
) -> Critic:
    """Makes the critic of a new run, or reads the one that a checkpoint saved.

    Args:
        kind: key of the table; None: no critic.
        config: the critic's options.
        owner: what else it is made from.
        saved: folder in a checkpoint; None in a new run.
        rows: B when no sample is left out.
        guard: takes the optimiser steps.

    Raises:
        ModelError: the model can't be loaded, or can't be this critic.
        DataError: a prompt that the critic can't read.
    """
    if kind is None:
        return NoCritic()
    return _CRITICS[kind](config, owner, saved, rows, guard)


def _prompt_critic(config: CriticConfig, owner: Owner, saved: Path | None, rows: int, guard: StepGuard) -> Critic:
    model = _value_model(PromptCritic, config, owner, saved)
    _require_readable(model, owner.prompts)
    return PromptModelCritic(model, config, owner.tokenizer, rows=rows, guard=guard)


def _token_critic(config: CriticConfig, owner: Owner, saved: Path | None, rows: int, guard: StepGuard) -> Critic:
    model = _value_model(TokenCritic, config, owner, saved)
    lengths = owner.max_prompt_tokens, owner.sampling.max_response_tokens
    require_context(*lengths, context_length(model.trunk.config), "the critic")
    _require_causal(model)
    own = owner.algorithm.options
    return TokenModelCritic(
        model,
        config,
        probability=owner.algorithm.value_loss == "bce",
        value_clip=own.value_clip if isinstance(own, PpoOptions) else None,
        rows=rows,
        guard=guard,
    )


def _tracker(config: CriticConfig, owner: Owner, saved: Path | None, rows: int, guard: StepGuard) -> Critic:
    own = owner.algorithm.options
    assert isinstance(own, SpoOptions), "the tracker is SPO's"
    tracker = TrackerCritic(owner.policy, own, owner.optimizer, owner.sampling.temperature)
    if saved is not None:
        tracker.load(saved)
    return tracker


_CRITICS: Mapping[str, Callable[[CriticConfig, Owner, Path | None, int, StepGuard], Critic]] = {
    "prompt": _prompt_critic,
    "token": _token_critic,
    "tracker": _tracker,
}


def _value_model(kind: type[Model], config: CriticConfig, owner: Owner, saved: Path | None) -> Model:
    tokens = owner.optimizer.tokens_per_microbatch
    if saved is None:
        return make_value_model(kind, config, owner.policy, owner.tokenizer, tokens_per_microbatch=tokens)
    return kind.from_pretrained(
        saved,
        device=owner.policy.device,
        tokens_per_microbatch=tokens,
        gradient_checkpointing=config.gradient_checkpointing,
    )


def _require_readable(critic: PromptCritic, prompts: Sequence[Prompt]) -> None:
    """Refuses prompts that are empty or too long for the critic, in tokens of its own tokenizer.

    Raises:
        DataError: names the first such prompt.
    """
    limit = context_length(critic.trunk.config)
    for prompt, ids in zip(prompts, encode_many(list(prompts), critic.tokenizer), strict=True):
        if len(ids) == 0 or (limit is not None and len(ids) > limit):
            raise DataError(
                f"Prompt {prompt.id!r} has {len(ids)} tokens in the critic's tokenizer, but the critic reads 1 to "
                f"{limit}. Lower data.max_prompt_tokens, or choose another critic."
            )


@torch.no_grad()
def _require_causal(critic: TokenCritic) -> None:
    """Refuses trunks that read ahead: V before a token would know the tokens after it.

    Raises:
        ModelError: the trunk's first state depends on its last token.
    """
    first = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=critic.device) % embedded_tokens(critic.trunk)
    states = critic.trunk(input_ids=first).last_hidden_state[:, 0]
    if not torch.allclose(states[0].float(), states[1].float(), rtol=1e-4, atol=1e-4):
        raise ModelError(
            f"The critic's trunk, {critic.trunk.config.model_type}, reads a response in both directions, so that the "
            "value of a token would know what comes after it. Choose a causal model for a token critic."
        )
