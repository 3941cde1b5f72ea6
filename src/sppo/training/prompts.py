"""The prompts of a run: to train on, to measure on, and demonstrations to fine-tune on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config import DataConfig, EvaluationConfig, SftPhase
from sppo.data.prompts import copy_keys, hold_out, leave_out_copies
from sppo.data.tasks import LoadedPrompts, demonstrations, load_prompts
from sppo.errors import DataError
from sppo.models.packing import TokenRow
from sppo.rollouts.encode import encode_demonstrations, filter_overlong
from sppo.runs.seeds import derive_seed
from sppo.training.given import section_of_rows
from sppo.types import Prompt
from sppo.verifiers.tools import Tools

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Prompts:
    """What a run reads."""

    training: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    unseen: frozenset[str]
    """Keys of all prompts to measure on, also of those that were not drawn: nothing is trained on their copies."""
    notes: tuple[str, ...]
    """What was left out, for people."""
    revisions: Mapping[str, str] = field(default_factory=dict)
    """Hub data set -> the commit that was read."""


def load_data(
    data: DataConfig,
    evaluation: EvaluationConfig,
    tokenizer: Tokenizer,
    *,
    seed: int,
    tools: Tools,
    require_gold: bool,
    rows: Rows | None = None,
    held_out_rows: Rows | None = None,
) -> Prompts:
    """Returns training prompts, held-out prompts, and notes on what was left out.

    No problem stands on both sides: of what is given to measure on, copies in the training data are left out of it.

    Args:
        data: of training.
        evaluation: where held-out prompts come from, and how many.
        tokenizer: of the policy; overlong prompts are left out by its tokens.
        seed: of the run.
        tools: what verifiers run with, for the check of gold answers.
        require_gold: whether rows need a gold answer; not where a reward function judges.
        rows: of a Python program, instead of a file.
        held_out_rows: likewise.

    Raises:
        DataError: see the loaders; also where no training prompts are left.
    """
    loaded = load_prompts(data, seed=seed, rows=rows, require_gold=require_gold, tools=tools)
    kept, overlong = filter_overlong(loaded.prompts, tokenizer, data)
    notes = (*loaded.notes, *overlong)
    if held_out_rows is None and evaluation.data is None:
        training, held_out = hold_out(kept, evaluation.prompts, derive_seed(seed, "held out"))
        return Prompts(
            tuple(training), tuple(held_out), frozenset().union(*copy_keys(held_out, data)), notes, loaded.revisions
        )
    own, measured = _load_given(data, evaluation, seed, tools, require_gold, held_out_rows)
    given = measured.prompts
    unseen = frozenset().union(*copy_keys(given, own))
    remaining, copies = leave_out_copies(kept, data, unseen)
    whose = "evaluation.data" if held_out_rows is None else "held_out_rows"
    if not remaining:
        raise DataError(
            f"All {len(kept)} prompts to train on are copies of prompts of {whose}. Leave {whose} out, and "
            "evaluation.prompts of them are held out of training."
        )
    if copies:
        notes += (f"{copies} of {len(kept)} prompts to train on left out: copies of prompts of {whose}",)
    prompts, overlong = _draw(given, own, evaluation.prompts, tokenizer)
    revisions = {**loaded.revisions, **measured.revisions}
    return Prompts(remaining, prompts, unseen, (*notes, *measured.notes, *overlong), revisions)


def load_held_out(
    data: DataConfig,
    evaluation: EvaluationConfig,
    tokenizer: Tokenizer,
    *,
    seed: int,
    tools: Tools,
    require_gold: bool,
    rows: Rows | None = None,
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """Returns the prompts of evaluation.data, or of rows that were handed over, and notes on what was left out.

    Raises:
        DataError: see the loaders.
    """
    own, measured = _load_given(data, evaluation, seed, tools, require_gold, rows)
    kept, overlong = _draw(measured.prompts, own, evaluation.prompts, tokenizer)
    return kept, (*measured.notes, *overlong)


def _load_given(
    data: DataConfig, evaluation: EvaluationConfig, seed: int, tools: Tools, require_gold: bool, rows: Rows | None
) -> tuple[DataConfig, LoadedPrompts]:
    """Where the prompts to measure on come from, and all of them."""
    if rows is not None:
        rows = list(rows)
        if not rows:
            raise DataError("There are no rows to measure on: the list that was handed over is empty. Leave it out.")
    own = evaluation.data
    if own is None or rows is not None:
        own = section_of_rows(data)
    loaded = load_prompts(own, seed=seed, rows=rows, require_gold=require_gold, tools=tools, key="evaluation.data")
    return own, loaded


def _draw(
    prompts: Sequence[Prompt], own: DataConfig, count: int, tokenizer: Tokenizer
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """At most so many of the prompts that are not too long, and a note on those that are."""
    kept, overlong = filter_overlong(prompts, tokenizer, own, key="evaluation.data")
    if len(kept) > count:
        # The same for every seed, so that runs can be compared; at random, as files are often sorted by topic.
        kept = tuple(random.Random(0).sample(kept, count))
    return kept, overlong


def load_demonstrations(
    phases: Sequence[SftPhase],
    data: DataConfig,
    tokenizer: Tokenizer,
    unseen: frozenset[str],
    *,
    seed: int,
    rows: Rows | None = None,
) -> tuple[list[TokenRow], ...]:
    """Returns the encoded demonstrations of each fine-tuning phase, none of a prompt with one of the `unseen` keys.

    Raises:
        DataError: the data has no demonstrations, or none but of held-out prompts.
    """
    encoded = []
    for number, phase in enumerate(phases, start=1):
        shown = demonstrations(data, phase.demonstrations, derive_seed(seed, "demonstrations", number), rows)
        kept, copies = leave_out_copies(shown, data, unseen)
        if not kept:
            raise DataError(
                f"All {copies} demonstrations are of prompts to measure on: lower evaluation.prompts, or choose other "
                "evaluation.data."
            )
        encoded.append(encode_demonstrations(kept, tokenizer))
    return tuple(encoded)
