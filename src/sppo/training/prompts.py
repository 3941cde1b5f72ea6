"""The prompts of a run: to train on, to measure on, and demonstrations to fine-tune on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config import DataConfig, EvaluationConfig, SftPhase
from sppo.data.prompts import hold_out
from sppo.data.tasks import demonstrations, load_prompts, prompt_key
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
    notes: tuple[str, ...]
    """What was left out, for people."""


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
        return Prompts(tuple(training), tuple(held_out), notes)
    prompts, more = load_held_out(
        data, evaluation, tokenizer, seed=seed, tools=tools, require_gold=require_gold, rows=held_out_rows
    )
    return Prompts(kept, prompts, (*notes, *more))


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
    own = evaluation.data
    if own is None or rows is not None:
        own = section_of_rows(data)
    loaded = load_prompts(own, seed=seed, rows=rows, require_gold=require_gold, tools=tools, key="evaluation.data")
    kept, overlong = filter_overlong(loaded.prompts, tokenizer, own, key="evaluation.data")
    if len(kept) > evaluation.prompts:
        # The same for every seed, so that runs can be compared; at random, as files are often sorted by topic.
        kept = tuple(random.Random(0).sample(kept, evaluation.prompts))
    return kept, (*loaded.notes, *overlong)


def load_demonstrations(
    phases: Sequence[SftPhase],
    data: DataConfig,
    tokenizer: Tokenizer,
    held_out: Sequence[Prompt],
    *,
    seed: int,
    rows: Rows | None = None,
) -> tuple[list[TokenRow], ...]:
    """Returns the encoded demonstrations of each fine-tuning phase, none of a held-out prompt.

    Raises:
        DataError: the data has no demonstrations, or none but of held-out prompts.
    """
    unseen = {prompt_key(prompt.text) for prompt in held_out}
    encoded = []
    for number, phase in enumerate(phases, start=1):
        shown = demonstrations(data, phase.demonstrations, derive_seed(seed, "demonstrations", number), rows)
        kept = [prompt for prompt in shown if prompt_key(prompt.text) not in unseen]
        if not kept:
            raise DataError(f"All {len(shown)} demonstrations are of held-out prompts; lower evaluation.prompts.")
        encoded.append(encode_demonstrations(kept, tokenizer))
    return tuple(encoded)
