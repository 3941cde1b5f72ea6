"""Files and folders that are whole or absent, and what else is asked of a disk.

Of several ranks the main one alone writes: what the others write goes to a scratch folder, and is gone afterwards.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sppo.errors import RunFolderError, visible
from sppo.runs import ranks

_FORGOTTEN = 3600.0
"""Seconds after its last write from which a temporary file has no writer any more."""
_MOST_LEVELS = 100
"""Of values in values in JSON that is read, as whatever walks through it goes down one call for each."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a hidden name beside `path` to write to, and renames the file into place if the block ends well.

    Whoever reads `path` finds the old file or the new one, after a power cut too. Several processes may write it at
    once: each has a name of its own, and the last one wins. Into a device or a pipe, as /dev/stdout, it is written
    directly.
    """
    if not ranks.is_main():
        with tempfile.TemporaryDirectory(prefix="sppo-rank-") as scratch:
            yield Path(scratch) / path.name
        return
    if path.exists() and not path.is_file():
        yield path
        return
    _remove_forgotten(path)
    # The ending stays, as libraries take the format from it.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """As `whole_file` for a folder that one run alone writes; what was at `path` before is gone afterwards.

    Every rank takes part, and goes on when it is there.
    """
    if not ranks.is_main():
        with tempfile.TemporaryDirectory(prefix="sppo-rank-") as scratch:
            yield Path(scratch)
        ranks.wait()
        return
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for place in (*temporary.rglob("*"), temporary):
            _open_up(place)
            (_sync_folder if place.is_dir() else _sync)(place)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    ranks.wait()


def write_text(path: Path, text: str) -> None:
    """Writes a text file that is whole or absent."""
    with whole_file(path) as temporary:
        # Half a surrogate pair, which a data set may hold, has no UTF-8; in JSON this is its escape.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, for people too, that is whole or absent; control characters are JSON's escapes in it."""
    write_text(path, visible(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def decode_json(text: str | bytes) -> Any:
    """Returns what JSON says.

    Raises:
        ValueError: it is none, or goes deeper than any data of ours or anyone's use of it.
    """
    deep = f"more than {_MOST_LEVELS} values within one another"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(deep) from None
    # Level by level, and only where there are as many brackets: a call for each level is what must not be.
    level, marks = [value], ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, marks)) > _MOST_LEVELS:  # type: ignore[arg-type]
        for _ in range(_MOST_LEVELS):
            inner = [one for one in level if isinstance(one, (dict, list))]
            level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
        if level:
            raise ValueError(deep)
    return value


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file, or None where there is no such file.

    Raises:
        RunFolderError: it holds something else.
    """
    if not path.is_file():
        return None
    try:
        loaded = decode_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is no JSON that can be read: {error}") from error
    if not isinstance(loaded, dict):
        raise RunFolderError(f"{path} holds no JSON object.")
    return loaded


def gigabytes(number: float) -> str:
    """Bytes as people read them."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is what a killed process of ours was writing."""
    return name.startswith(".") and ".tmp" in name


def _remove_forgotten(path: Path) -> None:
    """Removes what killed processes left of the same file."""
    for name in os.listdir(path.parent):
        if name.startswith(f".{path.stem}-") and name.endswith(f".tmp{path.suffix}"):
            with suppress(OSError):
                if time.time() - (path.parent / name).stat().st_mtime > _FORGOTTEN:
                    (path.parent / name).unlink()


def _open_up(place: Path) -> None:
    """Lets others read what a library has written for its owner alone, as far as the person's umask lets them."""
    mask = os.umask(0o077)
    os.umask(mask)
    if not place.is_dir():
        place.chmod(0o666 & ~mask)


def _sync(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    """Flushes a rename, where the file system can: some refuse to, and lose it in a power cut at worst."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
