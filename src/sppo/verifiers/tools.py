"""What verifiers run with: their options, the processes that can be killed, and the device for models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from sppo.config.verification import VerificationConfig
from sppo.verifiers.pool import VerifierPool


@cache
def shared_pool(workers: int | None, time_limit: float) -> VerifierPool:
    """Returns the one pool of that size in this process; its workers start when first needed."""
    return VerifierPool(workers, time_limit)


@dataclass(frozen=True)
class Tools:
    """Made once a run and handed to every verifier; usable from any thread."""

    options: VerificationConfig = field(default_factory=VerificationConfig)
    device: str = "cpu"
    """Where verifiers that are models run."""
    loaded: dict[str, Any] = field(default_factory=dict, compare=False)
    """What a verifier loads once and keeps, such as a model, by the verifier's name."""
    load_scorer: Callable[..., Any] | None = None
    """Loads a model that scores texts: (RewardModelOptions, device) -> `sppo.verifiers.reward_model.Scorer`; handed in,
    as models are in a room below."""

    own_pool: VerifierPool | None = None
    """Killable processes that nobody else uses; default: those of this process."""

    @property
    def pool(self) -> VerifierPool:
        """Killable processes, shared by everything in this process that asks for the same limits."""
        return self.own_pool or shared_pool(self.options.workers, self.options.time_limit)

    @contextmanager
    def alone(self) -> Iterator[Tools]:
        """The same with one fresh process, for one response."""
        with VerifierPool(1, self.options.time_limit) as pool:
            yield replace(self, own_pool=pool)
