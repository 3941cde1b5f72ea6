"""`--launcher NAME`: the same command in several processes, one a GPU.

torchrun starts them on this machine, Ray (sppo.cli.on_ray) on the machines of a cluster.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sppo.errors import ConfigError, did_you_mean
from sppo.runs import ranks
from sppo.runs.machine import cores
from sppo.runs.progress import STOPS

LAUNCHERS = {
    "torchrun": ("--nproc-per-node",),
    "ray": ("--workers", "--gpus-per-worker", "--address", "--max-failures"),
}
"""Flags of each."""
MAX_FAILURES = 3
"""Of Ray, where --max-failures is not given."""
FLAGS = {
    "--launcher torchrun [--nproc-per-node N]": "Run in N processes on this machine, by default one for each GPU. On "
    "several machines: torchrun --nnodes ... -m sppo COMMAND ...",
    "--launcher ray [--workers N] [--gpus-per-worker 0|1] [--address auto|HOST:PORT] [--max-failures N]": "Run as N "
    "workers of a Ray cluster, by default one for each of its GPUs; without --address (or RAY_ADDRESS), of a cluster "
    "on this machine, for this command alone. After a worker's death the run goes on from its last checkpoint, "
    f"--max-failures times, by default {MAX_FAILURES}.",
}
_SHUTDOWN_SECONDS = 3600
"""After a Ctrl-C the processes finish their step and save; torchrun by itself would end them after 30 s."""


@dataclass(frozen=True)
class Launch:
    """How a command is to be started."""

    launcher: str | None
    """None: in this process."""
    arguments: list[str]
    """Of the command, without those of the launcher."""
    processes: int | None = None
    """None: as many as there are GPUs."""
    gpus_per_worker: int | None = None
    """Of Ray: 0 or 1. None: 1 where the cluster has GPUs."""
    address: str | None = None
    """Of Ray's cluster; None: a cluster for this command alone."""
    max_failures: int = MAX_FAILURES
    """Of Ray: deaths of workers that the command is started again after."""


def read_launch(arguments: Sequence[str]) -> Launch:
    """Takes the launcher's flags out of a command line.

    Raises:
        ConfigError: no such launcher, a number that can't be, or a flag of a launcher that is not given.
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    waiting = list(arguments)
    owners = {flag: launcher for launcher, flags in LAUNCHERS.items() for flag in flags}
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        flag = name.replace("_", "-")
        if flag != "--launcher" and flag not in owners:
            rest.append(argument)
            continue
        if not equals and not waiting:
            raise ConfigError(f"{name} needs a value.")
        found[flag] = value if equals else waiting.pop(0)
    launcher = found.pop("--launcher", None)
    if launcher is not None and launcher not in LAUNCHERS:
        raise ConfigError(f"--launcher is {launcher!r}, which is no launcher.{did_you_mean(launcher, LAUNCHERS)}")
    for flag in found:
        if owners[flag] != launcher:
            instead = "is not given" if launcher is None else f"is {launcher}, which has {LAUNCHERS[launcher][0]} N"
            raise ConfigError(f"{flag} is for --launcher {owners[flag]}; --launcher {instead}.")
    failures = _number(found, "--max-failures", "restarts", least=0)
    return Launch(
        launcher,
        rest,
        _number(found, "--nproc-per-node", "processes") or _number(found, "--workers", "workers"),
        _number(found, "--gpus-per-worker", "GPUs", least=0, most=1),
        found.get("--address"),
        MAX_FAILURES if failures is None else failures,
    )


def _number(found: Mapping[str, str], flag: str, of: str, *, least: int = 1, most: int | None = None) -> int | None:
    text = found.get(flag)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < least or (most is not None and int(text) > most):
        bounds = f"{least} or more" if most is None else f"{least} or {most}"
        raise ConfigError(f"{flag} is {text!r}, but must be a number of {of}, {bounds}.")
    return int(text)


def threads_each(processes: int) -> int:
    """Threads of each of so many processes on this machine."""
    return max(cores() // processes, 1)


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
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_each(count)))
    parser = get_args_parser()
    # Which torchrun doesn't know, and would end by: the ranks hear it as the SIGTERM that they are sent then.
    signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    own = ["--standalone", f"--nproc-per-node={count}"]
    if "--shutdown-timeout" in parser.format_help():  # not in every torch that will do
        own.append(f"--shutdown-timeout={_SHUTDOWN_SECONDS}")
    try:
        with tempfile.TemporaryDirectory(prefix="sppo-torchrun-") as logs:  # or it leaves an empty one each time
            own += [f"--log-dir={logs}", "--no-python"]
            run(parser.parse_args([*own, *ranks.python(), "-u", "-m", "sppo", *arguments]))
    except SignalException as stopped:
        # As in one process: whichever signal asked for it, the step was finished and saved, unless a second one came.
        return 130 if int(stopped.sigval) in STOPS else 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        code = int(failed.get_first_failure()[1].exitcode)
        if code < 0:
            print(f"error: a process was ended by {signal.Signals(-code).name}.", file=sys.stderr)
        return code if code > 0 else 128 - code
    return 0
