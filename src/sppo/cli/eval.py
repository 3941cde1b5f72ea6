"""`sppo eval RUN_OR_MODEL`: held-out accuracy by difficulty, with standard errors."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from sppo.cli.options import parse, print_help, wants_help
from sppo.errors import ConfigError

USAGE = (
    "sppo eval RUN_OR_MODEL [--checkpoint best|last|step_N] [--samples_per_prompt N] [--recipe RECIPE] "
    "[--json FILE] [--key value ...]"
)
FLAGS = {
    "RUN_OR_MODEL": "A run folder, or a model: a folder or hub name (then with --recipe).",
    "--checkpoint best|last|step_N": "Which of the run's checkpoints. Default: last.",
    "--samples_per_prompt N": "Responses to each held-out prompt. Default: the recipe's final_samples_per_prompt.",
    "--recipe RECIPE": "Where data and sampling come from, for a model that is no run folder.",
    "--json FILE": "Write the result to a file too.",
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        print_help(USAGE, "Measures held-out accuracy.", FLAGS, arguments)
        return 0
    settings = ("checkpoint", "samples_per_prompt", "recipe", "json")
    given = parse(arguments, USAGE, positional="RUN_OR_MODEL", settings=settings)
    path = given.positional or ""
    checkpoint = _checkpoint(given.settings.get("checkpoint", "last"))
    samples = _samples(given.settings.get("samples_per_prompt"))
    if "json" in given.settings:
        _require_writable(Path(given.settings["json"]))
    from sppo.recipes.evaluation import evaluation_config

    config, notes = evaluation_config(path, given.settings.get("recipe"), given.overrides)
    from rich.console import Console

    from sppo.cli.progress import make_progress
    from sppo.cli.story import print_evaluation
    from sppo.measure import evaluate_run

    progress = make_progress()
    try:
        for note in notes:
            progress.message(note)
        result = evaluate_run(path, config, checkpoint=checkpoint, samples_per_prompt=samples, progress=progress)
    finally:
        progress.close()
    print_evaluation(Console(highlight=False), result)
    if "json" in given.settings:
        text = json.dumps(result, indent=2, ensure_ascii=False)
        Path(given.settings["json"]).write_text(text + "\n", encoding="utf-8")
    return 0


def _require_writable(path: Path) -> None:
    """Refuses, before the measurement, a file that could not be written after it."""
    if path.is_dir():
        raise ConfigError(f"--json {path} is a folder, but must be a file to write.")
    if not path.parent.is_dir():
        raise ConfigError(f"--json {path}: there is no folder {path.parent}. Make it first, or choose another.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--json {path} is not writable. Choose another file.")


def _checkpoint(name: str) -> str:
    if name in ("best", "last") or (name.startswith("step_") and name[5:].isdecimal()):
        return name
    raise ConfigError(f"--checkpoint is {name!r}, but must be best, last, or step_N, as in step_40.")


def _samples(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--samples_per_prompt is {text!r}, but must be a whole number, at least 1.")
    return int(text)
