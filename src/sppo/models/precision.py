"""What models compute in, and what their weights are kept in."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """Of a model in training."""

    compute: torch.dtype = torch.float32
    """Of arithmetic: activations, and the weights that it is done with."""
    weights: torch.dtype = torch.float32
    """Of the weights that an optimiser moves, and of their gradients."""

    @classmethod
    def of(cls, name: str, device: torch.device) -> Precision:
        """What model.precision asks for: "auto" is "bf16" on a GPU and "fp32" on a CPU."""
        bf16 = name.startswith("bf16") or (name == "auto" and device.type == "cuda")
        return cls(
            torch.bfloat16 if bf16 else torch.float32, torch.bfloat16 if name == "bf16_weights" else torch.float32
        )
