"""`sppo audit`: what is wrong with the data of a recipe, and its clean rows as a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sppo.config import Config, DataConfig
from sppo.data.checks import Audit, check_data, rows_of_data
from sppo.data.tasks import get_task, load_prompts
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.data.tasks.writing import write_rows
from sppo.errors import ConfigError, ModelError
from sppo.rollouts.preview import Preview, preview
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


_LOOKED_AT = 1000
"""First rows of which prompts are shown."""


def look(config: Config) -> Preview:
    """Three prompts of the data, through the chat template of `config.model` where it names one, and notes on all."""
    some = min(config.data.limit or _LOOKED_AT, _LOOKED_AT)
    tools = Tools(config.verification)
    loaded = load_prompts(replace(config.data, limit=some), seed=config.seed, require_gold=False, tools=tools)
    show = partial(
        preview,
        loaded.prompts,
        tools,
        rewarded=config.data.reward is not None,
        taught=bool(config.sft.phases) or get_task(config.data.task).built_in,
        whole=len(loaded.prompts) + len(loaded.left_out) < some,
    )
    if config.model.path is None and config.model.tokenizer is None:
        return show()
    from sppo.models.loading import declared_end_tokens, load_model_config, load_tokenizer
    from sppo.rollouts.sample import end_token_ids

    model = config.model
    try:
        tokenizer = load_tokenizer(model, ALPHABET)
        declared = declared_end_tokens(model, load_model_config(model)) if model.path else None
    except ModelError as error:
        bare = show()
        return replace(bare, notes=(*bare.notes, f"Prompts are shown without the model's chat template: {error}"))
    return show(tokenizer, end_token_ids(tokenizer, declared, config.sampling.stop_token_ids))


def write_clean(config: Config, found: Audit, target: Path) -> int:
    """Writes the rows that are not to be left out, columns as they are; returns how many."""
    left_out = found.left_out()
    rows = rows_of_data(config.data, config.seed, [])
    return write_rows(rows, config.data.path, target, lambda row: row <= found.rows and row not in left_out)
