"""N steps, kill -9, M steps give the same bits as N + M steps."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sppo.cli import main
from sppo.commands.plan import plan
from sppo.commands.train import train
from sppo.config.recipes import to_yaml
from sppo.critics.models import PromptCritic
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import RunFolderError, TrainingError
from sppo.models.loading import read_tokenizer
from sppo.models.tokenizers import character_tokenizer
from sppo.runs import checkpoint as checkpoint_files
from sppo.runs.checkpoint import find_checkpoint
from sppo.runs.folder import read_metrics
from sppo.runs.generators import restore_random_state
from sppo.runs.progress import NoProgress
from sppo.runs.records import read_records
from sppo.training.build import build, opening
from sppo.training.given import Given
from sppo.update.moments import load_optimizers
from tests.conftest import tiny_config
from tests.runs.test_generators import Evil, old_random_state

STEPS = 6


# A thread of the run itself is there in time, however slowly another process would be scheduled.
KILLED = """
import os, signal, sys, threading, time
from sppo.cli import main
def kill():
    while not os.path.isdir(sys.argv[2]): time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
main(["train", sys.argv[1]])
"""


def prompts_of(folder):
    records = read_records(folder)
    return [(record["step"], record["prompt_id"], record["response_token_ids"]) for record in records]


def kill_in_mid_run(config, tmp_path):
    """Runs it in a process that kills itself once step 2 is saved, wherever it is; returns the newest whole step."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(config))
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(recipe), str(folder / "checkpoints" / "step_2")]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    found = find_checkpoint(folder)
    assert found is not None
    return int(found.name.removeprefix("step_"))


EVERYTHING = {
    "selection__name": "sqrt", "critic__prefit__samples": 16, "critic__history": True, "critic__recalibrate": True,
    "critic__members": 2, "critic__share": 0.5, "sampling__adaptive_share": 0.25, "algorithm__negative_share": 0.5,
    "optimizer__learning_rate_warmup": 3, "optimizer__learning_rate_decay": "cosine",
}  # fmt: skip
"""Every state that a run of SPPO can carry from step to step."""


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["as published", "with all that a critic can be"])
def test_kill_9_and_resume_is_bit_equal_to_an_uninterrupted_run(tmp_path, options):
    steps = 20
    whole = tiny_config(tmp_path / "whole", steps=steps, checkpoint__every=2, **options)
    train(whole)
    config = tiny_config(tmp_path / "killed", steps=steps, checkpoint__every=2, **options)
    step = kill_in_mid_run(config, tmp_path)
    assert 2 <= step < steps
    # What a process killed while saving leaves behind: it must never be taken for a checkpoint.
    half = tmp_path / "killed" / "checkpoints" / f".step_{steps - 1}.tmp"
    half.mkdir()
    (half / "state.json").write_text("{")
    train(config, resume=True)
    assert not half.exists()
    saved = sorted((tmp_path / "whole" / "checkpoints" / "last").rglob("*/*.safetensors"))
    assert len(saved) == (7 if options else 4)  # the second critic, and history
    for path in saved:
        part = path.relative_to(tmp_path / "whole" / "checkpoints" / "last")
        left, right = (load_file(tmp_path / run / "checkpoints" / "last" / part) for run in ("whole", "killed"))
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name]), f"{part}: {name}"
    assert prompts_of(tmp_path / "whole") == prompts_of(tmp_path / "killed")
    same = [
        [
            {k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))}
            for line in read_metrics(tmp_path / run)
        ]
        for run in ("whole", "killed")
    ]
    assert same[0] == same[1]


def test_optimizer_states_and_generators_come_back(tmp_path):
    train(tiny_config(tmp_path / "whole", steps=4))
    train(tiny_config(tmp_path / "parts", steps=2))
    train(tiny_config(tmp_path / "parts", steps=4), resume=True)
    assert_same_moments(tmp_path / "whole", tmp_path / "parts")


def assert_same_moments(one, two):
    left, right = (run / "checkpoints" / "last" / "optimizers" for run in (one, two))
    assert (left / "optimizers.json").read_text() == (right / "optimizers.json").read_text()
    (mine,), (other,) = (list(folder.glob("*.safetensors")) for folder in (left, right))
    tensors, others = load_file(mine), load_file(other)
    assert tensors.keys() == others.keys()
    assert {name.split(".")[0] for name in tensors} == {"policy", "critic"}
    assert all(torch.equal(others[name], tensor) for name, tensor in tensors.items())


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    train(tiny_config(tmp_path / "whole", steps=4))
    config = tiny_config(tmp_path / "parts", steps=2)
    train(config)
    checkpoint = find_checkpoint(tmp_path / "parts")
    parts = build(config, Given(), checkpoint)
    load_optimizers(parts.optimizers, checkpoint)
    torch.save({name: o.state_dict() for name, o in parts.optimizers.items()}, checkpoint / "optimizers.pt")
    shutil.rmtree(checkpoint / "optimizers")
    restore_random_state(checkpoint)
    torch.save(old_random_state(), checkpoint / "random.pt")
    for name in ("random.json", "random.safetensors"):
        (checkpoint / name).unlink()
    (checkpoint / "checksums.json").unlink()
    train(tiny_config(tmp_path / "parts", steps=4), resume=True)
    assert_same_moments(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    "name", ["policy/model.safetensors", "critic/value_head.safetensors", "random.safetensors", "optimizers"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it(tmp_path, name):
    train(tiny_config(tmp_path / "run", steps=2))
    checkpoint = find_checkpoint(tmp_path / "run")
    file = next((checkpoint / name).glob("*.safetensors")) if name == "optimizers" else checkpoint / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunFolderError, match=rf"{file.name} is damaged. Go on from the one before: --resume step_1\."):
        train(tiny_config(tmp_path / "run", steps=3), resume=True)
    file.unlink()
    with pytest.raises(RunFolderError, match=rf"{file.name} is missing"):
        train(tiny_config(tmp_path / "run", steps=3), resume=True)
    shutil.rmtree(checkpoint)
    assert train(tiny_config(tmp_path / "run", steps=3), resume=True)["steps"] == 3


def test_optimisers_of_somebody_else_run_no_code(tmp_path):
    train(tiny_config(tmp_path / "run", steps=1))
    checkpoint = find_checkpoint(tmp_path / "run")
    (checkpoint / "checksums.json").unlink()
    for name in (".metadata", "__0_0.distcp", "optimizers.json.pkl"):
        (checkpoint / "optimizers" / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran"), 2))
    assert train(tiny_config(tmp_path / "run", steps=2), resume=True)["steps"] == 2
    checkpoint = find_checkpoint(tmp_path / "run")
    (checkpoint / "checksums.json").unlink()
    for file in (checkpoint / "optimizers").glob("*.safetensors"):
        file.write_bytes(pickle.dumps(Evil(tmp_path / "ran"), 2))
    with pytest.raises(RunFolderError, match="optimizers can't be read"):
        train(tiny_config(tmp_path / "run", steps=3), resume=True)
    assert not (tmp_path / "ran").exists()


def test_another_config_is_refused_with_the_keys(tmp_path):
    train(tiny_config(tmp_path / "run", steps=1))
    with pytest.raises(RunFolderError, match=r"Different: optimizer.learning_rate: 0.0003 -> 0.1"):
        train(tiny_config(tmp_path / "run", steps=2, optimizer__learning_rate=0.1), resume=True)


def test_a_disk_that_fills_up_under_the_weights_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PromptCritic, "save_pretrained", full)
    with pytest.raises(TrainingError, match=r"step_0 could not be written: .*No space left"):
        train(tiny_config(tmp_path / "run"))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_disk_that_fills_up_loses_no_earlier_checkpoint(tmp_path, monkeypatch):
    real_save, calls = checkpoint_files.save_random_state, []

    def full_at_the_second_checkpoint(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:  # one file a checkpoint
            raise OSError(28, "No space left on device")
        real_save(*args, **kwargs)

    monkeypatch.setattr(checkpoint_files, "save_random_state", full_at_the_second_checkpoint)
    with pytest.raises(TrainingError, match=r"step_1 could not be written: .*No space left.*--resume"):
        train(tiny_config(tmp_path / "run"))
    monkeypatch.undo()
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best", "last", "step_0"]
    assert train(tiny_config(tmp_path / "run"), resume=True)["steps"] == 3


@pytest.mark.parametrize("content", [None, b"", b'{"step": 2'])
@pytest.mark.parametrize("name", ["state.json", "checksums.json", "optimizers/optimizers.json"])
def test_a_truncated_file_is_named_before_anything_is_loaded(tmp_path, monkeypatch, name, content):
    train(tiny_config(tmp_path / "run", steps=2))
    file = find_checkpoint(tmp_path / "run") / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    monkeypatch.setattr(opening, "build", lambda *given, **named: pytest.fail("it was built"))
    if name == "checksums.json" and content is None:
        return  # as versions up to 0.3.0 left it
    with pytest.raises(RunFolderError, match=rf"{file.name} is (missing|damaged)\. .* --resume step_1\."):
        train(tiny_config(tmp_path / "run", steps=3), resume=True)


@pytest.mark.parametrize("broken", [b"\0" * 300 + b"\n", b'{"step": 1, "rew\n', b"[]\n", b"{}\n"])
def test_a_broken_line_of_metrics_does_not_keep_a_run_from_going_on(tmp_path, broken):
    train(tiny_config(tmp_path / "run", steps=2))
    file = tmp_path / "run" / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + broken + lines[2])
    said = []

    class Listens(NoProgress):
        def message(self, text):
            said.append(text)

    train(tiny_config(tmp_path / "run", steps=3), resume=True, progress=Listens())
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 2, 3]
    assert any("metrics.jsonl lacks 1 of its steps" in text for text in said)
    assert file.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "Python could not allocate"),
        (RuntimeError("[enforce fail] can't allocate memory: 9"), "enforce"),
    ],
)
def test_memory_of_the_machine_that_is_full_is_said_in_a_line(tmp_path, monkeypatch, error, said):
    def full(*given, **named):
        raise error

    monkeypatch.setattr("sppo.training.loop.train", full)
    with pytest.raises(
        TrainingError, match=f"This machine's memory is full: .*{said}.* Lower optimizer.tokens_per_mic"
    ):
        train(tiny_config(tmp_path / "run"))


def test_a_run_goes_on_from_the_checkpoint_that_is_named(tmp_path):
    config, said = tiny_config(tmp_path / "run", checkpoint__keep=5), []
    train(config)
    (tmp_path / "run" / "checkpoints" / "step_2" / "policy" / "model.safetensors").write_bytes(b"lost")

    class Listens(NoProgress):
        def message(self, text):
            said.append(text)

    with pytest.raises(RunFolderError, match=r"has no checkpoint 'step_9'. There are: step_0, step_1, step_2, step_3"):
        train(config, resume="step_9")
    with pytest.raises(RunFolderError, match=r"safetensors is damaged. Go on from the one before: --resume step_1\."):
        train(config, resume="step_2")
    train(config, resume="step_1", progress=Listens())
    assert [text for text in said if "set_aside_step_2 is of a later step" in text]
    there = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    steps = {f"step_{step}" for step in range(4)}
    assert there == {*steps, "set_aside_step_2", "set_aside_step_3", "last", "best"}
    train(config, resume="step_1")
    assert (tmp_path / "run" / "checkpoints" / "set_aside_step_2_2").is_dir()
    train(tiny_config(tmp_path / "whole"))
    assert_same_moments(tmp_path / "whole", tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2, 3]


@pytest.mark.parametrize("words", [["--resume", "step_1"], ["--resume=step_1"]])
def test_the_command_line_names_the_checkpoint_too(tmp_path, capsys, words):
    config = tiny_config(tmp_path / "run", steps=2)
    train(config)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(config), encoding="utf-8")
    assert main(["train", str(recipe), *words]) == 0
    assert "step_1" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "set_aside_step_2").is_dir()
    assert main(["train", str(recipe), "--resume=five"]) == 2
    assert "--resume is 'five', but names a checkpoint of the run" in capsys.readouterr().err


def test_the_tokenizer_is_the_same_after_going_on(tmp_path):
    """Of a tokenizer of no model's own class, transformers would make one of the model's, with another normalizer."""
    train(tiny_config(tmp_path / "run", steps=1))
    train(tiny_config(tmp_path / "run", steps=2), resume=True)
    first, last = (tmp_path / "run" / "checkpoints" / f"step_{step}" / "policy" for step in (0, 2))
    assert (last / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    tokenizer = read_tokenizer(str(last), "model.path")
    assert tokenizer("7 +1").input_ids == character_tokenizer(ALPHABET)("7 +1").input_ids


def test_a_plan_says_from_where_a_run_would_go_on(tmp_path):
    config = tiny_config(tmp_path / "run", steps=2)
    train(config)
    rows = dict(plan(tiny_config(tmp_path / "run", steps=5), resume="step_1").rows)
    assert rows["run folder"] == f"{tmp_path / 'run'}, going on from step_1: 4 steps are left"
