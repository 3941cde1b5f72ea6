"""JSON Lines that a process adds to and goes on with after it was killed; and the records of a run's responses.

    rollouts/step_000123.jsonl.zst    one line a response of step 123: `pandas.read_json(path, lines=True)` reads it

A step's file is whole or absent, and a resumed run deletes those of later steps.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sppo.errors import RunFolderError, visible
from sppo.runs import ranks
from sppo.runs.files import decode_json, is_temporary, whole_file

Line = Mapping[str, Any]
_RECORDS = re.compile(r"step_(\d+)\.jsonl\.zst")


class JsonLines:
    """A file of one JSON object a line. One process at a time writes it; anyone may read it meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, size: int | None = None, *, skip_damaged: bool = False) -> Iterator[dict[str, Any]]:
        """Yields the lines; none where there is no file.

        Args:
            size: only the first so many bytes.
            skip_damaged: leave out lines that are no JSON, as a disk that was full or lost power leaves.

        Raises:
            RunFolderError: a line is no JSON.
        """
        if self.path.is_file():
            with open(self.path, "rb") as handle:
                yield from _decode(handle, self.path, size, skip_damaged)

    def append(self, lines: Iterable[Line]) -> int:
        """Adds lines, which are on the disk when it returns, and returns the file's size in bytes.

        Of several ranks the main one does so; the others get 0.
        """
        if not ranks.is_main():
            return 0
        # Not through a link, which in a folder of somebody else may point to any file.
        with open(self.path, "ab", opener=_not_through_a_link) as handle:
            handle.write(b"".join(map(_encode, lines)))
            handle.flush()
            os.fsync(handle.fileno())
            return handle.tell()

    def replace(self, lines: Iterable[Line]) -> None:
        """Writes the file anew, which may be made of its own lines; so a torn last line goes."""
        with whole_file(self.path) as temporary, open(temporary, "wb") as handle:
            handle.writelines(map(_encode, lines))


def _not_through_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def write_records(folder: Path, step: int, records: Iterable[Line]) -> None:
    """Writes the records of a step's responses into a run folder, on the main rank; numpy arrays become lists."""
    if not ranks.is_main():
        return
    import zstandard

    path = folder / "rollouts" / f"step_{step:06d}.jsonl.zst"
    path.parent.mkdir(exist_ok=True)
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    with whole_file(path) as temporary, open(temporary, "wb") as file, compressor.stream_writer(file) as out:
        for record in records:
            out.write(_encode(record))


def read_records(folder: Path, after: int = -1) -> Iterator[dict[str, Any]]:
    """Yields the records of responses of all steps later than `after`; none where there are none yet.

    Raises:
        RunFolderError: a file that can't be read.
    """
    import zstandard

    # Version 0.1.0 wrote all steps to one file.
    yield from (record for record in JsonLines(folder / "rollouts.jsonl").read() if record["step"] > after)
    for step, path in sorted(record_files(folder).items()):
        if step > after:
            try:
                with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
                    yield from _decode(io.BufferedReader(stream), path)
            except zstandard.ZstdError as error:
                raise RunFolderError(f"{path} can't be read: {error}") from error


def record_files(folder: Path) -> dict[int, Path]:
    """{step: its file of response records} of a run."""
    paths = (folder / "rollouts").glob("step_*")
    return {int(named[1]): path for path in paths if (named := _RECORDS.fullmatch(path.name))}


def forget_records(folder: Path, after: int) -> None:
    """Deletes the records of steps later than `after`, and what a killed process had half-written."""
    for step, path in record_files(folder).items():
        if step > after:
            path.unlink()
    for path in (folder / "rollouts").glob(".*"):
        if is_temporary(path.name):
            path.unlink()


def _encode(line: Line) -> bytes:
    # What a terminal would act on, were the file shown there, is JSON's escape, and so is half a surrogate pair, which
    # has no UTF-8.
    return (visible(json.dumps(line, ensure_ascii=False, default=_plain)) + "\n").encode()


def _plain(value: Any) -> Any:
    """What JSON has no word for: arrays and numbers of numpy, tensors."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"a {type(value).__name__} cannot be written as JSON")
    return value.tolist()


def _decode(
    lines: Iterable[bytes], path: Path, size: int | None = None, skip_damaged: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields the objects; a torn last line, of a process that was killed or is writing just now, is none."""
    read = 0
    for number, line in enumerate(lines, start=1):
        read += len(line)
        if not line.endswith(b"\n") or (size is not None and read > size):
            return
        try:
            loaded = decode_json(line)
        except ValueError as error:
            if skip_damaged:
                continue
            raise RunFolderError(f"{path}, line {number}, is no JSON: {error}") from error
        if not isinstance(loaded, dict):
            if skip_damaged:
                continue
            raise RunFolderError(f"{path}, line {number}, is no JSON object.")
        yield loaded
