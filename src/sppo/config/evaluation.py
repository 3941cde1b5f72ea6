"""Which options an evaluation runs with: a run's own, a recipe's with the model put in its place, or a benchmark's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sppo.config import Config, DataConfig, EvaluationConfig, OptimizerConfig, SamplingConfig, flatten, to_dict
from sppo.config.compatibility import written_config
from sppo.config.recipes import load_recipe
from sppo.config.verification import CompositeOptions, ProcessOptions
from sppo.errors import ConfigError

SHORT_NAMES = {
    "temperature": "evaluation.temperature",
    "top_p": "sampling.top_p",
    "top_k": "sampling.top_k",
    "max_response_tokens": "sampling.max_response_tokens",
}
"""What `sppo eval` calls options of sampling."""
BENCHMARK_NAMES = {**SHORT_NAMES, "instruction": "data.instruction", "system_prompt": "data.system_prompt"}
"""The same, and what changes the prompts of benchmarks."""
_OF_BENCHMARKS = (
    "seed", "device", "threads", "model.", "engine.", "verification.", "sampling.top_p", "sampling.top_k",
    "sampling.max_response_tokens", "sampling.stop_token_ids", "evaluation.temperature", "data.instruction",
    "data.system_prompt",
)  # fmt: skip
_NO_HUB_NAME = re.compile(r"[./~]|.*/.*/")
"""Paths that are no owner/name of the hub."""


def evaluation_config(
    path: str,
    recipe: str | Path | Config | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> tuple[Config, tuple[str, ...]]:
    """Returns the config to evaluate a run or a model with, and notes for people.

    Args:
        path: a run folder, or a model's folder or hub name.
        recipe: where data and sampling come from; default: the run's own config, of any version of sppo.
        overrides: as `load_recipe` takes them.

    Raises:
        SppoError: no such folder, a checkpoint instead of its run, a model without a recipe, or bad options.
    """
    folder = Path(path).expanduser()
    is_run = (folder / "config.yaml").is_file()
    if recipe is None and not is_run:
        _refuse_checkpoint(path, folder)
        raise ConfigError(_no_recipe(path, folder))
    _require_place(path, folder)
    if recipe is None:
        own, source, notes = _config_of_run(folder)
        return load_recipe(own, overrides, training=False, source=source), notes
    if is_run:
        return load_recipe(recipe, overrides, training=False), ()
    # The recipe's tokenizer and sizes belong to the recipe's own model.
    model = {"model.path": str(folder) if folder.exists() else path, "model.tokenizer": None, "model.config": None}
    if isinstance(overrides, Mapping):
        return load_recipe(recipe, {**model, **overrides}, training=False), ()
    first = [f"--{key}={'null' if value is None else value}" for key, value in model.items()]
    return load_recipe(recipe, [*first, *overrides], training=False), ()


def benchmark_config(path: str, overrides: Sequence[str] | Mapping[str, Any] = ()) -> tuple[Config, tuple[str, ...]]:
    """Returns the config to measure a run or a model with on benchmarks, and notes for people.

    Model, device, engine and verification are a run's own. Sampling is as published for the paper's benchmarks,
    whatever the run was trained with, so that models can be compared: temperature 0.6, top_p 1, 8192 tokens.

    Args:
        path: a run folder, or a model's folder or hub name.
        overrides: as `load_recipe` takes them.

    Raises:
        SppoError: no such folder, a checkpoint instead of its run, bad options, or options without a meaning here.
    """
    folder = Path(path).expanduser()
    _require_place(path, folder)
    source: str | None = None
    notes: tuple[str, ...] = ()
    if (folder / "config.yaml").is_file():
        own, source, notes = _config_of_run(folder)
    else:
        own = load_recipe(None, {"model.path": str(folder) if folder.exists() else path}, training=False)
    base = Config(
        device=own.device,
        threads=own.threads,
        model=own.model,
        data=DataConfig(),
        sampling=SamplingConfig(max_response_tokens=8192, top_p=1.0, stop_token_ids=own.sampling.stop_token_ids),
        engine=own.engine,
        evaluation=EvaluationConfig(temperature=0.6),
        # Nor is a composite reward of the run's: benchmarks have verifiers of their own.
        verification=replace(own.verification, composite=CompositeOptions()),
        optimizer=OptimizerConfig(tokens_per_microbatch=own.optimizer.tokens_per_microbatch),
    )
    config = load_recipe(base, overrides, training=False, source=source)
    before, after = flatten(to_dict(base)), flatten(to_dict(config))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and not key.startswith(_OF_BENCHMARKS):
            raise ConfigError(
                f"--{key} means nothing for benchmarks, which bring their own prompts. Options that do: "
                f"{', '.join(sorted(BENCHMARK_NAMES))}, and those of model, engine and verification, seed, device."
            )
    return config, notes


def _config_of_run(folder: Path) -> tuple[Config, str, tuple[str, ...]]:
    """The run's options, the file that they are from, which may be a stranger's, and notes for people."""
    said, source = written_config(folder), str(folder / "config.yaml")
    # Steps are scored for training alone: their function or model need not be trusted here.
    verification = replace(said.config.verification, process=ProcessOptions())
    own = replace(said.config, verification=verification)
    return own, source, tuple(f"{source}: {note}" for note in said.notes())


def _require_place(path: str, folder: Path) -> None:
    _refuse_checkpoint(path, folder)
    if not folder.exists() and _NO_HUB_NAME.match(path):
        raise ConfigError(f"There is no folder {path} (looked from {Path.cwd()}).")


def _refuse_checkpoint(path: str, folder: Path) -> None:
    if (folder / "state.json").is_file():
        run = folder.parent.parent
        raise ConfigError(
            f"{path} is a checkpoint. Give its run, and the checkpoint's name: sppo eval {run} "
            f"--checkpoint {folder.name}"
        )


def _no_recipe(path: str, folder: Path) -> str:
    if not folder.exists() and (_NO_HUB_NAME.match(path) or "/" in path):
        hub = "" if _NO_HUB_NAME.match(path) else f" For a model of the hub: sppo eval {path} --recipe quickstart_gsm8k"
        return f"There is no folder {path} (looked from {Path.cwd()}).{hub}"
    return (
        f"{path} is no run folder (it has no config.yaml). For a model, name benchmarks: sppo eval {path} "
        f"--benchmarks math500; or a recipe to take data and sampling from: sppo eval {path} --recipe quickstart_gsm8k"
    )
