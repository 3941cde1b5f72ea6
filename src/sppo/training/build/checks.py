"""What a run's options mean together, checked before data or models are touched."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from sppo.algorithms.algorithm import Algorithm
from sppo.algorithms.table import settle_algorithm
from sppo.config import Config
from sppo.config.settle import check as check_options
from sppo.config.settle import require_divisor
from sppo.critics.build import check_critic
from sppo.data.selection import control_of
from sppo.errors import ConfigError
from sppo.models.loading import pick_device
from sppo.models.quantization import require_quantization
from sppo.rollouts.engines import check_engine
from sppo.runs.sinks import require_sinks
from sppo.training.given import Given, section_of_rows
from sppo.training.rules import check_rewards
from sppo.verifiers.functions import handed_over


def check(config: Config, given: Given, *, planned: bool = False) -> Config:
    """Checks all that can be checked without data or models; returns the config with what was handed over noted.

    Args:
        config: all options.
        given: what a Python program handed over.
        planned: the run is only planned here, so that its engine need not be installed.

    Raises:
        ConfigError: an option or combination that cannot work.
    """
    config = _noted(config, given)
    check_options(config)
    algorithm = algorithm_of(config)
    if algorithm.critic in ("prompt", "token"):
        require_divisor(config, "critic.minibatch_size", config.critic.minibatch_size)
    check_critic(config.critic, algorithm.critic)
    prefit = config.critic.prefit
    if (prefit.samples or prefit.path is not None) and algorithm.critic in (None, "tracker", "optimal"):
        raise ConfigError(
            f"critic.prefit fits a critic before the first update, but {algorithm.name} "
            + ("has none." if algorithm.critic is None else "samples what its V starts from by itself.")
            + " Leave it out."
        )
    config.data.each()
    sections = [config.data] if config.evaluation.data is None else [config.data, config.evaluation.data]
    check_rewards(config.verification, sections, algorithm, has_reward_function=given.reward_function is not None)
    require_sinks(config.logging.sinks)
    for key, lora in (("model.lora", config.model.lora), ("critic.lora", config.critic.lora)):
        if lora.quantize != "none":
            require_quantization(lora, key, pick_device(config.device))
    precision = config.model.precision
    if config.device == "mps" and precision.startswith("bf16"):
        raise ConfigError(
            f"model.precision is {precision} and device is mps: to compute in bfloat16 takes FSDP2, which Apple's GPUs "
            "don't have. Set model.precision to fp32."
        )
    if precision == "bf16_weights":
        _require_bf16_weights(config, installed=not planned)
    check_engine(config.engine, config.sampling.temperature, config.evaluation_temperature, installed=not planned)
    return config


def _require_bf16_weights(config: Config, *, installed: bool) -> None:
    """Refuses weights in bfloat16 beside weights in 4 bits, and where what trains them is not installed."""
    for key, lora in (("model.lora", config.model.lora), ("critic.lora", config.critic.lora)):
        if lora.quantize != "none":
            raise ConfigError(
                f"model.precision is bf16_weights, and {key}.quantize {lora.quantize} holds them in 4 bits. Set "
                f"model.precision to bf16, or {key}.quantize to none."
            )
    if installed and find_spec("torchao") is None:
        raise ConfigError(
            "model.precision is bf16_weights, but torchao is not installed: pip install 'sppo[torchao]', or set "
            "model.precision to bf16, which keeps weights in float32."
        )


def algorithm_of(config: Config) -> Algorithm:
    """The algorithm as the run uses it, with its options in it; raises as `settle_algorithm`."""
    return settle_algorithm(
        config.algorithm,
        config.sampling.samples_per_prompt,
        critic=config.critic,
        process_rewards=config.verification.process.used,
        selection=config.selection.name,
        adaptive_share=config.sampling.adaptive_share,
    )


def _noted(config: Config, given: Given) -> Config:
    """The config with what was handed over in the place of what it stands for."""
    data, evaluation = config.data, config.evaluation
    if given.model is not None:
        name = getattr(given.model, "name_or_path", "") or type(given.model).__name__
        config = replace(config, model=replace(config.model, path=name, config=None))
    if given.rows is not None:
        data, evaluation = replace(data, task="rows", path=None), replace(evaluation, data=None)
    if given.held_out_rows is not None:
        evaluation = replace(evaluation, data=section_of_rows(data))
    if given.reward_function is not None:
        data = replace(data, reward=handed_over(given.reward_function))
    return replace(config, data=data, evaluation=evaluation)


def notes_on(config: Config, algorithm: Algorithm, pool: int) -> list[str]:
    """What was asked for and can have no effect, for people.

    Args:
        config: all options.
        algorithm: as the run uses it.
        pool: number of prompts to train on.
    """
    notes, asked = [], config.prompts_per_step - config.second_responses_per_step
    if algorithm.selection != "uniform":
        share = config.selection.uniform_share
        why = {
            f"a step asks {asked} prompts, and there are {pool}": pool <= asked,
            "a step asks a single prompt, which is its control group": asked == 1,
            f"selection.uniform_share {share:g} leaves none of {asked}": control_of(asked, share) == asked,
        }
        found = next((text for text, holds in why.items() if holds), None)
        if found is not None:
            notes.append(f"selection.name {algorithm.selection} has nothing to choose: {found}.")
    share = config.sampling.adaptive_share
    if share and not config.second_responses_per_step:
        notes.append(f"sampling.adaptive_share {share:g} of {config.prompts_per_step} responses a step is none.")
    for key, section in (("optimizer", config.optimizer), ("critic", config.critic)):
        warmup = section.learning_rate_warmup
        if warmup >= config.steps and not (key == "critic" and algorithm.critic is None):
            notes.append(
                f"{key}.learning_rate_warmup {warmup} reaches past the run's {config.steps} steps: its learning rate "
                "never stays at its peak."
            )
    return notes
