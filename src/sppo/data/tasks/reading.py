"""Rows from a file, a hub data set or a Python iterable, one after the other, with errors that say where."""

from __future__ import annotations

import csv
import difflib
import glob
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from sppo.config.data import SourceConfig
from sppo.data.tasks.hub import files_of_split, hub_rows, is_saved, saved_rows
from sppo.data.tasks.problem import Row, Task
from sppo.errors import ConfigError, DataError
from sppo.runs.files import decode_json

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BATCH_ROWS = 1000
_LONGEST_CELL = 2**31 - 1
"""Characters; the most that every platform takes."""


def rows_of(
    task: Task, config: SourceConfig, notes: list[str], key: str = "data", revisions: dict[str, str] | None = None
) -> Iterator[Row]:
    """Opens the source that the config names.

    Args:
        task: whose rows they are.
        config: names the source.
        notes: what a person should know of it is appended.
        key: the section that the config came from, as errors name it.
        revisions: of a hub data set, the commit that is read is put in.

    Raises:
        ConfigError: no path for a task that needs one.
        DataError: a file that is missing or cannot be read (while iterating, too), a data set that cannot be loaded.
    """
    path = config.path or task.hub_name
    if path is None:
        raise ConfigError(
            f"{key}.path is not set, and task {task.name} has no data set of its own. Give --{key}.path a file "
            "(.parquet, .jsonl, .json, .csv), several with a star, a folder or a hub name."
        )
    if not is_local(path):
        return hub_rows(task, path, config, notes, key, {} if revisions is None else revisions)
    if config.revision is not None:
        raise ConfigError(f"{key}.revision is {config.revision!r}, but {path} is no data set of the hub: leave it out.")
    files = files_of(path)
    if len(files) == 1 and files[0].is_dir():
        if is_saved(files[0]):
            return saved_rows(task, files[0], config, notes, key)
        files = files_of_split(task, files[0], config, notes, key)
    elif config.split != SourceConfig.split:
        notes.append(f"{task.name}: {key}.split {config.split!r} does not apply to a file; all of {path} is read")
    if not files:
        raise DataError(f"{key}.path {path} matches no file (looked from {Path.cwd()}).")
    if len(files) == 1:
        return read_file(files[0], key)
    return itertools.chain.from_iterable(read_file(file, key) for file in files)


def is_local(path: str) -> bool:
    """Whether a path names files or a folder rather than a data set of the hub."""
    place = Path(path).expanduser()
    return bool(file_kind(path)) or place.exists() or not _HUB_NAME.fullmatch(path) or path.startswith(".")


def files_of(path: str) -> Sequence[Path]:
    """Returns the file or folder of that name, there or not; or the files that a pattern with stars matches, by name.

    Shards are read in the order of their names.
    """
    place = Path(path).expanduser()
    if place.exists() or not glob.has_magic(path):
        return [place]
    return [Path(name) for name in sorted(glob.glob(str(place), recursive=True)) if Path(name).is_file()]


def file_kind(path: str) -> str | None:
    """Returns the ending that says how a file is read, or None for an unknown one."""
    name = path.lower()
    return next((ending for ending in _READERS if name.endswith(ending)), None)


def read_file(path: Path, key: str = "data") -> Iterator[Row]:
    """Yields the rows of a file; the missing file is reported at once, a broken line when it is reached.

    Raises:
        DataError: names the path, and the line where there is one.
    """
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


def opened(path: Path) -> IO[bytes]:
    """Opens a file to read its bytes, unpacked where its name ends in .gz."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _read_json_lines(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with opened(path) as file:
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
    """A list of rows; or lines of JSON, as many published files called .json are."""
    try:
        with opened(path) as file:
            first = next((line for line in file if line.strip()), b"")
            if _is_object(first):
                return _read_json_lines(path)
            file.seek(0)
            rows = decode_json(file.read())
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _broken(path, error) from error
    if not isinstance(rows, list):
        raise _broken(path, f"it holds a {type(rows).__name__}, not a list of rows")
    return _rows_of_list(path, rows)


def _is_object(line: bytes) -> bool:
    if not line.lstrip(b"\xef\xbb\xbf").startswith(b"{"):
        return False
    try:
        return isinstance(decode_json(line), dict)
    except ValueError:  # the first line of an object that goes on over more
        return False


def _rows_of_list(path: Path, rows: list[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise _broken(path, f"row {number} is a {type(row).__name__}, not an object of columns")
        yield row


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    # A cell may hold a whole solution, or the tests of a program; the module's own limit is 128 KiB.
    csv.field_size_limit(_LONGEST_CELL)
    reader = None
    try:
        with opened(path) as file:
            lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or ())
                    raise _broken(path, f"it has not the {columns} fields that the header names", reader.line_num)
                yield row
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise _broken(path, error, reader.reader.line_num if reader else None) from error


_read_tsv = partial(_read_csv, delimiter="\t")
_LINES_OR_TEXT: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".parquet": _read_parquet,
    **_LINES_OR_TEXT,
    **{f"{kind}.gz": reader for kind, reader in _LINES_OR_TEXT.items()},
}
