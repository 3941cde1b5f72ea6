"""Other places for a run's metrics: TensorBoard, W&B, trackio. Each is an extra; metrics.jsonl is always written."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sppo.errors import ConfigError

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def require_sinks(sinks: Iterable[str]) -> None:
    """Checks that the package of every sink is installed.

    Raises:
        ConfigError: one is not.
    """
    for sink in sinks:
        _require(_MODULES[sink], sink)


class Sinks:
    """Sends each step's metrics to every configured place."""

    def __init__(self) -> None:
        self._loggers: list[Any] = []
        self._writer: Any = None

    @classmethod
    def open(cls, folder: Path, sinks: Iterable[str], project: str, options: Mapping[str, Any], step: int) -> Sinks:
        """Opens the sinks, which `require_sinks` has found installed.

        Args:
            folder: of the run.
            sinks: their names.
            project: what W&B and trackio file the run under.
            options: nested plain options, for W&B and trackio.
            step: the run goes on after this one; -1 for one that begins.
        """
        opened = cls()
        for sink in sinks:
            module = _require(_MODULES[sink], sink)
            if sink == "tensorboard":
                # What an earlier process sent of steps that are made anew is hidden.
                opened._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
            else:
                module.init(project=project, name=folder.name, config=dict(options))
                opened._loggers.append(module)
        return opened

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
