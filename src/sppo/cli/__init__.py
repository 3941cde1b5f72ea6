"""The command line: `sppo COMMAND`. Only the command that runs imports anything heavy."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from sppo.cli import on_ray
from sppo.cli.launch import FLAGS, read_launch, torchrun
from sppo.errors import ConfigError, RankError, SppoError, did_you_mean, visible
from sppo.runs import ranks


@dataclass(frozen=True)
class Command:
    """One line of `sppo --help`."""

    module: str
    """Module whose `run(arguments) -> int` does the work."""
    summary: str
    example: str
    on_ranks: bool = False
    """Whether several processes may share its work."""


COMMANDS = {
    "demo": Command("sppo.cli.demo", "Watch a tiny model learn arithmetic on this machine.", "sppo demo", True),
    "train": Command(
        "sppo.cli.train", "Train with verifiable rewards.", "sppo train quickstart_gsm8k --steps 50", True
    ),
    "sft": Command("sppo.cli.sft", "Fine-tune on demonstrations alone.", "sppo sft my_recipe.yaml", True),
    "prefit": Command(
        "sppo.cli.prefit",
        "Fit a critic before training, for several runs.",
        "sppo prefit demo --critic.prefit.samples 512",
        True,
    ),
    "eval": Command(
        "sppo.cli.eval", "Measure a model, or compare two.", "sppo eval MODEL --benchmarks aime24,math500 -n 16", True
    ),
    "compare": Command(
        "sppo.cli.compare", "Compare algorithms from the same start.", "sppo compare demo --algorithms sppo,grpo"
    ),
    "audit": Command(
        "sppo.cli.audit", "Check a data set: gold answers, repeats, copies of benchmarks.", "sppo audit my.jsonl"
    ),
    "calibrate": Command(
        "sppo.cli.calibrate", "Hold a run's critic against solve rates.", "sppo calibrate runs/demo", True
    ),
    "merge": Command(
        "sppo.cli.merge", "Make one model of an adapter and its base.", "sppo merge runs/mine --output my_model"
    ),
    "plot": Command("sppo.cli.plot", "Draw pictures of a run.", "sppo plot tail runs/demo_ppo"),
    "recipes": Command("sppo.cli.recipes", "List the built-in recipes.", "sppo recipes"),
}
_RENAMED = {"verify": "audit"}
"""Commands of earlier versions; `sppo.verify` in Python grades one response."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 2 for a mistake that the user can mend, 130 for Ctrl-C.

    Where a launcher started this process as one of several, it joins the others.

    Args:
        argv: Arguments after the program's name; default: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Read when torch starts its threads. Threads that spin while they wait slow small CPU operations down many times
    # over as soon as anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A bar that the terminal's encoding lacks must not end a run of hours.
            stream.reconfigure(errors="replace")
    sys.excepthook = _on_defect
    if logging.getLogRecordFactory() is not _visible_record:
        logging.setLogRecordFactory(_visible_record)
        warnings.formatwarning = _visible_warning
    if not ranks.is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - the main rank speaks for all
    try:
        return _dispatch(arguments)
    except (SppoError, OSError) as error:
        if not ranks.is_main():
            return 2  # the main rank has been told, and says it
        # OSError: a full disk or someone else's folder, which a traceback would not explain any better.
        if os.environ.get("SPPO_DEBUG") == "1" and not isinstance(error, RankError):
            raise
        _say(_in_words(error))
        return 2
    except KeyboardInterrupt:
        if ranks.is_main():
            with suppress(OSError, ValueError):  # the terminal may be gone, which is why it stopped
                print("stopped", file=sys.stderr)
        return 130


_make_record, _format_warning = logging.getLogRecordFactory(), warnings.formatwarning


def _visible_record(*args: Any, **named: Any) -> logging.LogRecord:
    """A line of a library's log; it may quote what a file or a model wrote."""
    record = _make_record(*args, **named)
    with suppress(TypeError, ValueError):  # arguments that don't fit the text are logging's to tell
        record.msg, record.args = visible(record.getMessage()), ()
    return record


def _visible_warning(*args: Any, **named: Any) -> str:
    """A library's warning, likewise."""
    return visible(_format_warning(*args, **named))


def _on_defect(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Shows an error that nobody expected; it may quote what a model or a file wrote."""
    from sppo.cli.console import show_traceback

    show_traceback(kind, error, where)


def _in_words(error: SppoError | OSError) -> str:
    """An error that the user can mend, with what to do where the system says no more than a number."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
        return str(error)
    where = f" ({error.filename})" if error.filename else ""
    return f"The disk is full{where}: free some space; a run goes on with --resume."


def _say(said: str) -> None:
    from sppo.cli.console import steady_screen

    steady_screen(error=True).print("[bold red]error:[/]", _literal(said), soft_wrap=True)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help()
        return 0
    name, *rest = arguments
    if name in ("-V", "--version"):
        from importlib.metadata import version

        print(f"sppo {version('sppo')}")
        return 0
    if name in _RENAMED:
        raise ConfigError(f"sppo {name} is now sppo {_RENAMED[name]}.")
    if name.startswith("--launcher"):
        raise ConfigError("--launcher comes after the command, as in sppo train RECIPE --launcher torchrun.")
    if name not in COMMANDS:
        raise ConfigError(f"{name!r} is not a command.{did_you_mean(name, COMMANDS)}")
    command = COMMANDS[name]
    launch = read_launch(rest)
    if (launch.launcher or ranks.launched()) and not command.on_ranks:
        raise ConfigError(f"sppo {name} runs in one process: start it without a launcher.")
    if launch.launcher and "--dry-run" in launch.arguments:
        with ranks.planning(launch.processes):
            planned: int = importlib.import_module(command.module).run(launch.arguments)
        return planned
    if launch.launcher and not ranks.launched():
        whole = [name, *launch.arguments]
        return torchrun(whole, launch.processes) if launch.launcher == "torchrun" else on_ray.start(whole, launch)
    with ranks.joined():
        result: int = importlib.import_module(command.module).run(launch.arguments)
    return result


def _print_help() -> None:
    from sppo.cli.console import Screen

    console = Screen(soft_wrap=True)
    console.print("[bold]sppo[/]: train language models to reason with verifiable rewards, one response a prompt.\n")
    console.print("Usage: sppo COMMAND [dim]...[/]\n")
    width = max(map(len, COMMANDS)) + 3
    for name, command in COMMANDS.items():
        console.print(f"  [bold]{name:<{width}}[/]{command.summary}\n  {'':<{width}}[dim]{command.example}[/]")
    names = ", ".join(name for name, command in COMMANDS.items() if command.on_ranks)
    console.print(f"\nIn several processes ({names}):\n")
    for flag, text in FLAGS.items():
        console.print(f"  [bold]{_literal(flag)}[/]\n      [dim]{_literal(text)}[/]")
    console.print("\nNew here? [bold]sppo demo[/] takes minutes on a laptop. [bold]sppo COMMAND --help[/] says more.")
    console.print("A mistake is told in one line; with SPPO_DEBUG=1 in the environment it comes with its traceback.")


def _literal(text: str) -> str:
    from rich.markup import escape

    return escape(text)
