"""The screen: where all output of the commands goes, with nothing on it that a model or a file wrote as it stands."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from sppo.errors import visible


class Screen(Console):
    """rich's console, on which each text is shown as `visible` makes it; colours and cursor are our own alone.

    Whoever prints says what is markup: texts of others go through `rich.markup.escape`, or are printed without markup.
    """

    def __init__(self, **settings: Any) -> None:
        # Neither numbers nor :names: of emoji are looked for, as responses are full of both.
        super().__init__(highlight=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """As rich has it: what is measured is what will be shown."""
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich has it, whatever a text came through."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class Steady:
    """A stream that whoever reads it may leave: a pager that was closed, a terminal that is gone, a disk that is full.

    Nothing more is written to it then, and nothing fails: a display never ends a run of hours.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> int:
        """Writes, as long as somebody reads."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes, as long as somebody reads."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        if self._gone:
            return
        try:
            action()
        except (OSError, ValueError):  # ValueError: it was closed
            self._gone = True
            # Or what it still holds would fail once more when Python ends, and the exit code would say so.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def steady_screen(*, error: bool = False) -> Screen:
    """The screen of what must not end because its display does: runs, and the telling of errors."""
    return Screen(file=Steady(sys.stderr if error else sys.stdout))


def say(text: str, *, error: bool = False, end: str = "\n") -> None:
    """Prints a line that is no table and has no colours."""
    print(visible(text), file=sys.stderr if error else sys.stdout, end=end)


def show_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """What Python does with an error that nobody expected, whose text may quote a response."""
    say("".join(traceback.format_exception(kind, error, where)), error=True, end="")
