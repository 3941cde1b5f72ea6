"""What is wrong with a data set: gold answers that fail, repeats, conflicts, and copies of evaluation problems.

A row is left out of the clean data for one reason, the first of: its gold answer cannot be used; another row has the
same prompt and another answer (all of them go, as nobody knows which is right); an earlier row has the same prompt; it
is a copy of an evaluation problem. Answers are compared by the verifier, so 0.5 and \\frac12 do not conflict.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sppo.config import DataConfig
from sppo.data.tasks import TASKS, get_task, prompt_key
from sppo.data.tasks.contamination import Corpus, Likeness, find_alike, find_alike_within
from sppo.data.tasks.loading import check_data_config, for_reading
from sppo.data.tasks.problem import Row, RowError, Task
from sppo.data.tasks.reading import rows_of
from sppo.errors import DataError
from sppo.runs.progress import NoProgress, Progress
from sppo.types import Prompt, Submission
from sppo.verifiers import Tools, Verifier, check_golds, get_verifier

_GOLDS_AT_ONCE = 500
FAULTY, CONFLICTING, REPEATED = "gold answer fails", "conflicting answers", "repeats an earlier prompt"


@dataclass(frozen=True)
class Conflict:
    """Rows with the same prompt and answers that the verifier does not take for each other."""

    rows: tuple[int, ...]
    golds: tuple[str, ...]
    """Of each row."""
    prompt: str


@dataclass(frozen=True)
class Pair:
    """Two problems that are alike; the rule is in `sppo.data.tasks.contamination`."""

    row: int
    other: int
    """Row of the evaluation set, or another row of the data."""
    share: float
    prompt: str
    other_prompt: str
    golds_agree: bool | None = None
    """Within the data: whether the verifier takes the answers for each other."""


@dataclass(frozen=True)
class Overlap:
    """What the data has in common with one evaluation set."""

    name: str
    problems: int
    """Distinct ones."""
    found: int
    """How many of them have a copy in the data."""
    copies: tuple[Pair, ...]
    variants: tuple[Pair, ...]
    """Alike, but with other numbers: reported, and kept."""

    @property
    def reason(self) -> str:
        """What is said of a row that is left out for it."""
        return f"copy of a problem of {self.name}"


@dataclass(frozen=True)
class Audit:
    """What `check_data` found. Rows are counted from 1."""

    task: str
    verifier: str
    rows: int
    distinct: int
    """Prompts that differ in letters, digits or operators, of rows that can be used."""
    faulty: Mapping[int, str]
    """Row -> why it cannot be used."""
    repeats: Mapping[int, int]
    """Row -> the earlier row that it repeats, without the conflicting ones."""
    conflicts: tuple[Conflict, ...]
    differ_as_text: int
    """Repeated prompts whose answers are not the same text; those in `conflicts` are really different."""
    overlaps: tuple[Overlap, ...]
    near_copies: tuple[Pair, ...]
    """Within the data, alike but not equal: reported, and kept."""
    notes: tuple[str, ...]

    def left_out(self) -> dict[int, str]:
        """Row -> the one reason it is left out for."""
        reasons: dict[int, str] = dict.fromkeys(self.faulty, FAULTY)
        for conflict in self.conflicts:
            reasons.update(dict.fromkeys(conflict.rows, CONFLICTING))
        reasons.update(dict.fromkeys(self.repeats, REPEATED))
        for overlap in self.overlaps:
            for pair in overlap.copies:
                reasons.setdefault(pair.row, overlap.reason)
        return dict(sorted(reasons.items()))

    @property
    def is_clean(self) -> bool:
        """Whether no row would be left out."""
        return not self.left_out()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "clean": self.is_clean, "left_out": dict(Counter(self.left_out().values()))}


def check_data(
    data: DataConfig, seed: int, tools: Tools, against: Sequence[DataConfig] = (), progress: Progress | None = None
) -> Audit:
    """Checks the data that a section of options names.

    Args:
        data: the section.
        seed: of a built-in task's prompts.
        tools: what verifiers run with.
        against: evaluation sets that the data should hold no problem of.
        progress: told what it does.

    Raises:
        ConfigError: an unknown task or verifier.
        DataError: data that cannot be read, or has no rows.
    """
    progress = progress or NoProgress()
    task = get_task(data.task)
    verifier = get_verifier(data.verifier or task.verifier)
    notes: list[str] = []
    evaluation_sets = [(other.task, _evaluation_set(other, seed)) for other in against]
    progress.phase("reading", None)
    as_read = for_reading(data, verifier.name, tools)
    rows, faulty = _read(task, as_read, rows_of_data(data, seed, notes), needs_gold=verifier.needs_gold)
    if not rows:
        raise _unusable(task, data, seed, faulty)
    total = len(rows) + len(faulty)
    faulty |= _failing_golds(rows, verifier.name, tools, progress)
    groups: dict[str, list[int]] = {}
    keys: dict[str, str] = {}
    for number, row in rows.items():
        if number not in faulty:
            if row.prompt not in keys:
                keys[row.prompt] = prompt_key(row.prompt)
            groups.setdefault(keys[row.prompt], []).append(number)
    differing = [group for group in groups.values() if len({rows[number].gold for number in group}) > 1]
    progress.phase("answers of repeated prompts", None)
    conflicts = _conflicts(differing, rows, verifier, tools)
    conflicting = {number for conflict in conflicts for number in conflict.rows}
    firsts = [group[0] for group in groups.values()]
    progress.phase("near-copies", None)
    corpus = Corpus(rows[number].prompt for number in firsts)
    overlaps = [_overlap(name, found, corpus, firsts, rows) for name, found in evaluation_sets]
    return Audit(
        task=task.name,
        verifier=verifier.name,
        rows=total,
        distinct=len(groups),
        faulty=dict(sorted(faulty.items())),
        repeats={n: group[0] for group in groups.values() for n in group[1:] if n not in conflicting},
        conflicts=tuple(conflicts),
        differ_as_text=len(differing),
        overlaps=tuple(overlaps),
        # Prompts that were drawn at random are alike by design.
        near_copies=() if task.built_in else _near_copies(find_alike_within(corpus), firsts, rows, verifier, tools),
        notes=tuple(notes),
    )


def rows_of_data(data: DataConfig, seed: int, notes: list[str]) -> Iterator[Row]:
    """Opens the rows of the data, up to data.limit; appends to `notes` what a person should know.

    Raises:
        ConfigError: a task without data, or bad options of a built-in task.
        DataError: see `sppo.data.tasks.reading.rows_of`.
    """
    task = get_task(data.task)
    check_data_config(task, data, None, "data")
    rows = task.make_rows(data, seed, "data") if task.make_rows else rows_of(task, data, notes)
    return itertools.islice(rows, data.limit)


def _read(
    task: Task, config: DataConfig, rows: Iterable[Row], *, needs_gold: bool
) -> tuple[dict[int, Submission], dict[int, str]]:
    """Returns the rows by number, and why others cannot be used."""
    found: dict[int, Submission] = {}
    faulty: dict[int, str] = {}
    known: dict[tuple[str, tuple[str | None, ...]], Submission] = {}
    for number, row in enumerate(rows, start=1):
        try:
            problem = task.read(row, config)
        except RowError as error:
            faulty[number] = str(error)
            continue
        if problem.gold is None and needs_gold:
            faulty[number] = problem.why_no_gold
            continue
        prompt = Prompt("", problem.content).text
        # Some published files hold each row a hundred times over; those share one object.
        found[number] = known.setdefault(
            (prompt, problem.golds),
            Submission("", problem.gold, prompt=prompt, columns=problem.columns, other_golds=problem.other_golds),
        )
    if not found and not faulty:
        raise DataError(f"{task.name}: {config.path or 'the data'} holds no rows.")
    return found, faulty


def _unusable(task: Task, data: DataConfig, seed: int, faulty: Mapping[int, str]) -> DataError:
    """The error for data of which the task can read no row; names the tasks that can."""
    row, why = next(rows_of_data(data, seed, [])), next(iter(faulty.values()))
    able = [name for name, other in TASKS.items() if not other.built_in and _reads(other, row, data)]
    hint = f" Tasks that read such rows: {', '.join(able)} (as in --task {able[0]})." if able else ""
    return DataError(
        f"{task.name}: none of the {len(faulty)} rows can be used, the first because: {why}. "
        f"Columns present: {', '.join(map(str, row))}.{hint}"
    )


def _reads(task: Task, row: Row, config: DataConfig) -> bool:
    try:
        return task.read(row, config).gold is not None
    except RowError:
        return False


def _evaluation_set(config: DataConfig, seed: int) -> dict[int, str]:
    """Row number -> problem, without the instruction, of each distinct problem of an evaluation set."""
    task = get_task(config.task, "--against")
    key = f"--against {task.name}"
    try:
        rows = task.make_rows(config, seed, key) if task.make_rows else rows_of(task, config, [], key)
        found, faulty = _read(task, config, rows, needs_gold=False)
    except DataError as error:
        if config.path is None and " cannot be loaded from the hub: " in str(error):
            raise DataError(f"{str(error).partition('. Mend ')[0]}. With a local file: {key}=FILE") from error
        raise DataError(str(error).replace(f"{key}.path ", f"{key}=")) from error
    if not found:
        raise DataError(f"{key}: none of the rows can be read; the first: {next(iter(faulty.values()))}.")
    distinct: dict[str, int] = {}
    for number, row in found.items():
        distinct.setdefault(prompt_key(row.prompt), number)
    return {number: found[number].prompt for number in distinct.values()}


def _failing_golds(rows: Mapping[int, Submission], verifier: str, tools: Tools, progress: Progress) -> dict[int, str]:
    """Row -> why its gold answer fails; so many at a time that progress can be told."""
    by_gold: dict[str | None, list[int]] = {}
    for number, row in rows.items():
        by_gold.setdefault(row.gold, []).append(number)
    progress.phase("gold answers", len(by_gold), "answers")
    failing: dict[int, str] = {}
    golds = list(by_gold)
    for start in range(0, len(golds), _GOLDS_AT_ONCE):
        numbers = [number for gold in golds[start : start + _GOLDS_AT_ONCE] for number in by_gold[gold]]
        unusable = check_golds([(verifier, rows[number]) for number in numbers], tools)
        failing.update({numbers[index]: why for index, why in unusable.items()})
        progress.update(min(start + _GOLDS_AT_ONCE, len(golds)), {"failing": len(failing)})
    return failing


def _agree(pairs: Sequence[tuple[Submission, Submission]], verifier: Verifier, tools: Tools) -> list[bool]:
    """Whether the verifier takes each pair's answers for each other, both ways.

    A time-out on the way counts as no: such a pair is not known to agree.
    """
    agree = [left.gold == right.gold for left, right in pairs]
    asked: dict[tuple[str, str | None], list[int]] = {}
    submissions: dict[tuple[str, str | None], Submission] = {}
    for index, pair in enumerate(pairs):
        for giving, holding in (pair, pair[::-1]):
            response = verifier.reference(giving)
            if not agree[index] and response is not None:
                asked.setdefault((response, holding.gold), []).append(index)
                submissions[response, holding.gold] = replace(holding, response=response)
    verdicts = verifier.grade(list(submissions.values()), tools) if submissions else []
    right = {key: verdict.reward == 1.0 for key, verdict in zip(submissions, verdicts, strict=True)}
    votes: dict[int, list[bool]] = {}
    for key, indices in asked.items():
        for index in indices:
            votes.setdefault(index, []).append(right[key])
    return [equal or (index in votes and all(votes[index])) for index, equal in enumerate(agree)]


def _conflicts(
    groups: Sequence[Sequence[int]], rows: Mapping[int, Submission], verifier: Verifier, tools: Tools
) -> list[Conflict]:
    """The groups of rows whose answers do not all agree with the first one's."""
    # Of each answer, as text, the first row that gives it: nothing is compared twice.
    givers = [list({rows[number].gold: number for number in reversed(group)}.values())[::-1] for group in groups]
    pairs = [(rows[given[0]], rows[other]) for given in givers for other in given[1:]]
    agree = iter(_agree(pairs, verifier, tools))
    verdicts = [[next(agree) for _ in given[1:]] for given in givers]
    return [
        Conflict(tuple(group), tuple(str(rows[number].gold) for number in group), rows[group[0]].prompt)
        for group, agreeing in zip(groups, verdicts, strict=True)
        if not all(agreeing)
    ]


def _overlap(
    name: str, problems: Mapping[int, str], corpus: Corpus, firsts: Sequence[int], rows: Mapping[int, Submission]
) -> Overlap:
    numbers = list(problems)
    copies: list[Pair] = []
    variants: list[Pair] = []
    for likeness in find_alike(corpus, Corpus(problems.values())):
        row, other = firsts[likeness.row], numbers[likeness.other]
        pair = Pair(row, other, likeness.share, rows[row].prompt, problems[other])
        (copies if likeness.copy else variants).append(pair)
    return Overlap(name, len(problems), len({pair.other for pair in copies}), tuple(copies), tuple(variants))


def _near_copies(
    alike: Sequence[Likeness], firsts: Sequence[int], rows: Mapping[int, Submission], verifier: Verifier, tools: Tools
) -> tuple[Pair, ...]:
    pairs = [(firsts[one.row], firsts[one.other], one.share) for one in alike if one.copy]
    agree = _agree([(rows[row], rows[other]) for row, other, _ in pairs], verifier, tools)
    return tuple(
        Pair(row, other, share, rows[row].prompt, rows[other].prompt, golds_agree)
        for (row, other, share), golds_agree in zip(pairs, agree, strict=True)
    )
