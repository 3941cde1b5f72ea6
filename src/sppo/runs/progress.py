"""Where a run tells a person how far it is, and how it is asked to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any, Protocol

from sppo.runs import ranks


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
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the current step; the second one stops at once.

    Weights in the middle of an update are no state that could be resumed exactly, so the step is finished first.
    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    AGAIN = 3.0
    """Seconds within which ranks that a launcher started take a second signal for the same: a terminal's Ctrl-C goes
    to all of them, and the launcher sends it on."""

    def __init__(self, progress: Progress) -> None:
        self.requested = False
        self._progress = progress
        self._previous: dict[int, Any] = {}
        self._asked = 0.0

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested:
            if ranks.world_size() > 1 and now - self._asked < self.AGAIN:
                return
            raise KeyboardInterrupt
        self.requested, self._asked = True, now
        again = f"Ctrl-C again, {self.AGAIN:.0f} s from now or later," if ranks.world_size() > 1 else "Ctrl-C again"
        self._progress.message(f"Stopping after this step, then saving. {again} stops at once, unsaved.")
