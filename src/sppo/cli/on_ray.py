"""`--launcher ray`: Ray Train places the workers, and each starts the same command as one rank.

A rank is a process of its own, below Ray's worker, as torchrun would start it: signals, the process group, the GPU and
the exit code are as everywhere else. So Ray's worker needs no torch and makes no process group, which is why this is
the trainer that TorchTrainer stands on rather than TorchTrainer.

The run folder is the only state. After a worker's death Ray starts all of them again, and they go on from the last
checkpoint (`sppo.runs.ranks.restarted`). A mistake that the user can mend ends the job at once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sppo.cli.launch import Launch, threads_each
from sppo.errors import ConfigError, visible
from sppo.runs import ranks
from sppo.runs.progress import STOPS

START_SECONDS = 600
"""How long workers may take to start, machines that an autoscaler adds included; Ray's own 60 s are few for those."""
_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_CARRIED = ("SPPO_", "HF_", "TRANSFORMERS_", "TORCH_", "NCCL_", "GLOO_", "OMP_", "WANDB_", "TRACKIO_", "NO_COLOR")
"""Environment variables that ranks have from where the command was given: names that begin so."""
_FINAL = (0, 2, *(128 + number for number in STOPS))
"""Exit codes after which there is nothing to start again: done, a mistake that the user can mend, or stopped."""


class Desk:
    """An actor beside the driver: ranks write to it what people should read, and ask whether to stop."""

    def __init__(self) -> None:
        self.said: list[tuple[int, bytes]] = []
        self.codes: dict[int, int] = {}
        self.stops = 0
        self.starts = 0

    def begin(self) -> int:
        """Counts a start of the ranks and returns how many there were before."""
        self.starts += 1
        self.codes = {}
        return self.starts - 1

    def write(self, stream: int, text: bytes) -> None:
        """Takes what a rank wrote to its stream 1 or 2."""
        self.said.append((stream, text))

    def read(self) -> list[tuple[int, bytes]]:
        """Gives what has been written since."""
        said, self.said = self.said, []
        return said

    def ended(self, rank: int, code: int) -> None:
        """Notes a rank's exit code."""
        self.codes[rank] = code

    def outcome(self) -> dict[int, int]:
        """Exit codes of the ranks that have ended since the latest start."""
        return self.codes

    def stop(self) -> None:
        """Asks the ranks to stop; once more: at once."""
        self.stops += 1

    def stops_asked(self) -> int:
        """How often it was asked to stop."""
        return self.stops


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    command: tuple[str, ...]
    folder: str
    """Working directory, which relative paths of the command start from."""
    flags: tuple[str, ...]
    """Of Python, see `ranks.python`."""
    environment: dict[str, str]
    name: str
    desk: Any
    max_failures: int


def start(command: Sequence[str], launch: Launch) -> int:
    """Runs `sppo COMMAND` as workers of a Ray cluster and returns its exit code.

    Raises:
        ConfigError: no Ray here, no cluster at that address, or none that has as many CPUs and GPUs.
    """
    try:
        import ray
        import ray.train
    except ImportError as error:
        raise ConfigError("--launcher ray needs Ray, which is not installed: pip install 'sppo[ray]'.") from error

    os.environ.setdefault(_TIMEOUT, str(START_SECONDS))
    address = launch.address or os.environ.get("RAY_ADDRESS") or "local"
    _connect(ray, address)
    try:
        workers, gpus = cluster_share(ray.cluster_resources(), launch, address)
        with tempfile.TemporaryDirectory(prefix="sppo-ray-") as scratch:
            return _run(ray, command, launch, workers, gpus, scratch)
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Joins the cluster, or starts one on this machine.

    Raises:
        ConfigError: none there, or it doesn't let us in.
    """
    own: dict[str, Any] = {}
    host, colon, port = address.rpartition(":")
    if (colon and not (host and port.isdigit())) or "://" in address:
        raise ConfigError(
            f"The address of the Ray cluster is {address!r}, but must be auto or HOST:PORT, given on a machine of it."
        )
    if colon:
        try:  # Ray itself would go on trying for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise ConfigError(f"There is no Ray cluster at {address}: {error}. Is it running (ray status)?") from error
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=True, **own)
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"There is no way into the Ray cluster at {address!r}: {said[0].rstrip('. ')}. Is it running (ray status), "
            "with the same versions of Ray and Python, and is its token here (ray get-auth-token)?"
        ) from error


def cluster_share(has: Mapping[str, float], launch: Launch, address: str) -> tuple[int, int]:
    """How many workers, and how many GPUs each has.

    Raises:
        ConfigError: it isn't said and there are no GPUs to count, or a cluster on this machine has fewer.
    """
    there = {"CPU": int(has.get("CPU", 0)), "GPU": int(has.get("GPU", 0))}
    workers = launch.processes or there["GPU"]
    if not workers:
        raise ConfigError("The Ray cluster has no GPU to count: say how many workers with --workers N.")
    gpus = launch.gpus_per_worker if launch.gpus_per_worker is not None else min(there["GPU"], 1)
    lacking = [f"{there[kind]} {kind}s" for kind, each in (("CPU", 1), ("GPU", gpus)) if workers * each > there[kind]]
    if not lacking:
        return workers, gpus
    needs = f"--workers {workers}: each needs a CPU" + (" and a GPU" if gpus else "")
    if address == "local":
        raise ConfigError(f"{needs}, but this machine has {' and '.join(lacking)}. Ask for fewer, or give --address.")
    seconds = float(os.environ[_TIMEOUT])
    print(f"{needs}; the cluster has {' and '.join(lacking)} so far. Waiting {seconds:.0f} s for more.", flush=True)
    return workers, gpus


def _run(ray: Any, command: Sequence[str], launch: Launch, workers: int, gpus: int, scratch: str) -> int:
    """Starts the workers, shows what they say, and returns the exit code."""
    from ray.train import BackendConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class SharedGpus(Backend):
        # All workers of a machine see the GPUs of all of them, and a rank takes the one of its local number, as under
        # torchrun; NCCL copies directly between GPUs that it sees.
        share_cuda_visible_devices = True

    class PlainRanks(BackendConfig):
        backend_cls = SharedGpus

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(num_cpus=0)(Desk).options(scheduling_strategy=here).remote()
    flags = tuple(ranks.python()[1:])
    job = Job(tuple(command), os.getcwd(), flags, _carried(), uuid.uuid4().hex, desk, launch.max_failures)
    trainer = DataParallelTrainer(
        run_rank,
        train_loop_config={"job": job},
        backend_config=PlainRanks(),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus > 0, resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})}
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=scratch,  # Ray keeps notes there; nothing of the run
            failure_config=FailureConfig(max_failures=launch.max_failures, controller_failure_limit=0),
        ),
    )
    failed = _attend(ray, trainer, desk)
    codes: dict[int, int] = ray.get(desk.outcome.remote())
    if failed is not None and not (codes.keys() and isinstance(failed, ray.train.WorkerGroupError)):
        print(f"error: {visible(_said_by_ray(failed, workers))}", file=sys.stderr)
        return 1
    # A rank that was killed is why the others ended.
    code = min(codes.values(), default=1) if failed is not None else codes.get(0, 0)
    return code if code >= 0 else 128 - code


def _attend(ray: Any, trainer: Any, desk: Any) -> Exception | None:
    """Shows what ranks say and passes Ctrl-C on until they have ended; returns Ray's complaint, should it have one.

    The third Ctrl-C ends this without waiting for anybody.
    """
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failures.append(error)

    # Not in the main thread, where Ray's own answer to Ctrl-C is to kill the workers in the middle of their step.
    fitting = threading.Thread(target=fit, daemon=True, name="ray train")
    with _signals() as asked:
        passed_on = 0
        fitting.start()
        while fitting.is_alive():
            fitting.join(0.2)
            while passed_on < len(asked):
                passed_on += 1
                if passed_on > 2:
                    raise KeyboardInterrupt
                desk.stop.remote()
            _show(ray.get(desk.read.remote()))
        _show(ray.get(desk.read.remote()))
    return failures[0] if failures else None


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects signals to stop instead of ending by them."""
    asked: list[int] = []
    heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda got, frame: asked.append(got)) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(said: Sequence[tuple[int, bytes]]) -> None:
    for stream, text in said:
        target = sys.stdout if stream == 1 else sys.stderr
        target.flush()
        target.buffer.write(text)  # a piece may begin in the middle of a letter
        target.buffer.flush()


def _said_by_ray(failed: Exception, workers: int) -> str:
    cause = getattr(failed, "controller_failure", failed)
    if type(cause).__name__ == "WorkerGroupStartupTimeoutError":
        return (
            f"{workers} workers did not start within {float(os.environ[_TIMEOUT]):.0f} s; the cluster may have fewer "
            f"CPUs or GPUs free (ray status). Ask for fewer --workers, or raise {_TIMEOUT}."
        )
    lines = str(cause).strip().splitlines()
    return f"Ray could not run the workers: {lines[-1] if lines else type(cause).__name__}"


def _carried() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name.startswith(_CARRIED)}
    if sys.stdout.isatty():
        # rich asks these before it looks at its stream, which is a pipe.
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
        own |= {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": str(columns), "LINES": str(lines)}
    return own


def run_rank(config: Mapping[str, Any]) -> None:
    """Runs one rank below this worker of Ray's and passes on what it says.

    Raises:
        RuntimeError: it was killed or broke, so that Ray is to start all ranks again.
    """
    import ray
    from ray.train.collective import broadcast_from_rank_zero

    job: Job = config["job"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    meeting = None
    if rank == 0:
        attempt = ray.get(job.desk.begin.remote())
        if attempt:
            again = f"Starting again from the last checkpoint ({attempt} of at most {job.max_failures} times).\n"
            job.desk.write.remote(2, again.encode())
        with socket.socket() as free:
            free.bind(("", 0))
            meeting = (ray.util.get_node_ip_address(), free.getsockname()[1], attempt)
    address, port, attempt = broadcast_from_rank_zero(meeting)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads_each(context.get_local_world_size())),  # Ray counts only the CPU it reserved
        **job.environment,
        "RANK": str(rank),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "MASTER_ADDR": str(address),
        "MASTER_PORT": str(port),
        # As torchrun says it after a restart.
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "TORCHELASTIC_RUN_ID": job.name,
    }
    code = _run_below(ray, job, environment)
    words = f"rank {rank} was ended by {signal.Signals(-code).name}" if code < 0 else f"rank {rank} ended with {code}"
    ended = [job.desk.ended.remote(rank, code)]
    if code not in _FINAL:
        ended.append(job.desk.write.remote(2, f"error: {words}.\n".encode()))
    ray.get(ended)
    if code not in _FINAL:
        raise RuntimeError(words)


def _run_below(ray: Any, job: Job, environment: dict[str, str]) -> int:
    """Starts the command as a process and returns its exit code; less than 0: by that signal."""
    if not os.path.isdir(job.folder):
        said = f"error: {job.folder} is not there on {socket.gethostname()}: start from a folder that all machines see."
        ray.get(job.desk.write.remote(2, f"{said}\n".encode()))
        return 2
    # Ray blocks SIGINT, and a process has its mask from the thread that starts it.
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(
            [sys.executable, *job.flags, "-u", "-m", "sppo.cli.rank", *job.command], cwd=job.folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    pumps = [
        threading.Thread(target=_pump, args=(ray, job.desk, number, pipe), daemon=True)
        for number, pipe in ((1, process.stdout), (2, process.stderr))
    ]
    for pump in pumps:
        pump.start()
    passed_on = 0
    while process.poll() is None:
        # All of them, as a terminal would: one that still waits for the others would wait on if they alone ended.
        if ray.get(job.desk.stops_asked.remote()) > passed_on:
            passed_on += 1
            process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    for pump in pumps:
        pump.join(10)
    # However it ended: after a stop nothing is to start again.
    return 128 + signal.SIGINT if passed_on and process.returncode not in _FINAL else process.returncode


def _pump(ray: Any, desk: Any, stream: int, pipe: Any) -> None:
    """Passes on what a process writes until it has closed the pipe."""
    written = None
    while text := os.read(pipe.fileno(), 1 << 16):
        written = desk.write.remote(stream, text)
        time.sleep(0.05)  # so that a display that is redrawn comes in few pieces
    if written is not None:
        ray.get(written)
