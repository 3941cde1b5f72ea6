from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from sppo.config import Config, ModelConfig, OptimizerConfig
from sppo.config.compatibility import read_config
from sppo.errors import RunFolderError
from sppo.runs.files import gigabytes, write_atomically
from sppo.runs.folder import RunFolder, read_metrics, read_summary
from sppo.runs.progress import NoProgress, StopRequest
from sppo.runs.seeds import derive_seed


def config_at(path) -> Config:
    return Config(output=str(path), model=ModelConfig(path="some/model"))


def test_a_new_folder_holds_the_resolved_config(tmp_path):
    folder = RunFolder.create(config_at(tmp_path / "run"))
    assert read_config(folder.path)["model"]["path"] == "some/model"
    assert read_metrics(folder.path) == []
    assert read_summary(folder.path) == {}


def test_an_existing_run_is_never_written_over(tmp_path):
    folder = RunFolder.create(config_at(tmp_path / "run"))
    (folder.checkpoints / "step_0").mkdir()
    with pytest.raises(RunFolderError, match=r"exists already. Add --resume .* or choose another folder with --output"):
        RunFolder.create(config_at(tmp_path / "run"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder.require_new(config_at(tmp_path / "other"))


def test_a_run_that_ended_before_its_first_checkpoint_is_made_anew(tmp_path):
    config = config_at(tmp_path / "run")
    folder = RunFolder.create(config)
    (folder.checkpoints / ".step_0.tmp").mkdir()
    other = replace(config, seed=1)
    RunFolder.create(other)
    assert read_config(folder.path)["seed"] == 1
    RunFolder.reopen(config)
    assert read_config(folder.path)["seed"] == 0


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="run is a file, not a folder"):
        RunFolder.require_new(config_at(tmp_path / "run"))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(RunFolderError, match="cannot be made"):
            RunFolder.require_new(config_at(place))
    RunFolder.require_new(config_at(tmp_path / "new" / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_resuming_with_another_config_names_the_keys(tmp_path):
    config = config_at(tmp_path / "run")
    (RunFolder.create(config).checkpoints / "step_0").mkdir()
    other = replace(config, seed=1, optimizer=OptimizerConfig(learning_rate=1e-3))
    with pytest.raises(RunFolderError, match=r"Different: optimizer.learning_rate: 1e-06 -> 0.001; seed: 0 -> 1"):
        RunFolder.reopen(other)


def test_a_run_may_be_resumed_for_longer(tmp_path):
    config = config_at(tmp_path / "run")
    RunFolder.create(config)
    RunFolder.reopen(replace(config, steps=config.steps + 10))
    assert read_config(tmp_path / "run")["steps"] == config.steps + 10


def test_nothing_to_resume(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        RunFolder.reopen(config_at(tmp_path / "run"))


def test_lines_after_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    folder = RunFolder.create(config_at(tmp_path / "run"))
    for step in range(4):
        folder.append_metrics({"step": step, "reward/mean": 0.5})
    with open(folder.path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 4, "rew')
    assert [line["step"] for line in read_metrics(folder.path)] == [0, 1, 2, 3]
    folder.forget_after(2)
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]


def test_line_separators_inside_a_response_do_not_break_a_line(tmp_path):
    folder = RunFolder.create(config_at(tmp_path / "run"))
    folder.append_rollouts({"step": step, "response": "a\u2028b\u0085c"} for step in (1, 2))
    folder.forget_after(1)
    lines = (folder.path / "rollouts.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["step"] for line in lines if line] == [1]


def test_a_file_is_whole_or_as_before(tmp_path):
    target = tmp_path / "summary.json"
    target.write_text("old")

    def fails(path):
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fails)
    assert target.read_text() == "old"


def test_a_full_disk_is_seen_before_training(tmp_path):
    folder = RunFolder.create(config_at(tmp_path / "run"))
    with pytest.raises(RunFolderError, match=r"GB free, but the checkpoints to keep need about 1000000.0 GB"):
        folder.require_space(10**15)


def test_bytes_as_people_read_them():
    assert [gigabytes(n) for n in (1.5e6, 99e6, 1e8, 2.34e10)] == ["1.5 MB", "99.0 MB", "0.1 GB", "23.4 GB"]


def test_seeds_differ_by_purpose_step_and_seed():
    seeds = {derive_seed(s, p, n) for s in (0, 1) for p in ("data", "sampling") for n in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "data", 1) == derive_seed(0, "data", 1)


def test_the_first_interrupt_asks_and_the_second_stops():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest(NoProgress()) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
