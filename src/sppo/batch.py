"""The tensors that flow through one step: Batch -> Estimates -> Credit, and how rows are cut into micro-batches.

Shapes: B sequences, P prompts, G samples a prompt, T response tokens (the longest of the batch). Rows are padded on
the right; padding never carries meaning, and masks apply in the loss's reduction alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sppo.errors import TrainingError
from sppo.types import Prompt, Rollout, Verdict


@dataclass(frozen=True)
class Batch:
    """One step's graded responses."""

    rollouts: tuple[Rollout, ...]
    """[B] the rows, in the order of every tensor here."""
    response_ids: Tensor
    """[B, T] int64."""
    mask: Tensor
    """[B, T] bool, True on response tokens (the stop token included)."""
    sampler_logprobs: Tensor
    """[B, T] float32, nats; 0 outside the mask."""
    rewards: Tensor
    """[B] float32."""
    groups: Tensor
    """[B] int64, equal for samples of the same prompt."""

    @property
    def prompts(self) -> list[Prompt]:
        """[B] prompts, repeated for G > 1."""
        return [rollout.prompt for rollout in self.rollouts]

    @property
    def lengths(self) -> list[int]:
        """[B] tokens of prompt and response."""
        return [len(r.prompt_token_ids) + len(r.completion.token_ids) for r in self.rollouts]

    def __len__(self) -> int:
        return len(self.rollouts)


@dataclass(frozen=True)
class Estimates:
    """What the models say before any of this step's updates; no gradients."""

    old_logprobs: Tensor
    """[B, T] float32: log-probabilities that the ratio divides by."""
    values: Tensor | None = None
    """[B, 1] (prompt critic) float32 probabilities; None for algorithms without a critic."""
    importance_weights: Tensor | None = None
    """[B, T] float32 truncated importance weights of the sampler's mismatch; None where they are off."""


@dataclass(frozen=True)
class Credit:
    """What an algorithm makes of rewards and estimates."""

    advantages: Tensor
    """[B, 1] or [B, T] float32."""
    value_targets: Tensor | None = None
    """Shaped as the values; None for algorithms without a critic."""


def collate(rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> Batch:
    """Puts the rollouts that have a reward into tensors; those without one are left out.

    Raises:
        TrainingError: no rollout has a reward.
    """
    assert len(rollouts) == len(verdicts), f"{len(rollouts)} rollouts but {len(verdicts)} verdicts"
    graded = [(r, v.reward) for r, v in zip(rollouts, verdicts, strict=True) if v.reward is not None]
    if not graded:
        errors = sorted({v.error or v.reason for v in verdicts})[:3]
        raise TrainingError(f"None of the step's {len(rollouts)} responses has a reward: {'; '.join(errors)}.")
    rows = [r for r, _ in graded]
    number: dict[str, int] = {}
    groups = [number.setdefault(r.prompt.id, len(number)) for r in rows]
    responses = [torch.tensor(r.completion.token_ids, dtype=torch.int64) for r in rows]
    logprobs = [torch.tensor(r.completion.logprobs, dtype=torch.float32) for r in rows]
    lengths = torch.tensor([len(response) for response in responses])
    width = int(lengths.max())
    return Batch(
        rollouts=tuple(rows),
        response_ids=torch.nn.utils.rnn.pad_sequence(responses, batch_first=True),
        mask=torch.arange(width) < lengths[:, None],
        sampler_logprobs=torch.nn.utils.rnn.pad_sequence(logprobs, batch_first=True),
        rewards=torch.tensor([reward for _, reward in graded], dtype=torch.float32),
        groups=torch.tensor(groups),
    )


def microbatches(
    lengths: Sequence[int], token_budget: int, layout: Literal["sorted", "packed"] = "sorted"
) -> list[list[int]]:
    """Cuts rows into groups that fit a token budget, longest first so that an out-of-memory shows at once.

    Args:
        lengths: [N] tokens of each row.
        token_budget: most tokens of a group, its padding included. A longer row gets a group of its own.
        layout: "sorted" counts rows times the longest row; "packed" counts the sum.

    Returns:
        Row numbers of each group; every row is in exactly one.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    groups: list[list[int]] = []
    used = 0
    for row in order:
        cost = lengths[row] if layout == "packed" else lengths[groups[-1][0]] if groups else lengths[row]
        if groups and used + cost <= token_budget:
            groups[-1].append(row)
            used += cost
        else:
            groups.append([row])
            used = lengths[row]
    return groups
