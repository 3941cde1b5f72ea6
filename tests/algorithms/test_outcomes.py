"""Credit from tensors alone, as a task without a language model has them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sppo.algorithms.table import ALGORITHMS
from sppo.batch import Outcomes

MASK = torch.arange(3) < torch.tensor([[2], [3], [1], [3]])
BARE = Outcomes(
    rewards=torch.tensor([1.0, 0.0, 1.0, 1.0]),
    mask=MASK,
    groups=torch.tensor([0, 0, 1, 1]),
    greedy_rewards=torch.tensor([0.0, 0.0, 1.0, 1.0]),
)
PROMPT_VALUES = torch.tensor([[0.25], [0.25], [0.5], [0.5]])
GROUP = 0.5 / (0.5**0.5 + 1e-6)  # rewards 1 and 0 have the deviation sqrt(1/2)
EXPECTED = {
    "sppo": [0.75, -0.25, 0.5, 0.5],
    "spo": [0.75, -0.25, 0.5, 0.5],
    "astar_po": [0.75, -0.25, 0.5, 0.5],
    "ppo": [0.5, -0.5, 0.5, 0.5],
    "ppo_bce": [0.5, -0.5, 0.5, 0.5],
    "grpo": [GROUP, -GROUP, 0.0, 0.0],
    "dapo": [GROUP, -GROUP, 0.0, 0.0],
    "gspo": [GROUP, -GROUP, 0.0, 0.0],
    "cispo": [GROUP, -GROUP, 0.0, 0.0],
    "dr_grpo": [0.5, -0.5, 0.0, 0.0],
    "reinforce_pp": [0.5, -0.5, 0.0, 0.0],
    "rloo": [1.0, -1.0, 0.0, 0.0],
    "remax": [1.0, 0.0, 0.0, 0.0],
}


def test_the_numbers_below_cover_the_table():
    assert set(EXPECTED) == set(ALGORITHMS)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_algorithm_makes_credit_of_bare_tensors(name):
    algorithm = ALGORITHMS[name]
    values = {None: None, "token": torch.full((4, 3), 0.5)}.get(algorithm.critic, PROMPT_VALUES)
    outcomes = replace(BARE, values=values)
    credit = algorithm.assign_credit(outcomes)
    spread = credit.advantages.expand_as(MASK)
    for row, expected in enumerate(EXPECTED[name]):
        assert spread[row][MASK[row]].tolist() == pytest.approx([expected] * int(MASK[row].sum()))
    assert (credit.value_targets is None) == (algorithm.critic is None)
    if credit.value_targets is not None and outcomes.values is not None:
        assert credit.value_targets.shape == outcomes.values.shape


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mask": torch.ones(4, dtype=torch.bool)}, r"mask has shape \(4,\), not \[B, T\]"),
        ({"mask": torch.ones(4, 3)}, "mask is torch.float32, not torch.bool"),
        ({"rewards": torch.ones(4, 1)}, r"rewards has shape \(4, 1\), not \(4,\)"),
        ({"rewards": torch.ones(4, dtype=torch.float64)}, "rewards is torch.float64, not torch.float32"),
        ({"groups": torch.zeros(4)}, "groups is torch.float32, not torch.int64"),
        ({"greedy_rewards": torch.ones(3)}, r"greedy_rewards has shape \(3,\)"),
        ({"shaping": torch.ones(4, 1)}, r"shaping has shape \(4, 1\), not \(4, 3\)"),
        ({"values": torch.ones(4, 2)}, r"values has shape \(4, 2\), not \(4, 1\) or \(4, 3\)"),
        ({"kl_penalty": torch.ones(4)}, r"kl_penalty has shape \(4,\)"),
    ],
)
def test_shapes_and_dtypes_are_checked_before_anything_is_computed(wrong, said):
    with pytest.raises(AssertionError, match=said):
        replace(BARE, **wrong)
