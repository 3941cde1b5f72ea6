"""`--dry-run`: what a run would do, from its options and the models' configs; no weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig

from sppo.algorithms.table import get_algorithm
from sppo.config import Config, ModelConfig, to_dict
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.loading import (
    build_config,
    context_length,
    load_model_config,
    load_tokenizer,
    pick_device,
    read_tokenizer,
)
from sppo.models.logprobs import chunk_tokens
from sppo.rollouts.encode import require_context
from sppo.runs.files import gigabytes
from sppo.runs.folder import require_new, require_resumable
from sppo.training.build import check, load_prompts
from sppo.training.given import Given, require_again
from sppo.verifiers.functions import load_function

BYTES_TRAINED = 16
"""Bytes a parameter in training: float32 weight, gradient and AdamW's two moments."""


def plan(config: Config, *, resume: bool = False) -> list[tuple[str, str]]:
    """Returns label and value of each line of the plan. Loads configs, tokenizers and data, but no weights.

    Args:
        config: all options.
        resume: plan for going on with the run in `config.output` rather than for a new one.

    Raises:
        SppoError: what `train` would refuse before loading weights.
    """
    check(config, Given())
    if resume:
        require_again(Path(config.output), Given())
        require_resumable(Path(config.output), to_dict(config))
    else:
        require_new(Path(config.output))
    if config.data.reward is not None:
        load_function(config.data.reward)
    tokenizer = load_tokenizer(config.model, ALPHABET)
    architecture = _sized(load_model_config(config.model), config.model.config, len(tokenizer))
    longest_prompt, longest_response = config.data.max_prompt_tokens, config.sampling.max_response_tokens
    require_context(longest_prompt, longest_response, context_length(architecture), "the model")
    prompts = load_prompts(config, Given(), tokenizer, has_reward_function=config.data.reward is not None)
    training = prompts.training
    policy = count_parameters(architecture, AutoModelForCausalLM)
    critic = _critic_parameters(config, architecture, len(tokenizer)) if _has_critic(config) else 0
    sequences, size = config.sequences_per_step, config.optimizer.minibatch_size
    longest = longest_prompt + longest_response
    updates = sequences // size * config.optimizer.epochs
    rows = [
        ("algorithm", f"{config.algorithm.name}: {get_algorithm(config.algorithm.name).summary}"),
        ("run folder", config.output),
        ("device", str(pick_device(config.device))),
        ("data", f"{config.data.task}: {len(training):,} training prompts, {len(prompts.held_out):,} held out"),
        ("policy", f"{policy:,} parameters ({architecture.model_type})"),
        ("critic", f"{critic:,} parameters ({critic / policy:.1%} of the policy)" if critic else "none"),
        (
            "a step",
            f"{config.prompts_per_step:,} prompts x {config.sampling.samples_per_prompt} = {sequences:,} sequences, at "
            f"most {sequences * config.sampling.max_response_tokens:,} response tokens",
        ),
        ("updates a step", f"{updates} of {size} sequences, at most {size * longest:,} tokens each"),
        ("micro-batches", f"{config.optimizer.tokens_per_microbatch:,} tokens ({config.optimizer.layout})"),
        (
            "steps",
            f"{config.steps:,}, the first {config.critic.warmup_steps} for the critic alone; "
            f"{config.steps * config.prompts_per_step / len(training):.2f} passes over the prompts",
        ),
        ("optimiser steps", f"{config.steps * updates:,}"),
        *memory(config, architecture, policy, critic),
    ]
    if config.sft.phases:
        phases = ", then ".join(f"{p.demonstrations} (at most {p.steps:,} steps)" for p in config.sft.phases)
        rows.insert(4, ("warm start", phases))
    return rows + [("note", note) for note in prompts.notes]


def memory(
    config: Config, architecture: PretrainedConfig, policy_parameters: int, critic_parameters: int
) -> list[tuple[str, str]]:
    """Rough upper estimates, for rows as long as they may get, on one device without sharding."""
    text = architecture.get_text_config()
    layers, hidden = text.num_hidden_layers, text.hidden_size
    heads = getattr(text, "num_attention_heads", 1)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_size = getattr(text, "head_dim", None) or hidden // heads
    device = pick_device(config.device)
    width = 2 if device.type == "cuda" else 4
    longest = config.data.max_prompt_tokens + config.sampling.max_response_tokens
    rows = min(config.engine.max_rows, config.sequences_per_step)
    cache = rows * longest * layers * 2 * kv_heads * head_size * width
    logits = 3 * chunk_tokens(text.vocab_size, device) * text.vocab_size * 4
    # About 17 hidden-wide tensors a layer are kept for the backward pass; with checkpointing one.
    kept = 1 if config.model.gradient_checkpointing else 17
    activations = config.optimizer.tokens_per_microbatch * layers * hidden * kept * width
    weights = policy_parameters * BYTES_TRAINED
    critic = critic_parameters * BYTES_TRAINED
    total = weights + critic + max(cache, activations + logits)
    return [
        ("memory: policy", f"{gigabytes(weights)} (weights, gradients, AdamW: {BYTES_TRAINED} bytes a parameter)"),
        ("memory: critic", f"{gigabytes(critic)} (the same)"),
        ("memory: sampling", f"{gigabytes(cache)} key-value cache of {rows} rows of {longest:,} tokens"),
        ("memory: update", f"{gigabytes(activations + logits)} activations and logits of a micro-batch"),
        ("memory: estimate", f"{gigabytes(total)} at the peak, unsharded"),
    ]


def count_parameters(architecture: PretrainedConfig, kind: Any) -> int:
    """Parameters of a model, counted on the meta device, where nothing is allocated."""
    with torch.device("meta"):
        model = kind.from_config(architecture)
    return sum(parameter.numel() for parameter in model.parameters())


def _has_critic(config: Config) -> bool:
    return get_algorithm(config.algorithm.name).critic in ("prompt", "token")


def _critic_parameters(config: Config, policy: PretrainedConfig, vocabulary: int) -> int:
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
    return count_parameters(architecture, AutoModel) + architecture.get_text_config().hidden_size + 1


def _sized(architecture: PretrainedConfig, settings: Mapping[str, Any] | None, vocabulary: int) -> PretrainedConfig:
    """A model made from settings takes its vocabulary from the tokenizer, unless the settings name one."""
    if settings is not None and "vocab_size" not in settings:
        architecture.vocab_size = vocabulary
    return architecture
