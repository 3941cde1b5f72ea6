"""One process at a time writes a folder: a lock that ends with the process, however it ends."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from sppo.errors import RunFolderError
from sppo.runs import ranks
from sppo.runs.files import decode_json

LOCK_FILE = ".lock"
_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


@contextmanager
def lock(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Makes a folder where it lacks, and keeps other processes from writing to it until the block ends.

    Of several ranks the main one, which alone writes, does so; the others don't wait for that here.

    It is the kernel's advisory lock on FOLDER/.lock, which a process that was killed doesn't hold any longer. The file
    says who holds it, stays behind, and is of no interest to readers.

    Args:
        folder: what to lock.
        tell: gets a line for people where the file system or platform has no locks.

    Raises:
        RunFolderError: another process holds it (says which), the folder can't be made or written, or a link leads out
            of it.
    """
    if not ranks.is_main():
        yield
        return
    _refuse_links_out(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not through a link, which in a folder of somebody else may point to any file.
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made: {error.strerror}. Choose another folder.") from error
    _held.add(descriptor)
    try:
        _acquire(descriptor, folder, tell)
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def launch_of(folder: Path) -> str | None:
    """The launch whose process wrote to a folder last, as its launcher calls it; None where it can't be told."""
    try:
        launch = decode_json((folder / LOCK_FILE).read_text())["launch"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return launch if isinstance(launch, str) else None


def _refuse_links_out(folder: Path) -> None:
    """Refuses a folder, or one within a run, that leads elsewhere: it may be a stranger's, and will be written to."""
    run = next((place for place in (folder, *folder.parents[:2]) if (place / "config.yaml").is_file()), folder)
    inside = [place for place in (folder, *folder.parents[:2]) if place != run and place.is_relative_to(run)]
    for parent, folders, files in os.walk(folder):
        if "wandb" in folders:  # W&B's own, with links to its logs; nothing of ours is written there
            folders.remove("wandb")
        inside += [Path(parent, name) for name in (*folders, *files)]
    root = run.resolve()
    for place in inside:
        if place.is_symlink() and not place.resolve().is_relative_to(root):
            raise RunFolderError(
                f"{place} is a link that leads out of {run}, to {place.resolve()}. Nothing is written through it, as "
                "the folder may be somebody else's: put what it leads to in its place."
            )


def _acquire(descriptor: int, folder: Path, tell: Callable[[str], None]) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunFolderError(
            f"Another process is writing to {folder}{_holder(descriptor)}. Wait until it has ended, or choose another "
            "folder."
        ) from error
    except (ImportError, OSError) as error:
        tell(
            f"{folder} cannot be locked ({getattr(error, 'strerror', None) or error}): make sure that no other process "
            "writes to it."
        )
    program = Path(sys.argv[0])
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([program.parent.name if program.name == "__main__.py" else program.name, *sys.argv[1:]]),
        "launch": ranks.launch_name(),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
    """Who holds the lock, in words; nothing where it has just been taken and doesn't say yet."""
    try:
        said = decode_json(os.pread(descriptor, 10_000, 0))
        text = f": process {said['pid']} on {said['host']} since {said['since']}, {_cut(str(said['command']))}"
    except (ValueError, LookupError, TypeError):
        return ""
    return "".join(character if character.isprintable() else "?" for character in text)


def _cut(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _close_in_child() -> None:
    """A forked child shares the lock, and would hold it on when its parent is killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
