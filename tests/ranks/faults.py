"""The command line as one of several ranks, one of which meets with something at the start of a step.

main([RANK, STEP, KIND, COMMAND, ...])
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

import sppo.cli
import sppo.training.loop
from sppo.errors import TrainingError
from sppo.runs import ranks


def meet(kind: str) -> None:
    if kind == "bug":
        raise ZeroDivisionError("a mistake of the program")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang others":
        raise TrainingError("this rank alone found the batch odd")
    os.kill(os.getpid(), {"int": signal.SIGINT, "term": signal.SIGTERM}[kind])


def main(arguments: Sequence[str]) -> int:
    rank, step, kind = int(arguments[0]), int(arguments[1]), arguments[2]
    follow = sppo.training.loop.follow

    def following(curves, optimizers, number):
        if number == step and ranks.rank() == rank:
            meet(kind)
        if number == step and kind == "hang others":
            time.sleep(600)  # as in an operation of a GPU that waits for the rank that is gone
        return follow(curves, optimizers, number)

    sppo.training.loop.follow = following
    return sppo.cli.main(arguments[3:])
