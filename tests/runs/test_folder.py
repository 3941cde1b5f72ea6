from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from sppo import __version__
from sppo.config import Config, ModelConfig, OptimizerConfig, to_dict
from sppo.config.compatibility import read_config
from sppo.errors import ConfigError, RunFolderError
from sppo.runs.folder import RunFolder, read_metrics, read_summary, require_new, require_resumable
from sppo.runs.progress import NoProgress, StopRequest
from sppo.runs.records import read_records
from tests.conftest import begun, files_of

OPTIONS = to_dict(Config(model=ModelConfig(path="some/model")))


def test_a_new_folder_holds_the_resolved_config(tmp_path):
    folder = begun(tmp_path / "run", OPTIONS)
    assert read_config(folder.path)["model"]["path"] == "some/model"
    assert read_metrics(folder.path) == []
    assert read_summary(folder.path) == {}


def test_an_existing_run_is_never_written_over(tmp_path):
    begun(tmp_path / "run", OPTIONS, step=0)
    with pytest.raises(RunFolderError, match=r"exists already. Add --resume .* or choose another folder with --output"):
        RunFolder.open(tmp_path / "run", OPTIONS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    with pytest.raises(RunFolderError, match="exists already"):
        require_new(tmp_path / "other")


def leave_everything(path):
    """What a run may leave that is killed while its first checkpoint is being written."""
    folder = begun(path, OPTIONS)
    (folder.checkpoints / ".step_0.tmp").mkdir(exist_ok=True)
    folder.append_metrics({"step": 0, "eval/accuracy": 0.5})
    with open(path / "metrics.jsonl", "a") as handle:
        handle.write('{"step"')
    (path / "tensorboard").mkdir(exist_ok=True)
    (path / "tensorboard" / "events").write_text("sent")
    (path / "rollouts").mkdir(exist_ok=True)
    (path / "rollouts" / ".step_000001.jsonl-12345678.tmp.zst").touch()
    (path / ".config-12345678.tmp.yaml").touch()
    (path / ".sppo-abc.tmp").mkdir(exist_ok=True)


def test_a_run_that_ended_before_its_first_checkpoint_is_made_anew(tmp_path):
    leave_everything(tmp_path / "run")
    begun(tmp_path / "run", {**OPTIONS, "seed": 1})
    assert read_config(tmp_path / "run")["seed"] == 1
    assert read_metrics(tmp_path / "run") == []
    leave_everything(tmp_path / "run")
    with RunFolder.open(tmp_path / "run", OPTIONS, resume=True) as folder:
        folder.begin()
    assert read_config(tmp_path / "run")["seed"] == 0
    # Starting over deletes no file of another program.
    assert (tmp_path / "run" / "tensorboard" / "events").read_text() == "sent"


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/mine/a.txt", "summary.json", "rollouts.jsonl"])
def test_what_is_not_of_a_run_that_never_started_stands_in_its_way(tmp_path, name):
    leave_everything(tmp_path / "run")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_text("{}\n")
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder.open(tmp_path / "run", OPTIONS)
    assert (tmp_path / "run" / name).read_text() == "{}\n"


def test_config_yaml_of_another_program_is_not_written_over(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: 1")
    for resume, said in ((False, "exists already"), (True, "holds no run to resume: .*checkpoints is missing")):
        with pytest.raises(RunFolderError, match=said):
            RunFolder.open(tmp_path, OPTIONS, resume=resume)
    assert files_of(tmp_path) == {"config.yaml": b"mine: 1"}


def test_metrics_and_records_without_a_checkpoint_are_not_thrown_away(tmp_path):
    folder = begun(tmp_path / "metrics", OPTIONS)
    folder.append_metrics({"step": 12})
    begun(tmp_path / "records", OPTIONS).write_records(1, [{"step": 1}])
    for name, has in (("metrics", "the metrics of 12 steps"), ("records", "records of responses")):
        before = files_of(tmp_path)
        with pytest.raises(RunFolderError, match="exists already"):
            RunFolder.open(tmp_path / name, OPTIONS)
        with pytest.raises(RunFolderError, match=f"has {has}, but no checkpoint to go on from"):
            RunFolder.open(tmp_path / name, OPTIONS, resume=True)
        assert files_of(tmp_path) == before


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="run is a file, not a folder"):
        require_new(tmp_path / "run")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(RunFolderError, match="cannot be made"):
            require_new(place)
    RunFolder.open(tmp_path / "new" / "run", OPTIONS).close()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_resuming_with_another_config_names_the_keys(tmp_path):
    begun(tmp_path / "run", OPTIONS, step=0)
    other = to_dict(Config(model=ModelConfig(path="some/model"), seed=1, optimizer=OptimizerConfig(learning_rate=1e-3)))
    with pytest.raises(RunFolderError, match=r"Different: optimizer.learning_rate: 1e-06 -> 0.001; seed: 0 -> 1"):
        require_resumable(tmp_path / "run", other)


def test_a_run_may_be_resumed_for_longer(tmp_path):
    begun(tmp_path / "run", OPTIONS, step=4)
    with RunFolder.open(tmp_path / "run", {**OPTIONS, "steps": OPTIONS["steps"] + 10}, resume=True) as folder:
        folder.begin(4)
    assert read_config(tmp_path / "run")["steps"] == OPTIONS["steps"] + 10


@pytest.mark.parametrize(
    ("changes", "version", "error", "said"),
    [
        ({"steps": 3}, __version__, ConfigError, "steps is 3, but the run is at step 4 already"),
        ({"seed": 5}, __version__, RunFolderError, "Different: seed: 0 -> 5"),
        ({"seed": 5}, None, RunFolderError, r"step_4 was written by sppo 0.1.0, .*Go on with sppo 0.1.0"),
    ],
)
def test_a_refused_resume_changes_nothing(tmp_path, changes, version, error, said):
    begun(tmp_path / "run", OPTIONS, step=4, version=version).append_metrics({"step": 5})
    before = files_of(tmp_path)
    with pytest.raises(error, match=said):
        RunFolder.open(tmp_path / "run", {**OPTIONS, **changes}, resume=True)
    # Whoever is refused later, by what the models say, has changed nothing either.
    RunFolder.open(tmp_path / "run", OPTIONS, resume=True).close() if version else None
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_is_refused_before_anything_is_loaded(tmp_path, resume):
    begun(tmp_path / "run", OPTIONS, step=0 if resume else None)
    with RunFolder.open(tmp_path / "run", OPTIONS, resume=resume):
        before = files_of(tmp_path)
        with pytest.raises(RunFolderError, match=f"Another process is writing to .*: process {os.getpid()} on "):
            RunFolder.open(tmp_path / "run", OPTIONS, resume=resume)
        assert files_of(tmp_path) == before
        assert read_metrics(tmp_path / "run") == []  # readers go on
    RunFolder.open(tmp_path / "run", OPTIONS, resume=resume).close()


def test_of_two_new_runs_the_second_to_begin_is_refused(tmp_path):
    first, second, third = (RunFolder.open(tmp_path / "run", OPTIONS) for _ in range(3))
    first.begin()
    with pytest.raises(RunFolderError, match="Another process is writing"):
        second.begin()
    first.append_metrics({"step": 1})
    first.close()
    with pytest.raises(RunFolderError, match="exists already"):
        third.begin()
    assert read_metrics(tmp_path / "run") == [{"step": 1}]


def test_nothing_to_resume(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        require_resumable(tmp_path / "run", OPTIONS)


def test_metrics_and_records_after_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    folder = begun(tmp_path / "run", OPTIONS, step=2)
    for step in range(4):
        folder.append_metrics({"step": step, "reward/mean": 0.5})
        folder.write_records(step, [{"step": step}])
    with open(folder.path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 4, "rew')
    assert [line["step"] for line in read_metrics(folder.path)] == [0, 1, 2, 3]
    with RunFolder.open(folder.path, OPTIONS, resume=True) as folder:
        assert [line["step"] for line in read_metrics(folder.path)] == [0, 1, 2, 3]
        folder.begin(2)
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    assert [record["step"] for record in read_records(folder.path)] == [0, 1, 2]


def test_a_full_disk_is_seen_before_training(tmp_path):
    folder = begun(tmp_path / "run", OPTIONS)
    with pytest.raises(RunFolderError, match=r"GB free, but the checkpoints to keep need about 1000000.0 GB"):
        folder.require_space(10**15)


def test_the_first_interrupt_asks_and_the_second_stops():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest(NoProgress()) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
