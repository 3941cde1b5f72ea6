"""What a Python program hands over instead of naming it in the config, and what a run says where it is not there again.

config.yaml notes the name of a reward function and that rows were handed over, never code or rows. Model and tokenizer
are in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config import DataConfig, ModelConfig
from sppo.config.compatibility import read_config
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, ModelError
from sppo.models.loading import load_policy, load_tokenizer, prepare_policy
from sppo.runs.checkpoint import find_checkpoint
from sppo.verifiers.functions import RewardFunction, function_name, name_handed_over


@dataclass(frozen=True)
class Given:
    """What a Python program hands over instead of naming it in the config."""

    model: PreTrainedModel | None = None
    tokenizer: Tokenizer | None = None
    rows: Iterable[Mapping[str, Any]] | None = None
    held_out_rows: Iterable[Mapping[str, Any]] | None = None
    reward_function: Callable[..., Any] | None = None


def section_of_rows(data: DataConfig) -> DataConfig:
    """The options of rows to measure on that a program hands over: read as those of training."""
    return replace(data, task="rows", path=None, limit=None, options={})


def require_again(folder: Path, given: Given) -> None:
    """Refuses to go on with a run without what a Python program handed over, or with another reward function.

    Rows that differ are found when they are read: a checkpoint knows the prompts by their digests.

    Raises:
        ConfigError: says what is missing, by name, and how to hand it over again.
    """
    if find_checkpoint(folder) is None:
        return  # Nothing was trained yet, so that it starts over.
    saved = read_config(folder)
    data, held_out = saved.get("data") or {}, (saved.get("evaluation") or {}).get("data")
    lacking = []
    if _were_rows(data) and given.rows is None:
        lacking.append("rows")
    if held_out is not None and _were_rows(held_out) and given.held_out_rows is None:
        lacking.append("held_out_rows")
    if lacking:
        raise ConfigError(
            f"{folder} was made from {' and '.join(lacking)} that a Python program handed over, and the run folder "
            f"doesn't hold them. Hand them over again: "
            f"sppo.train(..., {', '.join(f'{name}={name}' for name in lacking)}, resume=True)."
        )
    _require_same_function(folder, data.get("reward"), given.reward_function)


def _were_rows(section: Mapping[str, Any]) -> bool:
    return section.get("task") == "rows" and section.get("path") is None


def _require_same_function(folder: Path, noted: str | None, function: RewardFunction | None) -> None:
    name = name_handed_over(noted)
    now = None if function is None else function_name(function)
    if name == now:
        return
    if name is None:
        judged = f"the reward function {noted}" if noted else "verifiers"
        raise ConfigError(
            f"{folder} was trained with {judged}, and now the reward function {now} is handed over. Leave reward out, "
            "or start a new run with another output."
        )
    but = "none is handed over now" if now is None else f"now it is {now}"
    raise ConfigError(
        f"{folder} was trained with the reward function {name}, which a Python program handed over, but {but}; the run "
        "folder holds its name alone. Hand the same one over again: sppo.train(..., reward=FUNCTION, resume=True)."
    )


def require_data(folder: Path, data: DataConfig, held_out: DataConfig | None, *, training: bool = False) -> None:
    """Refuses a run whose rows came from Python: its folder doesn't hold them.

    Args:
        folder: of the run.
        data: where prompts to train on come from.
        held_out: where those to measure on come from; None: from the same.
        training: whether the data of training are read, beside held-out prompts.

    Raises:
        ConfigError: says how to hand them over again.
    """
    read = {"data": data if training or held_out is None else None, "evaluation.data": held_out}
    gone = [key for key, section in read.items() if section and section.task == "rows" and section.path is None]
    if gone:
        again = "" if training else f"; sppo.evaluate({str(folder)!r}, rows=rows) takes them again as they are"
        raise ConfigError(
            f"{folder} was made from rows that a Python program handed over, and the run folder doesn't hold them. "
            f"Save them as a .jsonl file and give {' and '.join(f'--{key}.path FILE' for key in gone)}{again}."
        )


def load_given_tokenizer(given: Given, source: ModelConfig, *, resumed: bool) -> Tokenizer:
    """The tokenizer that was handed over, or the model's own; of a run that goes on, its checkpoint's."""
    if given.tokenizer is not None and not resumed:
        return given.tokenizer
    loaded = load_tokenizer(source, ALPHABET)
    if given.tokenizer is None:
        return loaded
    if (given.tokenizer.get_vocab(), given.tokenizer.chat_template) != (loaded.get_vocab(), loaded.chat_template):
        raise ModelError(
            f"The tokenizer handed over has another vocabulary or chat template than that of {source.path}, which the "
            "run was trained with. Hand the same one over, or none: the checkpoint holds it."
        )
    return given.tokenizer


def load_given_policy(
    given: Given, source: ModelConfig, tokenizer: Tokenizer, device: torch.device, *, resumed: bool
) -> PreTrainedModel:
    """The model that was handed over, which is trained in place, or the loaded one; with a checkpoint's weights."""
    if given.model is None:
        return load_policy(source, tokenizer, device)
    policy = prepare_policy(given.model, tokenizer, device, source.gradient_checkpointing)
    if resumed:
        try:
            policy.load_state_dict(load_policy(source, tokenizer, device).state_dict())
        except RuntimeError as error:
            raise ModelError(
                f"The model handed over cannot take the weights of {source.path} "
                f"({str(error).splitlines()[-1].strip()}). Hand over the model that the run was started with, or none: "
                "the checkpoint holds it."
            ) from error
    return policy
