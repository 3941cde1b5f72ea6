"""--dry-run: all that can be refused without weights is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from transformers import AutoModel, Qwen2Config

from sppo.cli.train import print_plan
from sppo.commands.plan import plan
from sppo.commands.train import train
from sppo.config import CriticConfig, to_dict
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, DataError, ModelError, RunFolderError
from sppo.models.tokenizers import character_tokenizer
from tests.conftest import begun, tiny_config


def rows_of(config):
    return plan(config).rows


def test_the_plan_leaves_nothing_behind(tmp_path):
    rows = dict(rows_of(tiny_config(tmp_path / "run")))
    assert rows["run folder"] == str(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_run_folder_is_checked(tmp_path):
    config = tiny_config(tmp_path / "run")
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        plan(config, resume=True)
    begun(tmp_path / "run", to_dict(config), step=4)
    with pytest.raises(RunFolderError, match="exists already"):
        plan(config)
    plan(replace(config, steps=4), resume=True)
    with pytest.raises(RunFolderError, match="made with another config"):
        plan(replace(config, seed=1), resume=True)
    with pytest.raises(ConfigError, match="at step 4 already"):
        plan(replace(config, steps=3), resume=True)


def test_the_reward_function_and_the_critic_are_checked(tmp_path):
    config = tiny_config(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data.reward is 'nowhere.py:f', but there is no file"):
        plan(replace(config, data=replace(config.data, reward="nowhere.py:f")))
    empty = tmp_path / "empty"
    empty.mkdir()
    for critic, key in (
        (CriticConfig(path=str(empty), minibatch_size=8), "critic.path"),
        (replace(config.critic, tokenizer=str(empty)), "critic.tokenizer"),
    ):
        with pytest.raises(ModelError, match=f"{key} '.*' can't be loaded .a folder without config.json"):
            plan(replace(config, critic=critic))


SMALL = Qwen2Config(
    vocab_size=1000, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=200, max_position_embeddings=4096,
)  # fmt: skip


def test_what_the_critic_begins_with_is_checked(tmp_path):
    config = tiny_config(tmp_path / "run")
    pool = config.data.options["prompts"]
    with pytest.raises(ConfigError, match=f"critic.prefit.samples is {pool + 1}, but there are only {pool} prompts"):
        plan(replace(config, critic=replace(config.critic, prefit=replace(config.critic.prefit, samples=pool + 1))))
    with pytest.raises(DataError, match="no such column"):
        plan(replace(config, critic=replace(config.critic, history=True, known_rates="rate")))


def test_a_runs_folder_in_the_place_of_a_model_is_told_where_its_model_is(tmp_path):
    config, run = tiny_config(tmp_path / "run"), tmp_path / "other"
    for part, key in (("policy", "model"), ("critic", "critic")):
        (run / "checkpoints" / "last" / part).mkdir(parents=True)
        changed = replace(getattr(config, key), path=str(run), config=None)
        with pytest.raises(ModelError, match=rf"folder of a run: its model is .*other/checkpoints/last/{part}"):
            plan(replace(config, **{key: changed}))


def test_models_that_judge_are_counted_where_they_are_used(tmp_path):
    SMALL.save_pretrained(tmp_path / "judge")
    judge = {"verification.reward_model.path": str(tmp_path / "judge")}
    idle = dict(rows_of(tiny_config(tmp_path / "run", **judge)))
    assert "scoring models" not in idle["memory: estimate"]
    used = dict(rows_of(tiny_config(tmp_path / "run", **judge, **{
        "data.verifier": "reward_model", "evaluation.data.verifier": "reward_model",
    })))  # fmt: skip
    parameters = AutoModel.from_config(SMALL).num_parameters()
    said = f"scoring models {parameters * 4 / 1e6:.1f} MB"
    assert said in used["memory: estimate"]
    steps = {"verification.process.model": str(tmp_path / "judge"), "algorithm.name": "grpo", "prompts_per_step": 8,
             "sampling.samples_per_prompt": 2, "algorithm.aggregation": "token_mean"}  # fmt: skip
    assert said in dict(rows_of(tiny_config(tmp_path / "run", **steps)))["memory: estimate"]


def test_two_critics_are_twice_one_and_a_probe_is_none(tmp_path):
    def critic(**options):
        return dict(rows_of(tiny_config(tmp_path / "run", **options)))

    one, two = (int(critic(critic__members=n)["critic"].split()[0].replace(",", "")) for n in (1, 2))
    assert two == 2 * one
    probed = critic(critic__source="probe", critic__config=None)
    assert probed["critic"] == "a probe of the policy's states"
    assert "memory: critic's update" not in probed
    with pytest.raises(DataError, match=r"critic\.known_rates is rate, but prompt"):
        plan(tiny_config(tmp_path / "run", critic__history=True, critic__known_rates="rate"))


def test_an_adapter_is_counted_apart_from_the_weights_that_rest(tmp_path):
    lora = {"model.lora.rank": 4, "algorithm.kl_coefficient": 0.1}
    config = tiny_config(tmp_path / "run", **lora)
    rows = dict(rows_of(config))
    whole = dict(rows_of(tiny_config(tmp_path / "run")))
    total = int(whole["policy"].split()[0].replace(",", ""))
    # Rank 4 x (inputs + outputs) of two blocks: four of attention 16 + 16, three of 16 + 32.
    adapter = 4 * 2 * (4 * 32 + 3 * 48)
    assert adapter == 2176
    assert rows["policy"] == f"{total + adapter:,} parameters (qwen2), of which an adapter's 2,176 are trained"
    # Its reference is itself, switched off.
    assert "reference" not in rows["memory: estimate"]
    copied = dict(rows_of(tiny_config(tmp_path / "run", **{"algorithm.kl_coefficient": 0.1})))
    assert "reference" in copied["memory: estimate"]
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_is_there_already_says_what_it_stands_on(tmp_path):
    train(tiny_config(tmp_path / "first", **{"model.lora.rank": 4}, steps=1))
    policy = tmp_path / "first" / "checkpoints" / "last" / "policy"
    rows = dict(rows_of(tiny_config(tmp_path / "run", **{"model.path": str(policy), "model.config": None})))
    assert rows["policy"].endswith(
        f"of which an adapter's 2,176 are trained, that in {policy} on {tmp_path / 'first' / 'adapter_base'}"
    )


def test_a_critics_adapter_is_counted_with_its_head(tmp_path):
    SMALL.save_pretrained(tmp_path / "trunk")
    character_tokenizer(ALPHABET).save_pretrained(tmp_path / "trunk")
    critic = {"critic.path": str(tmp_path / "trunk"), "critic.config": None, "critic.lora.rank": 1}
    rows = dict(rows_of(tiny_config(tmp_path / "run", **critic)))
    # Three blocks of q, o 64 + 64, k, v 64 + 32, three of 64 + 200; and a head of 64 + 1.
    assert rows["critic"].endswith(f"of which an adapter's {3 * (2 * 128 + 2 * 96 + 3 * 264) + 65:,} are trained")


def test_three_prompts_are_shown_as_they_will_be_graded(tmp_path, capsys):
    config = tiny_config(tmp_path / "run")
    found = plan(config)
    assert [example.id for example in found.examples] == [f"chain_arithmetic/train/{n}" for n in (1, 101, 200)]
    assert all(example.understood == f"final_answer: the text {example.gold!r}" for example in found.examples)
    print_plan(config)
    assert "What will be graded: 3 of the prompts, as the model reads them" in capsys.readouterr().out


def test_rows_that_do_not_ask_for_a_box_are_noted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}+1=", "answer": str(n + 1)}) + "\n" for n in range(99)))
    own = {"data.task": "rows", "data.path": str(path), "data.options": {}, "evaluation.data": None}
    notes = [value for label, value in plan(tiny_config(tmp_path / "run", **own)).rows if label == "note"]
    assert any("don't ask for a form that verifier math reads" in note for note in notes)
