"""Three prompts as the model will read them, and how their gold answers are understood, on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from sppo.rollouts.preview import Example

_BEGINNING, _END = 700, 500
"""Characters shown of a prompt: what asks for the form of the answer mostly stands at one of its ends."""


def print_examples(console: Console, examples: Sequence[Example], *, as_read: bool = True) -> None:
    """Prints prompts and gold answers; `as_read`: as a model reads them."""
    if not examples:
        return
    how = "as the model reads them" if as_read else "as a model reads them that has no chat template"
    console.print(f"\n[bold]What will be graded: {len(examples)} of the prompts, {how}[/]")
    for example in examples:
        table = Table(box=None, show_header=False, padding=(0, 2), pad_edge=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("prompt", f"[dim]{escape(example.id)}[/]")
        table.add_row("", escape(_shortened(example.text)))
        table.add_row("gold", escape(_shortened(str(example.gold), 100, 50)))
        table.add_row("", escape(example.understood))
        console.print(Padding(table, (0, 0, 1, 2)))


def _shortened(text: str, beginning: int = _BEGINNING, end: int = _END) -> str:
    if len(text) <= beginning + end:
        return text
    return f"{text[:beginning]} … {len(text) - beginning - end:,} characters … {text[-end:]}"
