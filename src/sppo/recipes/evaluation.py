"""Which options an evaluation runs with: a run's own, or a recipe's with the model put in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo.config import Config
from sppo.errors import ConfigError
from sppo.recipes import load_recipe
from sppo.recipes.options import build
from sppo.run import fill_defaults, read_config

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
    if (folder / "state.json").is_file():
        run = folder.parent.parent
        raise ConfigError(
            f"{path} is a checkpoint. Give its run, and the checkpoint's name: sppo eval {run} "
            f"--checkpoint {folder.name}"
        )
    is_run = (folder / "config.yaml").is_file()
    if recipe is None and not is_run:
        raise ConfigError(_no_recipe(path, folder))
    if not folder.exists() and _NO_HUB_NAME.match(path):
        raise ConfigError(f"There is no folder {path} (looked from {Path.cwd()}).")
    if recipe is None:
        known, unknown = fill_defaults(Config, read_config(folder))
        notes = (f"{folder / 'config.yaml'}: not an option of this version, ignored: {key}" for key in unknown)
        return load_recipe(build(Config, known), overrides), tuple(notes)
    if is_run:
        return load_recipe(recipe, overrides), ()
    # The recipe's tokenizer and sizes belong to the recipe's own model.
    model = {"model.path": str(folder) if folder.exists() else path, "model.tokenizer": None, "model.config": None}
    if isinstance(overrides, Mapping):
        return load_recipe(recipe, {**model, **overrides}), ()
    first = [f"--{key}={'null' if value is None else value}" for key, value in model.items()]
    return load_recipe(recipe, [*first, *overrides]), ()


def _no_recipe(path: str, folder: Path) -> str:
    if not folder.exists() and (_NO_HUB_NAME.match(path) or "/" in path):
        hub = "" if _NO_HUB_NAME.match(path) else f" For a model of the hub: sppo eval {path} --recipe quickstart_gsm8k"
        return f"There is no folder {path} (looked from {Path.cwd()}).{hub}"
    return (
        f"{path} is no run folder (it has no config.yaml). For a model, name a recipe to take data and sampling "
        f"from: sppo eval {path} --recipe quickstart_gsm8k"
    )
