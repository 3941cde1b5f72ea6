"""Options of low-rank adapters, the same for policy and critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sppo.config.ranges import AtLeastOne, Count, Section


@dataclass(frozen=True)
class LoraConfig(Section):
    """A low-rank adapter (LoRA, arXiv 2106.09685): weights rest, and two small matrices beside each layer learn."""

    rank: Count = 0
    """Rank of the adapter's matrices; 0: no adapter, all weights are trained. An adapter of a large model wants up to
    ten times the learning rate that all weights want."""
    alpha: AtLeastOne = 32
    """The adapter's part of a layer's output is multiplied by alpha / rank. Published: 32 at any rank (LoRA Without
    Regret)."""
    targets: list[str] | None = None
    """Names of the layers that get one, as in [q_proj, v_proj]; default: every linear layer but the output head."""
    quantize: Literal["none", "4bit"] = "none"
    """Hold the resting weights in 4 bits (QLoRA, arXiv 2305.14314): an eighth of their memory, and other outputs than
    theirs by rounding. Needs an NVIDIA GPU and bitsandbytes."""
