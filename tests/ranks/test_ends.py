"""How a run on several ranks is started, stopped and resumed, and how it ends when one of them fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from sppo.cli import main
from sppo.cli.launch import Launch
from sppo.cli.on_ray import cluster_share
from sppo.config.recipes import to_yaml
from sppo.errors import ConfigError
from sppo.runs.folder import read_metrics, read_summary
from sppo.runs.records import read_records
from tests.conftest import tiny_config
from tests.ranks.starting import ROOT

SECONDS = 30.0
"""Within which ranks end once one has failed, on a busy machine; they'd wait for days."""


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe whose run takes so many steps."""

    def write(name="run", **options):
        config = tiny_config(tmp_path / name, checkpoint__every=0, evaluation__every=0, **options)
        path = tmp_path / f"{name}.yaml"
        path.write_text(to_yaml(config))
        return str(path)

    return write


def meets(ranks, recipe, kind, rank=1, step=2, count=2):
    return ranks.run(count, "tests.ranks.faults", [str(rank), str(step), kind, "train", recipe])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("bug", "ZeroDivisionError: a mistake of the program"),
        ("hang others", "this rank alone found the batch odd"),
    ],
)
def test_a_rank_that_fails_ends_the_others_with_its_message(ranks, recipe, kind, said):
    main, failed, *others = meets(ranks, recipe(), kind, count=3)
    assert (said in failed.said) == (
        kind == "bug"
    )  # with its traceback; a mistake that can be mended the main one says
    assert f"error: rank 1 failed: {said}" in main.said
    for ended in (main, *others):
        assert ended.code not in (0, None)
        assert ended.at - failed.at < SECONDS
        assert "Traceback" not in ended.said


def test_a_mistake_that_every_rank_finds_is_told_once(ranks, recipe):
    said = "".join(ended.said for ended in ranks.run(2, "sppo.cli", ["train", recipe(), "--steps", "-3"]))
    assert said.count("steps is -3") == 1


def test_a_rank_that_is_killed_ends_the_others(ranks, recipe):
    main, killed = meets(ranks, recipe(), "kill")
    assert killed.code == -9
    assert main.code == 2
    assert "another rank ended without a word" in main.said
    assert main.at - killed.at < SECONDS


@pytest.mark.parametrize(("kind", "rank"), [("int", 1), ("term", 0)])
def test_a_stop_of_one_rank_saves_the_step_on_all(ranks, recipe, tmp_path, kind, rank):
    path = recipe(steps=5)
    for ended in meets(ranks, path, kind, rank=rank):
        assert ended.code == 130, ended.said
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2]
    assert {place.name for place in (tmp_path / "run" / "checkpoints").glob("step_*")} == {"step_0", "step_2"}
    assert [ended.code for ended in ranks.run(2, "sppo.cli", ["train", path, "--resume"])] == [0, 0]
    assert read_summary(tmp_path / "run")["steps"] == 5


def test_a_run_goes_on_with_other_numbers_of_ranks(ranks, recipe, tmp_path):
    options = {"critic__history": True, "critic__prefit__samples": 16, "selection__name": "sqrt"}
    whole, parts = recipe("whole", steps=8, **options), recipe("parts", steps=8, **options)
    assert ranks.run(1, "sppo.cli", ["train", whole])[0].code == 0
    for number, count in enumerate((1, 2, 3, 1), start=1):
        extra = ["--steps", str(2 * number), *(["--resume"] if number > 1 else [])]
        for ended in ranks.run(count, "sppo.cli", ["train", parts, *extra]):
            assert ended.code == 0, ended.said
    mine, other = (list(read_records(tmp_path / name)) for name in ("whole", "parts"))
    assert [record["response_token_ids"] for record in other] == [record["response_token_ids"] for record in mine]
    for one, two in zip(read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts"), strict=True):
        for key in ("policy/loss", "policy/grad_norm", "critic/loss", "critic/grad_norm"):
            # Where a gradient is rounding, AdamW's step is as large as elsewhere.
            known = pytest.approx(one.get(key, 0.0), rel=1e-3, abs=1e-6)
            assert two.get(key, 0.0) == known, f"{key} of step {one['step']}"


def test_the_command_line_starts_its_own_ranks(recipe, tmp_path):
    command = [sys.executable, "-m", "sppo", "train", recipe(), "--launcher", "torchrun", "--nproc-per-node", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Held-out accuracy, before and after") == 1
    assert read_summary(tmp_path / "run")["steps"] == 3
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert again.returncode == 2
    assert len(re.findall("exists already", again.stderr)) == 1
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["train", "demo", "--launcher", "slurm"],
            "--launcher is 'slurm', which is no launcher. Known: ray, torchrun.",
        ),
        (["train", "demo", "--nproc-per-node", "2"], "--nproc-per-node is for --launcher torchrun"),
        (["train", "demo", "--launcher=torchrun", "--nproc_per_node=0"], "must be a number of processes, 1 or more"),
        (["train", "demo", "--workers", "2"], "--workers is for --launcher ray; --launcher is not given."),
        (
            ["train", "demo", "--launcher", "torchrun", "--workers", "2"],
            "--workers is for --launcher ray; --launcher is torchrun, which has --nproc-per-node N.",
        ),
        (["train", "demo", "--launcher", "ray", "--gpus-per-worker", "2"], "must be a number of GPUs, 0 or 1"),
        (["train", "demo", "--launcher", "ray", "--max-failures", "-1"], "must be a number of restarts, 0 or more"),
        (["recipes", "--launcher", "ray"], "sppo recipes runs in one process"),
        (["train", "demo", "--launcher"], "--launcher needs a value"),
        (["recipes", "--launcher", "torchrun"], "sppo recipes runs in one process"),
    ],
)
def test_what_cannot_be_launched_is_refused(arguments, said):
    done = subprocess.run([sys.executable, "-m", "sppo", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_launcher_that_is_not_installed():
    command = [sys.executable, "-m", "sppo", "train", "demo", "--launcher", "ray"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--launcher ray needs Ray, which is not installed: pip install 'sppo[ray]'." in done.stderr


@pytest.mark.parametrize(
    ("has", "launch", "size"),
    [
        ({"CPU": 16.0, "GPU": 8.0}, Launch("ray", []), (8, 1)),
        ({"CPU": 16.0, "GPU": 8.0}, Launch("ray", [], processes=4, gpus_per_worker=0), (4, 0)),
        ({"CPU": 16.0}, Launch("ray", [], processes=2), (2, 0)),
        ({"CPU": 16.0}, Launch("ray", []), "no GPU to count: say how many workers with --workers N"),
        (
            {"CPU": 2.0},
            Launch("ray", [], processes=3, gpus_per_worker=1),
            "--workers 3: each needs a CPU and a GPU, but this machine has 2 CPUs and 0 GPUs.",
        ),
    ],
)
def test_how_many_workers_a_cluster_is_asked_for(has, launch, size):
    if isinstance(size, str):
        with pytest.raises(ConfigError, match=re.escape(size)):
            cluster_share(has, launch, "local")
    else:
        assert cluster_share(has, launch, "local") == size


@pytest.mark.parametrize("mine", [True, False])
def test_a_command_that_its_launcher_starts_again_goes_on_with_its_own_run_alone(recipe, tmp_path, monkeypatch, mine):
    path = recipe(steps=2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one launch")
    assert main(["train", path]) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    if not mine:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another launch")
    assert main(["train", path, "--steps", "3"]) == (0 if mine else 2)
    assert read_summary(tmp_path / "run")["steps"] == (3 if mine else 2)


def test_measuring_on_ranks_gives_what_one_process_gives(ranks, recipe, tmp_path):
    run = str(tmp_path / "run")
    assert ranks.run(1, "sppo.cli", ["train", recipe()])[0].code == 0
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"{n}+1=", "answer": str(n + 1)}) + "\n" for n in range(5)))
    commands = {
        "held out": ["eval", run],
        "benchmark": ["eval", run, "--benchmarks", f"math500={problems}", "-n", "2", "--max_response_tokens", "9"],
        "calibration": ["calibrate", run, "--prompts", "6", "--samples_per_prompt", "3", "--anew"],
    }
    for name, command in commands.items():
        results = []
        for count in (1, 2):
            file = tmp_path / f"{name} {count}.json"
            if name == "benchmark":
                command = [*command, "--output", str(tmp_path / f"benchmark {count}")]
            for ended in ranks.run(count, "sppo.cli", [*command, "--json", str(file)]):
                assert ended.code == 0, ended.said
            results.append(file.read_text().replace(f"benchmark {count}", "benchmark"))
        assert results[1] == results[0], name


def test_a_program_of_python_may_do_several_things_on_ranks(ranks, recipe, tmp_path):
    for ended in ranks.run(2, "tests.ranks.program", [recipe("first"), recipe("second")]):
        assert ended.code == 0, ended.said
    for name in ("first", "second"):
        assert read_summary(tmp_path / name)["steps"] == 3
        assert (tmp_path / name / "curves.png").is_file()
