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
_DRAWN_FROM = {"curves": "metrics.jsonl", "tail": "rollouts.jsonl"}


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        print_help(USAGE, "Draws pictures of a run.", FLAGS, arguments, options="none")
        return 0
    if len(arguments) != 2:
        raise ConfigError(f"sppo plot takes a kind and a run folder: {USAGE}")
    kind, folder = arguments[0], Path(arguments[1])
    if kind in _DRAWN_FROM and not (folder / _DRAWN_FROM[kind]).is_file():
        raise ConfigError(f"{folder} is no run folder with something to draw (it has no {_DRAWN_FROM[kind]}).")
    from sppo.report import write_curves
    from sppo.report.tail import write_tail

    kinds = {"curves": write_curves, "tail": write_tail}
    if kind not in kinds:
        raise ConfigError(f"{kind!r} is no kind of picture.{did_you_mean(kind, kinds)}")
    print(kinds[kind](folder))
    return 0
