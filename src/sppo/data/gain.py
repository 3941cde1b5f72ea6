"""What choosing prompts gains: measured against a control group, and which rule that speaks for.

The squared advantage (R - b)^2 of a response says how much it teaches. Its mean over the prompts that rule top would
take, held against its mean over a control group drawn uniformly, is what choosing by these beliefs could gain now.
Prompts that top would take count wherever they come from, as their outcomes don't depend on how they were drawn; so the
ratio is known also while nothing is chosen.

The ratio isn't the gain in learning. A perfect belief gives about 1.5 where solve rates are spread evenly, and there
choosing costs more than it brings; 2.9 where half of the prompts are dead; 5.8 where four fifths are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 200
"""Prompts of the control group that the ratio is taken over, the newest."""
SQRT_FROM = 2.0
"""Ratio from which prompts are drawn by the square root of what is expected of them."""
TOP_FROM = 3.25
"""Ratio from which the best are taken. A perfect belief has 2.9 where half of the prompts are dead, which is no case
for that; a real one in training had 3 to 5 where four fifths were."""


@dataclass
class Gain:
    """Squared advantages of control and chosen prompts, over a window of the newest steps."""

    steps: list[list[float]] = field(default_factory=list)
    """A row a step: count and sum of control, then of what top would take."""

    def add(self, squared: NDArray[np.float64], control: NDArray[np.bool_], above: NDArray[np.bool_]) -> None:
        """Takes in the prompts of one step.

        Args:
            squared: [P] squared advantages, the mean over each prompt's responses.
            control: [P] whether of the control group.
            above: [P] whether rule top would have taken it.
        """
        self.steps.append(
            [
                float(control.sum()),
                float(squared[control].sum()),
                float(above.sum()),
                float(squared[above].sum()),
            ]
        )
        while sum(row[0] for row in self.steps[1:]) >= WINDOW:
            del self.steps[0]

    @property
    def ratio(self) -> float:
        """Mean squared advantage of what top would take over that of control; nan while there is too little."""
        if not self.steps:
            return math.nan
        controls, of_control, tops, of_top = (sum(column) for column in zip(*self.steps, strict=True))
        if controls < WINDOW or not tops or not of_control:
            return math.nan
        return (of_top / tops) / (of_control / controls)

    @property
    def rule(self) -> str:
        """uniform, sqrt or top."""
        ratio = self.ratio
        return "top" if ratio >= TOP_FROM else "sqrt" if ratio >= SQRT_FROM else "uniform"

    def metrics(self) -> dict[str, float]:
        """The ratio, where it is known."""
        return {} if math.isnan(self.ratio) else {"selection/gain": self.ratio}

    def state_dict(self) -> dict[str, Any]:
        """The window."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.steps = [list(row) for row in state["steps"]]
