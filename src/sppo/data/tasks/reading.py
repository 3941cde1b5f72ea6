"""Rows from a file, a hub data set or a Python iterable, one after the other, with errors that say where."""

from __future__ import annotations

import csv
import difflib
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sppo.config import DataConfig
from sppo.data.tasks.problem import Row, Task
from sppo.errors import ConfigError, DataError
from sppo.runs.files import decode_json

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BATCH_ROWS = 1000


def rows_of(task: Task, config: DataConfig, notes: list[str], key: str = "data") -> Iterator[Row]:
    """Opens the source that the config names; appends to `notes` what a person should know of it.

    `key` is the section that the config came from, as errors name it.

    Raises:
        ConfigError: no path for a task that needs one.
        DataError: a file that is missing or cannot be read (while iterating, too), a data set that cannot be loaded.
    """
    path = config.path or task.hub_name
    if path is None:
        raise ConfigError(
            f"{key}.path is not set, and task {task.name} has no data set of its own. Give --{key}.path a file "
            "(.parquet, .jsonl, .json, .csv) or a hub name."
        )
    kind = file_kind(path)
    if kind or Path(path).expanduser().exists() or not _HUB_NAME.fullmatch(path) or path.startswith("."):
        if config.split != DataConfig.split:
            notes.append(f"{task.name}: {key}.split {config.split!r} does not apply to a file; all of {path} is read")
        return read_file(Path(path).expanduser(), key)
    return _hub_rows(task, path, config.split, notes, key)


def file_kind(path: str) -> str | None:
    """Returns the ending that says how a file is read, or None for an unknown one."""
    name = path.lower()
    return next((ending for ending in _READERS if name.endswith(ending)), None)


def read_file(path: Path, key: str = "data") -> Iterator[Row]:
    """Yields the rows of a file; the missing file is reported at once, a broken line when it is reached.

    Raises:
        DataError: names the path, and the line where there is one.
    """
    if path.is_dir():
        raise DataError(f"{key}.path {path} is a folder: give a file. {_data_files(path)}")
    if not path.exists():
        raise DataError(f"{key}.path {path} does not exist. {_near_files(path)}")
    kind = file_kind(path.name)
    if kind is None:
        raise DataError(f"{key}.path {path} is of no kind that can be read. Known endings: {', '.join(_READERS)}.")
    return _READERS[kind](path)


def _data_files(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir() if file_kind(file.name))
    shown = ", ".join(names[:20])
    return f"Data files in {folder}: {shown}." if names else f"There are no data files in {folder}."


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    names = [file.name for file in path.parent.iterdir() if file.is_file()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(str(path.parent / name) for name in near)}?"
    return _data_files(path.parent)


def _broken(path: Path, error: Exception | str, line: int | None = None) -> DataError:
    place = f"{path}, line {line}," if line else f"{path}"
    return DataError(f"{place} cannot be read: {str(error).rstrip('.')}.{_pointer_hint(path)}")


def _pointer_hint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            is_pointer = file.read(23) == b"version https://git-lfs"
    except OSError:
        return ""
    return " It is a Git LFS pointer, not the data: run `git lfs pull`." if is_pointer else ""


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _read_json_lines(path: Path) -> Iterator[Row]:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    number = 0
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _json_row(path, decode_json(line), number)
    except (OSError, EOFError, zlib.error) as error:  # a file that ends early, or is no gzip file
        raise _broken(path, error, number + 1) from error
    except ValueError as error:  # broken JSON or bytes that are not UTF-8
        raise _broken(path, error, number) from error


def _json_row(path: Path, value: Any, line: int) -> Row:
    if not isinstance(value, dict):
        raise _broken(path, f"it holds a {type(value).__name__}, not an object of columns", line)
    return value


def _read_json(path: Path) -> Iterator[Row]:
    try:
        rows = decode_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error
    if not isinstance(rows, list):
        raise _broken(path, f"it holds a {type(rows).__name__}, not a list of rows (one row a line is .jsonl)")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise _broken(path, f"row {number} is a {type(row).__name__}, not an object of columns")
        yield row


def _read_csv(path: Path) -> Iterator[Row]:
    reader = None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or ())
                    raise _broken(path, f"it has not the {columns} fields that the header names", reader.line_num)
                yield row
    except (OSError, ValueError, csv.Error) as error:
        raise _broken(path, error, reader.reader.line_num if reader else None) from error


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
}


def _hub_rows(task: Task, name: str, split: str, notes: list[str], key: str) -> Iterator[Row]:
    is_own = name == task.hub_name
    if is_own and task.only_split and split == DataConfig.split != task.only_split:
        notes.append(f"{task.name}: the hub has only the split {task.only_split!r}, which is used")
        split = task.only_split
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, task.hub_config if is_own else None, split=split)
    # The hub's client, its HTTP library and the data set's builder raise errors with no common base.
    except Exception as error:
        raise DataError(
            f"{name} (split {split!r}) cannot be loaded from the hub: {error}. Mend {key}.split or the name, or give "
            f"--{key}.path a local file (.parquet, .jsonl, .json, .csv)."
        ) from error
    return _arrow_rows(dataset)


def _arrow_rows(dataset: Any) -> Iterator[Row]:
    """Yields plain dicts; by Arrow batches, since one row at a time takes minutes for a million rows."""
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield from table.to_pylist()
