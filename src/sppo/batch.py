"""The tensors that flow through one step: Batch -> Estimates -> Outcomes -> Credit, and how rows are cut up.

Shapes: B sequences, P prompts, G samples a prompt, T response tokens (the longest of the batch). Rows are padded on
the right; padding never carries meaning, and masks apply in the loss's reduction alone. To them a token that the
policy didn't write is as padding is: models read it, and nothing is said of it, asked of it or paid for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sppo.types import Prompt, Rollout


@dataclass(frozen=True)
class Batch:
    """One step's graded responses."""

    rollouts: tuple[Rollout, ...]
    """[B] the rows, in the order of every tensor here."""
    mask: Tensor
    """[B, T] bool, True on response tokens that the policy wrote (the stop token included); at least one a row."""
    sampler_logprobs: Tensor
    """[B, T] float32, nats; 0 outside the mask."""
    rewards: Tensor
    """[B] float32."""
    groups: Tensor
    """[B] int64, equal for samples of the same prompt of this step."""
    trained: Tensor
    """[B] bool, False on rows that count for baselines but not in the loss (truncated responses, where masked)."""
    greedy_rewards: Tensor | None = None
    """[B] float32 reward of the greedy response to the same prompt, nan where unknown; None where none was sampled."""
    shaping: Tensor | None = None
    """[B, T] float32 process rewards as potential differences, of sum 0 over a response; None where there are none."""

    @property
    def prompts(self) -> list[Prompt]:
        """[B] prompts, repeated for G > 1."""
        return [rollout.prompt for rollout in self.rollouts]

    @property
    def loss_mask(self) -> Tensor:
        """[B, T] bool, the tokens that are trained on."""
        return self.mask & self.trained[:, None]

    @property
    def lengths(self) -> list[int]:
        """[B] tokens of prompt and response, whoever wrote them."""
        return [len(r.prompt_token_ids) + len(r.completion) for r in self.rollouts]

    def __len__(self) -> int:
        return len(self.rollouts)


@dataclass(frozen=True)
class Estimates:
    """What the models say before any of this step's updates; no gradients."""

    old_logprobs: Tensor
    """[B, T] float32: log-probabilities that the ratio divides by."""
    values: Tensor | None = None
    """[B, 1] (of the prompt) or [B, T] (before each token) float32, probabilities where the critic is trained by BCE;
    None for algorithms without a critic."""
    ref_logprobs: Tensor | None = None
    """[B, T] float32 of the reference policy; None where no KL term, joint ratio or regression asks for them."""
    kl_penalty: Tensor | None = None
    """[B, T] float32, what a KL penalty takes from the reward at each token; None where there is none."""
    importance_weights: Tensor | None = None
    """[B, T] float32 truncated importance weights of the sampler's mismatch; None where they are off."""


@dataclass(frozen=True)
class Outcomes:
    """What an algorithm makes credit of: tensors alone, so that responses and trajectories of any kind can have it."""

    rewards: Tensor
    """[B] float32."""
    mask: Tensor
    """[B, T] bool, True on tokens (or actions); at least one a row."""
    groups: Tensor
    """[B] int64 from 0 on, equal for samples of the same prompt."""
    greedy_rewards: Tensor | None = None
    """[B] float32 reward of the greedy response to the same prompt, nan where unknown; None where none was sampled."""
    shaping: Tensor | None = None
    """[B, T] float32 process rewards as potential differences, of sum 0 over a response; None where there are none."""
    values: Tensor | None = None
    """[B, 1] (of the prompt) or [B, T] (before each token) float32; None for algorithms without a critic."""
    share: float = 1.0
    """Of V(prompt), that is taken from the reward as the baseline."""
    kl_penalty: Tensor | None = None
    """[B, T] float32, what a KL penalty takes from the reward at each token; None where there is none."""

    def __post_init__(self) -> None:
        assert self.mask.ndim == 2, f"mask has shape {tuple(self.mask.shape)}, not [B, T]"
        rows, width = self.mask.shape
        self._require("mask", self.mask, torch.bool, (rows, width))
        self._require("rewards", self.rewards, torch.float32, (rows,))
        self._require("groups", self.groups, torch.int64, (rows,))
        self._require("greedy_rewards", self.greedy_rewards, torch.float32, (rows,))
        self._require("shaping", self.shaping, torch.float32, (rows, width))
        self._require("values", self.values, torch.float32, (rows, 1), (rows, width))
        self._require("kl_penalty", self.kl_penalty, torch.float32, (rows, width))

    @staticmethod
    def _require(name: str, given: Tensor | None, dtype: torch.dtype, *shapes: tuple[int, ...]) -> None:
        if given is not None:
            shape = tuple(given.shape)
            assert shape in shapes, f"{name} has shape {shape}, not {' or '.join(map(str, shapes))}"
            assert given.dtype == dtype, f"{name} is {given.dtype}, not {dtype}"

    @classmethod
    def of(cls, batch: Batch, before: Estimates) -> Outcomes:
        """What a step's batch and estimates say."""
        return cls(
            rewards=batch.rewards,
            mask=batch.mask,
            groups=batch.groups,
            greedy_rewards=batch.greedy_rewards,
            shaping=batch.shaping,
            values=before.values,
            kl_penalty=before.kl_penalty,
        )

    @property
    def sequence_rewards(self) -> Tensor:
        """[B] rewards, less the KL penalty of the whole response where there is one."""
        return self.rewards if self.kl_penalty is None else self.rewards - self.kl_penalty.sum(dim=1)

    @property
    def token_rewards(self) -> Tensor | None:
        """[B, T] what single tokens earn beside the response's reward: process rewards, less the KL penalty."""
        if self.kl_penalty is None:
            return self.shaping
        return -self.kl_penalty if self.shaping is None else self.shaping - self.kl_penalty


@dataclass(frozen=True)
class Credit:
    """What an algorithm makes of rewards and estimates."""

    advantages: Tensor
    """[B, 1] or [B, T] float32."""
    value_targets: Tensor | None = None
    """Shaped as the values; None for algorithms without a critic."""


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
