"""`sppo eval`: held-out accuracy of a run or a model, scores on benchmarks, and two models compared by problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.cli import launch
from sppo.cli.checks import checkpoint_name, require_writable, whole_number, write_json
from sppo.cli.options import Arguments, parse, print_help, wants_help
from sppo.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from sppo.evaluation.scores import EvaluationResult
    from sppo.runs.progress import Progress

USAGE = (
    "sppo eval RUN_OR_MODEL [OTHER] [--benchmarks NAME[=FILE],...] [-n N] [--checkpoint best|last|step_N] "
    "[--recipe RECIPE] [--output FOLDER] [--json FILE] [--key value ...]"
)
FLAGS = {
    "RUN_OR_MODEL": "A run folder, a model (a folder or hub name), or the folder of an evaluation made before.",
    "OTHER": "Another, to compare with, problem by problem.",
    "--benchmarks NAME[=FILE],...": "Benchmarks to measure on, each from the hub or from a file: {benchmarks}. "
    "Without it: the held-out prompts of the run, or of --recipe.",
    "-n N, --samples_per_prompt N": "Responses to each problem. Default: the recipe's final_samples_per_prompt, "
    "4 on benchmarks.",
    "--temperature T, --top_p P, --top_k K, --max_response_tokens N": "Sampling. Default on benchmarks: 0.6, 1, 0 and "
    "8192, as published; else the recipe's.",
    "--instruction TEXT, --system_prompt TEXT": "Added after, and put before, each problem of the benchmarks. "
    "Default: the benchmark's own instruction, no system prompt.",
    "--limit N": "Only the first N problems of each benchmark.",
    "--checkpoint best|last|step_N": "Which of the run's checkpoints. Default: last.",
    "--recipe RECIPE": "Where held-out data and sampling come from, for a model that is no run folder.",
    "--output FOLDER": "Where responses and scores of benchmarks go; the same command goes on there after a stop. "
    "Default: evaluations/CHECKPOINT in the run folder, evals/MODEL for a model.",
    "--json FILE": "Write the result to a file too.",
}
_OWN = ("checkpoint", "samples_per_prompt", "recipe", "json", "benchmarks", "limit", "output")


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        from sppo.evaluation.benchmarks import BENCHMARKS

        flags = {flag: text.format(benchmarks=", ".join(BENCHMARKS)) for flag, text in FLAGS.items()}
        about = "Measures a model: on held-out prompts, on benchmarks, or against another."
        print_help(USAGE, about, {**flags, **launch.FLAGS}, arguments)
        return 0
    from sppo.config.evaluation import BENCHMARK_NAMES, SHORT_NAMES

    # -n is what papers and other programs call it.
    arguments = ["--samples_per_prompt" if argument == "-n" else argument for argument in arguments]
    names = (*_OWN, *BENCHMARK_NAMES)
    given = parse(arguments, USAGE, positional="RUN_OR_MODEL", settings=names, most=2)
    settings = given.settings
    if "json" in settings:
        require_writable("--json", Path(settings["json"]))
    short = BENCHMARK_NAMES if "benchmarks" in settings else SHORT_NAMES
    for name in set(settings) - set(_OWN) - set(short):
        raise ConfigError(f"--{name} is for benchmarks: name some with --benchmarks.")
    overrides = [*given.overrides, *(f"--{short[name]}={settings[name]}" for name in short if name in settings)]
    from sppo.cli.console import Screen
    from sppo.cli.progress import make_progress

    progress = make_progress()
    try:
        result, show = _measure(given, overrides, progress)
    finally:
        progress.close()
    show(Screen())
    if "json" in settings:
        write_json("--json", Path(settings["json"]), result)
    return 0


def _measure(
    given: Arguments, overrides: Sequence[str], progress: Progress
) -> tuple[Mapping[str, Any], Callable[[Console], None]]:
    """Returns the result as plain values, and what prints it."""
    from sppo.evaluation.folder import is_evaluation, read_result

    path = given.positionals[0]
    if len(given.positionals) == 2:
        return _pair(given, overrides, progress)
    ready = is_evaluation(Path(path).expanduser())
    if ready and (overrides or set(given.settings) - {"json"}):
        raise ConfigError(f"{path} is an evaluation made before, which is shown without options: sppo eval {path}")
    if "benchmarks" in given.settings:
        return _benchmarks(path, given.settings, overrides, progress)
    for name in ("limit", "output"):
        if name in given.settings:
            raise ConfigError(f"--{name} is for benchmarks: name some with --benchmarks.")
    if ready:
        from sppo.cli.scores import print_scores

        result = read_result(Path(path).expanduser())
        return result.to_dict(), lambda console: print_scores(console, result)
    return _held_out(path, given.settings, overrides, progress)


def _held_out(
    path: str, settings: Mapping[str, str], overrides: Sequence[str], progress: Progress
) -> tuple[Mapping[str, Any], Callable[[Console], None]]:
    checkpoint, samples = checkpoint_name(settings), whole_number(settings, "samples_per_prompt")
    from sppo.config.evaluation import evaluation_config

    config, notes = evaluation_config(path, settings.get("recipe"), overrides)
    from sppo.cli.story import print_evaluation
    from sppo.commands.evaluate import evaluate_run

    for note in notes:
        progress.message(note)
    result = evaluate_run(path, config, checkpoint=checkpoint, samples_per_prompt=samples, progress=progress)
    return result, lambda console: print_evaluation(console, result)


def _benchmarks(
    path: str, settings: Mapping[str, str], overrides: Sequence[str], progress: Progress
) -> tuple[Mapping[str, Any], Callable[[Console], None]]:
    from sppo.config.evaluation import benchmark_config
    from sppo.evaluation.benchmarks import parse_benchmarks

    benchmarks = parse_benchmarks(settings["benchmarks"])
    arguments = _arguments(settings)
    config, notes = benchmark_config(path, overrides)
    from sppo.commands.evaluate import evaluate_on_benchmarks

    for note in notes:
        progress.message(note)
    return _shown(evaluate_on_benchmarks(path, benchmarks, config, progress=progress, **arguments))


def _shown(result: EvaluationResult) -> tuple[Mapping[str, Any], Callable[[Console], None]]:
    from sppo.cli.scores import as_text, print_scores
    from sppo.runs.files import write_text

    write_text(Path(result.output) / "table.txt", as_text(lambda console: print_scores(console, result)))
    return result.to_dict(), lambda console: print_scores(console, result)


def _pair(
    given: Arguments, overrides: Sequence[str], progress: Progress
) -> tuple[Mapping[str, Any], Callable[[Console], None]]:
    from sppo.evaluation.benchmarks import parse_benchmarks

    settings = given.settings
    benchmarks = parse_benchmarks(settings["benchmarks"]) if "benchmarks" in settings else None
    arguments = _arguments(settings)
    from sppo.cli.scores import print_comparison
    from sppo.commands.evaluate import evaluate_pair

    a, b = given.positionals
    comparison = evaluate_pair(a, b, benchmarks, overrides, progress=progress, **arguments)
    return comparison.to_dict(), lambda console: print_comparison(console, comparison)


def _arguments(settings: Mapping[str, str]) -> dict[str, Any]:
    """What `evaluate_on_benchmarks` and `evaluate_pair` both take."""
    if "recipe" in settings:
        raise ConfigError("--recipe is for held-out prompts; benchmarks and pairs of runs bring their own.")
    return {
        "checkpoint": checkpoint_name(settings),
        "samples_per_prompt": whole_number(settings, "samples_per_prompt"),
        "limit": whole_number(settings, "limit"),
        "output": Path(settings["output"]).expanduser() if "output" in settings else None,
    }
