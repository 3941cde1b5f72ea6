"""A*-PO: Policy Optimization via Optimal Advantage Regression (Brantley et al., arXiv 2505.20686; A2PO in TRL).

    V*(prompt) = beta_value ln( mean of exp(R_i / beta_value) )            R_i of n responses of the reference
    loss       = ( beta ln pi(response) / ref(response) - (R - V*) )^2     mean over responses, one a prompt

The reference is the policy that training started from, and the log-ratio the whole response's, summed over its tokens.
Of max E[R] - beta KL(pi || ref) the optimum is pi* = ref exp((R - V*) / beta), with V* for beta_value = beta: there the
loss is 0 for every response, whoever wrote it. So no ratio to the sampler's policy is needed, and none is clipped. With
beta small the gradient is nearly that of REINFORCE with V* as its baseline, times 2 beta, which AdamW takes out again.

Published: n = 8, beta_value 1/2, beta 1e-3, AdamW 1e-6, 256 prompts a step in mini-batches of 128, nothing filtered.
The two betas differ on purpose: with beta_value 1e-3 V* would be the best of the samples, with infinity their mean. V*
lies above the solve rate p, at p = 1/2 by .22, so failures weigh more than successes; where all of the samples are
alike it is their reward, so that a prompt that was never solved pulls back to the reference until it is. The paper
samples all prompts beforehand; here each gets its n responses when it is first drawn, still from the reference, which
is the same distribution and spares prompts that are never drawn. R - V* is SPPO's advantage (sppo.py); only V differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sppo.algorithms.options import AstarPoOptions, SppoOptions
from sppo.algorithms.sppo import sppo_credit
from sppo.batch import Credit, Outcomes


def astar_po_credit(outcomes: Outcomes, options: AstarPoOptions) -> Credit:
    """Returns R - V* [B, 1], which the loss regresses on; nothing learns from the targets."""
    return sppo_credit(outcomes, SppoOptions())


def optimal_value(rewards: Sequence[float], beta_value: float) -> float:
    """V* = beta_value ln( mean of exp(R / beta_value) ), between the mean and the greatest of the rewards.

    Args:
        rewards: R of a prompt's responses by the reference policy, at least one.
        beta_value: of the KL-regularised objective that V* is the optimal value of, > 0.
    """
    greatest = max(rewards)  # taken out, so that exp() cannot leave the range of floats
    return greatest + beta_value * math.log(sum(math.exp((r - greatest) / beta_value) for r in rewards) / len(rewards))
