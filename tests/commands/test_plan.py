"""--dry-run: all that can be refused without weights is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoModel, Qwen2Config

from sppo.commands.memory import Sized, memory
from sppo.commands.plan import plan
from sppo.commands.train import train
from sppo.config import CriticConfig, to_dict
from sppo.config.recipes import load_recipe
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, DataError, ModelError, RunFolderError
from sppo.models.tokenizers import character_tokenizer
from sppo.rollouts.engines import ENGINES
from sppo.training.build import algorithm_of
from tests.conftest import begun, tiny_config


def test_the_plan_leaves_nothing_behind(tmp_path):
    rows = dict(plan(tiny_config(tmp_path / "run")))
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
"""On a CPU a token takes 3 layers x 2 x 2 heads x 16 x 4 = 768 bytes of cache, and 4,000 numbers of logits 12 each."""


def lines(name="sppo", held_out=10, critic=None, scoring=(), **options):
    settings = {
        "model.path": "any", "device": "cpu", "prompts_per_step": 32, "data.max_prompt_tokens": 20,
        "sampling.max_response_tokens": 300, "optimizer.minibatch_size": 32, "critic.minibatch_size": 32,
        "optimizer.tokens_per_microbatch": 1000, "evaluation.final_samples_per_prompt": 4, "engine.max_rows": 64,
        "algorithm.name": name,
    }  # fmt: skip
    config = load_recipe(None, {**settings, **{key.replace("__", "."): value for key, value in options.items()}})
    found = memory(config, algorithm_of(config), Sized(SMALL, 10**6), critic, scoring, held_out)
    return {label.removeprefix("memory: "): value for label, value in found}


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


def test_sampling_is_that_of_the_phase_that_takes_most():
    # 40 x (320 x 768 + 12,000) bytes; where few are held out, 32 x the same.
    assert lines()["sampling"] == "10.3 MB key-value cache and logits of 40 rows of 320 tokens (evaluation)"
    assert lines(held_out=2)["sampling"] == "8.2 MB key-value cache and logits of 32 rows of 320 tokens (training)"
    assert "64 rows of 320 tokens (evaluation)" in lines(held_out=500)["sampling"]
    longer = {"evaluation__data": {"task": "math500", "max_prompt_tokens": 700}}
    assert "40 rows of 1,000 tokens (evaluation)" in lines(**longer)["sampling"]
    often = {"evaluation__samples_per_prompt": 5, "engine__max_rows": 512}
    assert "50 rows of 320 tokens (evaluation)" in lines(**often)["sampling"]
    assert "64 rows of 320 tokens (offline samples of prompts)" in lines("spo")["sampling"]
    assert "256 rows of 320 tokens (offline samples of prompts)" in lines("spo", engine__max_rows=512)["sampling"]


def test_an_engine_with_weights_of_its_own_has_a_copy_of_them(monkeypatch):
    # As if it were installed, which it is in an environment of its own.
    monkeypatch.setitem(ENGINES, "vllm", replace(ENGINES["vllm"], package=None))
    own = lines(engine__name="vllm")["sampling"]
    assert own.startswith("4.0 MB weights of engine vllm's own; its key-value cache takes what its share of the device")


def test_reading_the_prompts_may_take_more_than_the_cache():
    # 40 prompts of 400 tokens: 768 bytes of cache, and 4 x 64 + 3 x 200 numbers of a layer, each.
    options = {"data__max_prompt_tokens": 400, "sampling__max_response_tokens": 2, "held_out": 40}
    once = lines(evaluation__final_samples_per_prompt=1, **options)["sampling"]
    assert once == "67.1 MB key-value cache and logits of 40 rows of 402 tokens (evaluation)"
    # Copies of a prompt are read once: 64 rows of 4 samples are 16 prompts.
    assert lines(evaluation__samples_per_prompt=4, **options)["sampling"].startswith("53.7 MB ")


def test_the_papers_recipe_counts_its_evaluation():
    config = load_recipe("r1_distill_1_5b_deepscaler", {"device": "cpu"})
    architecture = Qwen2Config(
        vocab_size=151936, hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        intermediate_size=8960,
    )  # fmt: skip
    policy = Sized(architecture, 1_777_088_000)
    found = dict(memory(config, algorithm_of(config), policy, policy, [], 500))
    # 512 x (9,216 x 28 x 2 x 2 x 128 x 4 + 151,936 x 12) bytes.
    assert found["memory: sampling"].startswith("271.5 GB key-value cache and logits of 512 rows of 9,216 tokens (eval")


@pytest.mark.parametrize(
    "options", [{"algorithm__kl_coefficient": 0.1}, {"algorithm__ratio": "joint"}], ids=["kl", "joint"]
)
def test_the_reference_takes_its_weights(options):
    assert lines(**options)["reference"].startswith("4.0 MB ")
    assert "reference" not in lines()
    # 16 + 4 bytes a parameter; for an update 1,000 x 3 x 64 x 17 x 4 of activations and 1,000 x 1,000 x 12 of logits.
    assert lines(**options)["estimate"] == "45.1 MB at the peak, unsharded"
    assert lines()["estimate"] == "41.1 MB at the peak, unsharded"


def test_a_critic_that_keeps_its_activations_takes_more_than_a_policy_that_does_not():
    critic = Sized(SMALL, 10**6)
    found = lines(critic=critic, model__gradient_checkpointing=True)
    # 1,000 tokens x 3 layers x 64 x 17 x 4 bytes.
    assert found["critic's update"].startswith("13.1 MB ")
    assert lines(critic=critic, critic__gradient_checkpointing=True)["critic's update"].startswith("0.8 MB ")
    assert "critic's update" not in lines()


def test_models_that_judge_are_counted_where_they_are_used(tmp_path):
    SMALL.save_pretrained(tmp_path / "judge")
    judge = {"verification.reward_model.path": str(tmp_path / "judge")}
    idle = dict(plan(tiny_config(tmp_path / "run", **judge)))
    assert "memory: scoring models" not in idle
    used = dict(plan(tiny_config(tmp_path / "run", **judge, **{
        "data.verifier": "reward_model", "evaluation.data.verifier": "reward_model",
    })))  # fmt: skip
    parameters = AutoModel.from_config(SMALL).num_parameters()
    assert used["memory: scoring models"] == f"{parameters * 4 / 1e6:.1f} MB (weights: 4 bytes a parameter)"
    steps = {"verification.process.model": str(tmp_path / "judge"), "algorithm.name": "grpo", "prompts_per_step": 8,
             "sampling.samples_per_prompt": 2, "algorithm.aggregation": "token_mean"}  # fmt: skip
    assert (
        dict(plan(tiny_config(tmp_path / "run", **steps)))["memory: scoring models"] == used["memory: scoring models"]
    )


def test_two_critics_are_twice_one_and_a_probe_is_none(tmp_path):
    def critic(**options):
        return dict(plan(tiny_config(tmp_path / "run", **options)))

    one, two = (int(critic(critic__members=n)["critic"].split()[0].replace(",", "")) for n in (1, 2))
    assert two == 2 * one
    probed = critic(critic__source="probe", critic__config=None)
    assert probed["critic"] == "a probe of the policy's states"
    assert "memory: critic" not in probed
    with pytest.raises(DataError, match=r"critic\.known_rates is rate, but prompt"):
        plan(tiny_config(tmp_path / "run", critic__history=True, critic__known_rates="rate"))


def test_an_adapter_is_counted_apart_from_the_weights_that_rest(tmp_path):
    lora = {"model.lora.rank": 4, "algorithm.kl_coefficient": 0.1}
    config = tiny_config(tmp_path / "run", **lora)
    rows = dict(plan(config))
    whole = dict(plan(tiny_config(tmp_path / "run")))
    total = int(whole["policy"].split()[0].replace(",", ""))
    # Rank 4 x (inputs + outputs) of two blocks: four of attention 16 + 16, three of 16 + 32.
    adapter = 4 * 2 * (4 * 32 + 3 * 48)
    assert adapter == 2176
    assert rows["policy"] == f"{total + adapter:,} parameters (qwen2), of which an adapter's 2,176 are trained"
    size = adapter * 16 + total * 4
    said = "(weights, gradients, AdamW: 16 bytes a parameter that is trained, 4 of one that rests)"
    assert rows["memory: policy"] == f"{size / 1e6:.1f} MB {said}"
    # Its reference is itself, switched off.
    assert "memory: reference" not in rows
    assert "memory: reference" in dict(plan(tiny_config(tmp_path / "run", **{"algorithm.kl_coefficient": 0.1})))
    assert list(tmp_path.iterdir()) == []


def test_weights_of_four_bits_are_counted_as_such():
    # 1 trained x 16, 0.5 million x 4 that rest, 0.5 million x 0.52 in 4 bits.
    assert Sized(SMALL, 1_000_001, resting=1_000_000, quantized=500_000).bytes == 16 + 2_000_000 + 260_000


def test_an_adapter_that_is_there_already_says_what_it_stands_on(tmp_path):
    train(tiny_config(tmp_path / "first", **{"model.lora.rank": 4}, steps=1))
    policy = tmp_path / "first" / "checkpoints" / "last" / "policy"
    rows = dict(plan(tiny_config(tmp_path / "run", **{"model.path": str(policy), "model.config": None})))
    assert rows["policy"].endswith(
        f"of which an adapter's 2,176 are trained, that in {policy} on {tmp_path / 'first' / 'adapter_base'}"
    )


def test_a_critics_adapter_is_counted_with_its_head(tmp_path):
    SMALL.save_pretrained(tmp_path / "trunk")
    character_tokenizer(ALPHABET).save_pretrained(tmp_path / "trunk")
    critic = {"critic.path": str(tmp_path / "trunk"), "critic.config": None, "critic.lora.rank": 1}
    rows = dict(plan(tiny_config(tmp_path / "run", **critic)))
    # Three blocks of q, o 64 + 64, k, v 64 + 32, three of 64 + 200; and a head of 64 + 1.
    assert rows["critic"].endswith(f"of which an adapter's {3 * (2 * 128 + 2 * 96 + 3 * 264) + 65:,} are trained")
