"""`python -m sppo.cli.rank COMMAND ...`: the command line as one rank, which ends with the process that started it.

Whoever started it keeps its standard input open; the operating system closes that as the starter ends, however it does.
A rank that went on alone would keep the run folder and the GPU from the one that takes its place.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def _follow_starter() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_follow_starter, daemon=True, name="sppo starter").start()
    from sppo.cli import main

    sys.argv[0] = "sppo"
    sys.exit(main())
