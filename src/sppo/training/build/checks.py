"""What a run's options mean together, checked before data or models are touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.algorithm import Algorithm
from sppo.algorithms.table import settle_algorithm
from sppo.config import Config, to_dict
from sppo.config.compatibility import prefit_differences, written_config
from sppo.config.settle import check as check_options
from sppo.config.settle import require_divisor
from sppo.critics.build import Owner, build_critic, check_critic
from sppo.critics.checks import known_rates
from sppo.critics.critic import Critic
from sppo.data.selection import BeliefSelection, Selection, UniformSelection
from sppo.data.stream import PromptStream, fingerprint
from sppo.errors import ConfigError, ModelError, RunFolderError
from sppo.evaluation.held_out import HeldOut
from sppo.models.checks import causal_outputs, require_packing, require_recomputation
from sppo.models.loading import (
    context_length,
    load_model_config,
    load_policy,
    prepare_device,
    require_end_token,
    trainable_parameters,
)
from sppo.models.packing import TokenRow
from sppo.models.process_rewards import ProcessRewards, load_process_rewards
from sppo.models.scoring import verifier_tools
from sppo.rollouts.encode import opens_thinking, require_context
from sppo.rollouts.engines import BESIDE_TRAINING, build_engine, engine_options
from sppo.rollouts.engines.engine import Engine
from sppo.rollouts.sample import sampling_parameters
from sppo.runs.checkpoint import (
    TrainingState,
    count_checkpoints,
    find_checkpoint,
    load_optimizers,
    load_state,
    restore_random_state,
)
from sppo.runs.folder import RunFolder
from sppo.runs.progress import Progress
from sppo.runs.seeds import derive_seed
from sppo.runs.sinks import Sinks, require_sinks
from sppo.training.collate import LengthRules
from sppo.training.collect import Collector
from sppo.training.given import Given, load_given_policy, load_given_tokenizer, require_again, section_of_rows
from sppo.training.loop import Parts, Run, Schedule, WarmStart
from sppo.training.prefit import prefit_checkpoint, read_prefit, take_up_prefit
from sppo.training.prompts import Prompts, load_data, load_demonstrations
from sppo.training.record import Recorder
from sppo.training.rules import check_rewards
from sppo.training.start import require_reference
from sppo.update.estimate import sampler_notes
from sppo.update.learner import PolicyLearner
from sppo.update.schedule import Curve
from sppo.update.steps import StepGuard, make_optimizer
from sppo.verifiers.functions import RewardFunction, handed_over, load_function
from sppo.verifiers.grading import Grader
from sppo.verifiers.tools import Tools


def check(config: Config, given: Given) -> Config:
    """Checks all that can be checked without data or models; returns the config with what was handed over noted.

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
    sections = [config.data] if config.evaluation.data is None else [config.data, config.evaluation.data]
    check_rewards(config.verification, sections, algorithm, has_reward_function=given.reward_function is not None)
    require_sinks(config.logging.sinks)
    engine_options(config.engine)
    return config


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
    notes, prompts = [], config.prompts_per_step
    if algorithm.selection != "uniform":
        why = {
            f"a step asks {prompts} prompts, and there are {pool}": pool <= prompts,
            "a step asks a single prompt": prompts == 1,
            "selection.uniform_share leaves none to choose": round(config.selection.uniform_share * prompts) >= prompts,
        }
        found = next((text for text, holds in why.items() if holds), None)
        if found is not None:
            notes.append(f"selection.name {algorithm.selection} has nothing to choose: {found}.")
    share = config.sampling.adaptive_share
    if share and not round(share * prompts):
        notes.append(f"sampling.adaptive_share {share:g} of {prompts} responses a step is none.")
    for key, section in (("optimizer", config.optimizer), ("critic", config.critic)):
        warmup = section.learning_rate_warmup
        if warmup >= config.steps and not (key == "critic" and algorithm.critic is None):
            notes.append(
                f"{key}.learning_rate_warmup {warmup} reaches past the run's {config.steps} steps: its learning rate never "
                "stays at its peak."
            )
    return notes
