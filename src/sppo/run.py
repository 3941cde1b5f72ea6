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
import tempfile
import threading
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import yaml

from sppo.config import Config, flatten, to_dict
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


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a text file that is whole or absent."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


class RunFolder:
    """Writes one run's files. Made by `create` for a new run and by `reopen` for one that goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def require_new(cls, config: Config) -> RunFolder:
        """Checks that a new run may be made at `config.output`; leaves nothing there yet.

        Raises:
            RunFolderError: something is there already, or the folder can't be made.
        """
        path = Path(config.output)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file, not a folder. Choose another name with --output.")
        if path.exists() and not _is_unstarted(path):
            raise RunFolderError(
                f"{path} exists already. Add --resume to go on from its last checkpoint, "
                "or choose another folder with --output NAME."
            )
        place = _nearest_existing(path)
        try:
            # Permissions alone don't tell: root may write everywhere, but not on a read-only disk or in /proc.
            os.rmdir(tempfile.mkdtemp(prefix=".sppo-", dir=place))
        except OSError as error:
            raise _cannot_be_made(path, error) from error
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
            raise _cannot_be_made(path, error) from error
        return folder

    @classmethod
    def require_resumable(cls, config: Config) -> RunFolder:
        """Checks that the run at `config.output` may go on with this config; changes nothing yet.

        Raises:
            RunFolderError: no run there, or its config differs in keys that change training (names them).
        """
        path = Path(config.output)
        if not (path / "config.yaml").is_file():
            raise RunFolderError(f"{path} holds no run to resume: {path / 'config.yaml'} is missing.")
        differences = config_differences(read_config(path), to_dict(config))
        if differences and not _is_unstarted(path):
            raise RunFolderError(
                f"{path} was made with another config, so it cannot be resumed with this one. Different: "
                + "; ".join(differences)
                + ". Give the same options, or start a new run with --output NAME."
            )
        return cls(path)

    @classmethod
    def reopen(cls, config: Config) -> RunFolder:
        """Opens an existing run to go on with it; raises as `require_resumable`."""
        folder = cls.require_resumable(config)
        folder.checkpoints.mkdir(exist_ok=True)
        folder.write_config(config)
        return folder

    def write_config(self, config: Config) -> None:
        """Writes config.yaml."""
        text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        write_text_atomically(self.path / "config.yaml", text)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        write_text_atomically(self.path / "summary.json", text)

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
        free = shutil.disk_usage(_nearest_existing(self.path)).free
        if free < needed_bytes:
            raise RunFolderError(
                f"{self.path} has {gigabytes(free)} free, but the checkpoints to keep need about "
                f"{gigabytes(needed_bytes)}. Free some space, lower checkpoint.keep, or choose another --output."
            )


def gigabytes(number: float) -> str:
    """Bytes as people read them."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _is_unstarted(path: Path) -> bool:
    """Whether a folder holds nothing that training made: a run that ended before its first checkpoint, or nothing."""
    if not {entry.name for entry in path.iterdir()} <= {"config.yaml", "checkpoints"}:
        return False
    checkpoints = path / "checkpoints"
    # What a killed process was writing has a hidden name.
    return not checkpoints.exists() or all(entry.name.startswith(".") for entry in checkpoints.iterdir())


def _cannot_be_made(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{path} cannot be made: {error.strerror}. Choose another with --output.")


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


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, without a torn last one; empty where there are none yet."""
    path = folder / "metrics.jsonl"
    return list(_read_lines(path)) if path.is_file() else []


def read_rollouts(folder: Path, last_steps: int) -> Iterator[dict[str, Any]]:
    """Yields the audit records of the newest steps, without a torn last line; none where there are none yet."""
    path = folder / "rollouts.jsonl"
    newest = max((int(line["step"]) for line in read_metrics(folder)), default=0)
    if path.is_file():
        yield from (line for line in _read_lines(path) if line["step"] > newest - last_steps)


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
