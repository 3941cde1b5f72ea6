"""Rows dealt out to ranks in micro-batches, as many on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sppo.batch import microbatches
from sppo.models.packing import TokenRow
from sppo.runs import ranks

DUMMY_PROMPT = np.zeros(1, np.int32)
"""A prompt that a rank reads where it has no rows, as the others' operations wait for it."""
DUMMY_ROW = TokenRow(DUMMY_PROMPT, DUMMY_PROMPT)
"""The same for a prompt with its response."""


def dealt(lengths: Sequence[int], token_budget: int, layout: Literal["sorted", "packed"] = "sorted") -> list[list[int]]:
    """This rank's micro-batches: all of them in a process by itself, else its share, with [] where it has no more.

    Rows are dealt by length, the longest to rank 0, and back from the last rank, so that all have like work. Every
    rank gets as many micro-batches, since operations over ranks have to meet; an empty one stands for a dummy row.

    Args:
        lengths: [N] tokens of each row.
        token_budget: as for `sppo.batch.microbatches`.
        layout: as there.

    Returns:
        Row numbers of each micro-batch; every row is in exactly one of one rank.
    """
    count = ranks.world_size()
    if count == 1:
        return microbatches(lengths, token_budget, layout)
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    hands: list[list[int]] = [[] for _ in range(count)]
    for place, row in enumerate(order):
        turn, seat = divmod(place, count)
        hands[seat if turn % 2 == 0 else count - 1 - seat].append(row)
    parts = [
        [[hand[row] for row in part] for part in microbatches([lengths[row] for row in hand], token_budget, layout)]
        for hand in hands
    ]
    own = parts[ranks.rank()]
    return own + [[]] * (max(map(len, parts)) - len(own))
