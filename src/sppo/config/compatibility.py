"""Options that another version, or another start of the same run, wrote: read, filled in and compared."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from sppo.config import Config, flatten
from sppo.errors import RunFolderError

RESUMABLE_CHANGES = (
    "steps", "output", "description", "threads", "checkpoint.", "logging.", "evaluation.every", "engine.max_rows",
    "optimizer.tokens_per_microbatch", "optimizer.layout", "optimizer.logprob_chunk_tokens",
    "model.gradient_checkpointing", "critic.gradient_checkpointing", "verification.workers", "verification.time_limit",
    "verification.memory_limit_mb", "verification.max_error_share", "verification.reward_model.tokens_per_microbatch",
    "verification.process.tokens_per_microbatch",
)  # fmt: skip
"""Keys that may differ between a run and its resumption: they change memory, speed and files, and no step but by
rounding. The limits of verification are among them, so that a run that stopped for too many errors can go on."""


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns "key: old -> new" for each key that changes training and differs.

    A key that an older version did not write counts as its default; one that this version lacks is named as such.
    """
    filled, unknown = fill_defaults(Config, old)
    # An empty dict of options is one key where the other config has its keys, and says nothing.
    before, after = ({k: v for k, v in flatten(dict(plain)).items() if v != {}} for plain in (filled, new))
    differences = [f"{key}: no longer an option" for key in unknown]
    differences += [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    return [difference for difference in differences if not difference.startswith(RESUMABLE_CHANGES)]


def fill_defaults(section: type, values: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Makes the options that another version of sppo wrote into those of this one.

    Args:
        section: dataclass of the options.
        values: nested plain options.
        prefix: dotted key of the section, with its last dot.

    Returns:
        The known options, missing ones at their defaults, as nested plain dicts; and the dotted keys that are unknown.
    """
    hints = typing.get_type_hints(section)
    unknown = [f"{prefix}{key}" for key in values if key not in hints]
    filled: dict[str, Any] = {}

    def fill(kind: type, inner: Mapping[str, Any], key: str) -> dict[str, Any]:
        plain, strange = fill_defaults(kind, inner, f"{prefix}{key}.")
        unknown.extend(strange)
        return plain

    for option in fields(section):
        name = option.name
        kinds = [kind for kind in (hints[name], *typing.get_args(hints[name])) if is_dataclass(kind)]
        value = values.get(name, {} if is_dataclass(hints[name]) else _default(option))
        if kinds and isinstance(value, Mapping):
            value = fill(typing.cast(type, kinds[0]), value, name)
        elif kinds and isinstance(value, list):
            value = [fill(typing.cast(type, kinds[0]), entry, f"{name}.{i}") for i, entry in enumerate(value)]
        filled[name] = list(value) if isinstance(value, tuple) else value
    return filled, unknown


def _default(option: Any) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a run's config.yaml as nested dicts.

    Raises:
        RunFolderError: there is none, or it can't be read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise RunFolderError(f"{folder} is no run folder: it has no config.yaml.")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RunFolderError(f"{path} is not YAML that can be read: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise RunFolderError(f"{path} holds no options.")
    return loaded
