"""The run folder: everything a run leaves behind, and the only thing that reports and the web page read.

    config.yaml       the resolved options
    metrics.jsonl     one line a step
    rollouts/         one file a step: prompt, token ids, V, A, R and verdict of every response
    revisions.json    the commits of models and data sets of the hub, where there are any
    summary.json      accuracy before and after, seconds by phase, calibration, versions
    checkpoints/      step_N folders; `last` and `best` point at two of them
    adapter_base/     the weights that adapters stand on, where no other folder has them
    reference/        what training started from, where a loss asks for it
    curves.png        pictures
    .lock             says which process writes here

Nothing half-written is ever found under its final name, and nothing is written before everything is checked.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sppo import __version__
from sppo.config.compatibility import as_yaml, config_differences, written, written_config
from sppo.config.trust import require_repeated
from sppo.errors import ConfigError, RunFolderError
from sppo.runs import ranks
from sppo.runs.checkpoint import (
    find_checkpoint,
    load_state,
    require_checkpoint,
    require_whole,
    set_aside_after,
)
from sppo.runs.files import gigabytes, is_temporary, nearest_existing, read_json, write_json, write_text
from sppo.runs.lock import LOCK_FILE, launch_of, lock
from sppo.runs.records import JsonLines, forget_records, record_files, write_records

_BEFORE_TRAINING = {
    "config.yaml", "checkpoints", "metrics.jsonl", "rollouts", "tensorboard", "adapter_base", "reference", LOCK_FILE,
}  # fmt: skip
"""What a run has made when its first checkpoint is being written."""


class RunFolder:
    """A run's files, and the one process that writes them: `open` takes the folder, `begin` makes the first change."""

    def __init__(self, path: Path, options: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._options = options
        self._metrics = JsonLines(path / "metrics.jsonl")
        self._tell = tell
        self._held: ExitStack | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        options: Mapping[str, Any],
        *,
        resume: bool | str = False,
        tell: Callable[[str], None] = lambda text: None,
    ) -> RunFolder:
        """Checks that a run may be made at `path`, or go on there, and keeps other processes out. Changes nothing yet.

        The main rank does so, and alone writes; all go on once it has.

        Args:
            path: the folder.
            options: nested plain options, for config.yaml.
            resume: go on with the run that is there, from its last checkpoint or the one of this name.
            tell: gets what people should know.

        Raises:
            ConfigError: see `require_resumable`.
            RunFolderError: see `require_new` and `require_resumable`; or another process writes there.
        """

        def check() -> None:
            if resume:
                require_resumable(path, options, checkpoint_of(resume))
            else:
                require_new(path)

        folder = cls(path, options, tell)
        if not ranks.is_main():
            ranks.wait()
            return folder
        # Where a run of ours has been, its present owner is named first; elsewhere nothing is made before the check.
        if not (path / LOCK_FILE).is_file():
            check()
        if path.is_dir():
            folder._hold(check)
        ranks.wait()
        return folder

    def begin(self, step: int = -1) -> None:
        """Writes config.yaml, and drops metrics and records later than `step`: they are about to be made anew.

        Called once, after everything that may refuse the run.

        Raises:
            RunFolderError: it can't be made, or seen by all ranks; or another process has begun there meanwhile.
        """
        if ranks.is_main():
            self._begin(step)
        ranks.wait()
        if not (self.path / "config.yaml").is_file():
            raise RunFolderError(
                f"{self.path.absolute()} can't be seen on {socket.gethostname()}, where rank {ranks.rank()} runs, but "
                "all ranks read it. Choose an --output on storage that all machines share."
            )

    def _begin(self, step: int) -> None:
        try:
            if self._held is None:
                self._hold(lambda: require_new(self.path))
            self.checkpoints.mkdir(exist_ok=True)
            write_text(self.path / "config.yaml", as_yaml(self._options))
            if self._metrics.path.is_file():
                kept = [line for line in read_metrics(self.path) if line["step"] <= step]
                lost = step + 1 - kept[0]["step"] - len(kept) if kept else 0
                if lost > 0:
                    self._tell(f"{self._metrics.path} lacks {lost} of its steps: lines of it can't be read.")
                self._metrics.replace(kept)
            forget_records(self.path, step)
            for name in set_aside_after(self.checkpoints, step):
                self._tell(f"{self.checkpoints / name} is of a later step; it is kept under this name, and not used.")
        except OSError as error:
            raise _cannot_be_made(self.path, error) from error

    def note_revisions(self, found: Mapping[str, str]) -> None:
        """Adds to revisions.json which commit of a hub model or data set was read; a model once, when it was new."""
        if found and ranks.is_main():
            path = self.path / "revisions.json"
            write_json(path, {**(read_json(path) or {}), **found})

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        self._metrics.append([line])

    def write_records(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes the records of a step's responses."""
        write_records(self.path, step, records)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        write_json(self.path / "summary.json", summary)

    def require_space(self, needed_bytes: int) -> None:
        """Checks that the disk has room for `needed_bytes` more.

        Raises:
            RunFolderError: it has not; says how much there is.
        """
        free = shutil.disk_usage(nearest_existing(self.path)).free
        if free < needed_bytes:
            raise RunFolderError(
                f"{self.path} has {gigabytes(free)} free, but the checkpoints to keep need about "
                f"{gigabytes(needed_bytes)}. Free some space, lower checkpoint.keep, or choose another --output."
            )

    def close(self) -> None:
        """Lets another process write here."""
        if self._held is not None:
            self._held.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _hold(self, check: Callable[[], None]) -> None:
        """Locks the folder, then checks what no other process can change any longer."""
        with ExitStack() as stack:
            stack.enter_context(lock(self.path, self._tell))
            check()
            self._held = stack.pop_all()


def require_new(path: Path) -> None:
    """Checks that a new run may be made at `path`; leaves nothing there.

    Raises:
        RunFolderError: something is there already, or the folder can't be made.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file, not a folder. Choose another name with --output.")
    if path.exists() and not _is_unstarted(path):
        raise RunFolderError(
            f"{path} exists already. Add --resume to go on from its last checkpoint, "
            "or choose another folder with --output NAME."
        )
    try:
        # Permissions alone don't tell: root may write everywhere, but not on a read-only disk or in /proc.
        os.rmdir(tempfile.mkdtemp(prefix=".sppo-", suffix=".tmp", dir=nearest_existing(path)))
    except OSError as error:
        raise _cannot_be_made(path, error) from error


def checkpoint_of(resume: bool | str) -> str:
    """Name of the checkpoint that is gone on from: True is the last one."""
    return resume if isinstance(resume, str) else "last"


def require_resumable(path: Path, options: Mapping[str, Any], name: str = "last") -> None:
    """Checks that the run at `path` may go on with these options; changes nothing.

    Args:
        path: the folder.
        options: nested plain options.
        name: of the checkpoint to go on from.

    Raises:
        ConfigError: it is past the last step already.
        RunFolderError: no run there, or one without a checkpoint, or of another version of sppo, or one whose options
            differ in keys that change training (names them).
    """
    for place in (path / "config.yaml", path / "checkpoints"):
        if not place.exists():
            raise RunFolderError(f"{path} holds no run to resume: {place} is missing.")
    checkpoint = find_checkpoint(path) if name == "last" else require_checkpoint(path, name)
    if checkpoint is None and (trained := _training_in(path)):
        raise RunFolderError(
            f"{path} has {trained}, but no checkpoint to go on from. Choose another folder with --output NAME."
        )
    if checkpoint is None:
        return  # It starts over, whatever its options were.
    require_whole(checkpoint, sizes_alone=True)  # each file's content is read when it is gone on from
    step = load_state(checkpoint).step
    said = written_config(path)
    require_repeated(said.config, written(options).config, str(path))
    differences = config_differences(said, written(options).config)
    if differences:
        by = "" if said.version == __version__ else f"by sppo {said.version} (this is {__version__}) "
        raise RunFolderError(
            f"{path} was made {by}with another config, so it cannot be resumed with this one. Different: "
            + "; ".join(differences)
            + ". Give the same options, or start a new run with --output NAME."
        )
    if options["steps"] < step:
        raise ConfigError(f"steps is {options['steps']}, but the run is at step {step} already. Give as many or more.")


def goes_on(path: Path) -> bool:
    """Whether the launcher started this command again, and what it began at `path` has a checkpoint to go on from.

    A folder that another command made is left to the person. Every rank has to call it.
    """
    launch = ranks.restarted()
    if launch is None:
        return False
    return ranks.of_main(launch_of(path) == launch and find_checkpoint(path) is not None)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl that can be read, each with its step; empty where there are none yet."""
    return [line for line in JsonLines(folder / "metrics.jsonl").read(skip_damaged=True) if "step" in line]


def read_summary(folder: Path) -> dict[str, Any]:
    """Returns summary.json; empty where the run has not ended yet."""
    return read_json(folder / "summary.json") or {}


def _training_in(path: Path) -> str | None:
    """What a folder holds that only training makes, its checkpoints aside; None where it holds nothing such."""
    steps = max((line.get("step", 1) for line in read_metrics(path)), default=0)
    if steps:
        return f"the metrics of {steps} steps"
    if record_files(path) or (path / "rollouts.jsonl").is_file():
        return "records of responses"
    return "a summary" if (path / "summary.json").is_file() else None


def _is_unstarted(path: Path) -> bool:
    """Whether a folder holds nothing, or what a run of ours left that ended before its first checkpoint."""
    names = {entry.name for entry in path.iterdir() if not is_temporary(entry.name)}
    # The folder of checkpoints is made first: without it, config.yaml is of somebody else.
    ours = names <= _BEFORE_TRAINING and ("checkpoints" in names or names <= {LOCK_FILE})
    checkpoints = path / "checkpoints"
    # What a killed process was writing has a hidden name.
    unsaved = not checkpoints.exists() or all(entry.name.startswith(".") for entry in checkpoints.iterdir())
    return ours and unsaved and not _training_in(path)


def _cannot_be_made(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{path} cannot be made: {error.strerror}. Choose another with --output.")
