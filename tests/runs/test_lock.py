"""One process at a time writes a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from sppo.errors import RunFolderError
from sppo.runs.lock import lock

HOLDS = "import sys, pathlib; from sppo.runs.lock import lock; held = lock(pathlib.Path(sys.argv[1]), print); "
"""Start of a program that takes the lock of the folder that it is given."""
WAITS = "import time; print('held', flush=True); time.sleep(600)"


def silent(text):
    pytest.fail(f"said {text!r}")


@pytest.fixture
def start():
    """Starts a program that prints a line once it holds the lock; it is killed when the test ends."""
    started = []

    def begin(program, folder):
        arguments = [sys.executable, "-c", HOLDS + program, str(folder), "--steps", "5"]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, "the program ended without holding the lock"
        return process, said

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_who_holds_it(tmp_path, start):
    process, _ = start(f"held.__enter__(); {WAITS}", tmp_path / "run")
    who = rf"Another process is writing to .*run: process {process.pid} on {socket.gethostname()} since 20\d\d-.*"
    with pytest.raises(RunFolderError, match=who + "--steps 5. Wait"), lock(tmp_path / "run", silent):
        pass
    # Being refused takes nothing from the holder.
    with pytest.raises(RunFolderError, match=str(process.pid)), lock(tmp_path / "run", silent):
        pass


def test_a_killed_process_blocks_nobody(tmp_path, start):
    process, _ = start(f"held.__enter__(); {WAITS}", tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock(tmp_path, silent):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    with lock(tmp_path, silent):
        pass


def test_a_child_that_outlives_its_parent_does_not_hold_it(tmp_path, start):
    forks = (
        "import os, time; held.__enter__(); here, there = os.pipe(); child = os.fork()\n"
        "if child == 0: os.write(there, b'x'); time.sleep(600)\n"  # once it has let go of what it was born with
        "os.read(here, 1); print(child, flush=True); time.sleep(600)"
    )
    process, child = start(forks, tmp_path)
    try:
        with pytest.raises(RunFolderError, match="Another process"), lock(tmp_path, silent):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock(tmp_path, silent):
            os.kill(int(child), 0)
    finally:
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch, code):
    def none(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    said = []
    with lock(tmp_path / "run", said.append):
        assert said == [
            f"{tmp_path / 'run'} cannot be locked ({os.strerror(code)}): make sure that no other process writes to it."
        ]


def test_a_platform_without_locks_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    said = []
    with lock(tmp_path, said.append):
        assert len(said) == 1


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (
            {"pid": 1, "host": "\x1b[2J\u202e", "since": "s", "command": "c" * 1000},
            r"process 1 on \?\[2J\? since s, c{200}\.{4} Wait",
        ),
        ({"pid": 1}, r"run\. Wait"),
        ([], r"run\. Wait"),
        (None, r"run\. Wait"),
    ],
)
def test_what_somebody_else_wrote_into_the_lock_is_shown_harmlessly(tmp_path, found, shown):
    run = tmp_path / "run"
    run.mkdir()
    with open(run / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write("" if found is None else json.dumps(found))
        handle.flush()
        with pytest.raises(RunFolderError, match=shown), lock(run, silent):
            pass


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunFolderError, match="leads out of"), lock(tmp_path / "run", silent):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts", "checkpoints/step_1", "deep/er/file"])
def test_nothing_is_written_through_a_link_out_of_a_folder(tmp_path, name):
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for target in (tmp_path / "elsewhere", tmp_path / "not there yet"):
        link.symlink_to(target)
        said = rf"{re.escape(str(link))} is a link that leads out of .*run, to {re.escape(str(target))}"
        with pytest.raises(RunFolderError, match=said), lock(tmp_path / "run", print):
            pass
        link.unlink()
    (tmp_path / "run" / "best").symlink_to("deep")
    (tmp_path / "run" / "wandb").mkdir()
    (tmp_path / "run" / "wandb" / "debug.log").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "again").symlink_to(tmp_path / "run")  # the folder itself may be anywhere
    with lock(tmp_path / "again", print):
        pass


def test_nor_through_one_above_a_folder_within_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("steps: 1\n")
    (tmp_path / "run" / "calibration").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "big").symlink_to(tmp_path / "elsewhere")  # which this doesn't write to
    said = rf"run/calibration is a link that leads out of .*run, to {tmp_path / 'elsewhere'}"
    with pytest.raises(RunFolderError, match=said), lock(tmp_path / "run" / "calibration" / "step_1", print):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []
    with lock(tmp_path / "run" / "evaluations" / "step_1", print):
        pass
