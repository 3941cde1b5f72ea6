"""Options of data: where prompts and gold answers come from, and how a row is read."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from sppo.config.ranges import AtLeastOne, CodePlace, Positive, Section
from sppo.errors import ConfigError


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
    """Branch, tag or commit of a hub data set; default: its newest. revisions.json in the run folder has the commit."""
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
    answer_form: Literal["answer", "solution", "noted"] = "answer"
    """What stands in the column: the answer alone; or a worked solution, of which what follows #### is taken, else its
    last box or final statement; or an answer with a note in brackets, 9 of "9 (in thousands)"."""
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
class MixedSource(SourceConfig):
    """One of several data sets of a run."""

    name: str | None = None
    """What its prompts' ids begin with, and its metrics are called; default: the file's name without ending, or the
    task."""
    weight: Positive | None = None
    """Share of the prompts asked that are its own, relative to the other sources' weights; default for all of them: as
    many as it has."""

    @property
    def label(self) -> str:
        """Its name, given or made."""
        return self.name or (Path(self.path).name.partition(".")[0] if self.path else self.task)


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Where prompts and gold answers come from."""

    sources: list[MixedSource] = field(default_factory=list)
    """Several data sets instead of one, each with the keys above, a name and a weight, as in '[{task: gsm8k}, {path:
    mine.jsonl, verifier: exact}]'."""

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

    def each(self, key: str = "data") -> dict[str, DataConfig]:
        """Returns the sources by name, each as a section of its own; without sources this one, called "".

        Raises:
            ConfigError: two of one name, weights of some alone, or keys of this section that are the sources'.
        """
        if not self.sources:
            return {"": self}
        own = [name for name in _OF_A_SOURCE if getattr(self, name) != getattr(DataConfig(), name)]
        if own:
            raise ConfigError(f"{key}.{own[0]} is set, and {key}.sources too: give {own[0]} to the sources.")
        labels = [source.label for source in self.sources]
        twice = next((label for index, label in enumerate(labels) if label in labels[:index]), None)
        if twice is not None:
            raise ConfigError(f"{key}.sources has two called {twice!r}: give one of them another name.")
        without = [source.label for source in self.sources if source.weight is None]
        if without and len(without) < len(labels):
            raise ConfigError(
                f"{key}.sources: {without[0]!r} has no weight, but others have. Give all a weight, or none."
            )
        return {
            source.label: replace(self, sources=[], **{name: getattr(source, name) for name in _OF_A_SOURCE})
            for source in self.sources
        }

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the sources that have one, by name."""
        return {source.label: source.weight for source in self.sources if source.weight is not None}


_OF_A_SOURCE = tuple(one.name for one in fields(SourceConfig))
