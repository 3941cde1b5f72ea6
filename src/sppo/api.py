"""`sppo train` and `sppo eval` from Python, with models, rows and reward functions handed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.build import Given
from sppo.config import Config
from sppo.errors import ConfigError
from sppo.grading import RewardFunction, load_reward_function
from sppo.measure import evaluate_run
from sppo.recipes import load_recipe
from sppo.recipes.evaluation import evaluation_config
from sppo.report import write_curves
from sppo.run import NoProgress, Progress
from sppo.trainer import train as run_training

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


def train(
    recipe: str | Path | Config | None = None,
    *,
    model: str | PathLike[str] | PreTrainedModel | None = None,
    tokenizer: str | PathLike[str] | Tokenizer | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    held_out_rows: Iterable[Mapping[str, Any]] | None = None,
    reward: str | RewardFunction | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Trains a causal language model with verifiable rewards.

    Args:
        recipe: built-in recipe, YAML file or Config to start from; default: the defaults of every option.
        model: folder, hub name, or a loaded causal LM, which is trained in place.
        tokenizer: folder, hub name, or a loaded tokenizer; default: the model's own.
        rows: dicts with a prompt (text or chat messages) and, unless a reward function is given, an answer.
        held_out_rows: rows to measure accuracy on; default: some of `rows`, which are then not trained on.
        reward: f(prompts, completions, **columns) -> list of float or None, as in TRL; None leaves a sample out. Or
            where that function is: "package.module:function" or "path/to/file.py:function".
        resume: go on from the last checkpoint in the run folder.
        progress: told how far it is, and closed at the end; `sppo.make_progress()` is the display of the command
            line. Default: says nothing.
        **options: any option, with a double underscore for the dot: steps=100, optimizer__learning_rate=1e-5.

    Returns:
        The summary: accuracy_before, accuracy_after, calibration of the critic, seconds, and `output`, the run folder.

    Raises:
        SppoError: options, data, models or rewards that can't work; says what to change.

    Example:
        >>> def ends_with_answer(prompts, completions, answer, **columns):
        ...     return [float(text.strip().endswith(gold)) for text, gold in zip(completions, answer)]
        >>> sppo.train(model="Qwen/Qwen2.5-0.5B-Instruct", rows=rows, reward=ends_with_answer, steps=100)
    """
    overrides = _overrides(options)
    if model is not None:
        is_path = _is_path("model", model, "get_input_embeddings", "a loaded causal language model of transformers")
        overrides["model.path"] = model if is_path else getattr(model, "name_or_path", "") or type(model).__name__
    if tokenizer is not None and _is_path("tokenizer", tokenizer, "eos_token_id", "a loaded tokenizer of transformers"):
        overrides["model.tokenizer"] = tokenizer
    if isinstance(reward, str):
        overrides["data.reward"] = reward
    config = load_recipe(recipe, overrides)
    given = Given(
        model=None if isinstance(model, (str, PathLike)) else model,
        tokenizer=None if isinstance(tokenizer, (str, PathLike)) else tokenizer,
        rows=None if rows is None else list(rows),
        held_out_rows=None if held_out_rows is None else list(held_out_rows),
        reward_function=_function(reward),
    )
    progress = progress or NoProgress()
    try:
        summary = run_training(config, given, resume=resume, progress=progress)
    finally:
        progress.close()
    write_curves(Path(summary["output"]))
    return summary


def evaluate(
    path: str | PathLike[str],
    recipe: str | Path | Config | None = None,
    *,
    rows: Iterable[Mapping[str, Any]] | None = None,
    reward: str | RewardFunction | None = None,
    samples_per_prompt: int | None = None,
    checkpoint: str = "last",
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measures the held-out accuracy of a run or of any model.

    Args:
        path: run folder, or a model's folder or hub name.
        recipe: built-in recipe, YAML file or Config that data and sampling come from; default: the run's own, and for
            a model with `rows` the defaults of every option.
        rows: dicts to measure on, all of them, instead of the held-out prompts; columns as for `train`.
        reward: as for `train`; default: that of the recipe, else the verifier.
        samples_per_prompt: responses to each prompt; default: the recipe's evaluation.final_samples_per_prompt.
        checkpoint: "best", "last" or "step_N" of a run.
        progress: as for `train`.
        **options: any option, with a double underscore for the dot: sampling__temperature=0.6.

    Returns:
        accuracy, accuracy_stderr, accuracy_by_difficulty, prompts, samples_per_prompt, clipped_share, error_share, and
        calibration of the critic where the run has one.

    Raises:
        SppoError: no such run, checkpoint or model, or options, data or rewards that can't work.
    """
    function = load_reward_function(reward) if isinstance(reward, str) else _function(reward)
    if recipe is None and rows is not None and not (Path(path) / "config.yaml").is_file():
        recipe = Config()
    config, notes = evaluation_config(str(path), recipe, _overrides(options))
    progress = progress or NoProgress()
    try:
        for note in notes:
            progress.message(note)
        return evaluate_run(
            str(path),
            config,
            checkpoint=checkpoint,
            samples_per_prompt=samples_per_prompt,
            rows=rows,
            reward_function=function,
            progress=progress,
        )
    finally:
        progress.close()


def _overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in options.items()}


def _is_path(name: str, value: Any, attribute: str, wanted: str) -> bool:
    """Whether a folder or hub name was given; refuses what is neither that nor has the attribute of a loaded one."""
    if isinstance(value, (str, PathLike)):
        return True
    if isinstance(value, type) or not hasattr(value, attribute):
        raise ConfigError(f"{name} is a {type(value).__name__}, but must be a folder, a hub name, or {wanted}.")
    return False


def _function(reward: str | RewardFunction | None) -> RewardFunction | None:
    """The reward function that was handed over; None where its name was, or nothing."""
    if reward is None or isinstance(reward, str):
        return None
    if not callable(reward):
        raise ConfigError(
            f"reward is a {type(reward).__name__}, but must be a function f(prompts, completions, **columns), or text "
            'that says where one is, as in "my_rewards.py:f".'
        )
    return reward
