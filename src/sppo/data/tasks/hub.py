"""Data sets that the library `datasets` reads: from the hub, folders that it saved, and folders of files by split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sppo.config.data import SourceConfig
from sppo.data.tasks.problem import Row, Task
from sppo.errors import DataError
from sppo.runs.hub import ask_the_hub

_BATCH_ROWS = 1000
_SAVED = ("state.json", "dataset_dict.json")
"""Files by which `datasets` knows a folder that its save_to_disk wrote: one data set, or one for each split."""
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


def hub_rows(
    task: Task, name: str, config: SourceConfig, notes: list[str], key: str, revisions: dict[str, str]
) -> Iterator[Row]:
    """Opens a data set of the hub, and puts into `revisions` which commit it is.

    Raises:
        DataError: it cannot be loaded.
    """
    is_own, split = name == task.hub_name, config.split
    if is_own and task.only_split and split == SourceConfig.split != task.only_split:
        notes.append(f"{task.name}: the hub has only the split {task.only_split!r}, which is used")
        split = task.only_split
    from datasets import load_dataset

    ask_the_hub(name)
    subset = config.subset or (task.hub_config if is_own else None)
    try:
        dataset = load_dataset(name, subset, split=split, revision=config.revision)
    # The hub's client, its HTTP library and the data set's builder raise errors with no common base.
    except Exception as error:
        where = f"{name} (split {split!r}" + (f", revision {config.revision!r}" if config.revision else "") + ")"
        raise DataError(
            f"{where} cannot be loaded from the hub: {error}. Mend {key}.split, {key}.subset or the name, or give "
            f"--{key}.path a local file (.parquet, .jsonl, .json, .csv)."
        ) from error
    commit = commit_of(dataset)
    if commit is not None:
        revisions[name] = commit
    return arrow_rows(dataset)


def commit_of(dataset: Any) -> str | None:
    """The commit that a data set's files were downloaded at; None where `datasets` does not know."""
    found = (_COMMIT.search(str(file)) for file in dataset.info.download_checksums or ())
    return next((match[1] for match in found if match), None)


def is_saved(folder: Path) -> bool:
    """Whether save_to_disk wrote this folder."""
    return any((folder / name).is_file() for name in _SAVED)


def saved_rows(task: Task, folder: Path, config: SourceConfig, notes: list[str], key: str) -> Iterator[Row]:
    """Opens a folder that save_to_disk wrote.

    Raises:
        DataError: it cannot be read, or holds not that split.
    """
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    # What the library raises for files that are missing or broken has no common base.
    except Exception as error:
        raise DataError(f"{key}.path {folder} is a data set that cannot be read: {error}.") from error
    if isinstance(dataset, Mapping):
        dataset = split_of(dataset, task, config, notes, key)
    elif config.split != SourceConfig.split:
        notes.append(f"{task.name}: {key}.split {config.split!r} does not apply: {folder} holds one data set")
    return arrow_rows(dataset)


def files_of_split(task: Task, folder: Path, config: SourceConfig, notes: list[str], key: str) -> list[Path]:
    """Returns a folder's data files of one split, which `datasets` tells by their names or by the folder's README.

    Raises:
        DataError: it finds none, or not that split.
    """
    from datasets import load_dataset_builder

    try:
        found = load_dataset_builder(str(folder), config.subset).config.data_files
    # The builders of the library raise errors with no common base.
    except Exception as error:
        raise DataError(
            f"{key}.path {folder} is a folder in which no data is found: {error}. Give a file in it, or several with a "
            f"star, as in '{folder}/*.parquet'."
        ) from error
    splits = {str(split): [Path(str(file)) for file in files] for split, files in (found or {}).items()}
    files: list[Path] = split_of(splits, task, config, notes, key)
    return files


def split_of(splits: Mapping[str, Any], task: Task, config: SourceConfig, notes: list[str], key: str) -> Any:
    """The data set of one split, or the only one there is.

    Raises:
        DataError: names the splits that there are.
    """
    if config.split in splits:
        return splits[config.split]
    if len(splits) == 1 and config.split == SourceConfig.split:
        (name,) = splits
        notes.append(f"{task.name}: there is only the split {name!r}, which is used")
        return splits[name]
    raise DataError(f"{key}.split is {config.split!r}, but the data has the splits {', '.join(map(str, splits))}.")


def arrow_rows(dataset: Any) -> Iterator[Row]:
    """Yields plain dicts; by Arrow batches, since one row at a time takes minutes for a million rows."""
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield from table.to_pylist()
