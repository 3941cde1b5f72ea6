"""The table of critics: what each kind is made from, when a run is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.options import PpoOptions, SpoOptions
from sppo.algorithms.table import Algorithm
from sppo.config import CriticConfig, OptimizerConfig, SamplingConfig
from sppo.critics.checks import require_causal, require_masking, require_readable
from sppo.critics.critic import Critic, NoCritic
from sppo.critics.models import Model, PromptCritic, TokenCritic, make_value_model
from sppo.critics.prompt import PromptModelCritic
from sppo.critics.token import TokenModelCritic
from sppo.critics.tracker import TrackerCritic
from sppo.models.checks import readable_tokens, require_recomputation, trunk_outputs
from sppo.models.loading import context_length
from sppo.rollouts.encode import require_context
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
    trust_remote_code: bool
    """Whether the critic's own code may run."""


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
    require_readable(model, owner.prompts)
    require_masking(model)
    return PromptModelCritic(model, config, owner.tokenizer, rows=rows, guard=guard)


def _token_critic(config: CriticConfig, owner: Owner, saved: Path | None, rows: int, guard: StepGuard) -> Critic:
    model = _value_model(TokenCritic, config, owner, saved)
    lengths = owner.max_prompt_tokens, owner.sampling.max_response_tokens
    require_context(*lengths, context_length(model.trunk.config), "the critic")
    require_context(*lengths, readable_tokens(model.trunk, trunk_outputs(model.trunk), sum(lengths)), "the critic")
    require_causal(model)
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
    tokens, trusted = owner.optimizer.tokens_per_microbatch, owner.trust_remote_code
    if saved is None:
        model = make_value_model(
            kind, config, owner.policy, owner.tokenizer, tokens_per_microbatch=tokens, trust_remote_code=trusted
        )
    else:
        model = kind.from_pretrained(
            saved,
            device=owner.policy.device,
            tokens_per_microbatch=tokens,
            gradient_checkpointing=config.gradient_checkpointing,
            trust_remote_code=trusted,
        )
    if config.gradient_checkpointing:
        require_recomputation(model.trunk, trunk_outputs(model.trunk), "critic.gradient_checkpointing")
    return model
