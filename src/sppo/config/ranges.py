"""Rules that options must keep, alone and together; checked before any model or data is touched."""

from __future__ import annotations

import math
from typing import Any

from sppo.config import Config, flatten, to_dict
from sppo.errors import ConfigError


def validate(config: Config) -> None:
    """Checks every rule that needs no model and no data.

    Raises:
        ConfigError: names the key, the value found and what would work.
    """
    check_ranges(config)
    _check_sampling(config)
    _check_fine_tuning(config)
    _check_batches(config)
    if config.model.path is None and config.model.config is None:
        raise ConfigError(
            "model.path is not set: give a folder or hub name, as in --model.path Qwen/Qwen2.5-0.5B-Instruct, "
            "or model.config for a new, randomly initialised model."
        )


_AT_LEAST_ONE = (
    "steps", "prompts_per_step", "critic.minibatch_size", "critic.epochs", "data.max_prompt_tokens",
    "sampling.max_response_tokens", "sampling.samples_per_prompt", "optimizer.minibatch_size", "optimizer.epochs",
    "optimizer.tokens_per_microbatch", "optimizer.logprob_chunk_tokens", "optimizer.max_skipped_steps",
    "engine.max_rows", "evaluation.prompts", "evaluation.samples_per_prompt", "evaluation.final_samples_per_prompt",
    "checkpoint.keep", "algorithm.dynamic_sampling_rounds", "verification.workers",
    "verification.reward_model.tokens_per_microbatch", "verification.process.tokens_per_microbatch",
)  # fmt: skip
_POSITIVE = (
    "critic.learning_rate", "critic.max_grad_norm", "optimizer.learning_rate", "optimizer.max_grad_norm",
    "sampling.temperature", "sft.max_grad_norm", "verification.time_limit",
    "verification.reward_model.scale", "verification.process.weight",
)  # fmt: skip
_NOT_NEGATIVE = (
    "critic.warmup_steps", "critic.weight_decay", "optimizer.weight_decay", "sampling.top_k", "evaluation.every",
    "checkpoint.every", "logging.rollouts_every", "sft.weight_decay", "algorithm.kl_coefficient",
    "algorithm.entropy_coefficient", "algorithm.overlong_penalty_tokens",
)  # fmt: skip


def check_ranges(config: Config) -> None:
    """Checks each number against the range that it must lie in.

    Raises:
        ConfigError: names the key, the value found and the range.
    """
    flat = flatten(to_dict(config))

    def require(keys: tuple[str, ...], holds: Any, wanted: str) -> None:
        for key in keys:
            if not (isinstance(flat[key], (int, float)) and math.isfinite(flat[key]) and holds(flat[key])):
                raise ConfigError(f"{key} is {flat[key]}, but must be {wanted}.")

    require(_AT_LEAST_ONE, lambda value: value >= 1, "at least 1")
    require(_POSITIVE, lambda value: value > 0, "greater than 0")
    require(_NOT_NEGATIVE, lambda value: value >= 0, "0 or more")
    require(("sampling.top_p",), lambda value: 0 < value <= 1, "in (0, 1]")
    require(("verification.max_error_share",), lambda value: 0 <= value <= 1, "in [0, 1]")
    require(("verification.memory_limit_mb",), lambda value: value >= 256, "at least 256")
    if config.algorithm.clip_low is not None:
        require(("algorithm.clip_low",), lambda value: 0 < value <= 1, "in (0, 1]")
    if config.algorithm.clip_high is not None:
        require(("algorithm.clip_high",), lambda value: value > 0, "greater than 0")
    if config.critic.loss == "bce" and config.critic.prior is not None and not 0 < config.critic.prior < 1:
        raise ConfigError(f"critic.prior is {config.critic.prior}, but must lie strictly between 0 and 1.")
    if config.algorithm.dual_clip is not None and config.algorithm.dual_clip <= 1:
        raise ConfigError(f"algorithm.dual_clip is {config.algorithm.dual_clip}, but must be greater than 1 (or null).")
    if config.algorithm.importance_cap is not None and config.algorithm.importance_cap <= 0:
        raise ConfigError(f"algorithm.importance_cap is {config.algorithm.importance_cap}, but must be greater than 0.")
    if config.evaluation.temperature is not None and config.evaluation.temperature < 0:
        raise ConfigError(f"evaluation.temperature is {config.evaluation.temperature}, but must be 0 or more.")


def _check_sampling(config: Config) -> None:
    negative = [token for token in config.sampling.stop_token_ids if token < 0]
    if negative:
        raise ConfigError(f"sampling.stop_token_ids has {negative[0]}, but token ids are 0 or more.")
    if config.threads is not None and config.threads < 1:
        raise ConfigError(f"threads is {config.threads}, but must be at least 1 (or null for all cores).")
    truncated = config.sampling.top_p < 1 or config.sampling.top_k > 0
    if config.algorithm.old_logprobs == "sampler" and truncated:
        raise ConfigError(
            f"algorithm.old_logprobs is sampler, but with sampling.top_p {config.sampling.top_p} and top_k "
            f"{config.sampling.top_k} the sampler's log-probabilities are those of the truncated distribution, and the "
            "ratio would not start at 1. Set algorithm.old_logprobs to trainer, or top_p to 1 and top_k to 0."
        )


def _check_fine_tuning(config: Config) -> None:
    for section, betas in (("optimizer", config.optimizer.betas), ("sft", config.sft.betas)):
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"{section}.betas is {list(betas)}, but both must lie in [0, 1).")
    for number, phase in enumerate(config.sft.phases):
        for name in ("steps", "batch_size", "check_every"):
            if getattr(phase, name) < 1:
                raise ConfigError(f"sft.phases.{number}.{name} is {getattr(phase, name)}, but must be at least 1.")
        if not 0 < phase.learning_rate < math.inf:
            raise ConfigError(
                f"sft.phases.{number}.learning_rate is {phase.learning_rate}, but must be greater than 0."
            )


def require_divisor(config: Config, key: str, size: int) -> None:
    """Refuses mini-batches that do not divide a step's sequences.

    Raises:
        ConfigError: names sizes that would.
    """
    total = config.sequences_per_step
    if total % size:
        divisors = [d for d in range(1, total + 1) if total % d == 0]
        near = sorted(sorted(divisors, key=lambda d: max(d / size, size / d))[:3])
        raise ConfigError(
            f"{key} is {size}, which does not divide a step's {total} sequences (prompts_per_step "
            f"{config.prompts_per_step} x sampling.samples_per_prompt {config.sampling.samples_per_prompt}). "
            f"These would: {', '.join(map(str, near))}."
        )


def _check_batches(config: Config) -> None:
    require_divisor(config, "optimizer.minibatch_size", config.optimizer.minibatch_size)
    longest = config.data.max_prompt_tokens + config.sampling.max_response_tokens
    if config.optimizer.tokens_per_microbatch < longest:
        raise ConfigError(
            f"optimizer.tokens_per_microbatch is {config.optimizer.tokens_per_microbatch}, less than the longest "
            f"sequence: data.max_prompt_tokens {config.data.max_prompt_tokens} + sampling.max_response_tokens "
            f"{config.sampling.max_response_tokens} = {longest}. Set it to at least {longest}."
        )
