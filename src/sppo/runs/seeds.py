"""Seeds: every random choice of a step has one of its own."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Returns a 63-bit seed that depends on all three arguments.

    Every random choice of a step is drawn from a seed of its own, so a resumed run makes the same choices without
    having to restore a generator that was part of the way through its sequence.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
