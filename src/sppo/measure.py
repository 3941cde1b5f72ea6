"""`sppo eval`: the accuracy of a run's checkpoint, or of any model, on a config's held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms import get_algorithm
from sppo.build import Given, load_data
from sppo.checkpoint import require_checkpoint
from sppo.config import Config, ModelConfig
from sppo.critics import PromptModelCritic
from sppo.engines import build_engine
from sppo.errors import ConfigError
from sppo.evaluate import Evaluation, evaluate
from sppo.grading import Grader, load_reward_function
from sppo.models.chat import opens_thinking
from sppo.models.critic import PromptCritic
from sppo.models.loading import load_policy, load_tokenizer, pick_device
from sppo.recipes import load_recipe
from sppo.rollout import sampling_parameters
from sppo.run import NoProgress, Progress, derive_seed
from sppo.tasks.chain_arithmetic import ALPHABET
from sppo.types import Prompt


def evaluate_run(
    path: str,
    config: Config | None = None,
    *,
    checkpoint: str = "last",
    samples_per_prompt: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Samples and grades responses to held-out prompts.

    Args:
        path: a run folder, or a model's folder or hub name.
        config: data and sampling; default: the run's own.
        checkpoint: "best", "last" or "step_N" of a run.
        samples_per_prompt: default: the config's final_samples_per_prompt.
        progress: told what it does.

    Returns:
        accuracy, accuracy_stderr, prompts, samples_per_prompt, accuracy_by_difficulty, clipped_share, and the
        critic's calibration where the run has one.

    Raises:
        SppoError: no such checkpoint, or a model or data that can't be loaded.
    """
    folder = Path(path)
    is_run = (folder / "config.yaml").is_file()
    if config is None:
        if not is_run:
            raise ConfigError(f"{path} is no run folder, so a config must say which data to evaluate on.")
        config = load_recipe(folder / "config.yaml")
    progress = progress or NoProgress()
    critic, model = None, config.model
    device = pick_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if is_run:
        saved = require_checkpoint(folder, checkpoint)
        model = replace(model, path=str(saved / "policy"), tokenizer=None)
        if (saved / "critic").is_dir() and get_algorithm(config.algorithm.name).critic == "prompt":
            model_critic = PromptCritic.from_pretrained(saved / "critic", device=device)
            critic = PromptModelCritic(model_critic, config.critic)
    tokenizer = load_tokenizer(model, ALPHABET)
    count = samples_per_prompt or config.evaluation.final_samples_per_prompt
    prompts, measured = _measure(config, model, tokenizer, critic, device, count, progress)
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
    samples_per_prompt: int,
    progress: Progress,
) -> tuple[Sequence[Prompt], Evaluation]:
    reward_function = load_reward_function(config.data.reward) if config.data.reward else None
    _, prompts, notes = load_data(config, Given(), tokenizer, has_reward_function=reward_function is not None)
    for note in notes:
        progress.message(note)
    policy = load_policy(model, tokenizer, device)
    engine = build_engine(policy, config.engine)
    progress.phase(f"evaluation: {len(prompts)} prompts x {samples_per_prompt} samples", None)
    try:
        measured = evaluate(
            prompts,
            engine,
            tokenizer,
            Grader(reward_function, prompt_opens_thinking=opens_thinking(prompts[0], tokenizer)),
            sampling_parameters(config.sampling, tokenizer, policy, config.evaluation.temperature),
            samples_per_prompt=samples_per_prompt,
            seed=derive_seed(config.seed, "evaluation"),
            critic=critic,
        )
    finally:
        engine.close()
    return prompts, measured
