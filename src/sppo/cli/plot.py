"""`sppo plot KIND RUN`: pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sppo.cli.options import print_help, wants_help
from sppo.errors import ConfigError, did_you_mean

USAGE = "sppo plot curves|tail RUN"
FLAGS = {
    "curves RUN": "Reward, accuracy, critic, policy, lengths and calibration: curves.png in the run folder.",
    "tail RUN": "V before each token along right and wrong responses, of a ppo or ppo_bce run: tail.png.",
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        print_help(USAGE, "Draws pictures of a run.", FLAGS, arguments, options="none")
        return 0
    if len(arguments) != 2:
        raise ConfigError(f"sppo plot takes a kind and a run folder: {USAGE}")
    kind, folder = arguments[0], Path(arguments[1])
    from sppo.cli.console import say
    from sppo.report import write_curves
    from sppo.report.tail import write_tail

    kinds = {"curves": write_curves, "tail": write_tail}
    if kind not in kinds:
        raise ConfigError(f"{kind!r} is no kind of picture.{did_you_mean(kind, kinds)}")
    if not (folder / "metrics.jsonl").is_file():
        raise ConfigError(f"{folder} is no run folder with something to draw (it has no metrics.jsonl).")
    say(str(kinds[kind](folder)))
    return 0
