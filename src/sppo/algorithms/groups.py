"""Statistics over the samples of one prompt, for all prompts of a batch at once. Shapes: B sequences, P prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupStatistics:
    """Each [B]: the statistic of the group that the sequence belongs to."""

    count: Tensor
    """Samples of the group that have a reward; samples that were left out don't count. All three are float64."""
    mean: Tensor
    std: Tensor
    """Sample standard deviation (divided by N - 1); 0 for a group of one."""


def group_statistics(rewards: Tensor, groups: Tensor) -> GroupStatistics:
    """Count, mean and standard deviation of `rewards` [B] within `groups` [B]."""
    assert rewards.shape == groups.shape, f"rewards {tuple(rewards.shape)}, groups {tuple(groups.shape)}"
    assert rewards.ndim == 1, f"rewards have shape {tuple(rewards.shape)}, not [B]"
    # In float64: the float32 rounding of equal rewards, divided by a deviation of nearly 0, would become an advantage.
    exact = rewards.double()
    zeros = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)  # [P]
    count = zeros.index_add(0, groups, torch.ones_like(exact))
    mean = zeros.index_add(0, groups, exact) / count.clamp(min=1)
    squares = zeros.index_add(0, groups, (exact - mean[groups]) ** 2)
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    return GroupStatistics(count[groups], mean[groups], std[groups])
