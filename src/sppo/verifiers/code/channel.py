"""The tests' side of the two pipes between them and the program; runs in the tests' sandbox."""

from __future__ import annotations

import os
import select
import time

from sppo.verifiers.code.wire import NotPlain, from_line, to_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CHUNK = 65536
_QUICK = 0.01
"""Seconds in which most tests are over, so that nobody needs be told of them."""


class Gone(BaseException):
    """The program will not answer any more; no `except Exception` of a test may catch this."""


class Unanswered(BaseException):
    """The program neither returned anything that can be sent nor raised anything, so that the test fails."""


class Faulty(BaseException):
    """The tests themselves cannot be run."""


class Channel:
    """Questions to the program and its answers. Who started the tests keeps the time, and says when it is over.

    Args:
        settings: given by runner.py.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.number = -1
        self.test = 0
        self.seconds = 0.0
        self.buffer = b""
        self.over: Gone | Faulty | None = None
        """Why nothing can be asked any more: test code may have caught what was raised."""
        self.unanswered: Unanswered | None = None
        """Why the test that runs has failed, even if test code caught what was raised."""
        self.closed = False
        """Whether the program's end of the pipes was closed."""
        self.started = self.stopping = False
        self.asked: list[int] = []
        """What was asked since the last assertion that was counted, as hashes."""
        self.deadline: float | None = time.monotonic() + self.settings["start_seconds"]
        os.set_blocking(self.settings["requests"], False)

    def begin(self) -> None:
        """Waits until the program's sandbox stands.

        Raises:
            Gone: it does not.
        """
        self.receive()
        self.deadline = None
        self.number = 0

    def begin_test(self) -> None:
        """Begins a test, whose clock starts when it has to be waited for."""
        self.test += 1
        self.unanswered = None
        self.started = self.stopping = False

    def load(self) -> None:
        """Lets the program be loaded, and waits until it is.

        Raises:
            Gone: it cannot be, or not in time.
        """
        self.begin_test()
        self._start_clock()
        began = time.monotonic()
        self._send(b"\n")
        loaded = self.receive()
        self.seconds += time.monotonic() - began
        if "error" in loaded:
            raise self.end(Gone(f"{str(loaded['error'])[:100]}: {str(loaded.get('message'))[:200]}"))

    def end(self, reason: Gone | Faulty) -> Gone | Faulty:
        """Returns what to raise, and keeps it, so that it counts even where test code catches everything."""
        self.over = self.over or reason
        return self.over

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request, and returns the answer to it.

        Raises:
            Gone: the program ended, took too long, or answered something else.
            Unanswered: it has no answer that can be sent.
        """
        if self.over is not None:
            raise self.over
        self.number += 1
        began = time.monotonic()
        line = to_line({"id": self.number, **request})
        if self.settings["count_assertions"]:
            self.asked.append(hash(line.partition(b",")[2]))
        self._send(line)
        answer = self.receive()
        self.seconds += time.monotonic() - began
        if "unanswered" in answer:
            self.unanswered = Unanswered(str(answer["unanswered"])[:200])
            raise self.unanswered
        return answer

    def receive(self) -> dict[str, Any]:
        """Returns the next answer, which must be the one that is waited for."""
        try:
            answer = from_line(self._line())
        except NotPlain as failure:
            raise self.end(Gone(f"the program sent {failure}")) from None
        if answer.get("id") != self.number:
            raise self.end(Gone("the program answered what it was not asked"))
        return answer

    def _send(self, content: bytes) -> None:
        while content:
            self._wait([], [self.settings["requests"]])
            try:
                content = content[os.write(self.settings["requests"], content) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self._closed()

    def _line(self) -> bytes:
        pieces = [self.buffer]
        size = len(self.buffer)
        while b"\n" not in pieces[-1]:
            self._wait([self.settings["replies"]], [])
            pieces.append(os.read(self.settings["replies"], _CHUNK))
            size += len(pieces[-1])
            if not pieces[-1]:
                self._closed()
            if size > self.settings["reply_bytes"]:
                raise self.end(Gone("the program returned too much data"))
        line, _, self.buffer = b"".join(pieces).partition(b"\n")
        return line

    def _closed(self) -> None:
        self.closed = True
        raise self.end(Gone("the program ended by itself"))

    def _wait(self, reading: list[int], writing: list[int]) -> None:
        while True:
            left = _QUICK if not self.started else None
            if self.deadline is not None:
                left = max(self.deadline - time.monotonic(), 0)
            ready, writable, _ = select.select([*reading, self.settings["clock"]], writing, [], left)
            if self.settings["clock"] in ready:
                self._time_is_over()
            elif ready or writable:
                return
            elif self.deadline is None:
                self._start_clock()
            else:
                raise self.end(Gone(f"it did not stand after {self.settings['start_seconds']:g} s"))

    def _start_clock(self) -> None:
        self.started = True
        os.write(self.settings["result"], b"%d\n" % self.test)

    def _time_is_over(self) -> None:
        """Ends the test that runs, or all; a word that comes late is for a test before it."""
        test, _, reason = (
            os.read(self.settings["clock"], _CHUNK).decode().rpartition("\n")[0].rpartition("\n")[2].partition(" ")
        )
        if test not in (str(self.test), "all"):
            return
        if self.settings["style"] != "input" or test == "all" or self.stopping:
            raise self.end(Gone(reason))
        # A whole program is killed by the process that forked it, and the other tests go on, unless that is gone, too.
        self.stopping = True
        self._send(to_line({"stop": reason}))
