"""What an evaluation leaves behind, and goes on from after it was killed. No torch.

    settings.json     everything that the responses depend on
    problems.jsonl    every problem: prompt, gold answer, verifier
    responses.jsonl   every response: text, finish reason, verdict, verifier and its version
    progress.json     how much of responses.jsonl counts
    result.json       the scores
    table.txt         the scores, for people, as the command line printed them

Responses are sampled and written in batches. What a killed process had written of a batch is behind the mark that
progress.json keeps, and is cut off by the next: so a batch is sampled as a whole or not at all, and the numbers are
those of an evaluation that nothing interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.config import flatten
from sppo.errors import RunFolderError
from sppo.evaluation.scores import EvaluationResult, Response, score
from sppo.runs import ranks
from sppo.runs.files import read_json, write_json
from sppo.runs.lock import lock
from sppo.runs.records import JsonLines

NOT_COMPARED = (
    "versions.", "model.name", "benchmarks.", "verification.workers", "verification.time_limit",
    "verification.max_error_share", "verification.process.",
)  # fmt: skip
"""Settings that say where something came from, that another machine needs otherwise, or that are for training alone; of
the benchmarks, only those are compared that are asked for again."""
_OF_BENCHMARKS = {
    "problems": "its problems or their gold answers",
    "prompts": "the prompts' token ids, which the tokenizer, the chat template, instruction and system_prompt make",
    "verifier": "the verifier",
    "verifier_version": "the verifier's version",
}
"""Settings of a benchmark that are compared, and what a change of them means."""


@dataclass(frozen=True)
class Measured:
    """A finished evaluation, read back."""

    path: Path
    name: str
    """Of the model."""
    result: Mapping[str, Any]
    """What result.json holds."""
    responses: Mapping[str, Mapping[str, list[Response]]]
    """{benchmark: {problem: its samples}}, those that the result is made of."""
    settings: Mapping[str, Any]
    """What settings.json holds."""


class EvaluationFolder:
    """Writes one evaluation; made by `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = ExitStack()
        self._responses = JsonLines(path / "responses.jsonl")
        self._size = 0

    @classmethod
    def open(
        cls,
        path: Path,
        settings: Mapping[str, Any],
        problems: Mapping[str, list[dict[str, Any]]],
        tell: Callable[[str], None] = lambda text: None,
    ) -> EvaluationFolder:
        """Makes the folder, or goes on with it.

        Args:
            path: the folder.
            settings: what the responses depend on, with a section for each benchmark.
            problems: lines of problems.jsonl by benchmark.
            tell: gets what people should know.

        Raises:
            RunFolderError: it was made with other settings, another process writes to it, or it can't be made.
        """
        # As they will be read back: tuples are lists, keys are text.
        settings = json.loads(json.dumps(settings))
        if ranks.is_main() and read_settings(path) is None and path.is_dir() and not _is_unstarted(path):
            raise RunFolderError(f"{path} exists and holds something else. Choose another folder with --output.")
        folder = cls(path)
        with ExitStack() as held:
            held.enter_context(lock(path, tell))
            if ranks.is_main():
                folder._begin(settings, problems)
            folder._size = ranks.of_main(folder._size)
            folder._held = held.pop_all()
        return folder

    def _begin(self, settings: Mapping[str, Any], problems: Mapping[str, list[dict[str, Any]]]) -> None:
        before = read_settings(self.path)
        different = [] if before is None else differences(before, settings)
        if different:
            raise RunFolderError(
                f"{self.path} holds responses that were made otherwise: {'; '.join(different)}. To go on with it, make "
                "them the same; or choose another folder with --output."
            )
        self._cut()
        merged = {**settings, "benchmarks": {**(before or {}).get("benchmarks", {}), **settings["benchmarks"]}}
        listed = {**_read_problems(self.path), **problems}
        JsonLines(self.path / "problems.jsonl").replace(line for lines in listed.values() for line in lines)
        # Last, since a folder with settings is one that holds everything else.
        write_json(self.path / "settings.json", merged)

    def responses(self) -> Iterator[dict[str, Any]]:
        """Yields the records that count."""
        return self._responses.read(self._size)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds one batch of responses; it counts once this has returned.

        Raises:
            RunFolderError: the disk is full or not writable.
        """
        try:
            size = self._responses.append(records)
            write_json(self.path / "progress.json", {"bytes": size})
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be written: {error.strerror}. What is there is whole; the same command goes on."
            ) from error
        self._size = size

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json."""
        write_json(self.path / "result.json", result)

    def close(self) -> None:
        """Lets another process write here."""
        self._held.close()

    def _cut(self) -> None:
        """Takes away what was written of a batch that was never finished."""
        path, self._size = self._responses.path, _committed(self.path)
        found = path.stat().st_size if path.is_file() else 0
        if found < self._size:
            raise RunFolderError(
                f"{path} has {found:,} bytes, but {self._size:,} were written: something else changed it. "
                "Choose another folder with --output."
            )
        if found > self._size:
            os.truncate(path, self._size)


def read_settings(path: Path) -> dict[str, Any] | None:
    """Returns settings.json of an evaluation folder, or None where there is none."""
    return read_json(path / "settings.json")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two settings, in words; benchmarks that only one of them has don't."""
    before, after = flatten(dict(old)), flatten(dict(new))
    found = [
        f"{key} {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not key.startswith(NOT_COMPARED)
        # Another version of sppo may have verifiers with other options; what matters is in the verifier's own version.
        and not (key.startswith("verification.") and (key not in before or key not in after))
    ]
    for name, benchmark in new["benchmarks"].items():
        known = old["benchmarks"].get(name)
        for key, meaning in _OF_BENCHMARKS.items():
            if known is not None and known[key] != benchmark[key]:
                found.append(f"{name}: {meaning} ({_shown(known[key])} -> {_shown(benchmark[key])})")
    return found


def is_evaluation(path: Path) -> bool:
    """Whether a folder holds an evaluation."""
    return (path / "settings.json").is_file() and (path / "problems.jsonl").is_file()


def read_evaluation(path: Path, benchmarks: Iterable[str] | None = None) -> Measured:
    """Reads a finished evaluation back, of all its benchmarks or of some.

    Raises:
        RunFolderError: it is not finished, or lacks one of the benchmarks.
    """
    settings, result = read_settings(path), read_json(path / "result.json")
    if settings is None or result is None:
        raise RunFolderError(f"{path} holds an evaluation that has not ended. Go on with it by the same command.")
    wanted = list(benchmarks) if benchmarks is not None else list(result["benchmarks"])
    for name in wanted:
        if name not in result["benchmarks"]:
            has = ", ".join(result["benchmarks"])
            raise RunFolderError(f"{path} has no finished {name}; it has {has}. Evaluate its model on {name} first.")
    problems = _read_problems(path)
    collected: dict[str, dict[str, list[Response]]] = {
        name: {line["problem"]: [] for line in problems[name][: result["benchmarks"][name]["problems"]]}
        for name in wanted
    }
    for record in JsonLines(path / "responses.jsonl").read(_committed(path)):
        group = collected.get(record["benchmark"], {}).get(record["problem"])
        if group is not None and record["sample"] < result["benchmarks"][record["benchmark"]]["samples"]:
            group.append(light(record))
    return Measured(path, result["model"], result, collected, settings)


def read_result(path: Path) -> EvaluationResult:
    """Returns what a finished evaluation came to, computed again from its responses; raises as `read_evaluation`."""
    measured, settings = read_evaluation(path), read_settings(path)
    assert settings is not None, "read_evaluation has found them"
    labels = {
        name: {line["problem"]: line["difficulty"] for line in lines} for name, lines in _read_problems(path).items()
    }
    scores = {
        name: score(
            name,
            groups,
            samples=measured.result["benchmarks"][name]["samples"],
            votes=settings["benchmarks"][name]["votes"],
            difficulty={problem: labels[name][problem] for problem in groups},
        )
        for name, groups in measured.responses.items()
    }
    left_out = {
        name: {int(row): reason for row, reason in rows.items()} for name, rows in measured.result["left_out"].items()
    }
    notes = tuple(measured.result["notes"])
    return EvaluationResult(
        measured.name, str(path), measured.result["samples"], settings["sampling"], scores, left_out, notes
    )


def light(record: Mapping[str, Any]) -> Response:
    """Returns what counts of a line of responses.jsonl."""
    return Response(
        problem=record["problem"],
        sample=record["sample"],
        reward=record["reward"],
        extracted=record["extracted"],
        finished=record["finish_reason"] == "stop",
        tokens=record["tokens"],
        error=record["error"],
        caused_by=record.get("caused_by", ""),
    )


def _committed(path: Path) -> int:
    return int((read_json(path / "progress.json") or {"bytes": 0})["bytes"])


def _read_problems(path: Path) -> dict[str, list[dict[str, Any]]]:
    listed: dict[str, list[dict[str, Any]]] = {}
    for line in JsonLines(path / "problems.jsonl").read():
        listed.setdefault(line["benchmark"], []).append(line)
    return listed


def _is_unstarted(path: Path) -> bool:
    """Whether a folder holds nothing but what a killed process wrote before its settings."""
    return all(entry.name.startswith(".") or entry.name == "problems.jsonl" for entry in path.iterdir())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
