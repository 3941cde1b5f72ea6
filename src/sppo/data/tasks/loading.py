"""From rows to prompts: reads each row by its task, leaves out or refuses bad ones, and reports what it found."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sppo.config import DataConfig
from sppo.data.tasks.hub import split_of
from sppo.data.tasks.problem import Problem, Row, RowError, Task, prompt_key
from sppo.data.tasks.reading import rows_of
from sppo.errors import ConfigError, DataError, did_you_mean
from sppo.types import Message, Prompt, Submission

if TYPE_CHECKING:
    from sppo.verifiers.tools import Tools

_ROWS_NAMED = 20
_REASONS_NAMED = 3
_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class LoadedPrompts:
    """What `load_prompts` returns."""

    prompts: tuple[Prompt, ...]
    """In the order of the rows."""
    notes: tuple[str, ...]
    """Lines for people: what was left out, and what is odd about the data."""
    left_out: Mapping[int, str] = field(default_factory=dict)
    """Row number, from 1 -> why the row could not be used."""
    revisions: Mapping[str, str] = field(default_factory=dict)
    """Hub data set -> the commit that was read."""


@dataclass
class _Reading:
    """What one pass over the rows found; rows are counted from 1."""

    problems: dict[int, Problem]
    bad: dict[int, str]
    copies: int
    columns: Sequence[str]

    @property
    def total(self) -> int:
        return len(self.problems) + len(self.bad)


def load(
    task: Task,
    config: DataConfig,
    seed: int,
    rows: Iterable[Row] | None,
    require_gold: bool = True,
    tools: Tools | None = None,
    key: str = "data",
) -> LoadedPrompts:
    """Loads the prompts of one task; see `sppo.data.tasks.load_prompts`."""
    check_data_config(task, config, rows, key)
    verifier = config.verifier or task.verifier
    needs_gold = require_gold and config.reward is None
    if needs_gold:
        from sppo.verifiers import VERIFIERS

        if verifier not in VERIFIERS:
            raise ConfigError(f"{key}.verifier is {verifier!r}.{did_you_mean(verifier, VERIFIERS)}")
    notes: list[str] = []
    revisions: dict[str, str] = {}
    if rows is None:
        rows = task.make_rows(config, seed, key) if task.make_rows else rows_of(task, config, notes, key, revisions)
    elif isinstance(rows, Mapping):  # a DatasetDict
        rows = split_of(rows, task, config, notes, key)
    reading = _read(task, for_reading(config, verifier, tools), rows)
    if needs_gold:
        _check_golds(reading, verifier, tools, trusted=task.built_in)
    _refuse_or_report(task, config, reading, notes, key)
    if reading.copies:
        notes.append(f"{task.name}: {reading.copies} rows left out, exact copies of earlier rows")
    if not task.built_in:
        notes.extend(_repeat_notes(task.name, reading.problems))
    prompts = tuple(_prompts(task, config, reading.problems, verifier, key))
    return LoadedPrompts(prompts, tuple(notes), dict(sorted(reading.bad.items())), revisions)


def for_reading(config: DataConfig, verifier: str, tools: Tools | None) -> DataConfig:
    """The config as rows are read by it: of a composite, as its part for letters or tests needs them."""
    from sppo.verifiers import VERIFIERS, Tools, verifiers_behind

    behind = verifiers_behind(verifier, tools or Tools()) if verifier in VERIFIERS else []
    special = [name for name in behind if name in ("choice", "code")]
    return replace(config, verifier=special[0]) if special and not config.reward else config


def mixed(loaded: Mapping[str, LoadedPrompts]) -> LoadedPrompts:
    """The prompts of several sources, one source after the other, as one data set; rows left out go by their notes."""
    prompts = [prompt for name, one in loaded.items() for prompt in of_source(name, one.prompts)]
    notes = [f"{name}: {note}" for name, one in loaded.items() for note in one.notes]
    revisions = {data: commit for one in loaded.values() for data, commit in one.revisions.items()}
    return LoadedPrompts(tuple(prompts), tuple(notes), revisions=revisions)


def of_source(name: str, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with the name of their source, in their ids too."""
    if not name:
        return list(prompts)
    return [replace(prompt, id=f"{name}/{prompt.id}", source=name) for prompt in prompts]


def check_data_config(task: Task, config: DataConfig, rows: Iterable[Row] | None, key: str) -> None:
    """Refuses options that the task does not take.

    Raises:
        ConfigError: names the option.
    """
    if config.limit is not None and config.limit < 1:
        raise ConfigError(f"{key}.limit is {config.limit}, but must be at least 1 (or null for all rows).")
    if not task.built_in:
        if config.options:
            raise ConfigError(
                f"{key}.options: task {task.name} takes none, but was given {', '.join(sorted(config.options))}."
            )
        if rows is not None and config.path is not None:
            raise ConfigError(f"{key}.path is {config.path!r}, but rows were given too: give one of the two.")
        return
    if rows is not None:
        raise ConfigError(f"task {task.name} makes its own prompts: rows are for --{key}.task rows.")
    if config.answer_form != "answer":
        raise ConfigError(f"{key}.answer_form is {config.answer_form!r}, but task {task.name} makes its own answers.")
    for name in ("path", "instruction", "system_prompt"):
        value = getattr(config, name)
        if value is not None:
            raise ConfigError(f"{key}.{name} is {value!r}, but task {task.name} makes its own prompts: leave it unset.")


def _read(task: Task, config: DataConfig, rows: Iterable[Row]) -> _Reading:
    reading = _Reading({}, {}, 0, ())
    seen: set[tuple[object, ...]] = set()
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(f"{task.name}: row {number} is a {type(row).__name__}, not a dict of columns.")
        reading.columns = reading.columns or tuple(map(str, row))
        try:
            problem = task.read(row, config)
        except RowError as error:
            reading.bad[number] = str(error)
        else:
            if task.drop_copies:
                key = (problem.id, _text(problem.content), problem.gold)
                if key in seen:
                    reading.copies += 1
                    continue
                seen.add(key)
            reading.problems[number] = problem
        if reading.total == config.limit:
            break
    if not reading.total:
        raise DataError(f"{task.name}: {config.path or 'the data'} holds no rows.")
    return reading


def _check_golds(reading: _Reading, verifier: str, tools: Tools | None, trusted: bool) -> None:
    """Moves problems without a usable gold answer to the bad rows."""
    from sppo.verifiers import Tools, check_golds, get_verifier, verifiers_behind

    tools = tools or Tools()
    if not any(get_verifier(name).needs_gold for name in verifiers_behind(verifier, tools)):
        return
    for number, problem in list(reading.problems.items()):
        if problem.gold is None:
            reading.bad[number] = problem.why_no_gold
            del reading.problems[number]
    if trusted:
        assert not reading.bad, f"a built-in task made bad rows: {reading.bad}"
        return
    asked = [(number, gold) for number, problem in reading.problems.items() for gold in problem.golds]
    given = [(verifier, _as_submission(reading.problems[number], gold)) for number, gold in asked]
    failing: dict[int, dict[str | None, str]] = {}
    for index, reason in check_golds(given, tools).items():
        number, gold = asked[index]
        failing.setdefault(number, {})[gold] = reason
    for number, reasons in failing.items():
        problem = reading.problems.pop(number)
        usable = [gold for gold in problem.golds if gold is not None and gold not in reasons]
        if usable:
            reading.problems[number] = replace(problem, gold=usable[0], other_golds=tuple(usable[1:]))
        else:
            reading.bad[number] = next(iter(reasons.values()))
    reading.problems = dict(sorted(reading.problems.items()))


def _as_submission(problem: Problem, gold: str | None) -> Submission:
    return Submission("", gold, prompt=_text(problem.content), columns=problem.columns)


def _refuse_or_report(task: Task, config: DataConfig, reading: _Reading, notes: list[str], key: str) -> None:
    bad = dict(sorted(reading.bad.items()))
    if not bad:
        return
    columns = f"Columns present: {', '.join(reading.columns)}."
    if task.name == "rows":
        columns += f" {key}.prompt_column is {config.prompt_column!r}, {key}.answer_column {config.answer_column!r}."
    if not reading.problems:
        raise DataError(f"{task.name}: none of the {len(bad)} rows can be used: {_reasons(bad)}. {columns}")
    if config.bad_rows == "refuse":
        raise DataError(
            f"{task.name}: {_count(len(bad))} cannot be used: {_listing(bad)} ({_reasons(bad)}). {columns} Mend them, "
            f"or set {key}.bad_rows to filter, which leaves them out."
        )
    only_golds = all("gold answer" in reason for reason in bad.values())
    why = "gold answer missing or does not verify" if only_golds else "prompt or gold answer cannot be used"
    notes.append(f"{task.name}: {_count(len(bad))} left out, {why}: {_listing(bad)} ({_reasons(bad)})")


def _count(rows: int) -> str:
    return f"{rows} row{'' if rows == 1 else 's'}"


def _listing(numbers: Iterable[int]) -> str:
    ordered = list(numbers)
    more = f" and {len(ordered) - _ROWS_NAMED} more" if len(ordered) > _ROWS_NAMED else ""
    plural = "" if len(ordered) == 1 else "s"
    return f"row{plural} {', '.join(map(str, ordered[:_ROWS_NAMED]))}{more}"


def _reasons(bad: Mapping[int, str]) -> str:
    """Names the first row of each of the first few reasons."""
    first: dict[str, int] = {}
    for number, reason in bad.items():
        first.setdefault(reason, number)
    shown = [
        f"row {number}: {reason[:_REASON_CHARACTERS]}"
        for reason, number in itertools.islice(first.items(), _REASONS_NAMED)
    ]
    return "; ".join(shown)


def _text(content: str | tuple[Message, ...]) -> str:
    return Prompt("", content).text


def _repeat_notes(name: str, problems: Mapping[int, Problem]) -> Iterator[str]:
    groups: dict[str, list[int]] = {}
    for number, problem in problems.items():
        groups.setdefault(prompt_key(_text(problem.content)), []).append(number)
    repeats = len(problems) - len(groups)
    if not repeats:
        return
    conflicting = [rows for rows in groups.values() if len({problems[row].gold for row in rows}) > 1]
    note = (
        f"{name}: {repeats} of {len(problems)} rows repeat an earlier prompt, {len(groups)} are distinct "
        "(letters, digits and operators compared)"
    )
    if conflicting:
        example = ", ".join(map(str, conflicting[0]))
        plural = "prompt has" if len(conflicting) == 1 else "prompts have"
        note += f"; {len(conflicting)} repeated {plural} conflicting answers as text, as in rows {example}; "
        note += "sppo audit says more"
    yield note


def _prompts(
    task: Task, config: DataConfig, problems: Mapping[int, Problem], verifier: str, key: str
) -> Iterator[Prompt]:
    taken: set[str] = set()
    for number, problem in problems.items():
        identifier = name = problem.id or f"{task.name}/{number}"
        for copy in itertools.count(2):
            if identifier not in taken:
                break
            identifier = f"{name}#{copy}"
        taken.add(identifier)
        yield Prompt(
            id=identifier,
            content=_with_system(_with_instruction(problem, task, config), config, f"{task.name}: row {number}", key),
            gold=problem.gold,
            other_golds=problem.other_golds,
            verifier=verifier,
            columns=problem.columns,
            difficulty=problem.difficulty,
            demonstration=problem.demonstration,
        )


def _with_instruction(problem: Problem, task: Task, config: DataConfig) -> str | tuple[Message, ...]:
    instruction = config.instruction
    if instruction is None:
        instruction = None if problem.has_instruction else task.instruction
    if not instruction:
        return problem.content
    if isinstance(problem.content, str):
        return f"{problem.content}\n{instruction}"
    *before, last = problem.content
    return (*before, {**last, "content": f"{last['content']}\n{instruction}"})


def _with_system(
    content: str | tuple[Message, ...], config: DataConfig, row: str, key: str
) -> str | tuple[Message, ...]:
    if not config.system_prompt:
        return content
    system = {"role": "system", "content": config.system_prompt}
    if isinstance(content, str):
        return (system, {"role": "user", "content": content})
    if content[0]["role"] == "system":
        raise DataError(
            f"{row} begins with a system message of its own, and {key}.system_prompt is set. Leave "
            f"{key}.system_prompt unset, or take the system messages out of the rows."
        )
    return (system, *content)


def load_demonstrations(
    task: Task, config: DataConfig, kind: str, seed: int, rows: Iterable[Row] | None
) -> list[Prompt]:
    """Loads the prompts that have a demonstration; see `sppo.data.tasks.demonstrations`."""
    if not task.demonstrations:
        raise DataError(
            f"task {task.name} has no demonstrations to fine-tune on. chain_arithmetic, skills, gsm8k and rows (with a "
            "column demonstration or completion) have."
        )
    if kind not in task.demonstrations:
        raise ConfigError(
            f"{kind!r} is no kind of demonstration of task {task.name}.{did_you_mean(kind, task.demonstrations)}"
        )
    prompts = load(task, config, seed, rows, require_gold=False).prompts
    found = [prompt for prompt in prompts if prompt.demonstration is not None]
    missing = len(prompts) - len(found)
    if not found or (missing and config.bad_rows == "refuse"):
        present = ", ".join(prompts[0].columns)
        raise DataError(
            f"task {task.name}: {missing} of {len(prompts)} rows have no demonstration. Columns present beside the "
            f"prompt: {present}; task rows reads demonstration or completion."
        )
    return found
