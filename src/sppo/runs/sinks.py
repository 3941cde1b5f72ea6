"""Other places for a run's metrics: TensorBoard, W&B, trackio. Each is an extra; metrics.jsonl is always written."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo.config import Config, to_dict
from sppo.errors import ConfigError

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def require_sinks(config: Config) -> None:
    """Checks that the package of every configured sink is installed.

    Raises:
        ConfigError: one is not.
    """
    for sink in config.logging.sinks:
        _require(_MODULES[sink], sink)


class Sinks:
    """Sends each step's metrics to every configured place."""

    def __init__(self, config: Config, folder: Path) -> None:
        """Opens the sinks, which `require_sinks` has found installed."""
        self._loggers: list[Any] = []
        self._writer: Any = None
        settings = {"project": config.logging.project, "name": folder.name, "config": to_dict(config)}
        for sink in config.logging.sinks:
            module = _require(_MODULES[sink], sink)
            if sink == "tensorboard":
                self._writer = module.SummaryWriter(str(folder / "tensorboard"))
            else:
                module.init(**settings)
                self._loggers.append(module)

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends one line of metrics; "step" is its place on the x-axis."""
        metrics = {name: value for name, value in line.items() if name != "step"}
        for module in self._loggers:
            module.log(metrics, step=line["step"])
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Flushes and ends them."""
        for module in self._loggers:
            module.finish()
        if self._writer is not None:
            self._writer.close()


def _require(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"logging.sinks has {extra}, which is not installed: pip install 'sppo[{extra}]', or leave it out."
        ) from error
