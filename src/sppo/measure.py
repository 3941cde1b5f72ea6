"""`sppo eval`: the accuracy of a run's checkpoint, or of any model, on a config's held-out prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms import get_algorithm
from sppo.build import Given, load_data, load_held_out
from sppo.checkpoint import require_checkpoint
from sppo.config import Config, ModelConfig
from sppo.critics import PromptModelCritic
from sppo.engines import build_engine
from sppo.errors import ConfigError
from sppo.evaluation import Evaluation, evaluate
from sppo.grading import Grader, RewardFunction, load_reward_function
from sppo.models.chat import opens_thinking
from sppo.models.critic import PromptCritic
from sppo.models.loading import load_policy, load_tokenizer, pick_device
from sppo.recipes.evaluation import evaluation_config
from sppo.rollout import sampling_parameters
from sppo.run import NoProgress, Progress, derive_seed
from sppo.tasks.chain_arithmetic import ALPHABET
from sppo.types import Prompt
from sppo.verifiers.tools import Tools


def evaluate_run(
    path: str,
    config: Config | None = None,
    *,
    checkpoint: str = "last",
    samples_per_prompt: int | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    reward_function: RewardFunction | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Samples and grades responses to held-out prompts.

    Args:
        path: a run folder, or a model's folder or hub name.
        config: data and sampling; default: the run's own. See `sppo.recipes.evaluation.evaluation_config`.
        checkpoint: "best", "last" or "step_N" of a run.
        samples_per_prompt: default: the config's final_samples_per_prompt.
        rows: dicts of columns to measure on, all of them, instead of the config's held-out prompts.
        reward_function: grades instead of the config's verifier or reward function.
        progress: told what it does.

    Returns:
        accuracy, accuracy_stderr, prompts, samples_per_prompt, accuracy_by_difficulty, clipped_share, and the
        critic's calibration where the run has one.

    Raises:
        SppoError: no such checkpoint, or a model or data that can't be loaded.
    """
    folder = Path(path).expanduser()
    is_run = (folder / "config.yaml").is_file()
    progress = progress or NoProgress()
    if config is None:
        config, notes = evaluation_config(path)
        for note in notes:
            progress.message(note)
    if is_run and rows is None:
        _require_data(folder, config)
    # Its bars would run across the display of our own progress.
    transformers.utils.logging.disable_progress_bar()
    critic, model = None, config.model
    device = pick_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if reward_function is None and config.data.reward is not None:
        reward_function = load_reward_function(config.data.reward)
    if is_run:
        saved = require_checkpoint(folder, checkpoint)
        model = replace(model, path=str(saved / "policy"), tokenizer=None)
        if (saved / "critic").is_dir() and get_algorithm(config.algorithm.name).critic == "prompt":
            model_critic = PromptCritic.from_pretrained(saved / "critic", device=device)
            critic = PromptModelCritic(model_critic, config.critic)
    tokenizer = load_tokenizer(model, ALPHABET)
    count = samples_per_prompt or config.evaluation.final_samples_per_prompt
    prompts, left_out = _prompts(config, tokenizer, rows, has_reward_function=reward_function is not None)
    for note in left_out:
        progress.message(note)
    measured = _measure(config, model, tokenizer, critic, device, prompts, count, reward_function, progress)
    return {
        "model": str(model.path),
        "accuracy": measured.accuracy,
        "accuracy_stderr": measured.accuracy_stderr,
        "prompts": len(prompts),
        "samples_per_prompt": count,
        "accuracy_by_difficulty": measured.by_difficulty(),
        "clipped_share": measured.metrics()["eval/clipped_share"],
        "error_share": measured.error_share,
        **measured.calibration(),
    }


def _measure(
    config: Config,
    model: ModelConfig,
    tokenizer: Tokenizer,
    critic: PromptModelCritic | None,
    device: torch.device,
    prompts: Sequence[Prompt],
    samples_per_prompt: int,
    reward_function: RewardFunction | None,
    progress: Progress,
) -> Evaluation:
    policy = load_policy(model, tokenizer, device)
    engine = build_engine(policy, config.engine)
    progress.phase(f"evaluation: {len(prompts)} prompts x {samples_per_prompt} samples", None)
    try:
        return evaluate(
            prompts,
            engine,
            tokenizer,
            Grader(reward_function, Tools(config.verification, str(device)), opens_thinking(prompts[0], tokenizer)),
            sampling_parameters(config.sampling, tokenizer, policy, config.evaluation.temperature),
            samples_per_prompt=samples_per_prompt,
            seed=derive_seed(config.seed, "evaluation"),
            critic=critic,
        )
    finally:
        engine.close()


def _require_data(folder: Path, config: Config) -> None:
    """Refuses a run whose rows came from Python: its folder doesn't hold them."""
    key = "data" if config.evaluation.data is None else "evaluation.data"
    data = config.evaluation.data or config.data
    if data.task == "rows" and data.path is None:
        raise ConfigError(
            f"{folder} was made from rows that a Python program handed over, and the run folder doesn't hold them. "
            f"Save them as a .jsonl file and give --{key}.path FILE, or hand them over again: "
            f"sppo.evaluate({str(folder)!r}, rows=rows)."
        )


def _prompts(
    config: Config, tokenizer: Tokenizer, rows: Iterable[Mapping[str, Any]] | None, *, has_reward_function: bool
) -> tuple[Sequence[Prompt], Sequence[str]]:
    """The prompts to measure on, and notes on what was left out."""
    require_gold = not has_reward_function
    if rows is None and config.evaluation.data is None:
        _, prompts, notes = load_data(config, Given(), tokenizer, has_reward_function=has_reward_function)
        return prompts, notes
    if rows is not None:
        rows = list(rows)
        config = replace(config, evaluation=replace(config.evaluation, prompts=max(len(rows), 1)))
    return load_held_out(config, tokenizer, rows, require_gold=require_gold)
