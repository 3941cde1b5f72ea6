"""Process rewards as potential differences: credit for single steps that leaves the best policy what it is.

A response is cut into steps 1..n. Let s_0 be the prompt and s_k the prompt with the first k steps. With potentials

    Phi(s_0) = 0,   Phi(s_k) = weight * (score of step k - c),   Phi(whole response) = 0

the last token of step k gets the shaping reward F_k = Phi(s_k) - Phi(s_{k-1}) (Ng, Harada and Russell, ICML 1999, with
gamma = 1), and every other token 0. Two things follow.

1.  The return stays what it is. The sum over a response telescopes: F_1 + ... + F_n = Phi(s_n) - Phi(s_0) = 0. So no
    policy gains a reward by steps that merely score well, and the order of policies by expected reward, thus the best
    one, is that of the reward alone. (A *sum of step scores* has no such property: it pays for more steps.)

2.  The expected gradient stays what it is. The shaping still to come at a token of step k is F_k + ... + F_n
    = -Phi(s_{k-1}), which is known before the token is sampled. It is a baseline: for any b that depends on the
    beginning h alone, the sum over y of pi(y|h) grad log pi(y|h) b(h) is b(h) grad (sum over y of pi(y|h)), and that is
    b(h) grad 1 = 0. A good score thus lowers what is to be expected of the rest, as V(s_t) does in PPO; credit goes to
    the tokens that made a difference, with less variance where the scores predict the reward.

Both need that a score depends on nothing after its step, and that where a step ends can be told once its last token is
there. c, the mean score of the batch, keeps the mean advantage near 0; it is the same number for every state, so the
two properties hold for it as for c = 0, up to each response's own share in the mean, 1/B (as for any batch statistic).

Shapes: B sequences, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sppo.algorithms.masked import last_inside


def potential_differences(
    ends: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], mask: Tensor, weight: float
) -> Tensor:
    """Returns the shaping reward of each token [B, T] float32; every row sums to 0.

    Args:
        ends: [B] place of each step's last token in its row, rising; a row without any is not shaped.
        scores: [B] score of each of these steps.
        mask: [B, T] bool, True on response tokens that the policy wrote. A step that ends in what it was answered is
            paid for at the token before that.
        weight: of a score of 1 against a score of 0.
    """
    assert len(ends) == len(scores) == len(mask), f"{len(ends)} rows of steps, but {len(mask)} rows of tokens"
    earned = last_inside(mask).tolist()
    # The step that ends the response leads to its end, whose potential is 0: there the reward itself speaks.
    inner = [
        (row, earned[row][end], score)
        for row, steps in enumerate(zip(ends, scores, strict=True))
        for end, score in zip(*steps, strict=True)
        if 0 <= earned[row][end] < earned[row][-1]
    ]
    shaping = torch.zeros(mask.shape, dtype=torch.float64)
    if not inner:
        return shaping.float()
    mean = sum(score for *_, score in inner) / len(inner)
    before = dict.fromkeys((row for row, *_ in inner), 0.0)  # row -> potential of the state before
    for row, end, score in inner:
        potential = weight * (score - mean)
        shaping[row, end] += potential - before[row]
        before[row] = potential
    for row, potential in before.items():
        shaping[row, earned[row][-1]] -= potential
    return shaping.float()


def rewards_to_go(rewards: Tensor) -> Tensor:
    """Sum of the rewards [B, T] at each token and after it, gamma = 1."""
    return rewards.flip(1).cumsum(1).flip(1)
