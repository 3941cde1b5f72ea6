"""`--dry-run`: what a run would do, from its options and the models' configs; no weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig

from sppo.algorithms.algorithm import Algorithm
from sppo.commands.memory import Sized, memory
from sppo.config import Config, ModelConfig, to_dict
from sppo.config.lora import LoraConfig
from sppo.critics.checks import require_prompts
from sppo.data.selection import control_of
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.adapter_files import find_base, is_adapter, read_config
from sppo.models.adapters import adapt, inject
from sppo.models.loading import (
    build_config,
    context_length,
    load_model_config,
    load_tokenizer,
    pick_device,
    read_tokenizer,
    trainable_parameters,
)
from sppo.models.quantization import quantizable_parameters
from sppo.rollouts.encode import require_context
from sppo.runs.folder import require_new, require_resumable
from sppo.training.build import algorithm_of, check, load_prompts, notes_on
from sppo.training.given import Given, require_again
from sppo.training.prompts import Prompts
from sppo.verifiers import reward_model
from sppo.verifiers.functions import load_function
from sppo.verifiers.table import verifiers_behind
from sppo.verifiers.tools import Tools


def plan(config: Config, *, resume: bool = False) -> list[tuple[str, str]]:
    """Returns label and value of each line of the plan. Loads configs, tokenizers and data, but no weights.

    Args:
        config: all options.
        resume: plan for going on with the run in `config.output` rather than for a new one.

    Raises:
        SppoError: what `train` would refuse before loading weights.
    """
    _require_allowed(config, resume)
    tokenizer = load_tokenizer(config.model, ALPHABET)
    architecture = _sized(load_model_config(config.model), config.model.config, len(tokenizer))
    longest_prompt, longest_response = config.data.max_prompt_tokens, config.sampling.max_response_tokens
    require_context(longest_prompt, longest_response, context_length(architecture), "the model")
    prompts = load_prompts(config, Given(), tokenizer, has_reward_function=config.data.reward is not None)
    training = prompts.training
    algorithm = algorithm_of(config)
    adapter = config.model.path if is_adapter(config.model.path) else None
    policy = _counted(architecture, AutoModelForCausalLM, config.model.lora, "model", adapter)
    probed = algorithm.critic == "prompt" and config.critic.source == "probe"
    modelled = algorithm.critic in ("prompt", "token") and not probed
    critic = _critic(config, architecture, len(tokenizer)) if modelled else None
    require_prompts(config.critic, training, resumed=resume)
    sequences, size = config.sequences_per_step, config.optimizer.minibatch_size
    longest = longest_prompt + longest_response
    updates = sequences // size * config.optimizer.epochs
    rows = [
        ("algorithm", f"{algorithm.name}: {algorithm.summary}"),
        ("run folder", config.output),
        ("device", str(pick_device(config.device))),
        ("data", f"{config.data.task}: {len(training):,} training prompts, {len(prompts.held_out):,} held out"),
        ("policy", f"{policy.parameters:,} parameters ({architecture.model_type}){_trained(policy, adapter)}"),
        ("critic", _size(critic, policy) if critic else "a probe of the policy's states" if probed else "none"),
        (
            "a step",
            f"{_asked(config)} = {sequences:,} sequences, at most "
            f"{sequences * config.sampling.max_response_tokens:,} response tokens",
        ),
        ("prompts", _choice(config, algorithm)),
        ("updates a step", f"{updates} of {size} sequences, at most {size * longest:,} tokens each"),
        ("micro-batches", f"{config.optimizer.tokens_per_microbatch:,} tokens ({config.optimizer.layout})"),
        (
            "steps",
            f"{config.steps:,}; prompts asked: {config.steps * config.prompts_per_step / len(training):.2f} x the pool",
        ),
        ("optimiser steps", f"{config.steps * updates:,}"),
        *memory(config, algorithm, policy, critic, _scoring(config, prompts), len(prompts.held_out)),
    ]
    if config.sft.phases:
        phases = ", then ".join(f"{p.demonstrations} (at most {p.steps:,} steps)" for p in config.sft.phases)
        rows.insert(4, ("warm start", phases))
    return rows + [("note", note) for note in (*prompts.notes, *notes_on(config, algorithm, len(training)))]


def _asked(config: Config) -> str:
    """A step's prompts and the responses to each."""
    prompts, more = config.prompts_per_step, config.second_responses_per_step
    if more:
        return f"{prompts - more:,} prompts and {more:,} second and third responses"
    return f"{prompts:,} prompts x {config.sampling.samples_per_prompt}"


def _choice(config: Config, algorithm: Algorithm) -> str:
    """How prompts are chosen, and what the critic learns from before."""
    before = config.critic.prefit
    fitted = f"; before, {before.samples:,} of them are answered for the critic" if before.samples else ""
    fitted = f"; the critic is that of {before.path}" if before.path else fitted
    if algorithm.selection == "uniform":
        return f"as they come{fitted}"
    asked = config.prompts_per_step - config.second_responses_per_step
    control = control_of(asked, config.selection.uniform_share)
    return f"chosen ({algorithm.selection}), but for {control:,} of {asked:,} a step{fitted}"


def _require_allowed(config: Config, resume: bool) -> None:
    check(config, Given())
    if resume:
        require_again(Path(config.output), Given())
        require_resumable(Path(config.output), to_dict(config))
    else:
        require_new(Path(config.output))
    if config.data.reward is not None:
        load_function(config.data.reward)


def _size(critic: Sized, policy: Sized) -> str:
    share = critic.parameters / policy.parameters
    return f"{critic.parameters:,} parameters ({share:.1%} of the policy){_trained(critic)}"


def _trained(model: Sized, adapter: str | None = None) -> str:
    """How many of a model's parameters are trained, where that aren't all; and where its adapter comes from."""
    if not model.resting:
        return ""
    begun = f", that in {adapter} on {find_base(adapter)}" if adapter else ""
    return f", of which an adapter's {model.trained:,} are trained{begun}"


def _counted(
    architecture: PretrainedConfig, kind: Any, lora: LoraConfig, key: str, adapter: str | None = None
) -> Sized:
    """A model with the adapter that it will have, counted on the meta device, where nothing is allocated.

    Args:
        architecture: of the model.
        kind: AutoModel or AutoModelForCausalLM.
        lora: the adapter's options.
        key: the section of the model, for messages.
        adapter: folder of an adapter that it has already.
    """
    with torch.device("meta"):
        model = kind.from_config(architecture)
        if adapter is not None:
            inject(model, read_config(adapter))
        adapt(model, lora, "", key)
    trained = sum(parameter.numel() for parameter in trainable_parameters(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    quantized = quantizable_parameters(model) if lora.quantize != "none" else 0
    return Sized(architecture, total, total - trained, quantized)


def count_parameters(architecture: PretrainedConfig, kind: Any) -> int:
    """Parameters of a model, counted on the meta device, where nothing is allocated."""
    with torch.device("meta"):
        model = kind.from_config(architecture)
    return sum(parameter.numel() for parameter in model.parameters())


def _scoring(config: Config, prompts: Prompts) -> list[Sized]:
    """The models that judge responses, or their steps, where there are any."""
    options, tools = config.verification, Tools(config.verification)
    judges = {prompt.verifier for prompt in (*prompts.training, *prompts.held_out)} if not config.data.reward else set()
    behind = {name for judge in judges for name in verifiers_behind(judge, tools)}
    named = [("verification.process.model", options.process.model, options.process.trust_remote_code)]
    if reward_model.NAME in behind:
        own = options.reward_model
        named.append(("verification.reward_model.path", own.path, own.trust_remote_code))
    found = []
    for key, path, trusted in named:
        if path is not None:
            architecture = load_model_config(ModelConfig(path=path, trust_remote_code=trusted), key)
            found.append(Sized(architecture, count_parameters(architecture, AutoModel)))
    return found


def _critic(config: Config, policy: PretrainedConfig, vocabulary: int) -> Sized:
    options = config.critic
    if options.tokenizer or options.path:
        key = "critic.tokenizer" if options.tokenizer else "critic.path"
        vocabulary = len(read_tokenizer(options.tokenizer or str(options.path), key))
    if options.path is not None:
        architecture = load_model_config(ModelConfig(path=options.path), "critic.path")
    elif options.config is not None:
        architecture = _sized(build_config(options.config, "critic.config"), options.config, vocabulary)
    else:
        architecture = policy
    head = architecture.get_text_config().hidden_size + 1
    one = _counted(architecture, AutoModel, options.lora, "critic")
    many = options.members
    return Sized(architecture, (one.parameters + head) * many, one.resting * many, one.quantized * many)


def _sized(architecture: PretrainedConfig, settings: Mapping[str, Any] | None, vocabulary: int) -> PretrainedConfig:
    """A model made from settings takes its vocabulary from the tokenizer, unless the settings name one."""
    if settings is not None and "vocab_size" not in settings:
        architecture.vocab_size = vocabulary
    return architecture
