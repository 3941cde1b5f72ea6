"""`sppo audit`: what is wrong with the data of a recipe, and its clean rows as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sppo.config import Config, DataConfig
from sppo.data.checks import Audit, check_data, rows_of_data
from sppo.data.tasks.writing import write_rows
from sppo.errors import ConfigError
from sppo.runs.progress import Progress
from sppo.verifiers.tools import Tools


def _one_source(data: DataConfig) -> DataConfig:
    """The data, which must be one data set: rows are named by their numbers.

    Raises:
        ConfigError: it has several.
    """
    if data.sources:
        raise ConfigError(
            f"data.sources has {len(data.sources)} data sets ({', '.join(data.each())}), but an audit is of one: name "
            "its file or task, and the options with --data.KEY."
        )
    return data


def audit(config: Config, against: Sequence[DataConfig] = (), progress: Progress | None = None) -> Audit:
    """Checks the data that `config.data` names.

    Args:
        config: its sections data and verification are used.
        against: evaluation sets that the data should hold no problem of.
        progress: told what it does.

    Raises:
        ConfigError: an unknown task or verifier.
        DataError: data that cannot be read, or has no rows.
    """
    return check_data(_one_source(config.data), config.seed, Tools(config.verification), against, progress)


def write_clean(config: Config, found: Audit, target: Path) -> int:
    """Writes the rows that are not to be left out, columns as they are; returns how many."""
    left_out = found.left_out()
    rows = rows_of_data(config.data, config.seed, [])
    return write_rows(rows, config.data.path, target, lambda row: row <= found.rows and row not in left_out)
