"""What all that makes or uses a belief (`sppo.types.Beliefs`) of how solvable a prompt is goes by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EDGE = 1e-6
"""V is kept so far from 0 and 1 where logits or counts are made of it: a sigmoid of float32 can lie there, its logit
would be infinite, and one outcome to the contrary impossible."""
PRIOR_WORTH = 3.2
"""What V of a prompt's text is worth in samples before outcomes have told.

The worth of a mixture of all the worths that `history.py` tries, each as likely. It lies between what was measured of
critics in training: at a worth of n, V misses the solve rate by V (1 - V) / (n + 1) in mean square, about .09 (n = 1)
of one that lags and .022 (n = 8) of one that keeps up. Where all prompts have it, it changes no order of them."""
