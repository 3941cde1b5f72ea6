"""From options to parts: everything a run needs, checked and loaded in an order that fails early and cheaply."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.table import Algorithm, check_algorithm, choose_algorithm, resolve_options
from sppo.config import Config, ModelConfig
from sppo.config.ranges import require_divisor, validate
from sppo.critics.critic import Critic
from sppo.critics.models import Model, PromptCritic, TokenCritic, make_value_model
from sppo.critics.prompt import PromptModelCritic
from sppo.critics.token import TokenModelCritic, value_clip_of
from sppo.critics.tracker import TrackerCritic
from sppo.data.prompts import hold_out
from sppo.data.stream import PromptStream
from sppo.data.tasks import demonstrations, load_prompts, prompt_key
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, DataError, ModelError, RunFolderError
from sppo.models.loading import (
    context_length,
    embedded_tokens,
    load_model_config,
    load_policy,
    load_tokenizer,
    prepare_device,
    prepare_policy,
    require_end_token,
)
from sppo.models.packing import TokenRow
from sppo.models.process_rewards import ProcessRewards, load_process_rewards
from sppo.models.scoring import verifier_tools
from sppo.rollouts.encode import encode_demonstrations, encode_many, filter_overlong, opens_thinking, require_context
from sppo.rollouts.engines import build_engine, require_engine
from sppo.rollouts.engines.engine import Engine, SamplingParameters
from sppo.rollouts.sample import sampling_parameters
from sppo.runs.checkpoint import TrainingState, find_checkpoint, load_optimizers, load_state, restore_random_state
from sppo.runs.seeds import derive_seed
from sppo.runs.sinks import require_sinks
from sppo.training.rules import check_rewards
from sppo.types import Prompt
from sppo.update.steps import make_optimizer
from sppo.verifiers.functions import load_function
from sppo.verifiers.grading import Grader
from sppo.verifiers.tools import Tools


@dataclass(frozen=True)
class Given:
    """What a Python program hands over instead of naming it in the config."""

    model: PreTrainedModel | None = None
    tokenizer: Tokenizer | None = None
    rows: Iterable[Mapping[str, Any]] | None = None
    held_out_rows: Iterable[Mapping[str, Any]] | None = None
    reward_function: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Parts:
    """Everything the loop works with."""

    algorithm: Algorithm
    tokenizer: Tokenizer
    policy: PreTrainedModel
    critic: Critic | None
    optimizers: dict[str, torch.optim.Optimizer]
    """AdamW by name: "policy", and "critic" where there is one."""
    engine: Engine
    grader: Grader
    process: ProcessRewards | None
    """Scores single steps of training's responses, where asked for."""
    stream: PromptStream
    held_out: tuple[Prompt, ...]
    training_sampling: SamplingParameters
    evaluation_sampling: SamplingParameters
    demonstrations: tuple[list[TokenRow], ...]
    """Encoded demonstrations of each fine-tuning phase; empty where a checkpoint is past them."""
    notes: tuple[str, ...]
    """What the loaders left out, for people."""


def check(config: Config, given: Given) -> Config:
    """Checks all that can be checked without data or models; returns the config with what was handed over noted.

    Raises:
        ConfigError: an option or combination that cannot work.
    """
    if given.model is not None:
        name = getattr(given.model, "name_or_path", "") or type(given.model).__name__
        config = replace(config, model=replace(config.model, path=name, config=None))
    if given.rows is not None:
        config = replace(
            config,
            data=replace(config.data, task="rows", path=None),
            evaluation=replace(config.evaluation, data=None),
        )
    validate(config)
    check_algorithm(
        config.algorithm,
        config.sampling.samples_per_prompt,
        critic_loss=config.critic.loss,
        process_rewards=config.verification.process.used,
    )
    if choose_algorithm(config.algorithm.name, config.critic.loss).critic in ("prompt", "token"):
        require_divisor(config, "critic.minibatch_size", config.critic.minibatch_size)
    check_rewards(config, has_reward_function=given.reward_function is not None)
    require_sinks(config)
    require_engine(config.engine.name)
    return config


def build(config: Config, given: Given, checkpoint: Path | None = None, *, fine_tuning: bool = False) -> Parts:
    """Loads data, models, critic and engine; from a checkpoint where one is given.

    Args:
        config: all options.
        given: what a Python program handed over.
        checkpoint: to go on from.
        fine_tuning: only the supervised phases will run, which need no critic.

    Raises:
        SppoError: whatever is missing or doesn't fit together.
    """
    algorithm = choose_algorithm(config.algorithm.name, config.critic.loss)
    device = prepare_device(config)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    tokenizer = given.tokenizer or load_tokenizer(config.model, ALPHABET)
    require_end_token(tokenizer, config.model.tokenizer or config.model.path or "this model")
    architecture = load_model_config(config.model) if given.model is None else given.model.config
    require_context(config, context_length(architecture), "the model")
    reward_function = given.reward_function or (load_function(config.data.reward) if config.data.reward else None)
    training, held_out, notes = load_data(config, given, tokenizer, has_reward_function=reward_function is not None)
    grader = Grader(
        reward_function, verifier_tools(config.verification, device), opens_thinking(training[0], tokenizer)
    )
    grader.prepare([*training, *held_out])
    process = None if fine_tuning else load_process_rewards(config.verification.process, tokenizer, str(device))
    shown = () if checkpoint is not None else load_demonstrations(config, given, tokenizer, held_out)
    policy = _policy(config, given, tokenizer, device, checkpoint)
    critic = None
    if algorithm.critic is not None and not fine_tuning:
        critic = _critic(config, algorithm, policy, tokenizer, checkpoint)
        if isinstance(critic, PromptModelCritic):
            require_readable(critic.model, [*training, *held_out])
    options = config.optimizer
    optimizers: dict[str, torch.optim.Optimizer] = {
        "policy": make_optimizer(policy, options.learning_rate, options.weight_decay, options.betas)
    }
    if critic is not None:
        optimizers.update(critic.optimizers)
    return Parts(
        algorithm=algorithm,
        tokenizer=tokenizer,
        policy=policy,
        critic=critic,
        optimizers=optimizers,
        engine=build_engine(policy, config.engine),
        grader=grader,
        process=process,
        stream=PromptStream(training, derive_seed(config.seed, "data")),
        held_out=held_out,
        training_sampling=sampling_parameters(config.sampling, tokenizer, policy),
        evaluation_sampling=sampling_parameters(config.sampling, tokenizer, policy, config.evaluation.temperature),
        demonstrations=shown,
        notes=notes,
    )


def load_demonstrations(
    config: Config, given: Given, tokenizer: Tokenizer, held_out: Sequence[Prompt]
) -> tuple[list[TokenRow], ...]:
    """Returns the encoded demonstrations of each fine-tuning phase, none of a held-out prompt.

    Raises:
        DataError: the data has no demonstrations, or none but of held-out prompts.
    """
    unseen = {prompt_key(prompt.text) for prompt in held_out}
    phases = []
    for number, phase in enumerate(config.sft.phases, start=1):
        seed = derive_seed(config.seed, "demonstrations", number)
        shown = demonstrations(config.data, phase.demonstrations, seed, given.rows)
        kept = [prompt for prompt in shown if prompt_key(prompt.text) not in unseen]
        if not kept:
            raise DataError(f"All {len(shown)} demonstrations are of held-out prompts; lower evaluation.prompts.")
        phases.append(encode_demonstrations(kept, tokenizer))
    return tuple(phases)


def require_readable(critic: PromptCritic, prompts: Sequence[Prompt]) -> None:
    """Refuses prompts that are empty or too long for the critic, in tokens of its own tokenizer.

    Raises:
        DataError: names the first such prompt.
    """
    limit = context_length(critic.trunk.config)
    for prompt, ids in zip(prompts, encode_many(list(prompts), critic.tokenizer), strict=True):
        if not ids or (limit is not None and len(ids) > limit):
            raise DataError(
                f"Prompt {prompt.id!r} has {len(ids)} tokens in the critic's tokenizer, but the critic reads 1 to "
                f"{limit}. Lower data.max_prompt_tokens, or choose another critic."
            )


@torch.no_grad()
def require_causal(critic: TokenCritic) -> None:
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


def load_data(
    config: Config, given: Given, tokenizer: Tokenizer, *, has_reward_function: bool
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...], tuple[str, ...]]:
    """Returns training prompts, held-out prompts, and notes on what was left out.

    Raises:
        DataError: see the loaders; also where no training prompts are left.
    """
    require_gold = not has_reward_function
    tools = Tools(config.verification)
    loaded = load_prompts(config.data, seed=config.seed, rows=given.rows, require_gold=require_gold, tools=tools)
    kept, overlong = filter_overlong(loaded.prompts, tokenizer, config.data)
    notes = (*loaded.notes, *overlong)
    if given.held_out_rows is None and config.evaluation.data is None:
        training, held_out = hold_out(kept, config.evaluation.prompts, derive_seed(config.seed, "held out"))
        return tuple(training), tuple(held_out), notes
    held_out_prompts, more = load_held_out(config, tokenizer, given.held_out_rows, require_gold=require_gold)
    return kept, held_out_prompts, (*notes, *more)


def load_held_out(
    config: Config, tokenizer: Tokenizer, rows: Iterable[Mapping[str, Any]] | None, *, require_gold: bool
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """Returns the prompts of evaluation.data, or of rows that were handed over, and notes on what was left out.

    Raises:
        DataError: see the loaders.
    """
    data = config.evaluation.data
    if data is None or rows is not None:
        data = replace(config.data, task="rows", path=None, limit=None, options={})
    tools = Tools(config.verification)
    loaded = load_prompts(
        data, seed=config.seed, rows=rows, require_gold=require_gold, tools=tools, key="evaluation.data"
    )
    kept, overlong = filter_overlong(loaded.prompts, tokenizer, data, key="evaluation.data")
    if len(kept) > config.evaluation.prompts:
        # The same for every seed, so that runs can be compared; at random, as files are often sorted by topic.
        kept = tuple(random.Random(0).sample(kept, config.evaluation.prompts))
    return kept, (*loaded.notes, *overlong)


def require_data(folder: Path, config: Config) -> None:
    """Refuses a run whose rows came from Python: its folder doesn't hold them.

    Raises:
        ConfigError: says how to hand them over again.
    """
    key = "data" if config.evaluation.data is None else "evaluation.data"
    data = config.evaluation.data or config.data
    if data.task == "rows" and data.path is None:
        raise ConfigError(
            f"{folder} was made from rows that a Python program handed over, and the run folder doesn't hold them. "
            f"Save them as a .jsonl file and give --{key}.path FILE; sppo.evaluate({str(folder)!r}, rows=rows) takes "
            "them again as they are."
        )


def load_reference(config: Config, parts: Parts, folder: Path, step: int) -> PreTrainedModel:
    """Returns a frozen copy of the policy that training started from; made at step 0, read again on resuming.

    Raises:
        RunFolderError: the run is past step 0 and its reference is gone.
    """
    if not folder.is_dir():
        if step:
            raise RunFolderError(
                f"{folder} is missing: the policy that the run started from, which the KL term or the joint ratio "
                f"needs. Copy the policy folder of checkpoint step_0 there if it was kept, or start a new run."
            )
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        parts.policy.save_pretrained(temporary)
        temporary.rename(folder)
    options = replace(config.model, path=str(folder), gradient_checkpointing=False)
    return load_policy(options, parts.tokenizer, parts.policy.device).requires_grad_(False)


def restore(parts: Parts, checkpoint: Path) -> TrainingState:
    """Puts optimisers, generators and the data cursor back to where the checkpoint was made."""
    state = load_state(checkpoint)
    load_optimizers(checkpoint, parts.optimizers)
    parts.stream.load_state_dict(state.stream)
    restore_random_state(checkpoint)
    return state


def resume_point(config: Config) -> Path | None:
    """The checkpoint that a resumed run starts from; None where it was stopped before its first."""
    return find_checkpoint(Path(config.output), "last")


def _policy(
    config: Config, given: Given, tokenizer: Tokenizer, device: torch.device, checkpoint: Path | None
) -> PreTrainedModel:
    if checkpoint is not None:
        saved: ModelConfig = replace(config.model, path=str(checkpoint / "policy"))
        return load_policy(saved, tokenizer, device)
    if given.model is not None:
        return prepare_policy(given.model, tokenizer, device, config.model.gradient_checkpointing)
    return load_policy(config.model, tokenizer, device)


def _critic(
    config: Config, algorithm: Algorithm, policy: PreTrainedModel, tokenizer: Tokenizer, checkpoint: Path | None
) -> Critic:
    options = resolve_options(algorithm, config.algorithm)
    saved = None if checkpoint is None else checkpoint / "critic"
    if algorithm.critic == "tracker":
        tracker = TrackerCritic(policy, options, config.optimizer, config.sampling.temperature)
        if saved is not None:
            tracker.load(saved)
        return tracker
    if algorithm.critic == "token":
        model = _value_model(TokenCritic, config, policy, tokenizer, saved)
        require_context(config, context_length(model.trunk.config), "the critic")
        require_causal(model)
        return TokenModelCritic(
            model,
            config.critic,
            probability=algorithm.value_loss == "bce",
            value_clip=value_clip_of(algorithm, options),
        )
    return PromptModelCritic(_value_model(PromptCritic, config, policy, tokenizer, saved), config.critic, tokenizer)


def _value_model(
    kind: type[Model], config: Config, policy: PreTrainedModel, tokenizer: Tokenizer, saved: Path | None
) -> Model:
    if saved is None:
        return make_value_model(kind, config, policy, tokenizer)
    return kind.from_pretrained(
        saved,
        device=policy.device,
        tokens_per_microbatch=config.optimizer.tokens_per_microbatch,
        gradient_checkpointing=config.critic.gradient_checkpointing,
    )
