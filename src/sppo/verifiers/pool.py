"""Worker processes for verifiers that may hang, eat memory or crash; each item can be killed alone.

Workers fork from a small server process that has math-verify loaded, never from the caller, which may hold threads and
a GPU; they live under a memory limit. Where the platform has no such server, they are started anew (spawn).
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from sppo.runs import ranks
from sppo.runs.machine import cores
from sppo.runs.progress import STOPS
from sppo.types import Verdict

if TYPE_CHECKING:
    from pebble import ProcessPool
    from pebble.common.types import ProcessFuture

Item = tuple[Callable[[str, str], Verdict], str, str]
"""(the slow half of a verifier, response, gold); the function is sent by its name, so it stands in a module."""

_ATTEMPTS = 3
_STALL_GRACE = 60.0
_POLL = 0.5


class VerifierPool:
    """Runs the slow halves of verifiers. Starts its workers on first use, once; usable from any thread.

    Args:
        workers: processes; default: the cores at hand, at most 8, shared by the ranks of this machine.
        time_limit: seconds for one item, counted from when a worker takes it.
        memory_limit_mb: address space of a worker, in MiB; not enforced where the platform has no such limit.
    """

    def __init__(self, workers: int | None = None, time_limit: float = 3.0, memory_limit_mb: int = 1024):
        workers = max(min(cores() // ranks.local_world_size(), 8), 1) if workers is None else workers
        if workers < 1 or time_limit <= 0 or memory_limit_mb < 256:
            raise ValueError(
                f"VerifierPool needs workers >= 1, time_limit > 0 and memory_limit_mb >= 256; "
                f"found {workers}, {time_limit} and {memory_limit_mb}."
            )
        self.workers = workers
        self.time_limit = time_limit
        self.memory_limit_mb = memory_limit_mb
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None
        self._closed = False
        self._last_progress = 0.0

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, items: Sequence[Item], time_limit: float | None = None) -> list[Verdict]:
        """Returns one verdict an item, in order; it always returns.

        A time-out, a crash or a lack of memory is the `error` of its own item and touches no other.

        Args:
            items: (slow half of a verifier, response, gold).
            time_limit: seconds for one item; default: the pool's.

        Raises:
            RuntimeError: if the pool was closed.
        """
        limit = self.time_limit if time_limit is None else time_limit
        verdicts: dict[int, Verdict] = {}
        pending = list(range(len(items)))
        for _ in range(_ATTEMPTS):
            if not pending:
                break
            pool = self._started()
            try:
                futures = {i: pool.schedule(_run_item, args=[items[i]], timeout=limit) for i in pending}
            except (RuntimeError, BrokenProcessPool):
                self._discard(pool)
                continue
            for future in futures.values():
                future.add_done_callback(self._note_progress)
            self._last_progress = time.monotonic()
            for i, future in futures.items():
                verdict = self._await(pool, future, limit)
                if verdict is not None:
                    verdicts[i] = verdict
            pending = [i for i in pending if i not in verdicts]
            if pending:
                self._discard(pool)
            if self._closed:
                break
        why = "the pool was closed" if self._closed else "the verifier's processes were lost again and again"
        lost = Verdict(None, error=why, caused_by="verifier")
        return [verdicts.get(i, lost) for i in range(len(items))]

    def process_ids(self) -> list[int]:
        """The workers that run now, for those who watch their memory."""
        pool = self._pool
        return list(pool._pool_manager.worker_manager.workers) if pool is not None else []

    def close(self) -> None:
        """Ends the workers. Items that still run come back as errors. Closing twice does no harm."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        atexit.unregister(self.close)
        if pool is not None:
            _stop(pool)

    def _started(self) -> ProcessPool:
        with self._lock:
            if self._closed:
                raise RuntimeError("this VerifierPool is closed")
            if self._pool is None or not self._pool.active:
                from pebble import ProcessPool

                if self._pool is not None:
                    _stop(self._pool)
                else:
                    # Registered after pebble's and multiprocessing's own exit hooks, so that it runs before them.
                    atexit.register(self.close)
                self._pool = ProcessPool(
                    max_workers=self.workers,
                    initializer=_start_worker,
                    initargs=[self.memory_limit_mb],
                    context=_worker_context(),
                )
            return self._pool

    def _discard(self, pool: ProcessPool) -> None:
        with self._lock:
            if self._pool is pool:
                self._pool = None
                atexit.unregister(self.close)
        _stop(pool)

    def _note_progress(self, _: object) -> None:
        self._last_progress = time.monotonic()

    def _await(self, pool: ProcessPool, future: ProcessFuture, limit: float) -> Verdict | None:
        """Returns the verdict, or None where the pool broke or stalled before this item was done."""
        from pebble import ProcessExpired

        while True:
            try:
                return future.result(timeout=_POLL)
            except FutureTimeout:
                # Ours, unless the item's own time is over: it may also have ended well since ours was.
                if future.done() and not future.cancelled() and isinstance(future.exception(), FutureTimeout):
                    return Verdict(None, error=f"timed out after {limit:g} s")
            except (BrokenProcessPool, CancelledError):
                return None
            except ProcessExpired as expired:
                return Verdict(None, error=f"the verifier's process died (exit code {expired.exitcode})")
            except MemoryError:
                return Verdict(None, error=f"out of memory at {self.memory_limit_mb} MiB")
            except Exception as failure:
                # A verifier that raised on a model's output: counted and reported, never a wrong answer.
                return Verdict(None, error=f"{type(failure).__name__}: {str(failure)[:200]}")
            stalled = time.monotonic() - self._last_progress > limit + _STALL_GRACE
            if (stalled or not pool.active) and not future.done():
                return None


def _run_item(item: Item) -> Verdict:
    function, response, gold = item
    return function(response, gold)


def _start_worker(memory_limit_mb: int) -> None:
    """Runs first in every worker."""
    # pebble's handler is Python code, which a worker deep in one big-integer operation would never get to.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A terminal's Ctrl-C, its end, and a scheduler's warning go to the whole group; ending the workers is the parent's
    # business, which wants its last step graded.
    for number in STOPS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)

    try:
        import resource

        limit = memory_limit_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        # Windows has no such module, and macOS refuses the limit; the time limit still holds.
        pass


def _stop(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


_hiding = threading.Lock()


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keeps a new process from importing the caller's script as `__mp_main__`.

    A script without an `if __name__ == "__main__"` guard would otherwise run again in every worker. Nothing that goes
    to our workers is defined there. The attributes are away for the milliseconds that starting a process takes.
    """
    main = sys.modules.get("__main__")
    if main is None:
        yield
        return
    with _hiding:
        away: dict[str, Any] = {
            name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__
        }
        main.__dict__["__spec__"] = None
        try:
            yield
        finally:
            del main.__dict__["__spec__"]
            main.__dict__.update(away)


if sys.platform == "win32":
    from multiprocessing.context import SpawnContext, SpawnProcess

    class _SpawnProcess(SpawnProcess):
        def start(self) -> None:
            with _main_module_hidden():
                super().start()

    class _SpawnContext(SpawnContext):
        Process = _SpawnProcess

    def _worker_context() -> BaseContext:
        return _SpawnContext()

else:
    from multiprocessing.context import ForkServerContext, ForkServerProcess

    class _ForkServerProcess(ForkServerProcess):
        def start(self) -> None:
            with _main_module_hidden():
                super().start()

    class _ForkServerContext(ForkServerContext):
        Process = _ForkServerProcess

    def _worker_context() -> BaseContext:
        context = _ForkServerContext()
        # Without effect if the program has already started a fork server; workers then import for themselves.
        context.set_forkserver_preload(["sppo.verifiers.math.preload"])
        return context
