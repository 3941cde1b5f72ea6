"""SPO: Single-stream Policy Optimization (Xu and Ding, arXiv 2509.13232).

    A = R - v(prompt), whitened over the batch,   v = alpha / (alpha + beta), read before its update
    alpha <- rho alpha + R,   beta <- rho beta + 1 - R
    rho = 2^(-D / half_life) within [rho_min, rho_max]

A tabular tracker instead of a critic: each prompt has its own discounted counts, which forget faster the more the
policy has moved since the prompt was last seen; D is the mean abs log-ratio on the prompt's last response. The counts,
and the beginnings of last responses, are kept by sppo.critics.tracker. A new prompt starts from `offline_samples`
responses sampled for that purpose alone. Published: half_life 0.06, rho in [0.875, 0.96], 8 offline samples. The
advantage is SPPO's (sppo.py); only V differs.
"""

from __future__ import annotations

from sppo.algorithms.options import SpoOptions, SppoOptions
from sppo.algorithms.sppo import sppo_credit
from sppo.batch import Credit, Outcomes


def spo_credit(outcomes: Outcomes, options: SpoOptions) -> Credit:
    """Returns A = R - v [B, 1], whitened later, as the loss's options say, and R as what the counts take in [B, 1]."""
    return sppo_credit(outcomes, SppoOptions())


def retention(drift: float, options: SpoOptions) -> float:
    """rho: the weight that a prompt's past outcomes keep when a new one is taken in.

    Args:
        drift: D, mean abs log-ratio of the prompt's last response, nats a token.
        options: half_life, rho_min, rho_max.
    """
    return min(max(2 ** (-drift / options.half_life), options.rho_min), options.rho_max)
