"""The table of critics: what each kind is made from, when a run is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.algorithm import Algorithm
from sppo.algorithms.options import AstarPoOptions, PpoOptions, SpoOptions
from sppo.config import CriticConfig, OptimizerConfig, SamplingConfig
from sppo.critics.checks import known_rates, require_causal, require_masking, require_readable
from sppo.critics.critic import Critic, NoCritic
from sppo.critics.fusion import BeliefCritic, Source
from sppo.critics.history import History
from sppo.critics.models import Model, PromptCritic, TokenCritic, make_value_model
from sppo.critics.optimal import OptimalValueCritic
from sppo.critics.outcomes import prompt_keys
from sppo.critics.probe import ProbeSource
from sppo.critics.prompt import PromptModelCritic
from sppo.critics.sources import SECOND_FOLDER, PairSource, RateSource
from sppo.critics.token import TokenModelCritic
from sppo.critics.tracker import TrackerCritic
from sppo.errors import ConfigError
from sppo.models.checks import readable_tokens, require_recomputation, trunk_outputs
from sppo.models.loading import context_length
from sppo.models.precision import Precision
from sppo.models.sharding import shard
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
    training: Sequence[Prompt] = ()
    """Those of them that are trained on."""
    precision: Precision = field(default_factory=Precision)
    """What models compute in, and keep weights in."""
    policy_base: str = ""
    """Folder or hub name of the weights that the policy starts from."""


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
        DataError: a prompt that the critic can't read, or whose solve rate should be known and isn't.
    """
    if kind is None:
        return NoCritic()
    return _CRITICS[kind](config, owner, saved, rows, guard)


def check_critic(config: CriticConfig, kind: str | None) -> None:
    """Refuses options of beliefs that the critic can't have; needs neither model nor data.

    Args:
        config: the critic's options.
        kind: key of the table; None: no critic.

    Raises:
        ConfigError: names the option, why it can't be, and the way out.
    """
    asked = {
        "critic.source is probe": config.source == "probe",
        "critic.members is 2": config.members == 2,
        "critic.recalibrate is true": config.recalibrate,
        "critic.history is true": config.history,
        f"critic.known_rates is {config.known_rates}": config.known_rates is not None,
    }
    first = next((said for said, on in asked.items() if on), None)
    if first is None:
        return
    if kind not in ("prompt", "history"):
        has = "none" if kind is None else f"a {kind} critic"
        raise ConfigError(f"{first}, which is for critics of prompts, and this run has {has}. Leave it out.")
    if config.loss == "mse":
        raise ConfigError(
            f"{first}, which takes V for the probability of solving a prompt, but critic.loss is mse, where V may be "
            "any number. Set critic.loss to bce, for rewards in [0, 1], or leave the other out."
        )
    if config.source == "probe":
        own = [name for name in ("path", "config", "tokenizer") if getattr(config, name) is not None]
        if own:
            raise ConfigError(
                f"critic.source is probe, which reads the policy's own states, but critic.{own[0]} is set, for a model "
                f"of the critic's own. Set critic.{own[0]} to null, or critic.source to model."
            )
        if config.members == 2:
            raise ConfigError(
                "critic.members is 2 and critic.source is probe, but two logistic regressions on the same states learn "
                "the same: their disagreement would say nothing. Set critic.members to 1, or critic.source to model."
            )
    if config.known_rates is not None and not config.history and kind != "history":
        raise ConfigError(
            f"critic.known_rates is {config.known_rates}, but nothing counts outcomes that they could begin. Set "
            "critic.history to true."
        )
    if kind == "history" and (config.source == "probe" or config.members == 2):
        raise ConfigError(
            f"{first}, which is about V of a prompt's text, but selection.name is history, which chooses by past "
            "outcomes alone. Leave it out, or set selection.name to top and critic.history to true."
        )


def _prompt_critic(config: CriticConfig, owner: Owner, saved: Path | None, rows: int, guard: StepGuard) -> Critic:
    return _beliefs(_source(config, owner, saved, rows, guard), config, owner, saved, counts=config.history)


def _history_critic(config: CriticConfig, owner: Owner, saved: Path | None, rows: int, guard: StepGuard) -> Critic:
    source = RateSource(0.5 if config.prior is None else config.prior)
    if saved is not None:
        source.load(saved)
    return _beliefs(source, config, owner, saved, counts=True)


def _beliefs(source: Source, config: CriticConfig, owner: Owner, saved: Path | None, *, counts: bool) -> BeliefCritic:
    critic = BeliefCritic(source, history=History() if counts else None, recalibrate=config.recalibrate)
    if saved is not None:
        critic.load_history(saved)
    elif critic.history is not None and config.known_rates is not None:
        rates = known_rates(owner.training, config.known_rates)
        critic.history.start(prompt_keys(owner.training), rates, config.known_rates_worth)
    return critic


def _source(config: CriticConfig, owner: Owner, saved: Path | None, rows: int, guard: StepGuard) -> Source:
    if config.source == "probe":
        tokens = owner.optimizer.tokens_per_microbatch
        probe = ProbeSource(owner.policy, owner.tokenizer, config, tokens_per_microbatch=tokens, rows=rows, guard=guard)
        if saved is not None:
            probe.model.load_head(saved)
        return probe

    def model(saved: Path | None, name: str, head_spread: float = 0.0) -> PromptModelCritic:
        made = _value_model(PromptCritic, config, owner, saved)
        require_readable(made, owner.prompts)
        require_masking(made)
        if head_spread and saved is None:
            nn.init.normal_(made.head.weight, std=head_spread / made.head.in_features**0.5)
        shard(made, owner.precision, alone=[made.head])
        return PromptModelCritic(made, config, owner.tokenizer, rows=rows, guard=guard, name=name)

    first = model(saved, "critic")
    if config.members == 1:
        return first
    # Of a trunk that is loaded there is one: its head has to begin elsewhere, with logits some .3 apart.
    return PairSource(first, model(None if saved is None else saved / SECOND_FOLDER, "critic_2", head_spread=0.3))


def _token_critic(config: CriticConfig, owner: Owner, saved: Path | None, rows: int, guard: StepGuard) -> Critic:
    model = _value_model(TokenCritic, config, owner, saved)
    lengths = owner.max_prompt_tokens, owner.sampling.max_response_tokens
    require_context(*lengths, context_length(model.trunk.config), "the critic")
    require_context(*lengths, readable_tokens(model.trunk, trunk_outputs(model.trunk), sum(lengths)), "the critic")
    require_causal(model)
    shard(model, owner.precision, alone=[model.head])
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


def _optimal(config: CriticConfig, owner: Owner, saved: Path | None, rows: int, guard: StepGuard) -> Critic:
    own = owner.algorithm.options
    assert isinstance(own, AstarPoOptions), "V* is A*-PO's"
    critic = OptimalValueCritic(own)
    if saved is not None:
        critic.load(saved)
    return critic


_CRITICS: Mapping[str, Callable[[CriticConfig, Owner, Path | None, int, StepGuard], Critic]] = {
    "prompt": _prompt_critic,
    "token": _token_critic,
    "tracker": _tracker,
    "history": _history_critic,
    "optimal": _optimal,
}


def _value_model(kind: type[Model], config: CriticConfig, owner: Owner, saved: Path | None) -> Model:
    tokens, trusted = owner.optimizer.tokens_per_microbatch, owner.trust_remote_code
    if saved is None:
        model = make_value_model(
            kind, config, owner.policy, owner.tokenizer, tokens_per_microbatch=tokens, trust_remote_code=trusted,
            policy_base=owner.policy_base,
        )  # fmt: skip
    else:
        model = kind.from_pretrained(
            saved,
            device=owner.policy.device,
            tokens_per_microbatch=tokens,
            gradient_checkpointing=config.gradient_checkpointing,
            trust_remote_code=trusted,
            lora=config.lora,
        )
    if config.gradient_checkpointing:
        require_recomputation(model.trunk, trunk_outputs(model.trunk), "critic.gradient_checkpointing")
    return model
