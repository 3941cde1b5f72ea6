"""What choosing prompts gains: measured against a control group, and how hard a choice that speaks for.

The squared advantage (R - b)^2 of a response says how much it teaches. Its mean over the prompts that are believed to
teach most, a sixth of those that are judged, held against its mean over all prompts, is what choosing by these beliefs
could gain now:

    gain = T / (s T + (1 - s) L)

T is the mean of the prompts above the bar, wherever they come from, as their outcomes don't depend on how they were
drawn; L that of control prompts below it, which nobody chose; s the share of judged prompts above it. Taking the two
strata together by their known shares, instead of by how many of each the control group happens to hold, leaves out the
largest part of the noise, and bounds the gain by 1 / s.

The gain isn't that in learning. A perfect belief has about 1.5 where solve rates are spread evenly, and there choosing
brings little; 2.9 where half of the prompts are dead; 5.8 where four fifths are. A belief that knows less has less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEMORY = 150.0
"""Control prompts after which an outcome's weight has fallen to 1 / e."""
LEAST_ABOVE, LEAST_BELOW = 10.0, 50.0
"""Prompts above and control prompts below the bar from which on a gain is told."""
PRIOR = 5.0
"""Prompts below the bar that are taken to teach as much as those above, beside those that were seen: a few outcomes
alone make no large gain."""
CHOOSE_FROM, HARDEST_FROM = 1.5, 3.0
"""Gains from which on prompts are chosen at all, and as hard as may be. Linear between them."""


@dataclass
class Gain:
    """Squared advantages above and below the bar; older ones fade as control prompts come in."""

    above: float = 0.0
    """Prompts above the bar, by their weights."""
    above_squared: float = 0.0
    """The sum of their squared advantages."""
    below: float = 0.0
    """Control prompts below it."""
    below_squared: float = 0.0
    steps: float = 0.0
    share: float = 0.0
    """The sum over steps of the share of judged prompts above the bar."""

    def add(
        self, squared: NDArray[np.float64], control: NDArray[np.bool_], above: NDArray[np.bool_], share: float
    ) -> None:
        """Takes in the prompts of one step.

        Args:
            squared: [P] squared advantages, the mean over each prompt's responses.
            control: [P] whether of the control group.
            above: [P] whether above the bar.
            share: of the prompts that were judged, those above the bar.
        """
        kept = math.exp(-float(control.sum()) / MEMORY)
        below = control & ~above
        self.above = kept * self.above + float(above.sum())
        self.above_squared = kept * self.above_squared + float(squared[above].sum())
        self.below = kept * self.below + float(below.sum())
        self.below_squared = kept * self.below_squared + float(squared[below].sum())
        self.steps = kept * self.steps + 1.0
        self.share = kept * self.share + share

    @property
    def ratio(self) -> float:
        """The gain; nan while too little is known."""
        if self.above < LEAST_ABOVE or self.below < LEAST_BELOW or not self.above_squared:
            return math.nan
        best = self.above_squared / self.above
        rest = (self.below_squared + PRIOR * best) / (self.below + PRIOR)
        share = self.share / self.steps
        return best / (share * best + (1 - share) * rest)

    def hardness(self) -> float:
        """How hard to choose: 0 for not at all, 1 for as hard as may be."""
        ratio = self.ratio
        if math.isnan(ratio):
            return 0.0
        return min(max((ratio - CHOOSE_FROM) / (HARDEST_FROM - CHOOSE_FROM), 0.0), 1.0)

    def metrics(self) -> dict[str, float]:
        """The gain, where it is known."""
        ratio = self.ratio
        return {} if math.isnan(ratio) else {"selection/gain": ratio}

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        for sums in fields(self):
            setattr(self, sums.name, float(state[sums.name]))
