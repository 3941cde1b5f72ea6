"""Data, models, critic and engine, made from the options in an order that fails early and cheaply."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.algorithm import Algorithm
from sppo.config import Config, ModelConfig
from sppo.critics.build import Owner, build_critic
from sppo.critics.checks import require_prompts
from sppo.critics.critic import Critic
from sppo.data.selection import BeliefSelection, Selection, UniformSelection
from sppo.data.stream import PromptStream
from sppo.errors import ModelError
from sppo.evaluation.held_out import HeldOut
from sppo.models.adapter_files import note_on
from sppo.models.checks import causal_outputs, require_packing, require_recomputation
from sppo.models.loading import (
    commit_of,
    context_length,
    freeze,
    load_model_config,
    load_policy,
    prepare_device,
    require_end_token,
    trainable_parameters,
)
from sppo.models.logprobs import shard_policy
from sppo.models.packing import TokenRow
from sppo.models.precision import Precision
from sppo.models.process_rewards import ProcessRewards, load_process_rewards
from sppo.models.scoring import verifier_tools
from sppo.rollouts.encode import opens_thinking, require_context
from sppo.rollouts.engines import BESIDE_TRAINING, build_engine
from sppo.rollouts.engines.engine import Engine
from sppo.rollouts.sample import sampling_parameters
from sppo.runs import ranks
from sppo.runs.checkpoint import read_frozen
from sppo.runs.seeds import derive_seed
from sppo.training.build.checks import algorithm_of
from sppo.training.build.fitting import measured, planned_memory, require_room
from sppo.training.build.memory import Memory
from sppo.training.collate import LengthRules
from sppo.training.collect import Collector
from sppo.training.given import Given, base_of_run, load_given_policy, load_given_tokenizer
from sppo.training.loop import Parts, WarmStart
from sppo.training.offload import EngineWithRoom
from sppo.training.prefit import prefit_checkpoint
from sppo.training.prompts import Prompts, load_data, load_demonstrations
from sppo.update.learner import PolicyLearner
from sppo.update.schedule import Curve
from sppo.update.steps import StepGuard, make_optimizer
from sppo.verifiers.functions import RewardFunction, load_function
from sppo.verifiers.grading import Grader
from sppo.verifiers.tools import Tools


def build(
    config: Config,
    given: Given,
    checkpoint: Path | None = None,
    *,
    guard: StepGuard | None = None,
    fine_tuning: bool = False,
) -> Parts:
    """Loads data, models, critic and engine; from a checkpoint where one is given.

    Args:
        config: all options, checked.
        given: what a Python program handed over.
        checkpoint: to go on from.
        guard: takes the optimiser steps.
        fine_tuning: only the supervised phases will run, which need no critic.

    Raises:
        SppoError: whatever is missing or doesn't fit together.
    """
    guard = guard or StepGuard(max_norm=config.optimizer.max_grad_norm)
    algorithm = algorithm_of(config)
    device = prepare_device(config.device, config.threads)
    seed = derive_seed(config.seed, "weights")
    torch.manual_seed(seed)
    # Nothing of ours draws from these; a reward function of the user's may.
    random.seed(seed)
    np.random.seed(seed % 2**32)
    source = config.model
    if checkpoint is not None:
        source = replace(source, path=str(checkpoint / "policy"), tokenizer=None, config=None)
    tokenizer = load_given_tokenizer(given, source, resumed=checkpoint is not None)
    require_end_token(tokenizer, source.tokenizer or source.path or "this model")
    architecture = load_model_config(source) if given.model is None else given.model.config
    _require_context(config, context_length(architecture), "the model")
    reward_function = reward_function_of(config, given)
    prompts = load_prompts(config, given, tokenizer, has_reward_function=reward_function is not None)
    require_prompts(config.critic, prompts.training, resumed=checkpoint is not None)
    planned = _planned(config, algorithm, tokenizer, architecture, prompts, device)
    tools = verifier_tools(config.verification, device, config.optimizer.tokens_per_microbatch)
    grader = Grader(reward_function, tools, opens_thinking(prompts.training[0], tokenizer))
    grader.prepare([*prompts.training, *prompts.held_out])
    process = None if fine_tuning else _process_rewards(config, tokenizer, device)
    warm_start = None if checkpoint is not None else _warm_start(config, given, tokenizer, prompts)
    policy, base = _policy(config, given, source, tokenizer, device, checkpoint)
    kind = None if fine_tuning else algorithm.critic
    critic = _critic(config, kind, policy, algorithm, tokenizer, prompts, checkpoint, guard, base)
    engine = _engine(config, policy)
    # After all that tries the model, or copies it; and before its optimiser, as its parameters are others then.
    shard_policy(policy, Precision.of(config.model.precision, device))
    learner = _learner(config, algorithm, policy, guard)
    sampling = sampling_parameters(config.sampling, tokenizer, policy, config.evaluation_temperature)
    optimizers = {"policy": learner.adam, **critic.optimizers}
    if config.optimizer.offload:
        engine = EngineWithRoom(engine, optimizers)
    return Parts(
        algorithm=algorithm,
        tokenizer=tokenizer,
        policy=learner,
        critic=critic,
        optimizers=optimizers,
        curves={name: Curve.of(config.critic, config.steps) for name in critic.optimizers}
        | {"policy": Curve.of(config.optimizer, config.steps)},
        engine=engine,
        grader=grader,
        collector=_collector(config, algorithm, learner, critic, engine, tokenizer, grader, process, prompts),
        held_out=HeldOut(prompts.held_out, engine, tokenizer, grader, sampling, config.seed, critic),
        warm_start=warm_start,
        load_reference=_reference_loader(config, tokenizer) if algorithm.needs_reference else None,
        notes=tuple(filter(None, (*prompts.notes, note_on(config.model.path if checkpoint is None else None)))),
        revisions={**prompts.revisions, **_revisions(config, given)},
        expected_memory=None if planned is None else partial(measured, planned),
    )


def _revisions(config: Config, given: Given) -> dict[str, str]:
    """Hub name of the policy, and of the critic's own trunk -> the commit that was read."""
    critic = ModelConfig(path=config.critic.path, revision=config.critic.revision)
    read = [critic] if given.model is not None else [config.model, critic]
    commits = {str(model.path): commit_of(model) for model in read}
    return {name: commit for name, commit in commits.items() if commit is not None}


def _policy(
    config: Config,
    given: Given,
    source: ModelConfig,
    tokenizer: Tokenizer,
    device: torch.device,
    checkpoint: Path | None,
) -> tuple[PreTrainedModel, str]:
    """The policy, able to do what the options promise, and folder or hub name of the weights that it stands on."""
    resumed = checkpoint is not None
    base = base_of_run(given, config.model, Path(config.output), resumed=resumed)
    policy = load_given_policy(given, source, tokenizer, device, resumed=resumed, base=base)
    if checkpoint is not None:
        freeze(policy, read_frozen(checkpoint))
    _require_promised(config, policy)
    return policy, base


def _engine(config: Config, policy: PreTrainedModel) -> Engine:
    return build_engine(
        policy,
        config.engine,
        max_tokens=_longest_sequence(config),
        memory_share=BESIDE_TRAINING,
        precision=config.model.precision,
    )


def _planned(
    config: Config,
    algorithm: Algorithm,
    tokenizer: Tokenizer,
    architecture: PretrainedConfig,
    prompts: Prompts,
    device: torch.device,
) -> Memory | None:
    """What the run will need of each GPU, if that is there; None on a CPU, whose memory is not all ours to plan."""
    if device.type != "cuda":
        return None
    planned = planned_memory(config, algorithm, tokenizer, architecture, prompts, device, ranks.world_size())
    require_room(planned, torch.cuda.get_device_properties(device).total_memory)
    return planned


def load_prompts(config: Config, given: Given, tokenizer: Tokenizer, *, has_reward_function: bool) -> Prompts:
    """Loads what a run reads; raises as `load_data`."""
    return load_data(
        config.data,
        config.evaluation,
        tokenizer,
        seed=config.seed,
        tools=Tools(config.verification),
        require_gold=not has_reward_function,
        rows=given.rows,
        held_out_rows=given.held_out_rows,
    )


def reward_function_of(config: Config, given: Given) -> RewardFunction | None:
    """The user's reward function, handed over or named in data.reward; None where verifiers judge."""
    return given.reward_function or (load_function(config.data.reward) if config.data.reward else None)


def _longest_sequence(config: Config) -> int:
    """Tokens of the longest prompt and response, held-out ones among them."""
    prompt = max(section.max_prompt_tokens for section in (config.data, config.evaluation.data or config.data))
    return prompt + config.sampling.max_response_tokens


def _require_context(config: Config, length: int | None, name: str) -> None:
    require_context(config.data.max_prompt_tokens, config.sampling.max_response_tokens, length, name)


def _require_promised(config: Config, policy: PreTrainedModel) -> None:
    """Refuses a policy without weights to train, and tries what the options promise: recomputation, packed rows."""
    if next(trainable_parameters(policy), None) is None:
        raise ModelError(
            "The model has no weights to train: requires_grad is False for all of them. Call "
            "model.requires_grad_(True), or do so for those that are to learn."
        )
    if config.model.gradient_checkpointing:
        require_recomputation(policy, causal_outputs(policy), "model.gradient_checkpointing")
    if config.optimizer.layout == "packed":
        require_packing(policy)


def _learner(config: Config, algorithm: Algorithm, policy: PreTrainedModel, guard: StepGuard) -> PolicyLearner:
    options = config.optimizer
    return PolicyLearner(
        model=policy,
        adam=make_optimizer(policy, options.learning_rate, options.weight_decay),
        algorithm=config.algorithm,
        loss=algorithm.loss,
        optimizer=options,
        sampling=config.sampling,
        rows=config.sequences_per_step,
        guard=guard,
    )


def _critic(
    config: Config,
    kind: str | None,
    policy: PreTrainedModel,
    algorithm: Algorithm,
    tokenizer: Tokenizer,
    prompts: Prompts,
    checkpoint: Path | None,
    guard: StepGuard,
    base: str,
) -> Critic:
    owner = Owner(
        policy,
        tokenizer,
        algorithm,
        config.optimizer,
        config.sampling,
        config.data.max_prompt_tokens,
        (*prompts.training, *prompts.held_out),
        config.model.trust_remote_code,
        prompts.training,
        Precision.of(config.model.precision, policy.device),
        base,
    )
    made = config.critic.prefit.path
    begun = checkpoint or (None if made is None else prefit_checkpoint(Path(made)))
    saved = None if begun is None else begun / "critic"
    return build_critic(kind, config.critic, owner, saved=saved, rows=config.sequences_per_step, guard=guard)


def _process_rewards(config: Config, tokenizer: Tokenizer, device: torch.device) -> ProcessRewards | None:
    tokens = config.optimizer.tokens_per_microbatch
    return load_process_rewards(config.verification.process, tokenizer, str(device), tokens)


def _collector(
    config: Config,
    algorithm: Algorithm,
    learner: PolicyLearner,
    critic: Critic,
    engine: Engine,
    tokenizer: Tokenizer,
    grader: Grader,
    process: ProcessRewards | None,
    prompts: Prompts,
) -> Collector:
    options = config.algorithm
    return Collector(
        selection=_selection(config, algorithm.selection, prompts),
        engine=engine,
        tokenizer=tokenizer,
        grader=grader,
        process=process,
        policy=learner,
        critic=critic,
        algorithm=algorithm,
        sampling=sampling_parameters(config.sampling, tokenizer, learner.model),
        prompts=config.prompts_per_step,
        samples=config.sampling.samples_per_prompt,
        second_responses=config.second_responses_per_step,
        rules=LengthRules(options.truncated, config.sampling.max_response_tokens, options.overlong_penalty_tokens),
        process_weight=config.verification.process.weight if config.verification.process.used else 0.0,
        seed=config.seed,
    )


def _selection(config: Config, name: str, prompts: Prompts) -> Selection:
    weights = config.data.weights
    stream = PromptStream(prompts.training, derive_seed(config.seed, "data"), weights)
    if name == "uniform":
        return UniformSelection(stream)
    return BeliefSelection(
        stream,
        PromptStream(prompts.training, derive_seed(config.seed, "control"), weights),
        rule=None if name == "auto" else name,
        steps=config.steps,
        seed=partial(derive_seed, config.seed, "selection"),
        uniform_share=config.selection.uniform_share,
        candidates=config.selection.candidates,
    )


def _warm_start(config: Config, given: Given, tokenizer: Tokenizer, prompts: Prompts) -> WarmStart:
    shown: tuple[list[TokenRow], ...] = load_demonstrations(
        config.sft.phases, config.data, tokenizer, prompts.unseen, seed=config.seed, rows=given.rows
    )
    new = given.model is None and config.model.path is None
    return WarmStart(tuple(config.sft.phases), shown, config.sft.betas, config.optimizer, trains_base=new)


def _reference_loader(config: Config, tokenizer: Tokenizer) -> Callable[[Path, torch.device], PreTrainedModel]:
    """Loads a frozen policy from a folder, as the model's options say."""
    options = replace(config.model, gradient_checkpointing=False)

    def load(folder: Path, device: torch.device) -> PreTrainedModel:
        policy = load_policy(replace(options, path=str(folder)), tokenizer, device).requires_grad_(False)
        shard_policy(policy, Precision.of(config.model.precision, device))
        return policy

    return load
