"""The screen: where all output of the commands goes, with nothing on it that a model or a file wrote as it stands."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any

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


def say(text: str, *, error: bool = False, end: str = "\n") -> None:
    """Prints a line that is no table and has no colours."""
    print(visible(text), file=sys.stderr if error else sys.stdout, end=end)


def show_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """What Python does with an error that nobody expected, whose text may quote a response."""
    say("".join(traceback.format_exception(kind, error, where)), error=True, end="")
