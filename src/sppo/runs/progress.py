"""Where a run tells a person how far it is, and how it is asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any, Protocol


class Progress(Protocol):
    """Where a run tells a person how far it is."""

    def phase(self, name: str, total: int | None, unit: str = "steps") -> None:
        """Begins a phase of `total` units."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the current phase to `step`, with the newest metrics."""

    def message(self, text: str) -> None:
        """A line to keep."""

    def close(self) -> None:
        """Ends the display."""


class NoProgress:
    """Says nothing."""

    def phase(self, name: str, total: int | None, unit: str = "steps") -> None:
        """Ignored."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""

    def close(self) -> None:
        """Ignored."""


class StopRequest:
    """Turns the first Ctrl-C into a request to stop after the current step; the second one stops at once.

    Weights in the middle of an update are no state that could be resumed exactly, so the step is finished first.
    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self, progress: Progress) -> None:
        self.requested = False
        self._progress = progress
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_interrupt)
            self._installed = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._progress.message("Stopping after this step, then saving. Ctrl-C again stops at once, unsaved.")
