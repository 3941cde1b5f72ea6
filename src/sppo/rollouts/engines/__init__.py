"""Where responses come from: one protocol, and the table of engines.

An engine takes rows of token ids and gives back sampled token ids with their log-probabilities. It never sees text, so
no response is ever tokenised again. A new engine is one file here and one line in `ENGINES`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sppo.config import EngineConfig
from sppo.config.keys import options
from sppo.config.parsing import build
from sppo.config.ranges import Section
from sppo.errors import ConfigError, did_you_mean
from sppo.rollouts.engines.engine import Engine, EngineSetup
from sppo.rollouts.engines.vllm_options import VllmOptions, VllmServerOptions, require_addresses, require_temperature

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BESIDE_TRAINING = 0.5
"""Share of the device's memory for an engine that stands beside what is trained."""
ALONE = 0.9
"""The same for an evaluation, which has no optimisers."""


@dataclass(frozen=True)
class EngineKind:
    """One line of the table."""

    make: Callable[[PreTrainedModel, EngineSetup], Engine]
    """Builds the engine for a policy; imports it only when called."""
    options: type[Section] = Section
    """Its own options; they change memory and speed, and what is sampled by rounding alone."""
    require_options: Callable[[Any], object] = lambda options: None
    """Refuses options that can't be, where types and ranges don't say so."""
    require_temperature: Callable[[float], None] = lambda temperature: None
    """Refuses a temperature that it can't sample with."""
    has_own_weights: bool = False
    """Whether it keeps a copy of the weights on the trainer's device, with a cache beside it."""
    is_elsewhere: bool = False
    """Whether it samples on devices of its own, so that it takes nothing of the trainer's."""
    package: str | None = None
    """What it imports beyond what sppo always has: a module, and an extra of the same name."""


def _hf(model: PreTrainedModel, setup: EngineSetup) -> Engine:
    from sppo.rollouts.engines.hf import HFEngine

    return HFEngine(model, max_rows=setup.max_rows)


def _vllm(model: PreTrainedModel, setup: EngineSetup) -> Engine:
    from sppo.rollouts.engines.vllm import VllmEngine

    return VllmEngine(model, setup)


def _vllm_server(model: PreTrainedModel, setup: EngineSetup) -> Engine:
    from sppo.rollouts.engines.vllm_server import VllmServerEngine

    return VllmServerEngine(model, setup)


ENGINES: dict[str, EngineKind] = {
    "hf": EngineKind(_hf),
    "vllm": EngineKind(
        _vllm, VllmOptions, require_temperature=require_temperature, has_own_weights=True, package="vllm"
    ),
    "vllm-server": EngineKind(
        _vllm_server, VllmServerOptions, require_addresses, require_temperature, is_elsewhere=True
    ),
}


def engine_options(config: EngineConfig, *, installed: bool = True) -> Section:
    """Returns the engine's own options, as `config.options` has them.

    Raises:
        ConfigError: no engine of that name (names the near ones), one whose package is not installed, no such option,
            or a value that can't be.
    """
    if config.name not in ENGINES:
        raise ConfigError(f"engine.name is {config.name!r}, which is no engine.{did_you_mean(config.name, ENGINES)}")
    own, package = ENGINES[config.name].options, ENGINES[config.name].package
    if installed and package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"engine.name is {config.name}, but {package} is not installed: pip install 'sppo[{package}]', or use "
            "--engine.name hf."
        )
    strange = next((name for name in config.options if name not in options(own)), None)
    if strange is not None:
        raise ConfigError(
            f"engine.options.{strange} is no option of engine {config.name}, which has: "
            f"{', '.join(options(own)) or 'none'}."
        )
    settled = build(own, config.options, "engine.options.")
    ENGINES[config.name].require_options(settled)
    return settled


def check_engine(config: EngineConfig, *temperatures: float, installed: bool = True) -> None:
    """Checks what can be checked of an engine before anything is loaded.

    Args:
        config: of the engine.
        temperatures: that it will be asked to sample with.
        installed: whether its package has to be here.

    Raises:
        ConfigError: as `engine_options`, or a temperature that it can't sample with.
    """
    engine_options(config, installed=installed)
    for temperature in temperatures:
        ENGINES[config.name].require_temperature(temperature)


def build_engine(
    model: PreTrainedModel, config: EngineConfig, *, max_tokens: int, memory_share: float, precision: str = "auto"
) -> Engine:
    """Returns the engine that the options ask for, with the present weights of `model`.

    Args:
        model: the policy.
        config: of the engine.
        max_tokens: longest sequence, prompt and response together.
        memory_share: of the device, for weights and cache of the engine's own.
        precision: that the policy computes in, as model.precision has it.

    Raises:
        ConfigError: as `engine_options`.
        ModelError: the engine cannot sample from this model.
    """
    from sppo.models.precision import Precision

    own = engine_options(config)
    setup = EngineSetup(config.max_rows, max_tokens, Precision.of(precision, model.device).compute, memory_share, own)
    return ENGINES[config.name].make(model, setup)
