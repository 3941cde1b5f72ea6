"""What a Python program hands over instead of naming it in the config, and what a run says where it is not there again.

config.yaml notes the name of a reward function and that rows were handed over, never code or rows. Model and tokenizer
are in every checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config import DataConfig, ModelConfig, to_dict
from sppo.config.compatibility import read_config
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, ModelError
from sppo.models.adapter_files import BASE_FOLDER, as_named, find_base
from sppo.models.adapters import NAME, adapt, adapter_config, has_adapter, unwrapped
from sppo.models.chat import set_arguments
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
    return replace(data, task="rows", path=None, subset=None, revision=None, limit=None, options={}, sources=[])


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
    return section.get("task") == "rows" and section.get("path") is None and not section.get("sources")


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
    gone = [key for key, section in read.items() if section and _were_rows(to_dict(section))]
    if gone:
        again = "" if training else f"; sppo.evaluate({str(folder)!r}, rows=rows) takes them again as they are"
        raise ConfigError(
            f"{folder} was made from rows that a Python program handed over, and the run folder doesn't hold them. "
            f"Save them as a .jsonl file and give {' and '.join(f'--{key}.path FILE' for key in gone)}{again}."
        )


def load_given_tokenizer(given: Given, source: ModelConfig, *, resumed: bool) -> Tokenizer:
    """The tokenizer that was handed over, or the model's own; of a run that goes on, its checkpoint's."""
    if given.tokenizer is not None and source.chat_template_arguments:
        own = copy.deepcopy(given.tokenizer)
        set_arguments(own, source.chat_template_arguments)
        given = replace(given, tokenizer=own)
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


def base_of_run(given: Given, model: ModelConfig, output: Path, *, resumed: bool) -> str:
    """Where the weights are that a run's policy starts from, for an adapter to name.

    Args:
        given: what a Python program hands over.
        model: the policy's options.
        output: the run's folder, which keeps those that no other folder has.
        resumed: whether the run goes on: then its checkpoint says so, unless a model is handed over again.
    """
    if given.model is not None or model.path is None:
        return str(output.absolute() / BASE_FOLDER)
    if resumed:
        return ""
    base = find_base(model.path)
    return str(Path(base).absolute()) if Path(base).is_dir() else base


def load_given_policy(
    given: Given, source: ModelConfig, tokenizer: Tokenizer, device: torch.device, *, resumed: bool, base: str
) -> PreTrainedModel:
    """The model that was handed over, which is trained in place, or the loaded one, with the adapter asked for.

    Args:
        given: what a Python program hands over.
        source: where the model is, and how it is loaded; of a run that goes on, its checkpoint's.
        tokenizer: of the policy.
        device: where it goes.
        resumed: whether the run goes on, so that the checkpoint's weights count.
        base: see `base_of_run`.
    """
    if given.model is None:
        policy = load_policy(source, tokenizer, device)
    else:
        policy = prepare_policy(unwrapped(given.model), tokenizer, device, source.gradient_checkpointing)
        if has_adapter(policy):
            adapter_config(policy).base_model_name_or_path = base
    adapt(policy, source.lora, base, "model")
    if resumed and given.model is not None:
        try:
            saved = load_policy(source, tokenizer, device).state_dict()
            policy.load_state_dict(as_named(saved, NAME, policy))
        except RuntimeError as error:
            raise ModelError(
                f"The model handed over cannot take the weights of {source.path} "
                f"({str(error).splitlines()[-1].strip()}). Hand over the model that the run was started with, or none: "
                "the checkpoint holds it."
            ) from error
    return policy
