"""`sppo eval`: a run's checkpoint, or any model, on held-out prompts or benchmarks; and two of them, paired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config import Config, ModelConfig
from sppo.config.compatibility import written_config
from sppo.config.evaluation import benchmark_config, evaluation_config
from sppo.critics.build import Owner, build_critic
from sppo.critics.critic import Critic
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, DataError
from sppo.evaluation import paired
from sppo.evaluation.benchmarking import Conditions, resolve, run_benchmarks
from sppo.evaluation.benchmarks import Problems, load_benchmark
from sppo.evaluation.folder import Measured, is_evaluation, read_evaluation
from sppo.evaluation.held_out import Evaluation, HeldOut
from sppo.evaluation.paired import Comparison
from sppo.evaluation.scores import EvaluationResult
from sppo.models.adapter_files import note_on
from sppo.models.loading import load_model_config, load_policy, load_tokenizer, prepare_device
from sppo.models.scoring import verifier_tools
from sppo.rollouts.encode import opens_thinking
from sppo.rollouts.engines import ALONE, build_engine, engine_options
from sppo.rollouts.sample import longest_sequence, sampling_parameters
from sppo.runs.progress import NoProgress, Progress
from sppo.training.build import algorithm_of, load_prompts
from sppo.training.given import Given, require_data
from sppo.training.prompts import load_held_out
from sppo.types import Prompt
from sppo.update.steps import StepGuard
from sppo.verifiers.functions import RewardFunction, function_name, load_function, name_handed_over
from sppo.verifiers.grading import Grader
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
        config: data and sampling; default: the run's own. See `sppo.config.evaluation.evaluation_config`.
        checkpoint: "best", "last" or "step_N" of a run.
        samples_per_prompt: default: the config's final_samples_per_prompt; always 1 at temperature 0.
        rows: dicts of columns to measure on, all of them, instead of the config's held-out prompts.
        reward_function: grades instead of the config's verifier or reward function.
        progress: told what it does.

    Returns:
        accuracy, accuracy_stderr, prompts, samples_per_prompt, accuracy_by_difficulty, clipped_share, error_share,
        response_error_share, and the critic's calibration where the run has one; measure says whether accuracy is one,
        or a mean reward.

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
        require_data(folder, config.data, config.evaluation.data)
    if is_run and reward_function is not None:
        _say_if_other(written_config(folder).config.data.reward, reward_function, progress)
    device = prepare_device(config.device, config.threads)
    if reward_function is None and config.data.reward is not None:
        reward_function = load_function(config.data.reward)
    model = resolve(path, config.model, checkpoint).model
    for note in filter(None, [note_on(model.path)]):
        progress.message(note)
    tokenizer = load_tokenizer(model, ALPHABET)
    count = config.evaluation_samples(samples_per_prompt or config.evaluation.final_samples_per_prompt)
    prompts, left_out = _prompts(config, tokenizer, rows, has_reward_function=reward_function is not None)
    for note in left_out:
        progress.message(note)
    measured = _measure(config, model, tokenizer, is_run, device, prompts, count, reward_function, progress)
    return {
        "model": str(model.path),
        "measure": measured.measure,
        "accuracy": measured.accuracy,
        "accuracy_stderr": measured.accuracy_stderr,
        "prompts": len(prompts),
        "samples_per_prompt": count,
        "accuracy_by_difficulty": measured.by_difficulty(),
        "clipped_share": measured.metrics()["eval/clipped_share"],
        "error_share": measured.error_share,
        "response_error_share": measured.response_error_share,
        **measured.calibration(),
    }


def _say_if_other(trained_with: str | None, function: RewardFunction, progress: Progress) -> None:
    """Tells where a run is graded by another reward function than it was trained with."""
    name, before = function_name(function), name_handed_over(trained_with) or trained_with
    if name != before:
        judged = f"the reward function {before}" if before else "verifiers"
        progress.message(f"Graded by the reward function {name}, where the run was trained with {judged}.")


def _critic_beside(
    model: ModelConfig, config: Config, policy: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> Critic | None:
    """The critic of prompts that a run's checkpoint holds beside its policy, be it only for the choice of prompts."""
    saved = Path(model.path or "").parent / "critic"
    if not saved.is_dir():
        return None
    algorithm = algorithm_of(config)
    if algorithm.critic not in ("prompt", "history"):
        return None
    owner = Owner(
        policy, tokenizer, algorithm, config.optimizer, config.sampling, config.data.max_prompt_tokens, prompts,
        model.trust_remote_code,
    )  # fmt: skip
    return build_critic(algorithm.critic, config.critic, owner, saved=saved, rows=1, guard=StepGuard())


def evaluate_on_benchmarks(
    path: str,
    benchmarks: Mapping[str, str | None],
    config: Config,
    *,
    checkpoint: str = "last",
    samples_per_prompt: int | None = None,
    limit: int | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Samples and grades responses to benchmarks, or goes on where it was stopped.

    Args:
        path: a run folder, or a model's folder or hub name.
        benchmarks: {name: file or hub name, or None for the benchmark's own}, as `parse_benchmarks` returns.
        config: see `sppo.config.evaluation.benchmark_config`.
        checkpoint: "best", "last" or "step_N" of a run.
        samples_per_prompt: n; default: the config's final_samples_per_prompt.
        limit: only the first so many problems of each benchmark.
        output: folder to write to; default: evaluations/CHECKPOINT in the run folder, or evals/MODEL.
        progress: told what it does.

    Raises:
        SppoError: a model or data that can't be loaded, or a folder made with other settings.
    """
    subject = resolve(path, config.model, checkpoint)
    # A model that isn't there is told before the data is read and its gold answers are checked.
    load_model_config(subject.model)
    tools = Tools(config.verification)
    loaded = [
        load_benchmark(
            name, source, instruction=config.data.instruction, system_prompt=config.data.system_prompt, tools=tools
        )
        for name, source in benchmarks.items()
    ]
    return run_benchmarks(
        subject,
        conditions_of(config),
        loaded,
        samples=samples_per_prompt or config.evaluation_samples(config.evaluation.final_samples_per_prompt),
        limit=limit,
        output=output,
        progress=progress,
    )


def evaluate_pair(
    a: str,
    b: str,
    benchmarks: Mapping[str, str | None] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    checkpoint: str = "last",
    samples_per_prompt: int | None = None,
    limit: int | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Evaluates two runs or models, as far as that isn't done yet, and compares them problem by problem.

    Args:
        a: a run folder, a model's folder or hub name, or the folder of an evaluation that was made before.
        b: another.
        benchmarks: as for `evaluate_on_benchmarks`; None: two evaluations on the benchmarks that both have, or two
            runs on their own held-out prompts, with the sampling of their own evaluations.
        overrides: options, as `load_recipe` takes them.
        checkpoint: as for `evaluate_on_benchmarks`, of runs.
        samples_per_prompt: n.
        limit: only the first so many problems.
        output: folder for the two evaluations; default: each one's own.
        progress: told what it does.

    Raises:
        SppoError: as `evaluate_on_benchmarks`; also where the problems differ.
    """
    progress = progress or NoProgress()
    options: dict[str, Any] = {"samples_per_prompt": samples_per_prompt, "limit": limit, "progress": progress}
    ready = [is_evaluation(Path(path).expanduser()) for path in (a, b)]
    folders: list[Path] = []
    if benchmarks is None and any(ready) and not all(ready):
        raise ConfigError(f"{b if ready[0] else a} is no evaluation yet: name the benchmarks with --benchmarks.")
    if all(ready) and (overrides or samples_per_prompt or limit or output):
        raise ConfigError(f"{a} and {b} are evaluations made before, so options of sampling and --output mean nothing.")
    if benchmarks is None and not all(ready):
        folders = _held_out_pair(a, b, overrides, checkpoint, output, options)
    else:
        for path, is_ready, place in zip((a, b), ready, ("a", "b"), strict=True):
            if is_ready:
                folders.append(Path(path).expanduser())
                continue
            assert benchmarks is not None, "two evaluations are ready"
            config, notes = benchmark_config(path, overrides)
            for note in notes:
                progress.message(note)
            own = None if output is None else output / place
            result = evaluate_on_benchmarks(path, benchmarks, config, checkpoint=checkpoint, output=own, **options)
            folders.append(Path(result.output))
    return compare_evaluations(folders[0], folders[1], benchmarks)


def conditions_of(config: Config) -> Conditions:
    """What an evaluation with this config depends on beside model and problems; sets torch up."""
    return Conditions(
        sampling=config.sampling,
        temperature=config.evaluation_temperature,
        engine=config.engine,
        verification=config.verification,
        tokens_per_microbatch=config.optimizer.tokens_per_microbatch,
        seed=config.seed,
        device=prepare_device(config.device, config.threads),
    )


def compare_evaluations(a: Path, b: Path, benchmarks: Iterable[str] | None = None) -> Comparison:
    """Compares two finished evaluations problem by problem, on some benchmarks or on all that both have.

    Raises:
        SppoError: an evaluation that has not ended, or other problems under the same benchmark's name.
    """
    first, second = (read_evaluation(path, benchmarks) for path in (a, b))
    for name in set(first.responses) & set(second.responses):
        if len({measured.settings["benchmarks"][name]["problems"] for measured in (first, second)}) > 1:
            raise DataError(
                f"{name}: {a} and {b} were measured on problems or gold answers that differ, so they can't be paired. "
                "Evaluate both on the same file."
            )
    names = [first.name, second.name] if first.name != second.name else [str(a), str(b)]
    comparison = paired.compare(names[0], names[1], first.responses, second.responses)
    old, new = first.settings["sampling"], second.settings["sampling"]
    other = [f"{key} {old[key]} and {new[key]}" for key in old if old[key] != new[key]]
    notes = [f"the two were sampled differently: {', '.join(other)}"] if other else []
    for name in comparison.benchmarks:
        graders = [_grader_of(measured, name) for measured in (first, second)]
        if graders[0] != graders[1]:
            notes.append(f"{name}: the two were graded differently: {' and '.join(graders)}")
    return replace(comparison, notes=(*notes, *comparison.notes))


def _grader_of(measured: Measured, benchmark: str) -> str:
    section = measured.settings["benchmarks"][benchmark]
    return f"{section['verifier']} {section['verifier_version']}".strip()


def _held_out_pair(
    a: str,
    b: str,
    overrides: Sequence[str] | Mapping[str, Any],
    checkpoint: str,
    output: Path | None,
    options: Mapping[str, Any],
) -> list[Path]:
    """Evaluates two runs on their held-out prompts; returns the folders."""
    planned = []
    for path in (a, b):
        if not (Path(path).expanduser() / "config.yaml").is_file():
            raise ConfigError(
                f"{path} is no run folder, so it has no held-out prompts: name benchmarks (--benchmarks)."
            )
        config, notes = evaluation_config(path, None, overrides)
        require_data(Path(path), config.data, config.evaluation.data)
        subject = resolve(path, config.model, checkpoint)
        reward_function = load_function(config.data.reward) if config.data.reward is not None else None
        tokenizer = load_tokenizer(subject.model, ALPHABET)
        prompts, more = _prompts(config, tokenizer, None, has_reward_function=reward_function is not None)
        planned.append(
            (subject, config, Problems("held_out", tuple(prompts), path, True, {}, (*notes, *more)), reward_function)
        )
    first, second = ([(p.id, p.text, p.golds) for p in problems.prompts] for _, _, problems, _ in planned)
    if first != second:
        shared = len(set(first) & set(second))
        raise DataError(
            f"The held-out prompts of {a} and {b} are not the same ({shared} in common, of {len(first)} and "
            f"{len(second)}), or in another order, so the runs can't be paired on them. Name benchmarks for both: "
            "--benchmarks math500"
        )
    folders = []
    for place, (subject, config, problems, reward_function) in zip(("a", "b"), planned, strict=True):
        own = subject.output.with_name(f"held_out-{subject.output.name}") if output is None else output / place
        usual = config.evaluation_samples(config.evaluation.final_samples_per_prompt)
        samples = options["samples_per_prompt"] or usual
        result = run_benchmarks(
            subject,
            conditions_of(config),
            [problems],
            samples=samples,
            limit=options["limit"],
            output=own,
            reward_function=reward_function,
            progress=options["progress"],
        )
        folders.append(Path(result.output))
    return folders


def _measure(
    config: Config,
    model: ModelConfig,
    tokenizer: Tokenizer,
    is_run: bool,
    device: torch.device,
    prompts: Sequence[Prompt],
    samples_per_prompt: int,
    reward_function: RewardFunction | None,
    progress: Progress,
) -> Evaluation:
    tools = verifier_tools(config.verification, device, config.optimizer.tokens_per_microbatch)
    grader = Grader(reward_function, tools, opens_thinking(prompts[0], tokenizer))
    grader.prepare(prompts)
    engine_options(config.engine)
    policy = load_policy(model, tokenizer, device)
    longest = longest_sequence(prompts, tokenizer, config.sampling.max_response_tokens)
    engine = build_engine(policy, config.engine, max_tokens=longest, memory_share=ALONE, precision=model.precision)
    critic = _critic_beside(model, config, policy, tokenizer, prompts) if is_run else None
    progress.phase(f"evaluation: {len(prompts)} prompts x {samples_per_prompt} samples", None)
    try:
        sampling = sampling_parameters(config.sampling, tokenizer, policy, config.evaluation_temperature)
        held_out = HeldOut(prompts, engine, tokenizer, grader, sampling, config.seed, critic)
        return held_out.evaluate(samples_per_prompt, engine.version)
    finally:
        engine.close()


def _prompts(
    config: Config, tokenizer: Tokenizer, rows: Iterable[Mapping[str, Any]] | None, *, has_reward_function: bool
) -> tuple[Sequence[Prompt], Sequence[str]]:
    """The prompts to measure on, and notes on what was left out."""
    if rows is None and config.evaluation.data is None:
        loaded = load_prompts(config, Given(), tokenizer, has_reward_function=has_reward_function)
        return loaded.held_out, loaded.notes
    evaluation = config.evaluation
    if rows is not None:
        rows = list(rows)
        evaluation = replace(evaluation, prompts=max(len(rows), 1))
    return load_held_out(
        config.data,
        evaluation,
        tokenizer,
        seed=config.seed,
        tools=Tools(config.verification),
        require_gold=not has_reward_function,
        rows=rows,
    )
