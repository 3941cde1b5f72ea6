"""History: V of a prompt's text fused with the discounted counts of the prompt's own outcomes.

    b = (m V + alpha) / (m + alpha + beta),   alpha = sum of gamma^age R,   beta = sum of gamma^age (1 - R)

V counts as m outcomes. How much it is worth, and how fast outcomes go stale (gamma a step), is not known beforehand and
changes while a policy learns, so every pair of a grid is kept and averaged by how likely it made the outcomes of late
(log-likelihoods fade by .9 a step). Under a pair p ~ Beta(b n, (1 - b) n), n = m + alpha + beta. A prompt's outcomes in
one step are beta-binomial under it, which for a single one, right or wrong, is Bernoulli's b or 1 - b; several together
tell how far p lies from V, so a group says something of m at its first visit. The belief is the mixture's exact mean,
and what it is worth follows from its variance: mean (1 - mean) / variance - 1.

A step's outcomes are taken in after all that the step reads, so that none of them is in a belief that it uses.

Shapes: n prompts asked for, M and K worths and discounts of the grid, U distinct prompts of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from sppo.critics.belief import EDGE, Floats
from sppo.critics.outcomes import Keys, OutcomeStore
from sppo.types import Beliefs

WORTHS = np.array([0.5, 1, 2, 4, 8, 16, 32, 1e6])
"""m: samples that V is worth; the last one is no history at all."""
DISCOUNTS = np.array([0.5, 0.7, 0.85, 0.95, 1])
"""gamma: weight of an outcome a step later."""
FADING = 0.9
"""Weight that the log-likelihood of earlier steps' outcomes keeps a step."""
LEAST_WORTH = 0.01
"""What V counts for at the least, however two critics disagree."""


class History:
    """Counts of every prompt's outcomes, and how likely each pair of the grid has made them."""

    def __init__(self) -> None:
        """Starts without outcomes, every pair as likely."""
        self.store = OutcomeStore(len(DISCOUNTS))
        self.log_likelihood = np.zeros((len(WORTHS), len(DISCOUNTS)))
        self.clock = 0
        """How often the policy has moved."""

    def start(self, keys: Keys, rates: Floats, worth: float) -> None:
        """Begins the counts of prompts whose solve rates are known, as if `worth` outcomes had just been seen.

        Args:
            keys: [n]; of prompts that are there more than once the mean of their rates is taken.
            rates: [n] in [0, 1].
            worth: samples that a rate is worth.
        """
        distinct, inverse = np.unique(keys, return_inverse=True)
        known = np.bincount(inverse, rates) / np.bincount(inverse)
        rows = self.store.add(distinct)
        self.store.alpha[rows] = worth * known[:, None]
        self.store.beta[rows] = worth * (1 - known[:, None])
        self.store.seen[rows] = self.clock

    def fuse(self, keys: Keys, values: Floats, limits: Floats) -> Beliefs:
        """What is believed of prompts.

        Args:
            keys: [n] of the prompts.
            values: [n] V of their text; where it is not finite, nothing is known.
            limits: [n] the most that V is worth; inf where nothing limits it.
        """
        solved, samples = self._posteriors(keys, values, limits)
        mean = solved / samples  # [n, M, K]
        weights = self.weights
        belief = (mean * weights).sum(axis=(1, 2))
        within = (mean * (1 - mean) / (samples + 1) * weights).sum(axis=(1, 2))
        between = ((mean - belief[:, None, None]) ** 2 * weights).sum(axis=(1, 2))
        return Beliefs(belief, belief * (1 - belief) / (within + between) - 1)

    def learn(self, keys: Keys, values: Floats, limits: Floats, rewards: Floats) -> None:
        """Takes a step's outcomes in.

        Args:
            keys: [n] of each response's prompt; those of one prompt are taken together.
            values: [n] V of the prompts' text as it was before the step, equal for equal prompts.
            limits: [n] the most that V is worth.
            rewards: [n] in [0, 1].
        """
        assert bool(((rewards >= 0) & (rewards <= 1)).all()), "history counts outcomes in [0, 1]"
        distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        solved = np.bincount(inverse, rewards).astype(np.float64)  # [U]
        failed = np.bincount(inverse, 1 - rewards).astype(np.float64)
        likelihood = self._log_likelihoods(distinct, values[first], limits[first], solved, failed)
        self.log_likelihood += likelihood
        rows = self.store.add(distinct)
        discounts = DISCOUNTS ** (self.clock - self.store.seen[rows])[:, None]
        self.store.alpha[rows] = self.store.alpha[rows] * discounts + solved[:, None]
        self.store.beta[rows] = self.store.beta[rows] * discounts + failed[:, None]
        self.store.seen[rows] = self.clock

    def policy_moved(self) -> None:
        """What was seen before is a step older; outcomes of a policy at rest, as in a pre-fit, stay fresh."""
        self.log_likelihood *= FADING
        self.clock += 1

    @property
    def weights(self) -> Floats:
        """[M, K] how likely each pair is, in all 1."""
        odds = np.exp(self.log_likelihood - self.log_likelihood.max())
        return np.asarray(odds / odds.sum())

    @property
    def worth(self) -> float:
        """The likely m, as a geometric mean: its grid reaches over six powers of ten."""
        return float(np.exp((self.weights.sum(axis=1) * np.log(WORTHS)).sum()))

    @property
    def discount(self) -> float:
        """The likely gamma."""
        return float((self.weights.sum(axis=0) * DISCOUNTS).sum())

    def _posteriors(self, keys: Keys, values: Floats, limits: Floats) -> tuple[Floats, Floats]:
        """[n, M, K] successes and samples, V's among them."""
        rows = self.store.find(keys)
        known = rows >= 0
        alpha, beta = np.zeros((len(keys), len(DISCOUNTS))), np.zeros((len(keys), len(DISCOUNTS)))
        discounts = DISCOUNTS ** (self.clock - self.store.seen[rows[known]])[:, None]
        alpha[known], beta[known] = self.store.alpha[rows[known]] * discounts, self.store.beta[rows[known]] * discounts
        worth = np.maximum(np.minimum(WORTHS, limits[:, None]), LEAST_WORTH)[:, :, None]  # [n, M, 1]
        inside = np.clip(values, EDGE, 1 - EDGE)[:, None, None]
        return worth * inside + alpha[:, None], worth + (alpha + beta)[:, None]

    def _log_likelihoods(self, keys: Keys, values: Floats, limits: Floats, solved: Floats, failed: Floats) -> Floats:
        """[M, K] nats of a step's outcomes under each pair; prompts whose V is not finite say nothing."""
        finite = np.isfinite(values)
        a, n = self._posteriors(keys[finite], values[finite], limits[finite])
        s, f = solved[finite, None, None], failed[finite, None, None]
        return np.asarray((betaln(a + s, n - a + f) - betaln(a, n - a)).sum(axis=0))

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it as arrays, for a checkpoint."""
        own = {"log_likelihood": self.log_likelihood, "clock": np.array([self.clock])}
        return {**self.store.arrays(), **own}

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """What `arrays` gave."""
        self.store.load(arrays)
        self.log_likelihood = arrays["log_likelihood"].astype(np.float64)
        self.clock = int(arrays["clock"][0])
