"""What the critic learns before the first step: here, or in a folder of its own that several runs take up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from sppo.commands.train import prefit, train
from sppo.errors import ConfigError, RunFolderError
from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records
from tests.conftest import tiny_config


def weights(folder: Path, step: int, part: str) -> torch.Tensor:
    kind = AutoModelForCausalLM if part == "policy" else AutoModel
    return kind.from_pretrained(folder / "checkpoints" / f"step_{step}" / part).get_input_embeddings().weight


def test_before_the_first_step_the_critic_learns_while_the_policy_rests(tmp_path):
    plain, fitted = tmp_path / "plain", tmp_path / "fitted"
    train(tiny_config(plain, checkpoint__keep=9))
    train(tiny_config(fitted, critic__prefit__samples=24, checkpoint__keep=9))
    assert torch.equal(weights(plain, 0, "policy"), weights(fitted, 0, "policy"))
    assert not torch.equal(weights(plain, 0, "critic"), weights(fitted, 0, "critic"))
    last = read_metrics(fitted)[-1]
    assert last["responses/total"] == 24 + 16 * last["step"]
    first = read_metrics(fitted)[0]
    assert (first["step"], first["responses/total"]) == (0, 24)
    assert first["time/prefit"] > 0
    records = [record for record in read_records(fitted) if record["step"] == 0]
    assert len(records) == 24
    assert {record["policy_version"] for record in records} == {0}
    # A step's worth, then the rest; the second batch is valued by what the first one taught.
    assert len({round(record["value"], 6) for record in records[:16]}) == 1
    assert len({round(record["value"], 6) for record in records[16:]}) > 1


def test_a_critic_that_was_fitted_beforehand_serves_several_runs(tmp_path):
    made, run = tmp_path / "made", tmp_path / "run"
    summary = prefit(tiny_config(made, critic__prefit__samples=24))
    assert summary["responses"] == 24
    assert summary["steps"] == 0
    policy = str(made / "checkpoints" / "last" / "policy")
    train(tiny_config(run, model__path=policy, sft__phases=[], critic__prefit__path=str(made), checkpoint__keep=9))
    assert torch.equal(weights(made, 0, "critic"), weights(run, 0, "critic"))
    assert read_metrics(run)[-1]["responses/total"] == 24 + 16 * 3
    # Its time is counted for each run that starts from it.
    assert read_metrics(run)[0]["time/prefit"] == read_metrics(made)[0]["time/prefit"] > 0
    with pytest.raises(RunFolderError, match=r"critic\.prefit\.path is .*, which holds no critic .* sppo prefit"):
        train(tiny_config(tmp_path / "other", critic__prefit__path=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"critic\.prefit\.samples is 0, so that there is nothing to fit"):
        prefit(tiny_config(tmp_path / "other"))


def test_a_run_from_a_pre_fit_takes_the_steps_of_one_that_fits_by_itself(tmp_path):
    options = {"critic__history": True, "selection__name": "sqrt", "evaluation__every": 0}
    train(tiny_config(tmp_path / "start", steps=1))
    policy = {"model__path": str(tmp_path / "start" / "checkpoints" / "last" / "policy"), "model__config": None}
    prefit(tiny_config(tmp_path / "made", critic__prefit__samples=24, **options, **policy))
    train(tiny_config(tmp_path / "taken", critic__prefit__path=str(tmp_path / "made"), **options, **policy))
    train(tiny_config(tmp_path / "whole", critic__prefit__samples=24, **options, **policy))
    same = [
        [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))} for line in read_metrics(folder)]
        for folder in (tmp_path / "taken", tmp_path / "whole")
    ]
    assert same[0][1:] == same[1][1:]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm__name": "ppo", "critic__config": None}, "kind of critic: prompt -> token"),
        ({"critic__loss": "mse"}, r"critic\.loss: 'bce' -> 'mse'"),
        ({"critic__members": 2}, r"critic\.members: 1 -> 2"),
        ({"sampling__temperature": 0.5}, r"sampling\.temperature: 1\.0 -> 0\.5"),
        ({"data__options": {"prompts": 77}}, r"data\.options\.prompts: \d+ -> 77"),
        ({"model__path": None}, "was fitted to another policy: .* Start from that one, with --model.path"),
        ({"sft__phases": [{"steps": 2}]}, r"but sft\.phases would fine-tune that policy first"),
        ({"critic__prefit__samples": 8}, r"critic\.prefit\.samples is 8, but critic\.prefit\.path names"),
        ({"critic__prefit__path": ""}, r"critic\.prefit\.path is empty"),
    ],
)
def test_a_pre_fit_of_something_else_is_refused(tmp_path, changes, said):
    made = tmp_path / "made"
    prefit(tiny_config(made, critic__prefit__samples=8, sft__phases=[]))
    options = {
        "model__path": str(made / "checkpoints" / "last" / "policy"), "sft__phases": [],
        "critic__prefit__path": str(made), "seed": 1, **changes,
    }  # fmt: skip
    with pytest.raises((ConfigError, RunFolderError), match=said):
        train(tiny_config(tmp_path / "run", **options))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_more_samples_than_prompts_are_refused_before_they_are_taken(tmp_path):
    with pytest.raises(ConfigError, match=r"critic\.prefit\.samples is 5000, but there are only \d+ prompts"):
        train(tiny_config(tmp_path / "run", critic__prefit__samples=5000))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"critic__source": "probe", "critic__config": None}, "critic.source: 'model' -> 'probe'"),
        ({"algorithm__name": "rloo", "sampling__samples_per_prompt": 4, "selection__name": "history",
          "optimizer__minibatch_size": 64}, "kind of critic: prompt -> history"),
    ],
)  # fmt: skip
def test_a_critic_that_was_fitted_beforehand_has_to_be_of_the_runs_kind(tmp_path, options, said):
    made = tmp_path / "made"
    prefit(tiny_config(made, critic__prefit__samples=8))
    policy = str(made / "checkpoints" / "last" / "policy")
    config = tiny_config(
        tmp_path / "run", model__path=policy, sft__phases=[], critic__prefit__path=str(made), **options
    )
    with pytest.raises(RunFolderError, match=said):
        train(config)


def test_a_pre_fit_is_refused_where_v_is_of_samples_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match=r"astar_po samples what its V starts from by itself\. Leave it out"):
        train(tiny_config(tmp_path / "run", algorithm__name="astar_po", critic__prefit__samples=8))
