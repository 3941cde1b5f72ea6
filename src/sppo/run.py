"""The run folder: everything a run leaves behind, and the only thing that reports and the web page read.

    config.yaml       the resolved options
    metrics.jsonl     one line a step
    rollouts.jsonl    audit record: prompt, token ids, V, A, R and verdict of every response
    summary.json      accuracy before and after, seconds by phase, calibration, versions
    checkpoints/      step_N folders; `last` and `best` point at two of them
    curves.png        pictures

Nothing half-written is ever found under its final name: whole files are written beside it and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import yaml

from sppo.config import Config, flatten, to_dict
from sppo.errors import RunFolderError

RESUMABLE_CHANGES = (
    "steps", "output", "description", "threads", "checkpoint.", "logging.", "evaluation.every", "engine.max_rows",
    "optimizer.tokens_per_microbatch", "optimizer.layout", "optimizer.logprob_chunk_tokens",
    "model.gradient_checkpointing", "critic.gradient_checkpointing",
)  # fmt: skip
"""Keys that may differ between a run and its resumption: they change memory, speed and files, and no step but by
rounding."""


class Progress(Protocol):
    """Where a run tells a person how far it is."""

    def phase(self, name: str, total: int | None, unit: str = "steps") -> None:
        """Begins a phase of `total` units."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the current phase to `step`, with the newest metrics."""

    def message(self, text: str) -> None:
        """A line to keep."""

    def close(self) -> None:
        """Ends the display."""


class NoProgress:
    """Says nothing."""

    def phase(self, name: str, total: int | None, unit: str = "steps") -> None:
        """Ignored."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""

    def close(self) -> None:
        """Ignored."""


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Returns a 63-bit seed that depends on all three arguments.

    Every random choice of a step is drawn from a seed of its own, so a resumed run makes the same choices without
    having to restore a generator that was part of the way through its sequence.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path beside `path`, then renames it into place."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)


class RunFolder:
    """Writes one run's files. Made by `create` for a new run and by `reopen` for one that goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def require_new(cls, config: Config) -> RunFolder:
        """Checks that a new run may be made at `config.output`; makes nothing yet.

        Raises:
            RunFolderError: something is there already.
        """
        path = Path(config.output)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunFolderError(
                f"{path} exists already. Add --resume to go on from its last checkpoint, "
                "or choose another folder with --output NAME."
            )
        return cls(path)

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Makes the folder and writes config.yaml.

        Raises:
            RunFolderError: the folder already holds a run, or cannot be written.
        """
        folder = cls.require_new(config)
        path = folder.path
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            folder.write_config(config)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be made: {error.strerror}. Choose another with --output.") from error
        return folder

    @classmethod
    def reopen(cls, config: Config) -> RunFolder:
        """Opens an existing run to go on with it.

        Raises:
            RunFolderError: no run there, or its config differs in keys that change training (names them).
        """
        path = Path(config.output)
        if not (path / "config.yaml").is_file():
            raise RunFolderError(f"{path} holds no run to resume: {path / 'config.yaml'} is missing.")
        differences = config_differences(read_config(path), to_dict(config))
        if differences:
            raise RunFolderError(
                f"{path} was made with another config, so it cannot be resumed with this one. Different: "
                + "; ".join(differences)
                + ". Give the same options, or start a new run with --output NAME."
            )
        folder = cls(path)
        folder.checkpoints.mkdir(exist_ok=True)
        folder.write_config(config)
        return folder

    def write_config(self, config: Config) -> None:
        """Writes config.yaml."""
        text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "config.yaml", lambda path: _write_text(path, text))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        write_atomically(self.path / "summary.json", lambda path: _write_text(path, text))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        _append(self.path / "metrics.jsonl", [line])

    def append_rollouts(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds audit records to rollouts.jsonl."""
        _append(self.path / "rollouts.jsonl", lines)

    def forget_after(self, step: int) -> None:
        """Drops metrics and audit records later than `step`, and a torn last line: they are about to be made anew."""
        for name in ("metrics.jsonl", "rollouts.jsonl"):
            if (self.path / name).is_file():
                kept = (line for line in _read_lines(self.path / name) if line["step"] <= step)
                write_atomically(self.path / name, lambda path, kept=kept: _append(path, kept, mode="w"))  # type: ignore[misc]

    def require_space(self, needed_bytes: int) -> None:
        """Checks that the disk has room for `needed_bytes` more.

        Raises:
            RunFolderError: it has not; says how much there is.
        """
        place = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if free < needed_bytes:
            raise RunFolderError(
                f"{self.path} has {free / 1e9:.1f} GB free, but the checkpoints to keep need about "
                f"{needed_bytes / 1e9:.1f} GB. Free some space, lower checkpoint.keep, or choose another --output."
            )


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns "key: old -> new" for each key that changes training and differs."""
    before, after = flatten(dict(old)), flatten(dict(new))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(RESUMABLE_CHANGES)
    ]


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a run's config.yaml as nested dicts.

    Raises:
        RunFolderError: there is none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise RunFolderError(f"{folder} is no run folder: it has no config.yaml.")
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, without a torn last one; empty where there are none yet."""
    path = folder / "metrics.jsonl"
    return list(_read_lines(path)) if path.is_file() else []


def read_summary(folder: Path) -> dict[str, Any]:
    """Returns summary.json; empty where the run has not ended yet."""
    path = folder / "summary.json"
    if not path.is_file():
        return {}
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


class StopRequest:
    """Turns the first Ctrl-C into a request to stop after the current step; the second one stops at once.

    Weights in the middle of an update are no state that could be resumed exactly, so the step is finished first.
    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self, progress: Progress) -> None:
        self.requested = False
        self._progress = progress
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_interrupt)
            self._installed = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._progress.message("Stopping after this step, then saving. Ctrl-C again stops at once, unsaved.")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _append(path: Path, lines: Iterable[Mapping[str, Any]], mode: str = "a") -> None:
    with open(path, mode, encoding="utf-8") as handle:
        handle.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    # str.splitlines would also split at U+2028, which a response may hold; a file is read up to \n alone.
    with open(path, encoding="utf-8", newline="\n") as handle:
        for line in handle:
            # A process that was killed can leave a torn last line; it has no newline.
            if line.endswith("\n"):
                yield json.loads(line)
