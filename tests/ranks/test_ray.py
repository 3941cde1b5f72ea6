"""`--launcher ray` on a cluster of this machine: run with `make test-ray`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from sppo.config.recipes import to_yaml
from sppo.runs.folder import read_metrics, read_summary
from sppo.runs.records import read_records
from tests.conftest import tiny_config
from tests.ranks.starting import COMMON, ROOT

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make test-ray"),
]
PATIENCE = 240.0
"""Seconds that anything here may take on a busy machine."""


def command(*arguments, workers=2):
    return [sys.executable, "-m", "sppo", *arguments, "--launcher", "ray", "--workers", str(workers)]


def start(folder, *arguments, **settings):
    """The command, its words in FOLDER/out and FOLDER/err."""
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen(
            command(*arguments, **settings), cwd=ROOT, env={**os.environ, **COMMON}, stdout=out, stderr=err
        )


def run(*arguments, environment=None, **settings):
    return subprocess.run(
        command(*arguments, **settings), cwd=ROOT, env={**os.environ, **COMMON, **(environment or {})},
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip


def recipe(folder, **options):
    folder.mkdir()
    path = folder / "run.yaml"
    path.write_text(to_yaml(tiny_config(folder / "run", evaluation__every=0, checkpoint__every=2, **options)))
    return str(path)


def wait_for(what, process, folder):
    """Returns what `what` gives once it gives something."""
    until = time.monotonic() + PATIENCE
    while not (given := what()):
        assert process.poll() is None, (folder / "err").read_text()
        assert time.monotonic() < until, (folder / "err").read_text()
        time.sleep(0.05)
    return given


def process_of(rank, path):
    """The process of a rank that runs a recipe; None where there is none."""
    for process in psutil.process_iter():
        try:
            if path in process.cmdline() and process.environ().get("RANK") == str(rank):
                return process
        except psutil.Error:
            continue
    return None


def steps_done(path):
    return max((line["step"] for line in read_metrics(Path(path).parent / "run")), default=0)


def left_behind(folder):
    """Responses, metrics but for times, and the weights and moments of all checkpoints, bit for bit."""
    records = [(record["step"], record["response_token_ids"]) for record in read_records(folder)]
    metrics = [
        {key: value for key, value in line.items() if not key.startswith(("time/", "throughput/"))}
        for line in read_metrics(folder)
    ]
    weights = {
        str(file.relative_to(folder)): {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}
        for file in sorted((folder / "checkpoints").glob("step_*/**/*.safetensors"))
    }
    assert records
    assert len(weights) > 1
    return records, metrics, weights


def test_a_run_whose_worker_is_killed_ends_as_if_nothing_had_happened(ranks, tmp_path):
    whole, broken = recipe(tmp_path / "whole", steps=6), recipe(tmp_path / "broken", steps=6)
    for ended in ranks.run(2, "sppo.cli", ["train", whole]):
        assert ended.code == 0, ended.said

    folder = tmp_path / "broken"
    job = start(folder, "train", broken)
    try:
        wait_for(lambda: steps_done(broken) >= 3, job, folder)
        process_of(1, broken).kill()  # in the midst of step 4, when step 2 was saved last
        wait_for(lambda: steps_done(broken) < 3, job, folder)
        wait_for(lambda: steps_done(broken) >= 3, job, folder)
        process_of(0, broken).parent().kill()  # Ray's own process, as where a machine is lost
        assert job.wait(PATIENCE) == 0, (folder / "err").read_text()
    finally:
        job.kill()
    said = (folder / "err").read_text()
    assert "error: rank 1 was ended by SIGKILL.\n" in said
    assert "Starting again from the last checkpoint (1 of at most 3 times)." in said
    assert "Starting again from the last checkpoint (2 of at most 3 times)." in said
    assert "Traceback" not in said
    assert f"Going on from {folder}/run/checkpoints/step_" in (folder / "out").read_text()
    assert read_summary(folder / "run")["steps"] == 6
    for mine, other in zip(left_behind(folder / "run"), left_behind(tmp_path / "whole" / "run"), strict=True):
        assert mine == other


@pytest.fixture(scope="module")
def address():
    """A cluster of two CPUs that jobs join."""
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def test_a_stop_saves_the_step(address, tmp_path):
    path, folder = recipe(tmp_path / "stopped", steps=500), tmp_path / "stopped"
    job = start(folder, "train", path, "--address", address)
    try:
        wait_for(lambda: steps_done(path) >= 1, job, folder)
        job.send_signal(signal.SIGINT)
        assert job.wait(PATIENCE) == 130, (folder / "err").read_text()
    finally:
        job.kill()
    done = steps_done(path)
    assert f"Saved step {done}. Go on with the same command and --resume." in (folder / "out").read_text()
    assert (folder / "run" / "checkpoints" / f"step_{done}").is_dir()
    assert process_of(0, path) is None
    assert process_of(1, path) is None


def test_a_mistake_is_told_once_and_ends_the_job(address, tmp_path):
    done = run("train", recipe(tmp_path / "odd"), "--steps", "-3", "--address", address, workers=1)
    assert done.returncode == 2
    assert done.stderr.count("steps is -3") == 1
    assert "Starting again" not in done.stderr
    assert "Traceback" not in done.stderr


def test_more_workers_than_there_are_places_for(address):
    short = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3"}
    done = run("train", "demo", "--address", address, workers=7, environment=short)
    assert done.returncode == 1
    assert "--workers 7: each needs a CPU; the cluster has 2 CPUs so far. Waiting 3 s for more." in done.stdout
    assert done.stderr.startswith("error: 7 workers did not start within 3 s;")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "There is no Ray cluster at 127.0.0.1:1: "),
        ("ray://head:10001", "must be auto or HOST:PORT, given on a machine of it"),
    ],
)
def test_no_cluster_at_an_address(address, said):
    done = run("train", "demo", "--address", address)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
