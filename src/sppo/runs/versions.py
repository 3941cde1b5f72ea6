"""Versions of what a run's numbers depend on."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Returns {name: version}, with the device's name."""
    import torch

    named = {name: version(name) for name in ("sppo", "torch", "transformers", "math-verify")}
    if "vllm" in sys.modules:  # the run's engine
        named["vllm"] = sys.modules["vllm"].__version__
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {**named, "python": platform.python_version(), "device": device}
