"""Renders a chat template once in a process of its own, which can be killed: this file is that process's program.

A chat template is code that comes with a model. jinja's sandbox keeps it from files and from Python's inner parts, but
not from looping for hours or filling the memory. It reads a JSON object from standard input (template, variables, and
chats to render), and writes one: the most characters of a chat, or what went wrong. It needs jinja2 alone.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """The tag {% generation %}, which marks what the assistant wrote and changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """What transformers renders chat templates in, as far as templates can tell."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _as_json
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _limit(megabytes: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows; the time that the parent waits still counts
        return
    for kind, most in (
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # macOS has no limit of address space
            continue


def _render(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        template = environment().from_string(asked["template"])
        lengths = [0]
        for chat in asked["chats"]:
            try:
                lengths.append(len(template.render(**asked["variables"], **chat)))
            except MemoryError:
                raise
            except Exception:
                continue
    except MemoryError:
        return {"error": "fills the memory"}
    except (jinja2.TemplateError, RecursionError) as error:
        return {"error": f"is no template: {error}"}
    return {"characters": max(lengths)}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    _limit(given["megabytes"], given["seconds"])
    json.dump(_render(given), sys.stdout)
