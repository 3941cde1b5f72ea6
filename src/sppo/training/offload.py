"""Optimisers' moments on the host while responses are sampled, so that the engine's cache has their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sppo.rollouts.engines.engine import Engine, SamplingParameters
from sppo.types import Completion, TokenIds


class EngineWithRoom:
    """An engine for which moments make room as long as it is awake; on a CPU they are on the host anyway."""

    def __init__(self, engine: Engine, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        """Stands for an engine.

        Args:
            engine: that samples.
            optimizers: whose states make room, those of the policy and of the critic.
        """
        self.engine = engine
        self.optimizers = optimizers

    @property
    def version(self) -> int:
        """Of the engine's weights."""
        return self.engine.version

    @contextmanager
    def awake(self) -> Iterator[None]:
        """The engine awake, and moments on the host meanwhile."""
        with moments_on_host(self.optimizers), self.engine.awake():
            yield

    def generate(
        self, prompts: Sequence[TokenIds], sampling: SamplingParameters, *, seeds: Sequence[int]
    ) -> list[Completion]:
        """As the engine does."""
        return self.engine.generate(prompts, sampling, seeds=seeds)

    def load_weights(self, model: nn.Module, version: int) -> None:
        """As the engine does."""
        self.engine.load_weights(model, version)

    def close(self) -> None:
        """As the engine does."""
        self.engine.close()


@contextmanager
def moments_on_host(optimizers: Mapping[str, torch.optim.Optimizer]) -> Iterator[None]:
    """Moves optimisers' states to the host for the block, and back to where they were, unchanged."""
    places = [
        (state, name, value.device)
        for optimizer in optimizers.values()
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, Tensor) and value.device.type != "cpu"
    ]
    for state, name, _ in places:
        state[name] = state[name].to("cpu")
    if places:
        torch.cuda.empty_cache()  # or what was theirs would stay with this process's allocator
    try:
        yield
    finally:
        for state, name, device in places:
            state[name] = state[name].to(device)
