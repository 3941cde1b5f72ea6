"""What engine vllm can be asked for: its own options, and temperatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from sppo.config.ranges import Section
from sppo.errors import ConfigError

_TEMPERATURES = (0.01, 2.0)
"""What vLLM samples with beside 0; it raises a lower temperature without an error, and refuses a higher one."""


def require_temperature(temperature: float) -> None:
    """Refuses a temperature that vLLM can't sample with.

    Raises:
        ConfigError: names the value and the range.
    """
    lowest, highest = _TEMPERATURES
    if temperature and not lowest <= temperature <= highest:
        raise ConfigError(
            f"sampling.temperature (or that of evaluation) is {temperature:g}, but engine vllm samples at 0, or from "
            f"{lowest:g} to {highest:g}. Set it so, or use --engine.name hf."
        )


@dataclass(frozen=True)
class VllmOptions(Section):
    """Options of engine vllm."""

    memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the GPU's memory for vLLM's weights and cache while it samples (gpu_memory_utilization there); what is
    trained keeps its own beside it. Default: 0.5 in training, 0.9 in an evaluation. Without effect on a CPU."""
    eager: bool = False
    """Sample without compiled kernels and CUDA graphs: starts sooner, samples slower. Always so on a CPU."""
