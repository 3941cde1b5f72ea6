"""Checkpoints whose larger part is written beside the next steps: whole or absent, whatever comes between."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sppo.commands.train import train
from sppo.errors import TrainingError
from sppo.runs.checkpoint import require_whole
from sppo.runs.folder import read_metrics
from sppo.runs.progress import NoProgress
from sppo.update import moments
from sppo.verifiers.grading import Grader
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[2]
LIMIT = 60
"""Seconds after which what a test waits for isn't coming."""


def steps_of(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir() and not path.is_symlink())


def weights_and_moments(folder):
    places = sorted((folder / "checkpoints" / "last").rglob("*.safetensors"))
    return {(path.parent.name, name): tensor for path in places for name, tensor in load_file(path).items()}


def assert_same_run(one, two):
    mine, other = weights_and_moments(one), weights_and_moments(two)
    assert mine.keys() == other.keys()
    assert {"policy", "critic", "optimizers"} <= {place for place, _ in mine}
    assert all(torch.equal(other[name], tensor) for name, tensor in mine.items())


class Watched(NoProgress):
    """Calls a function at each step that is told."""

    def __init__(self, at_step):
        self.at_step = at_step

    def update(self, step, metrics):
        self.at_step(step)


def test_steps_go_on_while_a_checkpoint_is_written_of_the_state_before_them(tmp_path, monkeypatch):
    train(tiny_config(tmp_path / "usual", checkpoint__every=2))
    write, go_on, absent = moments._write, threading.Event(), []

    def waits(plan, tensors, folder):
        if "step_2" in str(folder):
            assert go_on.wait(LIMIT)
        write(plan, tensors, folder)

    def at_step(step):
        if step == 3:  # which is done, and moved the weights that step_2 is to hold as they were
            absent.append("step_2" not in steps_of(tmp_path / "slow"))
            go_on.set()

    monkeypatch.setattr(moments, "_write", waits)
    train(tiny_config(tmp_path / "slow", checkpoint__every=2, checkpoint__keep=5), progress=Watched(at_step))
    assert absent == [True]
    assert steps_of(tmp_path / "slow") == ["step_0", "step_2", "step_3"]
    for step in ("step_2", "step_3"):
        checkpoint = tmp_path / "slow" / "checkpoints" / step
        require_whole(checkpoint)
        for file in checkpoint.rglob("*.safetensors"):
            mine, other = load_file(file), load_file(tmp_path / "usual" / file.relative_to(tmp_path / "slow"))
            assert all(torch.equal(other[name], tensor) for name, tensor in mine.items()), file


@pytest.mark.parametrize("step", ["step_1", "step_3"])
def test_one_that_can_not_be_written_ends_the_run_and_is_absent(tmp_path, monkeypatch, step):
    write = moments._write

    def full(plan, tensors, folder):
        if step in str(folder):
            raise OSError(28, "No space left on device")
        write(plan, tensors, folder)

    monkeypatch.setattr(moments, "_write", full)
    with pytest.raises(TrainingError, match=f"{step} could not be written: .*No space left .* Earlier checkpoints are"):
        train(tiny_config(tmp_path / "run"))
    assert step not in steps_of(tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob(".step*"))
    assert not (tmp_path / "run" / "summary.json").exists()
    monkeypatch.undo()
    train(tiny_config(tmp_path / "run"), resume=True)
    train(tiny_config(tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_fails_meanwhile_still_has_its_checkpoint(tmp_path, monkeypatch):
    write = moments._write

    def slow(plan, tensors, folder):
        time.sleep(0.3)
        write(plan, tensors, folder)

    def at_step(step):
        if step == 2:
            raise TrainingError("the display fell over")

    monkeypatch.setattr(moments, "_write", slow)
    with pytest.raises(TrainingError, match="fell over"):
        train(tiny_config(tmp_path / "run"), progress=Watched(at_step))
    assert steps_of(tmp_path / "run")[-1] == "step_1"
    require_whole(tmp_path / "run" / "checkpoints" / "step_1")


def test_a_process_killed_while_it_writes_goes_on_from_the_one_before(tmp_path):
    program = f"""
import time
from pathlib import Path
from sppo.commands.train import train
from sppo.update import moments
from sppo.verifiers.grading import Grader
from tests.conftest import tiny_config
import torch
torch.set_num_threads(1)
write = moments._write
def stuck(plan, tensors, folder):
    if "step_2" in str(folder):
        Path({str(tmp_path / "stuck")!r}).touch()
        time.sleep({LIMIT})
    write(plan, tensors, folder)
moments._write = stuck
train(tiny_config(Path({str(tmp_path / "run")!r})))
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    began = time.monotonic()
    while not (tmp_path / "stuck").exists():
        assert process.poll() is None
        assert time.monotonic() - began < LIMIT
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert steps_of(tmp_path / "run")[-1] == "step_1"
    train(tiny_config(tmp_path / "run"), resume=True)
    train(tiny_config(tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2, 3]
    assert not list((tmp_path / "run" / "checkpoints").glob(".step*"))


@pytest.mark.parametrize("algorithm", ["sppo", "spo"])
def test_a_step_that_fails_while_it_samples_or_grades_leaves_the_one_before_it_saved(tmp_path, monkeypatch, algorithm):
    options = {"steps": 4, "checkpoint__every": 0, "algorithm__name": algorithm, "checkpoint__keep": 9}
    if algorithm == "spo":
        options |= {"critic__config": None, "data__options": {"prompts": 40}}
    grade, said = Grader.grade, []

    def fails(self, rollouts, **named):
        if len(rollouts) == 16 and any("step 3" in text for text in said):
            raise ZeroDivisionError("in a verifier")
        return grade(self, rollouts, **named)

    class Counts(NoProgress):
        def update(self, step, metrics):
            said.append(f"step {step + 1}")

        def message(self, text):
            said.append(text)

    monkeypatch.setattr(Grader, "grade", fails)
    with pytest.raises(ZeroDivisionError):
        train(tiny_config(tmp_path / "run", **options), progress=Counts())
    assert said[-1] == "Saved step 2, the last that was finished. --resume goes on from there."
    assert steps_of(tmp_path / "run") == ["step_0", "step_2"]
    monkeypatch.undo()
    train(tiny_config(tmp_path / "run", **options), resume=True)
    train(tiny_config(tmp_path / "whole", **options))
    mine, other = weights_and_moments(tmp_path / "whole"), weights_and_moments(tmp_path / "run")
    assert mine.keys() == other.keys()
    assert all(torch.equal(other[name], tensor) for name, tensor in mine.items())
