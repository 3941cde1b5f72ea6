"""Many ranks: the same program in each of several processes. This module alone knows of them.

Every rank holds the *whole* batch and runs the whole loop; what is dealt out are rows to sample and grade, and rows
that models read or learn from. So data, choice, credit and metrics are the same everywhere and need no reduction, and a
checkpoint doesn't know the number of ranks. One process is world size 1 of the same calls, and nothing is imported for
it. Rank 0, the main one, alone writes and speaks.

A rank that fails tells the others why, so that they end within seconds, also where they wait for it in an operation
that never ends by itself.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sppo.errors import ConfigError, RankError, SppoError, visible

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")

PATIENCE = timedelta(days=7)
"""How long ranks wait for each other. One may sample for hours; that one has died is found out in another way."""
LOOK_EVERY = 1.0
"""Seconds between looks at how the other ranks are."""
SILENCE = 120.0
"""Seconds without a sign of life after which a rank is taken for dead: a process that is killed says nothing."""
GRACE = 5.0
"""Seconds that a rank has to end by itself once another has failed."""
_FAILED = "failed"
_GONE = "the main rank, or what launched it, has ended"
_planned: int | None = None
_beside: Any = None
_thread = threading.local()


def launched() -> bool:
    """Whether a launcher started this process as one of several, torchrun for one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def world_size() -> int:
    """How many ranks there are; 1 in a process by itself."""
    return _group().get_world_size() if _joined() else 1


def planned() -> int:
    """How many ranks a run will have that is only planned here; else `world_size`."""
    return _planned or world_size()


@contextmanager
def planning(count: int | None) -> Iterator[None]:
    """Within it a plan is made for so many ranks; None: as many as there are."""
    global _planned
    _planned, before = count, _planned
    try:
        yield
    finally:
        _planned = before


def rank() -> int:
    """Number of this rank, from 0."""
    return _group().get_rank() if _joined() else 0


def local_rank() -> int:
    """Number of this rank among those of its machine, as the launcher counts them."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _joined() or launched() else 0


def local_world_size() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _joined() or launched() else 1


def is_main() -> bool:
    """Whether this rank writes files and speaks to people."""
    return (rank() if _joined() else int(os.environ.get("RANK", "0")) if launched() else 0) == 0


def python() -> list[str]:
    """The command that starts Python as this one was started: one that runs `-m` looks for modules where it is, first.

    A folder that somebody else has made may have modules of its own in it; so it does only where we do.
    """
    here = "" in sys.path or os.getcwd() in sys.path
    return [sys.executable, *([] if here else ["-P"])]


def restarted() -> str | None:
    """Name of the launch, where its launcher has started all ranks again after one died; None where it hasn't.

    torchrun with --max-restarts and Ray do so, and both say it in the environment.
    """
    return launch_name() if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) else None


def launch_name() -> str | None:
    """What the launcher calls this launch, the same after each restart; None in a process by itself."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sums `tensor` over ranks, in place, and returns it. Every rank has to call it, with the same shape."""
    if world_size() > 1 and tensor.numel():
        _group().all_reduce(tensor, group=own_group())
    return tensor


def total(number: float) -> float:
    """The sum of a number over ranks, in double precision."""
    if world_size() == 1:
        return number
    import torch

    return float(sum_over_ranks(torch.tensor(number, dtype=torch.float64)))


def any_rank(flag: bool) -> bool:
    """Whether it is so on any rank."""
    return total(float(flag)) > 0


def share(items: Sequence[Item]) -> list[Item]:
    """This rank's part of a list: neighbours stay together, and parts differ by one item at most."""
    number, count = rank(), world_size()
    return list(items[len(items) * number // count : len(items) * (number + 1) // count])


def gather(items: list[Item]) -> list[Item]:
    """The inverse of `share`: the whole list, in order, on every rank."""
    if world_size() == 1:
        return items
    parts: list[Any] = [None] * world_size()
    _group().all_gather_object(parts, items, group=own_group())
    return [item for part in parts for item in part]


def of_main(value: Item) -> Item:
    """The main rank's value, on every rank; the others' is ignored."""
    if world_size() == 1:
        return value
    box: list[Any] = [value if is_main() else None]
    _group().broadcast_object_list(box, src=0, group=own_group())
    received: Item = box[0]
    return received


def wait() -> None:
    """Returns when every rank has called it."""
    any_rank(False)


def group_beside() -> Any:
    """A second group of all ranks, for a thread that works beside the main one; None in a process by itself.

    The first time every rank has to call it together.
    """
    global _beside
    if world_size() > 1 and _beside is None:
        _beside = _group().new_group(backend="gloo", timeout=PATIENCE)
    return _beside


@contextmanager
def within(group: Any) -> Iterator[None]:
    """Inside, this thread's calls meet those that other ranks make in the same group, and no others."""
    _thread.group = group
    try:
        yield
    finally:
        _thread.group = None


def own_group() -> Any:
    """The group that this thread is `within`; None of all ranks' usual one."""
    return getattr(_thread, "group", None)


@contextmanager
def joined() -> Iterator[None]:
    """Joins the other ranks where a launcher started several; nothing in a process by itself.

    They stay joined until the process ends, so that a program may do more than one thing on all of them. A group that
    the program has made already is used as it is.

    Raises:
        RankError: another rank failed, with its message; or it died without one.
    """
    global _bond
    if not launched() or (_joined() and _bond is None):
        yield
        return
    if _bond is None:
        _bond = _join()
        atexit.register(_leave, _bond)
    try:
        yield
    except BaseException as error:
        _bond.broken = True
        if not is_main() and isinstance(error, SppoError):
            time.sleep(1.0)  # a mistake that every rank finds is the main one's to tell
        said = _bond.failure_elsewhere(wait_for=_may_follow(error))
        agreed = isinstance(error, KeyboardInterrupt)  # once all have saved, each ends by itself
        if said is not None and not agreed and not (is_main() and said.endswith(str(error))):
            raise RankError(said) from error
        _bond.tell(error)
        if is_main() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(2 * LOOK_EVERY)  # this rank keeps the store in which the others have to find that
        raise


def group_of_one() -> None:
    """Makes this process a group by itself, where it has joined none: weights are spread over a group, be it of one."""
    if _joined():
        return
    import torch
    import torch.distributed as dist

    dist.init_process_group(_backend(torch.cuda.is_available()), store=dist.HashStore(), rank=0, world_size=1)
    atexit.register(_end_group)


def _end_group() -> None:
    if _joined():
        _group().destroy_process_group()


def _backend(with_gpu: bool) -> str:
    return "cpu:gloo,cuda:nccl" if with_gpu else "gloo"


def _may_follow(error: BaseException) -> bool:
    """Whether it may be the consequence of another rank's end: a broken connection."""
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("Connection", "connection", "gloo", "NCCL", "Broken pipe", "store", "reset")
    )


@dataclass
class _Bond:
    """Signs of life and of failure between ranks, in a store of their own and a thread of its own."""

    store: Any
    number: int
    count: int
    broken: bool = False
    """Whether a rank has failed, so that there is nobody to wait for."""
    ended: threading.Event = field(default_factory=threading.Event)

    def tell(self, error: BaseException) -> None:
        """Lets the other ranks know why this one ends."""
        text = str(error) or type(error).__name__
        named = text if type(error).__module__.startswith("sppo.") else f"{type(error).__name__}: {text}"
        with suppress(Exception):
            if not self.store.check([_FAILED]):
                self.store.set(_FAILED, f"{self.number} {named}")

    def failure_elsewhere(self, *, wait_for: bool = False) -> str | None:
        """What another rank said as it failed; None where none did.

        Args:
            wait_for: one must have, so that it is given the time to say so; died without a word where it doesn't.
        """
        until = time.monotonic() + (GRACE if wait_for else 0.0)
        while True:
            try:
                if self.store.check([_FAILED]):
                    who, _, said = self.store.get(_FAILED).decode().partition(" ")
                    return None if int(who) == self.number else f"rank {who} failed: {said}"
            except Exception:  # the store is gone with the rank that kept it
                return _GONE
            if time.monotonic() >= until:
                break
            time.sleep(0.1)
        return "another rank ended without a word; was it killed, for lack of memory perhaps?" if wait_for else None

    def watch(self) -> None:
        """Looks after the other ranks until this one ends; ends it where another has failed and it can't notice."""
        beats = [time.monotonic()] * self.count
        seen = [b""] * self.count
        while not self.ended.wait(LOOK_EVERY):
            try:
                self.store.set(f"alive {self.number}", str(time.time()))
                said = self.failure_elsewhere()
                if said is None and self.number == 0:
                    said = self._silent(beats, seen)
            except Exception:  # the store is gone: the main rank has ended
                said = _GONE
            if said is not None:
                break
        else:
            return
        if self.ended.wait(GRACE):
            return
        # In a collective operation of a GPU nothing but this ends the wait.
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        os.write(2, f"{cursor}\nerror: {visible(said)}\n".encode())
        os._exit(2)

    def _silent(self, beats: list[float], seen: list[bytes]) -> str | None:
        """Says which rank has given no sign of life for too long, and lets the others know."""
        now = time.monotonic()
        for other in range(1, self.count):
            key = f"alive {other}"
            beat = self.store.get(key) if self.store.check([key]) else b""
            if beat != seen[other]:
                beats[other], seen[other] = now, beat
            elif now - beats[other] > SILENCE:
                text = f"rank {other} has given no sign of life for {SILENCE:.0f} s"
                self.store.set(_FAILED, f"{other} {text}")
                return text
        return None


_bond: _Bond | None = None
"""Of this process, once it has joined others."""


def _leave(bond: _Bond) -> None:
    """At the end of the process: not before the others, who may need what it keeps."""
    with suppress(Exception):
        if not bond.broken:
            _group().barrier()
        bond.ended.set()
        if not bond.broken:
            _group().destroy_process_group()
    bond.ended.set()


def _join() -> _Bond:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what it says of connections that end, we say ourselves
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise ConfigError("This torch was built without torch.distributed, so that it can't run on several ranks.")
    if torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise ConfigError(
                f"Rank {local_rank()} of this machine has no GPU of its own: there are {torch.cuda.device_count()}. "
                "Start as many processes as there are GPUs."
            )
        torch.cuda.set_device(local_rank())
    backend = _backend(torch.cuda.is_available())
    store, number, count = next(iter(dist.rendezvous("env://", timeout=timedelta(minutes=10))))
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=number, world_size=count, timeout=PATIENCE
    )
    bond = _Bond(_own_store(store), number, count)
    threading.Thread(target=bond.watch, daemon=True, name="sppo ranks").start()
    return bond


def _own_store(store: Any) -> Any:
    """A connection of its own: a thread that waits for another's key would keep this one's waiting."""
    import torch.distributed as dist

    own = store.clone() if hasattr(store, "clone") else store
    own.set_timeout(timedelta(seconds=30))
    return dist.PrefixStore("bond", own)


def _joined() -> bool:
    # What has not been imported has made no group; and only those who need many ranks pay for the import.
    group = sys.modules.get("torch.distributed")
    return group is not None and group.is_available() and group.is_initialized()


def _group() -> Any:
    import torch.distributed as dist

    return dist
