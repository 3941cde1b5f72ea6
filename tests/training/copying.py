"""An engine with weights of its own, as those in another precision, process or machine have; it stands in the tests."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from sppo.models.adapters import plain_view, plain_weights
from sppo.rollouts.engines import EngineKind
from sppo.rollouts.engines.engine import EngineSetup
from sppo.rollouts.engines.hf import HFEngine


class CopyingEngine(HFEngine):
    """Samples from a copy of the policy, which learns of nothing but by `load_weights`, and sleeps between its uses."""

    made: list[CopyingEngine] = []  # noqa: RUF012
    """All of them, in order."""

    def __init__(self, model: PreTrainedModel, setup: EngineSetup) -> None:
        super().__init__(copy.deepcopy(plain_view(model)), max_rows=setup.max_rows)
        self.setup = setup
        self.is_awake = False
        self.loaded: list[int] = []
        """Versions, in order."""
        self.made.append(self)

    @contextmanager
    def awake(self) -> Iterator[None]:
        assert not self.is_awake, "woken twice"
        self.is_awake = True
        yield
        self.is_awake = False

    def generate(self, *args, **kwargs):
        assert self.is_awake, "asked for responses while it sleeps"
        return super().generate(*args, **kwargs)

    def load_weights(self, model, version):
        # Weights that it had before it may get at any time.
        assert not self.is_awake or version <= max(self.loaded, default=0), "awake while the policy learns"
        self._model.load_state_dict(dict(plain_weights(model)))
        self._version = version
        self.loaded.append(version)


COPYING = EngineKind(CopyingEngine)
