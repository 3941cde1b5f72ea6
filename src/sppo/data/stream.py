"""Which prompts come next: a seeded walk over them, epoch after epoch, with a cursor that a resume restores exactly."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sppo.errors import DataError, RunFolderError
from sppo.types import Prompt


class PromptStream:
    """Endless prompts: every epoch is a permutation of all of them that depends on the seed and the epoch alone.

    Where sources have weights, an epoch is as long, but holds as many prompts of each source as its weight asks for: it
    goes through the source's own permutations, one after the other, from where the last epoch left off.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, weights: Mapping[str, float] | None = None) -> None:
        """Starts at the first prompt of epoch 0.

        Args:
            prompts: in their order.
            seed: of the walk.
            weights: source -> its weight; none: prompts of all sources alike.

        Raises:
            DataError: no prompts, or none of a source that has a weight.
        """
        if not prompts:
            raise DataError("There are no prompts to train on.")
        self._prompts = tuple(prompts)
        self._seed = seed
        self._places = {name: [i for i, one in enumerate(prompts) if one.source == name] for name in weights or ()}
        gone = next((name for name, places in self._places.items() if not places), None)
        if gone is not None:
            raise DataError(f"The source {gone!r} has no prompts left to train on: take it out of data.sources.")
        self._counts = _shares(len(prompts), weights) if weights else {}
        self._epoch = 0
        self._offset = 0
        self._order = self._permutation(0)
        self._fingerprint = fingerprint(self._prompts, seed)

    def __len__(self) -> int:
        """Returns the number of prompts in an epoch."""
        return len(self._prompts)

    @property
    def epoch(self) -> float:
        """Epochs gone through so far, such as 1.25."""
        return self._epoch + self._offset / len(self._prompts)

    def take(self, n: int) -> list[Prompt]:
        """Returns the next n prompts; may go on into the next epoch."""
        assert n >= 0, f"cannot take {n} prompts"
        return [self._prompts[place] for place in self._next(n)]

    def take_others(self, n: int, taken: set[int]) -> list[int]:
        """Returns the places of the next n prompts that are not in `taken`, each once, and adds them to it."""
        assert n + len(taken) <= len(self._prompts), f"cannot take {n} more of {len(self._prompts)} prompts"
        found: list[int] = []
        while len(found) < n:
            for place in self._next(n - len(found)):
                if place not in taken:
                    taken.add(place)
                    found.append(place)
        return found

    def at(self, places: Iterable[int]) -> list[Prompt]:
        """Returns the prompts at some places."""
        return [self._prompts[place] for place in places]

    def _next(self, n: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < n:
            indices = self._order[self._offset : self._offset + n - len(taken)]
            taken.extend(indices)
            self._offset += len(indices)
            if self._offset == len(self._prompts):
                self._epoch, self._offset = self._epoch + 1, 0
                self._order = self._permutation(self._epoch)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Returns the cursor: epoch, offset and a fingerprint of prompts and seed; plain JSON values."""
        return {"epoch": self._epoch, "offset": self._offset, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Moves to a saved cursor.

        Raises:
            RunFolderError: the cursor is incomplete, or was saved with other prompts or another seed.
        """
        missing = [key for key in ("epoch", "offset", "fingerprint") if key not in state]
        if missing:
            raise RunFolderError(
                f"The saved position in the data lacks {', '.join(missing)}: the checkpoint is broken."
            )
        if state["fingerprint"] != self._fingerprint:
            raise RunFolderError(
                f"The saved position in the data belongs to other prompts or another seed (fingerprint "
                f"{state['fingerprint']}, now {self._fingerprint}; {len(self._prompts)} prompts). Resume with the data "
                "and options that the run was started with, or start a new run."
            )
        epoch, offset = state["epoch"], state["offset"]
        if not (isinstance(epoch, int) and isinstance(offset, int) and epoch >= 0 and 0 <= offset < len(self._prompts)):
            raise RunFolderError(
                f"The saved position in the data is epoch {epoch!r}, offset {offset!r}, but the offset must be below "
                f"{len(self._prompts)}: the checkpoint is broken."
            )
        self._epoch, self._offset = epoch, offset
        self._order = self._permutation(epoch)

    def _permutation(self, epoch: int) -> list[int]:
        order = list(range(len(self._prompts)))
        if self._counts:
            order = [place for name, count in self._counts.items() for place in self._of_source(name, epoch, count)]
        random.Random(f"prompt order {self._seed} {epoch}").shuffle(order)
        return order

    def _of_source(self, name: str, epoch: int, count: int) -> list[int]:
        """The places of a source's prompts in an epoch: the next so many of its own walk."""
        places = self._places[name]
        found: list[int] = []
        turn, offset = divmod(epoch * count, len(places))
        while len(found) < count:
            order = places[:]
            random.Random(f"prompt order {self._seed} {name} {turn}").shuffle(order)
            found += order[offset : offset + count - len(found)]
            turn, offset = turn + 1, 0
        return found


def _shares(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Splits a number by weights, each part at least 1: rounded down, the rest to those that lost most by it."""
    whole = sum(weights.values())
    counts = {name: max(1, int(total * weight / whole)) for name, weight in weights.items()}
    lost = sorted(weights, key=lambda name: counts[name] - total * weights[name] / whole)
    for name in itertools.islice(itertools.cycle(lost), max(0, total - sum(counts.values()))):
        counts[name] += 1
    while sum(counts.values()) > total:
        counts[max(counts, key=lambda name: counts[name])] -= 1
    return counts


def fingerprint(prompts: Sequence[Prompt], seed: int) -> str:
    """Returns 16 hex digits that change with the seed, the order, or any prompt's id, content, golds, verifier."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8)
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.plain, *prompt.golds, prompt.verifier], sort_keys=True).encode())
    return digest.hexdigest()
