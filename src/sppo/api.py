"""Training from Python: the same run as `sppo train`, with models, rows and reward functions handed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.build import Given
from sppo.config import Config
from sppo.grading import RewardFunction
from sppo.recipes import load_recipe
from sppo.report import write_curves
from sppo.run import Progress
from sppo.trainer import train as run_training

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


def train(
    recipe: str | Path | Config | None = None,
    *,
    model: str | PreTrainedModel | None = None,
    tokenizer: str | Tokenizer | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    held_out_rows: Iterable[Mapping[str, Any]] | None = None,
    reward: RewardFunction | None = None,
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
        reward: f(prompts, completions, **columns) -> list of float or None, as in TRL; None leaves a sample out.
        resume: go on from the last checkpoint in the run folder.
        progress: told how far it is; default: says nothing.
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
    overrides = {name.replace("__", "."): value for name, value in options.items()}
    if isinstance(model, (str, Path)):
        overrides["model.path"] = str(model)
    elif model is not None:
        overrides["model.path"] = getattr(model, "name_or_path", "") or type(model).__name__
    if isinstance(tokenizer, (str, Path)):
        overrides["model.tokenizer"] = str(tokenizer)
    config = load_recipe(recipe, overrides)
    given = Given(
        model=None if isinstance(model, (str, Path)) else model,
        tokenizer=None if isinstance(tokenizer, (str, Path)) else tokenizer,
        rows=None if rows is None else list(rows),
        held_out_rows=None if held_out_rows is None else list(held_out_rows),
        reward_function=reward,
    )
    summary = run_training(config, given, resume=resume, progress=progress)
    write_curves(Path(summary["output"]))
    return summary
