"""Options that an engine has for itself: `engine.options` of the run's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from sppo.config.ranges import Section


@dataclass(frozen=True)
class VllmOptions(Section):
    """Options of engine vllm."""

    memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the GPU's memory for vLLM's weights and cache while it samples (gpu_memory_utilization there); what is
    trained keeps its own beside it. Default: 0.5 in training, 0.9 in an evaluation. Without effect on a CPU."""
    eager: bool = False
    """Sample without compiled kernels and CUDA graphs: starts sooner, samples slower. Always so on a CPU."""
