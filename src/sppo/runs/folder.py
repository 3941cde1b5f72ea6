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

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sppo import __version__
from sppo.config import Config
from sppo.config.compatibility import config_differences, written_config
from sppo.config.recipes import to_yaml
from sppo.errors import RunFolderError
from sppo.runs.files import _nearest_existing, gigabytes, write_atomically, write_text_atomically


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
        said = written_config(path)
        differences = config_differences(said, config)
        if differences and not _is_unstarted(path):
            by = "" if said.version == __version__ else f"by sppo {said.version} (this is {__version__}) "
            raise RunFolderError(
                f"{path} was made {by}with another config, so it cannot be resumed with this one. Different: "
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
        write_text_atomically(self.path / "config.yaml", to_yaml(config))

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


def _is_unstarted(path: Path) -> bool:
    """Whether a folder holds nothing that training made: a run that ended before its first checkpoint, or nothing."""
    if not {entry.name for entry in path.iterdir()} <= {"config.yaml", "checkpoints"}:
        return False
    checkpoints = path / "checkpoints"
    # What a killed process was writing has a hidden name.
    return not checkpoints.exists() or all(entry.name.startswith(".") for entry in checkpoints.iterdir())


def _cannot_be_made(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{path} cannot be made: {error.strerror}. Choose another with --output.")


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
