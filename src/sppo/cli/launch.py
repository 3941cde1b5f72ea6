"""`--launcher torchrun`: the same command in several processes, one a GPU, on this machine."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sppo.errors import ConfigError, did_you_mean

LAUNCHERS = ("torchrun",)
FLAGS = {
    "--launcher torchrun [--nproc-per-node N]": "Run in N processes on this machine, by default one for each GPU. On "
    "several machines: torchrun --nnodes ... -m sppo COMMAND ...",
}
_SHUTDOWN_SECONDS = 3600
"""After a Ctrl-C the processes finish their step and save; torchrun by itself would end them after 30 s."""


@dataclass(frozen=True)
class Launch:
    """How a command is to be started."""

    launcher: str | None
    """None: in this process."""
    processes: int | None
    """None: as many as there are GPUs."""
    arguments: list[str]
    """Of the command, without those of the launcher."""


def read_launch(arguments: Sequence[str]) -> Launch:
    """Takes the launcher's flags out of a command line.

    Raises:
        ConfigError: no such launcher, a number of processes that can't be, or one without a launcher.
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if name not in ("--launcher", "--nproc-per-node", "--nproc_per_node"):
            rest.append(argument)
            continue
        if not equals and not waiting:
            raise ConfigError(f"{name} needs a value.")
        found[name.replace("_", "-")] = value if equals else waiting.pop(0)
    launcher, number = found.get("--launcher"), found.get("--nproc-per-node")
    if launcher is not None and launcher not in LAUNCHERS:
        raise ConfigError(f"--launcher is {launcher!r}, which is no launcher.{did_you_mean(launcher, LAUNCHERS)}")
    if launcher is None and number is not None:
        raise ConfigError("--nproc-per-node is for --launcher torchrun, which is not given.")
    if number is not None and (not number.isdigit() or int(number) < 1):
        raise ConfigError(f"--nproc-per-node is {number!r}, but must be a number of processes, 1 or more.")
    return Launch(launcher, None if number is None else int(number), rest)


def torchrun(arguments: Sequence[str], processes: int | None) -> int:
    """Runs `sppo ARGUMENTS` in several processes and returns the exit code of the first that failed, else 0.

    Raises:
        ConfigError: how many is not said, and there is no GPU to count.
    """
    import torch

    count = processes or torch.cuda.device_count()
    if not count:
        raise ConfigError("There is no GPU to count: say how many processes with --nproc-per-node N.")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    # Its own words about a process that ended would bury what the process said.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // count, 1)))
    parser = get_args_parser()
    own = ["--standalone", f"--nproc-per-node={count}"]
    if "--shutdown-timeout" in parser.format_help():  # not in every torch that will do
        own.append(f"--shutdown-timeout={_SHUTDOWN_SECONDS}")
    try:
        run(parser.parse_args([*own, "-m", "sppo", *arguments]))
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        code = int(failed.get_first_failure()[1].exitcode)
        if code < 0:
            print(f"error: a process was ended by {signal.Signals(-code).name}.", file=sys.stderr)
        return code if code > 0 else 128 - code
    return 0
