"""Seeds: every random choice of a step has one of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Returns a 63-bit seed that depends on all three arguments.

    Every random choice of a step is drawn from a seed of its own, so a resumed run makes the same choices without
    having to restore a generator that was part of the way through its sequence.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def row_seeds(seed: int, purpose: str, rows: Sequence[int], step: int = 0) -> list[int]:
    """Returns a 63-bit seed for each row that is sampled, made from its place.

    What rows share (seed, purpose, step) is hashed once. Row p then gets the p-th number of SplitMix64 (Steele, Lea and
    Flood 2014, "Fast splittable pseudorandom number generators") started at that hash: a mix of hash and place that
    costs next to nothing, and gives different places different seeds. As nothing else enters, a row's response depends
    neither on the engine's batches nor on which rows, or how many, are sampled with it or by which rank.

    Args:
        seed: of the run.
        purpose: what is sampled: a round of training, an evaluation, ...
        rows: places among all rows of this purpose and step, from 0.
        step: of the run.
    """
    start = np.uint64(derive_seed(seed, purpose, step))
    state = start + (np.asarray(rows, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    seeds: list[int] = ((state ^ (state >> np.uint64(31))) >> np.uint64(1)).tolist()
    return seeds
