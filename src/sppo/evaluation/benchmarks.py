"""The evaluation benchmarks: one table, and from a name (or name=FILE) to the problems to be solved. No torch.

A problem counts once. Rows that repeat an earlier prompt with the same answer, as in files that hold each problem 8
times for averaging, are folded into one problem, which then gets n samples like any other: n says how often a problem
is tried, not the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sppo.config import DataConfig
from sppo.data.tasks import LoadedPrompts, get_task, load_prompts, prompt_key
from sppo.data.tasks.reading import file_kind
from sppo.errors import ConfigError, DataError, did_you_mean
from sppo.types import Prompt
from sppo.verifiers.tools import Tools

_KEY = "benchmarks"


@dataclass(frozen=True)
class Benchmark:
    """One line of the table; the data's hub name, its layouts, instruction and verifier are those of its task."""

    task: str
    """Name in `sppo.data.tasks.TASKS`; the benchmark has the same name."""
    problems: int
    """As published; another number is told."""
    split: str = "train"
    """Split of the hub's data set, where the task itself does not know the only one."""
    votes: bool = True
    """Whether answers can be counted against each other, so that maj@k means something; programs can't."""


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.task: benchmark
    for benchmark in (
        Benchmark("aime24", 30),
        Benchmark("aime25", 30),
        Benchmark("amc23", 40),
        Benchmark("math500", 500),
        Benchmark("minerva", 272),
        Benchmark("gsm8k", 1319, split="test"),
        Benchmark("humaneval", 164, votes=False),
    )
}
"""Every benchmark by its name."""


@dataclass(frozen=True)
class Problems:
    """One benchmark's problems, ready to be sampled."""

    name: str
    prompts: tuple[Prompt, ...]
    """One a problem, in the file's order."""
    source: str = ""
    """File or hub name that they came from."""
    votes: bool = True
    """As in `Benchmark`."""
    left_out: Mapping[int, str] = field(default_factory=dict)
    """Row number, from 1 -> why the row could not be used."""
    notes: tuple[str, ...] = ()
    """Lines for people."""


def parse_benchmarks(text: str | Sequence[str] | Mapping[str, Any]) -> dict[str, str | None]:
    """Returns {name: file, hub name or None} of "aime24,math500=FILE", a list of such, or a mapping.

    Raises:
        ConfigError: none, an unknown one, or one that is given twice.
    """
    if isinstance(text, Mapping):
        entries = [name if path is None else f"{name}={path}" for name, path in text.items()]
    else:
        entries = text.split(",") if isinstance(text, str) else list(text)
    wanted: dict[str, str | None] = {}
    for entry in filter(None, map(str.strip, entries)):
        name, given, path = entry.partition("=")
        if name not in BENCHMARKS:
            raise ConfigError(f"There is no benchmark {name!r}.{did_you_mean(name, BENCHMARKS)}")
        if name in wanted:
            raise ConfigError(f"The benchmark {name!r} is given twice.")
        if given and not path:
            raise ConfigError(f"--benchmarks {entry} has no file behind the equals sign.")
        wanted[name] = path or None
    if not wanted:
        raise ConfigError(f"--benchmarks names none. Known: {', '.join(BENCHMARKS)}.")
    return wanted


def load_benchmark(
    name: str,
    path: str | None = None,
    *,
    instruction: str | None = None,
    system_prompt: str | None = None,
    tools: Tools | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
) -> Problems:
    """Loads one benchmark.

    Args:
        name: a key of `BENCHMARKS`.
        path: file or hub name; default: the task's hub name.
        instruction: added after each problem; default: the task's own, and none where the rows bring theirs.
        system_prompt: system message put before each problem.
        tools: what verifiers run with, for the check of gold answers.
        rows: rows instead of a file, as dicts of columns.

    Raises:
        ConfigError: the task's verifier is not known.
        DataError: the file or data set can't be read, or holds no usable row.
    """
    benchmark = BENCHMARKS[name]
    is_file = path is not None and (file_kind(path) is not None or Path(path).expanduser().is_file())
    data = DataConfig(
        task=benchmark.task,
        path=path,
        split=DataConfig.split if is_file or rows is not None else benchmark.split,
        instruction=instruction,
        system_prompt=system_prompt,
    )
    try:
        loaded = load_prompts(data, seed=0, rows=rows, tools=tools, key=_KEY)
    except DataError as error:
        raise DataError(_message(str(error), name, path)) from error
    return fold(name, loaded, path or get_task(benchmark.task).hub_name or "")


def _message(text: str, name: str, path: str | None) -> str:
    """The loader's message, in terms of --benchmarks."""
    if path is None and " cannot be loaded from the hub: " in text:
        return f"{text.partition('. Mend ')[0]}. With a local file: --benchmarks {name}=FILE"
    return text.replace(f"{_KEY}.path ", f"--benchmarks {name}=")


def fold(name: str, loaded: LoadedPrompts, source: str) -> Problems:
    """Makes problems of prompts: one for each different pair of prompt and answer, named as its first row."""
    benchmark = BENCHMARKS[name]
    first: dict[tuple[str, tuple[str | None, ...]], Prompt] = {}
    for prompt in loaded.prompts:
        first.setdefault((prompt.text, prompt.golds), prompt)
    prompts = tuple(first.values())
    if len(prompts) == len(loaded.prompts):
        notes = list(loaded.notes)
    else:
        notes = list(loaded.notes)
        if len({prompt_key(prompt.text) for prompt in prompts}) == len(prompts):
            notes = [note for note in notes if " repeat an earlier prompt" not in note]
        notes.append(f"{name}: {len(loaded.prompts)} rows are {len(prompts)} problems; each counts once")
    rows = len(prompts) + len(loaded.left_out)
    if rows != benchmark.problems:
        notes.append(f"{name}: {rows} problems, but {benchmark.problems} are published")
    return Problems(name, prompts, source, benchmark.votes, loaded.left_out, tuple(notes))
