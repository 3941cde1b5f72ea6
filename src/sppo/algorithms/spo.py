"""SPO: Single-stream Policy Optimization (Xu and Ding, arXiv 2509.13232).

    A = R - v(prompt), whitened over the batch,   v = alpha / (alpha + beta), read before its update
    alpha <- rho alpha + R,   beta <- rho beta + 1 - R
    rho = 2^(-D / half_life) within [rho_min, rho_max]

A tabular tracker instead of a critic: each prompt has its own discounted counts, which forget faster the more the
policy has moved since the prompt was last seen; D is the mean abs log-ratio on the prompt's last response, of which
sppo.critics.tracker keeps the beginning. A new prompt starts from `offline_samples` responses sampled for that purpose
alone. Published: half_life 0.06, rho in [0.875, 0.96], 8 offline samples. The advantage is SPPO's (sppo.py); only V
differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sppo.algorithms.options import SpoOptions, SppoOptions
from sppo.algorithms.sppo import sppo_credit
from sppo.batch import Credit, Outcomes


def spo_credit(outcomes: Outcomes, options: SpoOptions) -> Credit:
    """Returns A = R - v [B, 1], whitened later, as the loss's options say, and R as what the counts take in [B, 1]."""
    return sppo_credit(outcomes, SppoOptions())


@dataclass(frozen=True)
class SolveCounts:
    """Discounted counts of one prompt."""

    alpha: float
    """Successes."""
    beta: float
    """Failures."""

    @property
    def value(self) -> float:
        """v = alpha / (alpha + beta)."""
        return self.alpha / (self.alpha + self.beta)


_UNKNOWN = SolveCounts(0.5, 0.5)


@dataclass
class SolveTracker:
    """The counts of every prompt seen, by id."""

    counts: dict[str, SolveCounts] = field(default_factory=dict)

    def start(self, prompt_id: str, rewards: Sequence[float]) -> None:
        """Begins a prompt from offline rewards; without any, at one half of a success and of a failure."""
        self.counts[prompt_id] = SolveCounts(sum(rewards), len(rewards) - sum(rewards)) if rewards else _UNKNOWN

    def value(self, prompt_id: str) -> float:
        """v of a prompt; one half of one that was never started."""
        return self.counts.get(prompt_id, _UNKNOWN).value

    def update(self, prompt_id: str, reward: float, drift: float, options: SpoOptions) -> None:
        """Takes one outcome in.

        Args:
            prompt_id: a prompt.
            reward: R in [0, 1].
            drift: D, mean abs log-ratio of the prompt's last response, nats a token.
            options: half_life, rho_min, rho_max.
        """
        rho = min(max(2 ** (-drift / options.half_life), options.rho_min), options.rho_max)
        old = self.counts.get(prompt_id, _UNKNOWN)
        self.counts[prompt_id] = SolveCounts(rho * old.alpha + reward, rho * old.beta + 1 - reward)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {prompt_id: [counts.alpha, counts.beta] for prompt_id, counts in self.counts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.counts = {prompt_id: SolveCounts(*counts) for prompt_id, counts in state.items()}
