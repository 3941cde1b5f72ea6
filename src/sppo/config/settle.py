"""Rules that options must keep, alone and together; checked before any model or data is touched.

What needs the table of algorithms, and with it torch, is settled by `sppo.algorithms.table.settle_algorithm`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sppo.algorithms.options import ALGORITHM_OPTIONS, JointOptions, SpoOptions, SppoOptions
from sppo.config.keys import options
from sppo.config.options import AlgorithmConfig, Config
from sppo.config.parsing import build, check_ranges
from sppo.config.ranges import Section
from sppo.errors import ConfigError, did_you_mean


def check(config: Config, *, training: bool = True) -> None:
    """Checks every rule that needs no model, no data and no table of algorithms.

    Args:
        config: all options.
        training: whether it is to be trained with; evaluations need neither critic nor ratio, and cut no steps.

    Raises:
        ConfigError: names the key, the value found and what would work.
    """
    check_ranges(config)
    own_options(config.algorithm)
    _check_adapters(config)
    for key, named in (("model", config.model), ("critic", config.critic)):
        if named.revision is not None and (named.path is None or Path(named.path).exists()):
            found = "names none" if named.path is None else f"is the folder {named.path}"
            raise ConfigError(f"{key}.revision is of a model on the hub, but {key}.path {found}. Leave it out.")
    if training:
        _check_start(config)
        _check_batches(config)
    if config.model.path is None and config.model.config is None:
        raise ConfigError(
            "model.path is not set: give a folder or hub name, as in --model.path Qwen/Qwen2.5-0.5B-Instruct, "
            "or model.config for a new, randomly initialised model."
        )


def _check_adapters(config: Config) -> None:
    """Refuses adapters that would have nothing to stand on, or no layer to stand in."""
    model, critic = config.model, config.critic
    new = model.path is None and model.config is not None
    for key, lora, has_path in (("model", model.lora, not new), ("critic", critic.lora, critic.path is not None)):
        if lora.targets and not lora.rank:
            raise ConfigError(f"{key}.lora.targets is set, but {key}.lora.rank is 0, so that there is no adapter.")
        if lora.targets == []:
            raise ConfigError(
                f"{key}.lora.targets is empty: name layers, as in [q_proj, v_proj], or set it to null for every linear "
                "layer."
            )
        if lora.quantize != "none" and not (lora.rank and has_path):
            lacks = f"{key}.path names no model to load so" if lora.rank else f"{key}.lora.rank is 0"
            raise ConfigError(
                f"{key}.lora.quantize is {lora.quantize}, which holds weights that rest in 4 bits, but {lacks}. Set "
                f"{key}.lora.quantize to none, or give both."
            )
    if critic.lora.rank and critic.source == "probe":
        raise ConfigError(
            "critic.lora.rank is set, but critic.source is probe, which has no weights of its own but its head. Set "
            "one of them to its default."
        )
    if critic.lora.rank and critic.path is None and (critic.config is not None or new):
        where = "critic.config" if critic.config is not None else "model.config, whose backbone it copies"
        raise ConfigError(
            f"critic.lora.rank is {critic.lora.rank}, but the critic's trunk is made new from {where}: an adapter of "
            "random weights learns little. Set critic.lora.rank to 0, or name a trunk with critic.path."
        )


_OBJECTIVE_OF = {"k": "pass_at_k", "floor": "log_likelihood"}
"""Options that one objective of SPPO alone looks at."""


def own_options(algorithm: AlgorithmConfig) -> tuple[Section, JointOptions]:
    """Returns the algorithm's own options and those of ratio joint, as `algorithm.options` has them.

    Raises:
        ConfigError: no such algorithm, no such option (lists those that there are), or a value that can't be.
    """
    if algorithm.name not in ALGORITHM_OPTIONS:
        raise ConfigError(
            f"algorithm.name is {algorithm.name!r}, which is no algorithm here."
            f"{did_you_mean(algorithm.name, ALGORITHM_OPTIONS)}"
        )
    own = ALGORITHM_OPTIONS[algorithm.name]
    known = {**options(own), **(options(JointOptions) if algorithm.ratio == "joint" else {})}
    for name in algorithm.options:
        if name not in known:
            accepted = " ".join(
                f"{key} (default {_plain(option.default)}): {option.help}" for key, option in known.items()
            )
            raise ConfigError(
                f"algorithm.options.{name} is no option of {algorithm.name}, which accepts: {accepted or 'none.'}"
            )

    def made(section: type[Section]) -> Any:
        given = {name: value for name, value in algorithm.options.items() if name in options(section)}
        return build(section, given, "algorithm.options.")

    settled = made(own)
    if isinstance(settled, SpoOptions) and settled.rho_min > settled.rho_max:
        raise ConfigError(f"algorithm.options.rho_min is {settled.rho_min:g}, more than rho_max, {settled.rho_max:g}.")
    for name, objective in _OBJECTIVE_OF.items():
        if name in algorithm.options and isinstance(settled, SppoOptions) and settled.objective != objective:
            raise ConfigError(
                f"algorithm.options.{name} is for objective {objective}, but algorithm.options.objective is "
                f"{settled.objective}. Leave {name} out, or set the objective."
            )
    return settled, made(JointOptions)


def _plain(value: Any) -> str:
    """A default for people: 0.5, not 0.50; names as they are."""
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _check_start(config: Config) -> None:
    """Refuses a critic and a ratio that could not start where they have to."""
    if config.critic.loss == "bce" and config.critic.prior is not None and not 0 < config.critic.prior < 1:
        raise ConfigError(f"critic.prior is {config.critic.prior}, but must lie strictly between 0 and 1.")
    if config.critic.prefit.path == "":
        raise ConfigError("critic.prefit.path is empty: name the folder that `sppo prefit` made, or set it to null.")
    if config.critic.prefit.path is not None and config.sft.phases:
        raise ConfigError(
            "critic.prefit.path names a critic that was fitted to a policy, but sft.phases would fine-tune that policy "
            "first. Set sft.phases to [], with model.path the policy in the same folder."
        )
    if config.critic.prefit.samples and config.critic.prefit.path is not None:
        raise ConfigError(
            f"critic.prefit.samples is {config.critic.prefit.samples}, but critic.prefit.path names a critic that has "
            "learned before: set one of them alone."
        )
    truncated = config.sampling.top_p < 1 or config.sampling.top_k > 0
    if config.algorithm.old_logprobs == "sampler" and truncated:
        raise ConfigError(
            f"algorithm.old_logprobs is sampler, but with sampling.top_p {config.sampling.top_p} and top_k "
            f"{config.sampling.top_k} the sampler's log-probabilities are those of the truncated distribution, and the "
            "ratio would not start at 1. Set algorithm.old_logprobs to trainer, or top_p to 1 and top_k to 0."
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
    share, samples = config.sampling.adaptive_share, config.sampling.samples_per_prompt
    if share and samples > 1:
        raise ConfigError(
            f"sampling.adaptive_share is {share:g}, which gives some prompts a second and a third response, but "
            f"sampling.samples_per_prompt is {samples}. Set one of them to its default, 0 or 1."
        )
    longest = config.data.max_prompt_tokens + config.sampling.max_response_tokens
    if config.optimizer.tokens_per_microbatch < longest:
        raise ConfigError(
            f"optimizer.tokens_per_microbatch is {config.optimizer.tokens_per_microbatch}, less than the longest "
            f"sequence: data.max_prompt_tokens {config.data.max_prompt_tokens} + sampling.max_response_tokens "
            f"{config.sampling.max_response_tokens} = {longest}. Set it to at least {longest}."
        )
