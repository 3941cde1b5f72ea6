"""Runs that are asked to stop, by signals and by the clock: the step is finished, saved, and goes on to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppo.commands.train import train
from sppo.runs.folder import read_metrics
from sppo.runs.progress import STOPS, Clock, NoProgress, StopRequest
from tests.conftest import tiny_config
from tests.training.test_saving import assert_same_run, steps_of

ROOT = Path(__file__).parents[2]
FEW = {"steps": 4, "checkpoint__every": 0, "checkpoint__keep": 9}


class Sends(NoProgress):
    """Sends this process a signal in a step."""

    def __init__(self, number):
        self.number = number
        self.said = []

    def update(self, step, metrics):
        if step == 2 and "reward/mean" in metrics and self.number is not None:
            os.kill(os.getpid(), self.number)

    def message(self, text):
        self.said.append(text)


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Signals as a shell leaves them, also where the tests were started with nohup or in the background of a script."""
    usual = {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, usual.get(number, signal.SIG_DFL)) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_config(folder, **FEW))
    return folder


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_finishes_the_step_and_saves_it(tmp_path, whole, number):
    config, progress = tiny_config(tmp_path / "run", **FEW), Sends(number)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=progress)
    assert steps_of(tmp_path / "run") == ["step_0", "step_2"]
    assert progress.said[-1] == "Saved step 2. Go on with the same command and --resume."
    train(config, resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_a_signal_that_is_to_be_ignored_is(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest(NoProgress()) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_end_of_the_terminal_leaves_verifiers_to_grade_the_last_step(tmp_path):
    """All processes of a terminal are sent the same signal, as its end or Ctrl-C does."""
    program = f"""
import os, signal, sys
from pathlib import Path
from sppo.commands.train import train
from sppo.runs.progress import NoProgress
from tests.conftest import tiny_config
import torch
torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
class Ends(NoProgress):
    def update(self, step, metrics):
        if step == 1 and "reward/mean" in metrics:
            os.killpg(0, signal.SIGHUP)
try:
    train(tiny_config(Path({str(tmp_path / "run")!r}), data__verifier="math", **{FEW!r}), progress=Ends())
except KeyboardInterrupt:
    sys.exit(42)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, start_new_session=True, timeout=120, check=False)
    assert ended.returncode == 42
    assert steps_of(tmp_path / "run") == ["step_0", "step_1"]
    assert not any(line.get("reward/error_share") for line in read_metrics(tmp_path / "run"))


def test_max_hours_stops_saved_before_the_step_that_would_end_too_late(tmp_path, whole):
    config, progress = tiny_config(tmp_path / "run", max_hours=1e-9, **FEW), Sends(None)
    for step in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            train(config, resume=step > 1, progress=progress)
        assert steps_of(tmp_path / "run")[-1] == f"step_{step}"
        assert progress.said[-1].startswith(f"max_hours leaves no time for another step. Saved step {step}.")
    train(tiny_config(tmp_path / "run", max_hours=1.0, **FEW), resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_a_clock_counts_the_longest_step_and_checkpoint(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("sppo.runs.progress.time.monotonic", lambda: now[0])
    clock = Clock(save_every=60, limit=1000, began=100.0)
    now[0] = 400.0  # loading, and what comes before the first step
    clock.begin()
    for seconds in (200, 150):
        now[0] += seconds
        clock.step_ended()
    assert clock.save_is_due
    assert not clock.is_over  # at 650 of 1,000 s, and a step takes 200
    clock.save_began()
    assert not clock.save_is_due
    clock.save_took(151)
    assert clock.is_over
    assert not Clock(save_every=0, limit=None, began=0.0).is_over


def test_checkpoints_by_minutes_measure_nothing_and_change_nothing(tmp_path, whole):
    train(tiny_config(tmp_path / "run", checkpoint__minutes=1e-9, evaluation__every=0, **FEW))
    assert steps_of(tmp_path / "run") == ["step_0", "step_1", "step_2", "step_3", "step_4"]
    measured = [line["step"] for line in read_metrics(tmp_path / "run") if "eval/accuracy" in line]
    assert measured == [0, 4]
    assert_same_run(whole, tmp_path / "run")
