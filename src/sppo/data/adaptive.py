"""Second and third responses within a step's budget, where they are expected to teach most."""

from __future__ import annotations

import heapq

from sppo.types import Beliefs

MOST = 3
"""Most responses to one prompt."""


def responses(beliefs: Beliefs, extra: int) -> list[int]:
    """How many responses each prompt gets: one, and `extra` more in all.

    Each goes to the prompt with the largest expected squared advantage over the responses that it has by then, so that
    a third one has to be worth twice the second one that it stands in for. Nothing of the step's responses is looked
    at.

    Args:
        beliefs: [P] of the prompts, before any response.
        extra: responses beyond the first; those that find no place, as each prompt has three, are left out.

    Returns:
        [P] numbers from 1 to 3.
    """
    counts = [1] * len(beliefs)
    waiting = [(-spread, place) for place, spread in enumerate(beliefs.spread.tolist())]
    heapq.heapify(waiting)
    for _ in range(min(extra, (MOST - 1) * len(counts))):
        _, place = heapq.heappop(waiting)
        counts[place] += 1
        if counts[place] < MOST:
            heapq.heappush(waiting, (-float(beliefs.spread[place]) / counts[place], place))
    return counts
