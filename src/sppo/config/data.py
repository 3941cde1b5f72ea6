"""Options of data: where prompts and gold answers come from, and how a row is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sppo.config.ranges import AtLeastOne, CodePlace, Section


@dataclass(frozen=True)
class SourceConfig(Section):
    """Where prompts and gold answers come from, and how a row is read."""

    task: str = "rows"
    """Name in the table of tasks."""
    path: str | None = None
    """File (.parquet, .jsonl, .json, .csv, .tsv; text also as .gz), several with a star, a folder of files or one that
    save_to_disk wrote, or hub name; default: the task's own hub name."""
    subset: str | None = None
    """Subset (configuration) of a hub data set; default: the task's own, or the data set's only one."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set; default: its newest. The run's notes say which commit was read."""
    split: str = "train"
    """Split of a hub data set or a folder, or of a built-in task (train, held_out)."""
    prompt_column: str = "prompt"
    """Task rows: column of the prompt, text or chat messages."""
    prompt_template: str | None = None
    """Task rows: text of the prompt instead, with columns in braces, as in "{question} {options}"."""
    options_column: str | None = None
    """Task rows: column of a multiple choice's choices, for verifier choice; default: choices or options. They are
    lettered, and put behind a prompt that doesn't name them."""
    answer_column: str = "answer"
    """Task rows: column of the gold answer; dots reach into structs, as in reward_model.ground_truth."""
    answers: Literal["any", "all"] | None = None
    """Where the gold answer is a list: any of them is right, or all together; default: any, and all for verifier
    choice."""
    verifier: str | None = None
    """Name of the verifier; default: the task's own."""
    instruction: str | None = None
    """Text added after each problem, such as a request to box the answer; default: the task's own."""
    limit: AtLeastOne | None = None
    """Use only the first so many rows."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of a built-in task, such as the number of prompts and the range of difficulty."""


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Where prompts and gold answers come from."""

    reward: CodePlace = None
    """Your reward function instead of a verifier, as package.module:function or path/to/file.py:function; in TRL's
    signature f(prompts, completions, **columns), or verl's compute_score(data_source, solution_str, ground_truth,
    extra_info)."""
    system_prompt: str | None = None
    """System message put before each chat prompt."""
    max_prompt_tokens: AtLeastOne = 1024
    """Longest prompt, in tokens of the policy's tokenizer, chat template included."""
    bad_rows: Literal["filter", "refuse"] = "filter"
    """What to do with rows whose prompt is too long, or whose gold answer is missing or does not verify: leave them out
    and count them, or stop with their numbers."""
