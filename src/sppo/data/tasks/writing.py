"""Writes a data set without some of its rows: in its own schema, and never half-written under its final name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from sppo.data.tasks.problem import Row
from sppo.data.tasks.reading import file_kind, files_of, opened
from sppo.errors import ConfigError, DataError
from sppo.runs.files import whole_file

Keep = Callable[[int], bool]
"""Row number, from 1 -> whether the row is written."""
_BATCH_ROWS = 10_000


def require_target(source: str | None, target: Path, *, overwrite: bool) -> None:
    """Checks, before any long work, that the rows of a source can be written to a file.

    Args:
        source: the file or hub name that is read; None for a task that makes its own rows.
        target: the file to write.
        overwrite: whether it may be there already.

    Raises:
        ConfigError: another format than the source's, no such folder, or a file that is there already.
    """
    kind = _kind(source)
    wanted = ".parquet" if kind == ".parquet" else ".jsonl"
    if target.suffix != wanted:
        raise ConfigError(
            f"--write {target}: rows of {source or 'a built-in task'} are written as {wanted}, so that they stay as "
            f"they are: name a file that ends in {wanted}."
        )
    if not target.parent.is_dir():
        raise ConfigError(f"--write {target}: there is no folder {target.parent}. Make it first, or choose another.")
    if target.exists() and (target.is_dir() or not overwrite):
        same = source is not None and Path(source).expanduser().exists() and target.samefile(Path(source).expanduser())
        what = "is the data itself" if same else "exists already"
        raise ConfigError(f"--write {target} {what}. Choose another file, or add --overwrite to replace it.")


def _kind(source: str | None) -> str | None:
    """How the one file that a source is can be read; None of several, of a folder, of the hub."""
    files = files_of(source) if source else []
    return file_kind(files[0].name) if len(files) == 1 and not files[0].is_dir() else None


def write_rows(rows: Iterable[Row], source: str | None, target: Path, keep: Keep) -> int:
    """Writes the rows that `keep` says; lines of JSON stay byte for byte, Parquet keeps schema and compression.

    Args:
        rows: the source's rows, read where it is neither Parquet nor lines of JSON.
        source: the file or hub name that they come from.
        target: passed `require_target`.
        keep: which rows, by number.

    Returns:
        How many were written.

    Raises:
        DataError: the file cannot be written, or a row is no JSON.
    """
    kind = _kind(source)
    try:
        with whole_file(target) as path:
            if kind == ".parquet":
                return _filter_parquet(Path(str(source)).expanduser(), path, keep)
            if kind in (".jsonl", ".jsonl.gz"):
                return _filter_lines(Path(str(source)).expanduser(), path, keep)
            return _dump(rows, path, keep)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error}. Nothing is left under that name.") from error


def _filter_parquet(source: Path, target: Path, keep: Keep) -> int:
    import pyarrow
    import pyarrow.parquet

    written = number = 0
    with pyarrow.parquet.ParquetFile(source) as file:
        groups = file.metadata.num_row_groups and file.metadata.num_columns
        compression = file.metadata.row_group(0).column(0).compression if groups else "SNAPPY"
        codec = "NONE" if compression == "UNCOMPRESSED" else compression
        with pyarrow.parquet.ParquetWriter(target, file.schema_arrow, compression=codec) as writer:
            for batch in file.iter_batches(_BATCH_ROWS):
                mask = [keep(number + place) for place in range(1, batch.num_rows + 1)]
                number += batch.num_rows
                kept = batch.filter(pyarrow.array(mask, pyarrow.bool_()))
                if kept.num_rows:
                    writer.write_batch(kept)
                    written += kept.num_rows
    return written


def _filter_lines(source: Path, target: Path, keep: Keep) -> int:
    written = number = 0
    with opened(source) as lines, target.open("wb") as out:
        for line in lines:
            if not line.strip():
                continue
            number += 1
            if keep(number):
                out.write(line if line.endswith(b"\n") else line + b"\n")
                written += 1
    return written


def _dump(rows: Iterable[Row], target: Path, keep: Keep) -> int:
    written = 0
    with target.open("w", encoding="utf-8") as out:
        for number, row in enumerate(rows, start=1):
            if not keep(number):
                continue
            try:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
            except TypeError as error:
                raise DataError(
                    f"row {number} cannot be written as JSON: {error}. Convert it to text first."
                ) from error
            written += 1
    return written
