"""Cross-fitted recalibration: V is brought in line with a step's outcomes, each with those of other prompts alone.

    V' = sigma(a z + c),  z = logit V;   a, c = argmin sum BCE(sigma(a z + c), R) + 10 (a - 1)^2 + c^2

A critic that learns beside a policy lags behind it: its V is too low, or too high, for all prompts alike, and a step's
own outcomes tell by how much. They may be used for a response only if neither its own outcome nor a sibling's is among
them, or its baseline would know its reward. So a step's distinct prompts are cut in two halves, a and c are fitted on
each and applied to the other. The cut follows the prompts' digests, so it knows no outcome and needs no seed.

V of the text is recalibrated before it is fused with history, not the belief after it: the lag is the text's, while
counts of outcomes have none of it, and one line for all would move well-known prompts as far as unknown ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sppo.critics.belief import EDGE, Floats
from sppo.critics.outcomes import Keys

RIDGE = np.array([10.0, 1.0])
"""Of (a - 1)^2 and of c^2."""
_ITERATIONS, _ENOUGH = 50, 1e-10


class Line(NamedTuple):
    """V' = sigma(slope logit V + shift)."""

    slope: float
    shift: float

    def apply(self, values: Floats) -> Floats:
        """[n] V' of V."""
        return _sigmoid(self.slope * _logit(values) + self.shift)


def recalibrated(values: Floats, rewards: Floats, keys: Keys) -> Floats:
    """[n] V after a fit on the outcomes of the other half of the prompts; V itself where there is no other half.

    Args:
        values: [n] V of each response's prompt.
        rewards: [n] in [0, 1].
        keys: [n] of the prompts; the responses of one prompt are in one half.
    """
    first = first_half(keys)
    found = values.copy()
    for own in (first, ~first):
        if own.any() and not own.all():
            found[own] = fit(values[~own], rewards[~own]).apply(values[own])
    return found


def first_half(keys: Keys) -> NDArray[np.bool_]:
    """[n] whether the prompt is in the first half of the distinct ones, in the order of their keys."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    return np.asarray(inverse < len(distinct) / 2)


def fit(values: Floats, rewards: Floats) -> Line:
    """Slope and shift by Newton's method, halving steps that don't go down; none where V is not finite.

    The ridge keeps both finite where all outcomes are alike, and draws them to 1 and 0 where there are few.
    """
    z = _logit(values)
    if not np.isfinite(z).all():
        return Line(1.0, 0.0)
    design = np.stack([z, np.ones_like(z)], axis=1)  # [n, 2]
    start = np.array([1.0, 0.0])
    now, best = start, _objective(start, design, rewards)
    for _ in range(_ITERATIONS):
        p = _sigmoid(design @ now)
        gradient = design.T @ (p - rewards) + 2 * RIDGE * (now - start)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 2 * np.diag(RIDGE)
        step = np.linalg.solve(hessian, gradient)
        while (value := _objective(now - step, design, rewards)) > best and np.abs(step).max() > _ENOUGH:
            step = step / 2
        if value >= best:
            break
        now, best = now - step, value
    return Line(float(now[0]), float(now[1]))


def _objective(line: Floats, design: Floats, rewards: Floats) -> float:
    logits = design @ line
    losses = np.logaddexp(0, logits) - rewards * logits  # cross-entropy
    return float(losses.sum() + (RIDGE * (line - [1.0, 0.0]) ** 2).sum())


def _logit(values: Floats) -> Floats:
    inside = np.clip(values, EDGE, 1 - EDGE)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))
