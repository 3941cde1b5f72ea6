"""`sppo train` and `sppo eval` from Python, with models, rows and reward functions handed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sppo.commands.evaluate import evaluate_on_benchmarks, evaluate_pair, evaluate_run
from sppo.commands.train import train as run_training
from sppo.config import Config
from sppo.config.compatibility import written_config
from sppo.config.evaluation import BENCHMARK_NAMES, SHORT_NAMES, benchmark_config, evaluation_config
from sppo.config.recipes import load_recipe
from sppo.errors import ConfigError
from sppo.evaluation.benchmarks import parse_benchmarks
from sppo.evaluation.paired import Comparison
from sppo.evaluation.scores import EvaluationResult
from sppo.report import write_curves
from sppo.runs import ranks
from sppo.runs.progress import NoProgress, Progress
from sppo.training.given import Given
from sppo.verifiers.functions import RewardFunction, load_function

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Benchmarks = str | Sequence[str] | Mapping[str, str | None]
"""Names of benchmarks, as `sppo.evaluation.benchmarks.parse_benchmarks` takes them."""


@ranks.joined()
def train(
    recipe: str | Path | Config | None = None,
    *,
    model: str | PathLike[str] | PreTrainedModel | None = None,
    tokenizer: str | PathLike[str] | Tokenizer | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    held_out_rows: Iterable[Mapping[str, Any]] | None = None,
    reward: str | RewardFunction | None = None,
    resume: bool | str = False,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Trains a causal language model with verifiable rewards.

    Args:
        recipe: built-in recipe, YAML file or Config to start from; default: the defaults of every option.
        model: folder, hub name, or a loaded causal LM or PeftModel, which is trained in place; what is frozen in it
            stays so.
        tokenizer: folder, hub name, or a loaded tokenizer; default: the model's own.
        rows: dicts with a prompt (text or chat messages) and, unless a reward function is given, an answer.
        held_out_rows: rows to measure accuracy on; default: some of `rows`, which are then not trained on.
        reward: f(prompts, completions, **columns) -> list of float or None, as in TRL, or compute_score(data_source,
            solution_str, ground_truth, extra_info) -> float or {"score": float}, as in verl; None leaves a sample out.
            Or where that function is: "package.module:function" or "path/to/file.py:function".
        resume: go on from the last checkpoint in the run folder, or from the one of this name, such as "step_5". Rows
            and a reward function have to be handed over again, the same ones: the folder doesn't hold them. It holds
            model and tokenizer; a model that is handed over again gets its weights.
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
    overrides |= _judge(reward)
    if resume and recipe is None and model is None:
        _name_the_model(overrides)
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
    if ranks.is_main():
        write_curves(Path(summary["output"]))
    return summary


@overload
def evaluate(
    path: str | PathLike[str],
    *,
    recipe: str | Path | Config | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    reward: str | RewardFunction | None = None,
    samples_per_prompt: int | None = None,
    checkpoint: str = "last",
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]: ...


@overload
def evaluate(
    path: str | PathLike[str],
    *,
    benchmarks: Benchmarks,
    samples_per_prompt: int | None = None,
    limit: int | None = None,
    output: str | PathLike[str] | None = None,
    checkpoint: str = "last",
    progress: Progress | None = None,
    **options: Any,
) -> EvaluationResult: ...


@ranks.joined()
def evaluate(
    path: str | PathLike[str],
    *,
    recipe: str | Path | Config | None = None,
    benchmarks: Benchmarks | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    reward: str | RewardFunction | None = None,
    samples_per_prompt: int | None = None,
    limit: int | None = None,
    output: str | PathLike[str] | None = None,
    checkpoint: str = "last",
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any] | EvaluationResult:
    """Measures the held-out accuracy of a run or of any model, or its scores on benchmarks.

    Args:
        path: run folder, or a model's folder or hub name.
        recipe: built-in recipe, YAML file or Config that data and sampling come from; default: the run's own, and for
            a model with `rows` the defaults of every option. Not for benchmarks, which bring their own.
        benchmarks: names in `sppo.evaluation.benchmarks.BENCHMARKS`, as "aime24" or "math500=FILE", or {name: file or
            None}.
        rows: dicts to measure on, all of them, instead of the held-out prompts; columns as for `train`.
        reward: as for `train`; default: that of the recipe, else the verifier. Of a run whose reward function was
            handed over, hand it over again; one that a file names (a recipe's, a run's config.yaml) has to be named
            again, as no file makes code run.
        samples_per_prompt: responses to each prompt; default: the recipe's evaluation.final_samples_per_prompt, and 4
            on benchmarks. At temperature 0 there is one, as all would be the same; benchmarks refuse more.
        limit: only the first so many problems of each benchmark.
        output: folder for the responses and scores of benchmarks, and to go on with after a stop; default:
            evaluations/CHECKPOINT in a run's folder, evals/MODEL for a model.
        checkpoint: "best", "last" or "step_N" of a run.
        progress: as for `train`.
        **options: any option, with a double underscore for the dot: engine__max_rows=64; and temperature, top_p,
            top_k and max_response_tokens (on benchmarks 0.6, 1, 0 and 8192 where they are not given), instruction and
            system_prompt (benchmarks only).

    Returns:
        accuracy, accuracy_stderr, accuracy_by_difficulty, prompts, samples_per_prompt, clipped_share, error_share (the
        verifier's, left out), response_error_share (the responses', counted as wrong), and calibration of the critic
        where the run has one. On benchmarks an `EvaluationResult`: avg@n, pass@k and maj@k
        of each with intervals.

    Raises:
        SppoError: no such run, checkpoint or model, or options, data or rewards that can't work.

    Example:
        >>> result = sppo.evaluate("runs/demo", benchmarks=["aime24", "math500=FILE"], samples_per_prompt=16)
        >>> result.benchmarks["aime24"].accuracy.value, result.benchmarks["aime24"].accuracy.interval
    """
    if benchmarks is not None:
        if recipe is not None or rows is not None or reward is not None:
            raise ConfigError("recipe, rows and reward are for held-out prompts; benchmarks bring their own.")
        return _on_benchmarks(path, benchmarks, samples_per_prompt, limit, output, checkpoint, progress, options)
    if limit is not None or output is not None:
        raise ConfigError("limit and output are for benchmarks: name some, as in benchmarks=['math500'].")
    function = load_function(reward) if isinstance(reward, str) else _function(reward)
    overrides = {**_overrides(options, SHORT_NAMES), **_judge(reward)}
    if recipe is None and rows is not None and not (Path(path) / "config.yaml").is_file():
        recipe = Config()
    config, notes = evaluation_config(str(path), recipe, overrides)
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


def _on_benchmarks(
    path: str | PathLike[str],
    benchmarks: Benchmarks,
    samples_per_prompt: int | None,
    limit: int | None,
    output: str | PathLike[str] | None,
    checkpoint: str,
    progress: Progress | None,
    options: Mapping[str, Any],
) -> EvaluationResult:
    config, notes = benchmark_config(str(path), _overrides(options, BENCHMARK_NAMES))
    progress = progress or NoProgress()
    try:
        for note in notes:
            progress.message(note)
        return evaluate_on_benchmarks(
            str(path),
            parse_benchmarks(benchmarks),
            config,
            checkpoint=checkpoint,
            samples_per_prompt=samples_per_prompt,
            limit=limit,
            output=None if output is None else Path(output),
            progress=progress,
        )
    finally:
        progress.close()


@ranks.joined()
def compare_models(
    a: str | PathLike[str],
    b: str | PathLike[str],
    benchmarks: Benchmarks | None = None,
    *,
    samples_per_prompt: int | None = None,
    limit: int | None = None,
    output: str | PathLike[str] | None = None,
    checkpoint: str = "last",
    progress: Progress | None = None,
    **options: Any,
) -> Comparison:
    """Compares two models problem by problem: the difference of avg@n with its interval, and a p-value.

    Args:
        a: run folder, model folder or hub name, or the folder of an evaluation that was made before.
        b: another.
        benchmarks: as for `evaluate`; default: those that two finished evaluations both have, or the held-out prompts
            of two runs, where they are the same.
        samples_per_prompt: as for `evaluate`.
        limit: as for `evaluate`.
        output: folder for both evaluations; default: each one's own, as for `evaluate`.
        checkpoint: as for `evaluate`.
        progress: as for `evaluate`.
        **options: as for `evaluate`.

    Returns:
        The paired difference on each benchmark, and their average.

    Raises:
        SppoError: as `evaluate`, and where the problems are not the same.
    """
    names = SHORT_NAMES if benchmarks is None else BENCHMARK_NAMES
    progress = progress or NoProgress()
    try:
        return evaluate_pair(
            str(a),
            str(b),
            None if benchmarks is None else parse_benchmarks(benchmarks),
            _overrides(options, names),
            checkpoint=checkpoint,
            samples_per_prompt=samples_per_prompt,
            limit=limit,
            output=None if output is None else Path(output),
            progress=progress,
        )
    finally:
        progress.close()


def _overrides(options: Mapping[str, Any], short: Mapping[str, str] | None = None) -> dict[str, Any]:
    names = short or {}
    return {names.get(name, name.replace("__", ".")): value for name, value in options.items()}


def _judge(reward: str | RewardFunction | None) -> dict[str, Any]:
    """The option that says who grades: what is handed over stands in the place of what a file names."""
    return {} if reward is None else {"data.reward": reward if isinstance(reward, str) else None}


def _name_the_model(overrides: dict[str, Any]) -> None:
    """Names the model of the run that goes on, which its checkpoints hold, where nothing else names one."""
    folder = Path(str(overrides.get("output", Config().output)))
    if (folder / "config.yaml").is_file() and not {"model.path", "model.config"} & overrides.keys():
        overrides["model.path"] = written_config(folder).config.model.path


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
