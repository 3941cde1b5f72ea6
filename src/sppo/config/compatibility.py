"""Configs of earlier versions of sppo: read, completed, and held against that of a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sppo import __version__
from sppo.config.gone import Gone, gone
from sppo.config.keys import find
from sppo.config.options import Config, flatten, to_dict
from sppo.config.parsing import build, read_yaml_file, set_value
from sppo.errors import ConfigError, RunFolderError, visible

VERSION_KEY = "sppo_version"
"""Key in config.yaml, no option: the version of sppo that wrote it."""
NOTES = ("description", VERSION_KEY)
"""Keys in recipes and config.yaml that are no options: they tell people something."""
_FIRST = "0.1.0"
"""The version that did not write it yet."""
_WITHOUT_CHOICE = (_FIRST, "0.2.0")
"""Versions that asked the prompts that came next, also for sppo, the one algorithm that chooses by itself now."""
RESUMABLE_CHANGES = (
    "steps", "max_hours", "output", "threads", "checkpoint.", "logging.", "evaluation.every", "engine.max_rows",
    "engine.options", "optimizer.tokens_per_microbatch", "optimizer.layout", "optimizer.offload", "model.attention",
    "model.gradient_checkpointing", "critic.gradient_checkpointing", "verification.workers", "verification.time_limit",
    "verification.max_error_share",
)  # fmt: skip
"""Keys that may differ between a run and its resumption: they change memory, speed and files, and no step but by
rounding. The limits of verification are among them, so that a run that stopped for too many errors can go on. The
number of steps is one of them where neither a learning rate nor a curriculum goes by it."""


@dataclass(frozen=True)
class Written:
    """What a config.yaml says."""

    config: Config
    """Its options, those that it lacks at their defaults."""
    version: str
    """The sppo that wrote it."""
    left_out: Mapping[str, Any]
    """{dotted key: value} that this version has no option for."""

    def notes(self) -> list[str]:
        """What is left out and did say something, for people."""
        said = {key: gone(key) for key, value in self.left_out.items() if not _still_holds(key, value, self.config)}
        return [
            f"{key} is no option of this version, and is ignored." + (f" {went.instead}" if went else "")
            for key, went in said.items()
        ]


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a run's config.yaml as nested dicts.

    Raises:
        RunFolderError: there is none, or it can't be read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise RunFolderError(f"{folder} is no run folder: it has no config.yaml.")
    try:
        loaded = read_yaml_file(path, str(path))
    except ConfigError as error:
        raise RunFolderError(str(error)) from error
    if not loaded:
        raise RunFolderError(f"{path} holds no options.")
    return loaded


def written_config(folder: Path) -> Written:
    """Returns what a run's config.yaml says, whatever version of sppo wrote it.

    Raises:
        RunFolderError: there is none, or it can't be read.
    """
    try:
        return written(read_config(folder))
    except ConfigError as error:
        raise RunFolderError(f"{folder / 'config.yaml'} can't be used: {error}") from error


def written(values: Mapping[str, Any]) -> Written:
    """Returns what nested plain values of any version say.

    Raises:
        ConfigError: a value that this version can't take.
    """
    version = str(values.get(VERSION_KEY, _FIRST))
    left_out: dict[str, Any] = {}
    known = _known(without_notes(values), "", left_out)
    algorithm = known.get("algorithm")
    if version == _FIRST and isinstance(algorithm, dict) and algorithm.get("kl_estimator") == "k3":
        # The first version's default, in the loss and in the reward alike; now each place has its own.
        del algorithm["kl_estimator"]
    if version in _WITHOUT_CHOICE and (algorithm or {}).get("name", "sppo") == "sppo":
        known.setdefault("selection", {"name": "uniform"})
    return Written(build(Config, known), version, left_out)


def as_yaml(options: Mapping[str, Any]) -> str:
    """Returns nested plain options as YAML, with the version that wrote it."""
    said = {VERSION_KEY: __version__, **options}
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=110)
    # It is shown too: with what a terminal would act on, all that is not ASCII is written as YAML's escapes.
    return text if visible(text) == text else yaml.safe_dump(said, sort_keys=False, width=110)


def without_notes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options alone."""
    return {key: value for key, value in values.items() if key not in NOTES}


def drop_idle(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe's values without options that are no more and say what holds, or change no result.

    A recipe that an earlier version printed has every option of that version in it.
    """
    left_out: dict[str, Any] = {}
    kept = _known(values, "", left_out)
    said = flatten(kept)
    for key, value in left_out.items():
        went = gone(key)
        if went is None or (went.changes_training and value != said.get(_followed(key, went), went.was)):
            set_value(kept, key, value)
    return kept


def _known(values: Mapping[str, Any], prefix: str, left_out: dict[str, Any]) -> dict[str, Any]:
    """The values that there are options for; the others go to `left_out`."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        option = find(Config, key)
        if option is None:
            left_out[key] = value
        elif option.inner and isinstance(value, Mapping):
            kept[name] = _known(value, f"{key}.", left_out)
        elif option.inner and isinstance(value, list):
            kept[name] = [
                _known(entry, f"{key}.{index}.", left_out) if isinstance(entry, Mapping) else entry
                for index, entry in enumerate(value)
            ]
        else:
            kept[name] = value
    return kept


def _still_holds(key: str, value: Any, config: Config) -> bool:
    """Whether what an option that went was set to is what holds for this config."""
    went = gone(key)
    if went is None:
        return False
    return bool(value == flatten(to_dict(config)).get(_followed(key, went), went.was))


def _followed(key: str, went: Gone) -> str:
    """The key that says now what this one said; "" for none."""
    follows = went.follows or ""
    return f"evaluation.{follows}" if key.startswith("evaluation.data.") else follows


def _may_change(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a run may go on with another value; with other steps not where a rate or a curriculum goes by them."""
    if key != "steps":
        return key.startswith(RESUMABLE_CHANGES)
    return goes_by_steps(before) is None and goes_by_steps(after) is None


def goes_by_steps(said: Mapping[str, Any]) -> str | None:
    """Returns the first of a config's flat options by which a step depends on how many there are; None: none does."""
    keys = ("optimizer.learning_rate_decay", "critic.learning_rate_decay", "selection.name")
    return next((key for key in keys if said[key] in ("linear", "cosine", "curriculum")), None)


_OF_A_PREFIT = ("critic.", "data.", "sampling.")
_NOT_OF_A_PREFIT = (
    "critic.prefit.", "critic.share", "critic.learning_rate", "critic.weight_decay", "critic.minibatch_size",
    "critic.epochs", "critic.prior", "critic.gradient_checkpointing", "sampling.samples_per_prompt",
    "sampling.adaptive_share",
)  # fmt: skip


def prefit_differences(made: Config, config: Config) -> list[str]:
    """Returns "key: made with -> now" for what makes a critic of `sppo prefit` another one than a run's.

    What it is, what it has read, and how responses were sampled; not how it goes on learning.
    """
    return _changes(
        _said(made), _said(config), lambda key: key.startswith(_OF_A_PREFIT) and not key.startswith(_NOT_OF_A_PREFIT)
    )


def config_differences(old: Written, new: Config) -> list[str]:
    """Returns "key: old -> new" for each key that changes training and differs.

    A key that an older version did not write counts as its default; one that this version lacks is named as such.
    """
    before, after = _said(old.config), _said(new)
    differences = []
    for key, value in old.left_out.items():
        went = gone(key)
        if went is None:
            differences.append(f"{key}: no longer an option")
        elif went.changes_training and not _still_holds(key, value, new):
            differences.append(f"{key}: {value!r}, but it is no longer an option. {went.instead}")
    return differences + _changes(before, after, lambda key: not _may_change(key, before, after))


def _shown(value: Any) -> str:
    """A value with null, true and false as they are written in YAML and on the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _said(config: Config) -> dict[str, Any]:
    """The flat options; an empty dict is one key where another config has its keys, and says nothing."""
    return {key: value for key, value in flatten(to_dict(config)).items() if value != {}}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], matters: Callable[[str], bool]) -> list[str]:
    """The keys that differ and matter, as "key: before -> after"."""
    return [
        f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and matters(key)
    ]
