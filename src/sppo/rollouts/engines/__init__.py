"""Where responses come from: one protocol, and the table of engines.

An engine takes rows of token ids and gives back sampled token ids with their log-probabilities. It never sees text, so
no response is ever tokenised again. A new engine is one file here and one line in `ENGINES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sppo.config import EngineConfig
from sppo.errors import ConfigError, did_you_mean
from sppo.rollouts.engines.engine import Engine

if TYPE_CHECKING:
    from torch import nn


def _hf(model: nn.Module, config: EngineConfig) -> Engine:
    from sppo.rollouts.engines.hf import HFEngine

    return HFEngine(model, max_rows=config.max_rows)


ENGINES: dict[str, Callable[[nn.Module, EngineConfig], Engine]] = {"hf": _hf}
"""Name -> factory (policy, config); each imports its engine only when called."""


def require_engine(name: str) -> None:
    """Refuses a name that is not in the table.

    Raises:
        ConfigError: names the near ones.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine.name is {name!r}, which is no engine.{did_you_mean(name, ENGINES)}")


def build_engine(model: nn.Module, config: EngineConfig) -> Engine:
    """Returns the engine that `config.name` asks for, sampling from `model`.

    Raises:
        ConfigError: no engine has this name.
        ModelError: the engine cannot sample from this model.
    """
    require_engine(config.name)
    return ENGINES[config.name](model, config)
