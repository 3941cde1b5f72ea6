"""`sppo.verify`: one response against one gold answer."""

from __future__ import annotations

import threading

from sppo.types import Verdict
from sppo.verifiers.pool import VerifierPool
from sppo.verifiers.table import get_verifier

_lock = threading.Lock()
_shared: VerifierPool | None = None


def shared_pool() -> VerifierPool:
    """Returns the pool that everything in this process may share; its workers start when first needed."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = VerifierPool()
        return _shared


def verify(
    response: str, gold: str, verifier: str = "math", *, finished: bool = True, time_limit: float = 3.0
) -> Verdict:
    r"""Holds one response against its gold answer.

    Args:
        response: the whole response as text, thinking included.
        gold: the gold answer, such as "73", r"\frac{1}{2}" or "(1, 2)".
        verifier: name in `sppo.verifiers.VERIFIERS`.
        finished: whether the response ended by itself rather than at a length limit.
        time_limit: seconds after which sympy is killed; plain numbers and strings never get that far.

    Returns:
        The verdict; its `reward` is None, and `error` says why, where the verifier itself failed.

    Raises:
        ConfigError: for an unknown verifier.
    """
    verdict = get_verifier(verifier).fast(response, gold, finished)
    if verdict is not None:
        return verdict
    return shared_pool().run([(verifier, response, gold)], time_limit)[0]
