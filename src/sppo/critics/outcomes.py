"""The one store of outcomes: of each prompt that was answered, discounted counts of successes and failures.

What counts are kept of is told apart by digests of 64 bits, so that a store holds numbers alone: 8 bytes of key, 4 of
row, 8 of step and 16 for each discount kept side by side, 108 MB for a million prompts and five discounts. Among a
million prompts two share a digest with a probability of 3e-8. How counts are discounted is the business of those who
keep them (`history.py`, `tracker.py`).

N prompts in the store, n asked for, K discounts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sppo.critics.belief import Floats
from sppo.types import Prompt

Keys = NDArray[np.uint64]
Rows = NDArray[np.int64]


class OutcomeStore:
    """Counts of prompts by key; rows are given out in the order in which prompts come."""

    def __init__(self, discounts: int = 1) -> None:
        """Starts empty, with counts for so many discounts side by side."""
        self._sorted = np.empty(0, np.uint64)  # [N] all keys, rising
        self._rows = np.empty(0, np.int32)  # [N] the row of each
        self._alpha = np.zeros((0, discounts))
        self._beta = np.zeros((0, discounts))
        self._seen = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """Returns N."""
        return len(self._sorted)

    @property
    def alpha(self) -> Floats:
        """[N, K] successes as they stood at `seen`; a view to write to."""
        return self._alpha[: len(self)]

    @property
    def beta(self) -> Floats:
        """[N, K] failures, likewise."""
        return self._beta[: len(self)]

    @property
    def seen(self) -> NDArray[np.int64]:
        """[N] the step up to which the counts of each row are discounted; a view to write to."""
        return self._seen[: len(self)]

    @property
    def nbytes(self) -> int:
        """Memory taken, what is kept free for prompts to come included."""
        return sum(array.nbytes for array in (self._sorted, self._rows, self._alpha, self._beta, self._seen))

    def find(self, keys: Keys) -> Rows:
        """[n] row of each key; -1 of one that is not there."""
        if not len(self):
            return np.full(len(keys), -1, np.int64)
        place = np.minimum(np.searchsorted(self._sorted, keys), len(self) - 1)
        return np.where(self._sorted[place] == keys, self._rows[place], -1).astype(np.int64)

    def add(self, keys: Keys) -> Rows:
        """[n] row of each key, as `find`; those that are not there begin without outcomes."""
        rows = self.find(keys)
        if (rows < 0).any():
            unknown, first = np.unique(keys[rows < 0], return_index=True)
            order = np.empty(len(unknown), np.int32)
            order[np.argsort(first, kind="stable")] = np.arange(len(unknown), dtype=np.int32)
            self._reserve(len(self) + len(unknown))
            places = np.searchsorted(self._sorted, unknown)
            # Its rows come first, so that the views know how many there are only once all is in place.
            self._rows = np.insert(self._rows, places, order + len(self))
            self._sorted = np.insert(self._sorted, places, unknown)
            rows = self.find(keys)
        return rows

    def _reserve(self, rows: int) -> None:
        """Makes room a quarter at a time, one array after the other: never all of it twice."""
        if rows > len(self._seen):
            room = max(rows, len(self._seen) * 5 // 4, 1024) - len(self._seen)
            self._alpha = np.pad(self._alpha, ((0, room), (0, 0)))
            self._beta = np.pad(self._beta, ((0, room), (0, 0)))
            self._seen = np.pad(self._seen, (0, room))

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it as arrays, for a checkpoint."""
        keys = np.empty(len(self), np.uint64)
        keys[self._rows] = self._sorted
        return {"keys": keys.view(np.int64), "alpha": self.alpha, "beta": self.beta, "seen": self.seen}

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """What `arrays` gave."""
        keys = arrays["keys"].view(np.uint64)
        order = np.argsort(keys)
        self._sorted, self._rows = keys[order], order.astype(np.int32)
        self._alpha, self._beta = arrays["alpha"].astype(np.float64), arrays["beta"].astype(np.float64)
        self._seen = arrays["seen"].astype(np.int64)


def digests(texts: Iterable[str]) -> Keys:
    """64 bits of each text."""
    found = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in texts]
    return np.array(found, np.uint64)


def prompt_keys(prompts: Sequence[Prompt]) -> Keys:
    """[n] digests of what a prompt asks and how it is judged, not of its id: equal prompts share their counts."""
    return digests(_asked(prompt) for prompt in prompts)


def _asked(prompt: Prompt) -> str:
    content = prompt.content if isinstance(prompt.content, str) else json.dumps(prompt.plain, sort_keys=True)
    golds = "\0".join(map(repr, prompt.golds))
    return f"{content}\0{golds}\0{prompt.verifier}"
