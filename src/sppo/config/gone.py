"""Options of earlier versions that are no more: what holds instead, and what to say to those who still set them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sppo.config.keys import with_n


@dataclass(frozen=True)
class Gone:
    """An option that went."""

    was: Any
    """Its default, which is what holds now."""
    instead: str
    """A sentence or two for people: why, or what to set instead."""
    follows: str | None = None
    """The option that says it now, where one does."""
    changes_training: bool = True
    """Whether another value made other weights, beyond rounding."""


_SHARED = "optimizer.tokens_per_microbatch counts for every model now."
_ALWAYS = "It is always {} now."
GONE = {
    "description": Gone("", "It is a line for people in a recipe's file.", changes_training=False),
    "critic.max_grad_norm": Gone(
        1.0, "optimizer.max_grad_norm is for policy and critic alike.", follows="optimizer.max_grad_norm"
    ),
    "critic.warmup_steps": Gone(
        0, "Set critic.prefit.samples to the responses that the critic learns from before the policy moves."
    ),
    "data.overlong_prompts": Gone(
        "filter", "data.bad_rows is for prompts that are too long, too.", follows="data.bad_rows"
    ),
    "algorithm.dynamic_sampling_rounds": Gone(4, _ALWAYS.format(4)),
    "optimizer.betas": Gone([0.9, 0.999], _ALWAYS.format("[0.9, 0.999]")),
    "optimizer.logprob_chunk_tokens": Gone(
        256, "It follows from the vocabulary and the device now.", changes_training=False
    ),
    "optimizer.max_skipped_steps": Gone(5, _ALWAYS.format(5)),
    "verification.memory_limit_mb": Gone(1024, _ALWAYS.format(1024), changes_training=False),
    "verification.code.runtime_floor": Gone(0.1, _ALWAYS.format(0.1)),
    "verification.code.runtime_repeats": Gone(3, _ALWAYS.format(3)),
    "verification.code.processes": Gone(16, _ALWAYS.format(16)),
    "verification.code.disk_mb": Gone(16, _ALWAYS.format(16)),
    "verification.code.output_kb": Gone(1024, _ALWAYS.format(1024)),
    "verification.reward_model.max_input_tokens": Gone(None, "A reward model reads as much as it was made for."),
    "verification.reward_model.tokens_per_microbatch": Gone(16384, _SHARED, changes_training=False),
    "verification.process.tokens_per_microbatch": Gone(16384, _SHARED, changes_training=False),
    "sft.weight_decay": Gone(0.0, _ALWAYS.format(0)),
    "sft.max_grad_norm": Gone(
        1.0, "optimizer.max_grad_norm is for fine-tuning, too.", follows="optimizer.max_grad_norm"
    ),
    "sft.phases.N.schedule": Gone("linear", "The learning rate always falls linearly to 0 over a phase."),
    "sft.phases.N.check_every": Gone(100, _ALWAYS.format(100)),
}
"""By dotted key."""


def gone(key: str) -> Gone | None:
    """Returns what became of a dotted key; None for one that never was an option."""
    key = with_n(key)
    # The section evaluation.data has the keys of the section data.
    return GONE.get(key.removeprefix("evaluation.") if key.startswith("evaluation.data.") else key)
