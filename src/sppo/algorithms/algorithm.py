"""What an algorithm is: a pure function from rewards and estimates to credit, and the loss that it is used with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sppo.algorithms.options import NoOptions
from sppo.algorithms.policy_loss import LossOptions
from sppo.algorithms.shaping import rewards_to_go
from sppo.batch import Credit, Outcomes
from sppo.config.ranges import Section


@dataclass(frozen=True)
class Algorithm:
    """One line of the table, with the published settings; `settle_algorithm` puts those of a run in their place.

    The trainer reads these fields and never the name.
    """

    name: str
    summary: str
    credit: Callable[[Outcomes, Any], Credit]
    """Advantages, and what the critic learns, from rewards and estimates; last come the algorithm's own options."""
    critic: Literal["prompt", "token", "tracker", "history", "optimal"] | None = None
    """V of the prompt by a model, V before each token by a model, V of the prompt by counting, by its past outcomes
    alone, V* of the prompt from the reference's outcomes, or none."""
    critic_is_baseline: bool = True
    """Whether `credit` looks at V; else the critic, if there is one, serves the choice of prompts alone."""
    selection: str = "uniform"
    """How prompts are chosen, where the run doesn't say."""
    value_loss: Literal["bce", "squared"] = "bce"
    """How the critic learns; "bce" makes V a probability, and rewards outside [0, 1] are refused."""
    share: float = 1.0
    """kappa, the share of V(prompt) that is the baseline."""
    min_samples: int = 1
    """Fewest samples a prompt; 2 where the baseline is the group."""
    greedy_baseline: bool = False
    """Whether each prompt also gets a greedy response, whose reward is the baseline."""
    dynamic_sampling: bool = False
    """Whether groups that are all right or all wrong are sampled anew."""
    loss: LossOptions = field(default_factory=LossOptions)
    """How advantages become a loss."""
    options: Section = field(default_factory=NoOptions)
    """The algorithm's own options, one of the classes in options.py."""
    needs_reference: bool = False
    """Whether log-probabilities of the policy that training started from are used."""
    places_token_rewards: bool = False
    """Whether `credit` looks at what single tokens earn; else process rewards are added to what it returns."""

    @property
    def offline_from_reference(self) -> bool:
        """Whether the outcomes that the critic lacks are those of the policy that training started from."""
        return self.critic == "optimal"

    @property
    def values_the_prompt(self) -> bool:
        """Whether V is a prompt's expected reward, which leaves no place for rewards at single tokens."""
        return self.critic in ("prompt", "tracker", "history")

    @property
    def needs_unit_rewards(self) -> bool:
        """Whether V is a probability, so that rewards must lie in [0, 1]."""
        return self.critic is not None and self.value_loss == "bce"

    def assign_credit(self, outcomes: Outcomes) -> Credit:
        """Advantages and the critic's targets; with the process rewards to come at each token, where there are some."""
        credit = self.credit(replace(outcomes, share=self.share), self.options)
        if outcomes.shaping is None or self.places_token_rewards:
            return credit
        return replace(credit, advantages=credit.advantages + rewards_to_go(outcomes.shaping))  # [B, T]
