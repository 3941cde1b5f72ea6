"""Where a run tells a person how far it is, and how it is asked to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
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


STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
"""Ctrl-C; what ends a job, of a scheduler for one; a terminal that went away; Slurm's warning before its time limit."""


@dataclass
class Clock:
    """When a checkpoint is due by time, and when there is no time left for another step; of this process."""

    save_every: float
    """Seconds between checkpoints that are due by time alone; 0: none is."""
    limit: float | None
    """Seconds that there are in all; None: no limit."""
    began: float = field(default_factory=time.monotonic)
    longest_step: float = 0.0
    """Seconds, evaluation and what was saved with it among them."""
    longest_save: float = 0.0

    def __post_init__(self) -> None:
        self._saved = self._stepped = time.monotonic()

    def begin(self) -> None:
        """Notes that the first step begins."""
        self._saved = self._stepped = time.monotonic()

    def step_ended(self) -> None:
        """Notes the end of a step."""
        now = time.monotonic()
        self.longest_step, self._stepped = max(self.longest_step, now - self._stepped), now

    def save_began(self) -> None:
        """Notes that a checkpoint is being made."""
        self._saved = time.monotonic()

    def save_took(self, seconds: float) -> None:
        """Notes what a checkpoint took until it was there."""
        self.longest_save = max(self.longest_save, seconds)

    @property
    def save_is_due(self) -> bool:
        """Whether a checkpoint is due by time."""
        return self.save_every > 0 and time.monotonic() - self._saved >= self.save_every

    @property
    def is_over(self) -> bool:
        """Whether another step as long as the longest, and then a checkpoint, would end too late."""
        needed = self.longest_step + self.longest_save
        return self.limit is not None and time.monotonic() - self.began + needed > self.limit


class StopRequest:
    """Turns the first signal to stop into a request to do so after the current step; the second one stops at once.

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
            for number in STOPS:
                # Whoever started this with nohup, or in the background of a script, wants it to be ignored.
                if signal.getsignal(number) != signal.SIG_IGN:
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
        later = f", {self.AGAIN:.0f} s from now or later," if ranks.world_size() > 1 else ""
        self._progress.message(
            f"Stopping after this step, then saving. Ctrl-C, or another signal,{later} stops at once, unsaved."
        )
