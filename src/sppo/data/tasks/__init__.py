"""Where prompts come from: one file a data set or built-in task, one table of them, one function that loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sppo.config import DataConfig
from sppo.data.tasks import (
    aime,
    amc,
    chain_arithmetic,
    dapo_math,
    deepscaler,
    gsm8k,
    humaneval,
    loading,
    math500,
    minerva,
    skills,
)
from sppo.data.tasks import rows as rows_task
from sppo.data.tasks.loading import LoadedPrompts
from sppo.data.tasks.problem import Task, prompt_key
from sppo.errors import ConfigError, did_you_mean
from sppo.types import Prompt

if TYPE_CHECKING:
    from sppo.verifiers.tools import Tools

__all__ = ["TASKS", "LoadedPrompts", "Task", "demonstrations", "get_task", "load_prompts", "prompt_key"]

TASKS: dict[str, Task] = {
    "chain_arithmetic": chain_arithmetic.TASK,
    "skills": skills.TASK,
    "dapo_math": dapo_math.TASK,
    "math500": math500.TASK,
    "aime24": aime.AIME24,
    "aime25": aime.AIME25,
    "amc23": amc.TASK,
    "minerva": minerva.TASK,
    "gsm8k": gsm8k.TASK,
    "deepscaler": deepscaler.TASK,
    "humaneval": humaneval.TASK,
    "rows": rows_task.TASK,
}
"""Every task by its name, the value of data.task."""


def get_task(name: str, key: str = "data") -> Task:
    """Returns a task by its name; `key` is the section that errors name.

    Raises:
        ConfigError: no such task; names the nearest.
    """
    if name not in TASKS:
        raise ConfigError(f"{key}.task {name!r} is not known.{did_you_mean(name, TASKS)}")
    return TASKS[name]


def load_prompts(
    config: DataConfig,
    *,
    seed: int,
    rows: Iterable[Mapping[str, Any]] | None = None,
    require_gold: bool = True,
    tools: Tools | None = None,
    key: str = "data",
) -> LoadedPrompts:
    """Loads the prompts that a config names.

    Rows are counted from 1. Without an identifier in the data, a prompt's id is "task/row number". Rows whose prompt
    is unusable, or whose gold answer is missing or does not verify against itself, are left out and reported, or
    refused, as data.bad_rows says. Near-copies of a prompt stay in and are counted in the notes.

    Args:
        config: Task, path, columns and the rest.
        seed: Seed of a built-in task's prompts; other tasks keep the order of their rows.
        rows: Rows to read instead of a file, as dicts of columns.
        require_gold: Whether each row needs a gold answer that verifies; never needed where data.reward is set.
        tools: What verifiers run with, for the check of gold answers; default: their default options.
        key: The section that the config came from, as errors and notes name it: data or evaluation.data.

    Returns:
        The prompts in the order of the rows, and notes for people.

    Raises:
        ConfigError: unknown task, verifier, split or option, or options that exclude one another.
        DataError: a file that is missing or broken, missing columns, no rows, no usable row, or bad rows under
            data.bad_rows refuse.
    """
    sections = config.each(key)
    if config.sources and rows is not None:
        raise ConfigError(f"{key}.sources is set, but rows were given too: give one of the two.")
    loaded = {}
    for number, (name, section) in enumerate(sections.items()):
        own = f"{key}.sources.{number}" if config.sources else key
        loaded[name] = loading.load(get_task(section.task, own), section, seed, rows, require_gold, tools, own)
    return loading.mixed(loaded) if config.sources else loaded[""]


def demonstrations(
    config: DataConfig, kind: str, seed: int, rows: Iterable[Mapping[str, Any]] | None = None
) -> list[Prompt]:
    """Loads prompts with a worked response each, for supervised fine-tuning. Gold answers are not checked.

    Args:
        config: As for `load_prompts`.
        kind: "full", or for built-in tasks also "terse", whatever its options say.
        seed: Seed of a built-in task's prompts and demonstrations.
        rows: As for `load_prompts`.

    Returns:
        The prompts that have a demonstration; rows without one are left out, or refused as data.bad_rows says.

    Raises:
        ConfigError: unknown task or kind.
        DataError: the task, or its rows, have no demonstrations.
    """
    found: list[Prompt] = []
    for name, section in config.each().items():
        task = get_task(section.task)
        if task.built_in:
            section = replace(section, options={**section.options, "demonstrations": kind})
        found += loading.of_source(name, loading.load_demonstrations(task, section, kind, seed, rows))
    return found
