"""What a run needs of each device: by hand, against sums made before, and what is said where it doesn't fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Qwen2Config

from sppo.config.recipes import load_recipe
from sppo.errors import ModelError
from sppo.rollouts.engines import ENGINES, EngineKind
from sppo.rollouts.engines.vllm_options import VllmOptions
from sppo.training.build import algorithm_of
from sppo.training.build.fitting import in_words, measured, require_room
from sppo.training.build.memory import Memory, Sized

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = Qwen2Config(
    vocab_size=1000, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=200, max_position_embeddings=4096, tie_word_embeddings=False,
)  # fmt: skip
"""On a CPU a token takes 3 layers x 2 x 2 heads x 16 x 4 = 768 bytes of cache, and 1,000 numbers of logits 12 each."""
LAYER = 1000 * (6 * 64 + 2 * 32 + 3 * 200) * 4
"""What 1,000 tokens leave of one layer, in float32."""


def memory(name="sppo", held_out=10, critic=None, scoring=(), policy=None, device=CPU, ranks=1, **options):
    settings = {
        "model.path": "any", "device": "cpu", "prompts_per_step": 32, "data.max_prompt_tokens": 20,
        "sampling.max_response_tokens": 300, "optimizer.minibatch_size": 32, "critic.minibatch_size": 32,
        "optimizer.tokens_per_microbatch": 1000, "evaluation.final_samples_per_prompt": 4, "engine.max_rows": 64,
        "algorithm.name": name,
    }  # fmt: skip
    config = load_recipe(None, {**settings, **{key.replace("__", "."): value for key, value in options.items()}})
    policy = policy or Sized(SMALL, 10**6)
    return Memory(config, algorithm_of(config), policy, critic, scoring, held_out, device, ranks)


def phases(*args, **options):
    return {phase.name: phase for phase in memory(*args, **options).phases()}


def cache(*args, **options):
    """(bytes, words) of what is sampled together."""
    ((words, size),) = [part for part in phases(*args, **options)["sampling"].parts.items() if "cache" in part[0]]
    return size, words


def test_sampling_is_that_of_the_phase_that_takes_most():
    # 40 x (320 x 768 + 12,000) bytes; where few are held out, 32 x the same.
    assert cache() == (40 * (320 * 768 + 12_000), "cache and logits of 40 rows of 320 tokens (evaluation)")
    assert cache(held_out=2) == (32 * (320 * 768 + 12_000), "cache and logits of 32 rows of 320 tokens (training)")
    assert "64 rows of 320 tokens (evaluation)" in cache(held_out=500)[1]
    longer = {"evaluation__data": {"task": "math500", "max_prompt_tokens": 700}}
    assert "40 rows of 1,000 tokens (evaluation)" in cache(**longer)[1]
    often = {"evaluation__samples_per_prompt": 5, "engine__max_rows": 512}
    assert "50 rows of 320 tokens (evaluation)" in cache(**often)[1]
    assert "64 rows of 320 tokens (offline samples of prompts)" in cache("spo")[1]
    assert "256 rows of 320 tokens (offline samples of prompts)" in cache("spo", engine__max_rows=512)[1]
    # Four ranks have a quarter each.
    assert "64 rows of 320 tokens (offline samples of prompts)" in cache("spo", engine__max_rows=512, ranks=4)[1]


def test_reading_the_prompts_may_take_more_than_the_cache():
    # 40 prompts of 400 tokens: 768 bytes of cache, and 4 x 64 + 3 x 200 numbers of a layer, each.
    options = {"data__max_prompt_tokens": 400, "sampling__max_response_tokens": 2, "held_out": 40}
    one = 400 * (768 + 856 * 4)
    assert cache(evaluation__final_samples_per_prompt=1, **options)[0] == 40 * one
    # Copies of a prompt are read once: 64 rows of 4 samples are 16 prompts, those of training 32.
    assert cache(evaluation__samples_per_prompt=4, **options)[0] == 32 * one


def test_each_phase_by_hand_in_one_process():
    found = phases(critic=Sized(SMALL, 500_000))
    held = {"weights": 4 * 1_500_000, "moments": 8 * 1_500_000}
    assert found["estimate"].parts == {**held, "activations": LAYER, "logits": 12 * 10**6}
    assert found["policy's update"].parts == {
        **held, "gradients": 4 * 10**6, "activations": 3 * LAYER, "logits": 12 * 10**6,
    }  # fmt: skip
    assert found["critic's update"].parts == {**held, "gradients": 2 * 10**6, "activations": 3 * LAYER}
    kept = phases(critic=Sized(SMALL, 500_000), model__gradient_checkpointing=True)
    assert kept["policy's update"].parts["activations"] == LAYER + 3 * 1000 * 64 * 4
    assert kept["critic's update"].parts["activations"] == 3 * LAYER
    assert "critic's update" not in phases()
    assert phases(optimizer__tokens_per_microbatch=2000)["estimate"].parts["activations"] == 2 * LAYER


def test_several_ranks_hold_their_parts_and_gather_a_layer_at_a_time():
    one, four = phases(device=GPU), phases(device=GPU, ranks=4)
    for name in ("weights", "moments", "gradients"):
        assert four["policy's update"].parts[name] * 4 == one["policy's update"].parts[name]
    # Embeddings and head of 64,000 each, and two of three layers, in bfloat16.
    layer = (10**6 - 128_000) // 3
    assert four["estimate"].parts["gathered weights"] == 2 * (128_000 + 2 * layer)
    assert four["policy's update"].parts["their gradients"] == 2 * (128_000 + layer) + 4 * 64_000
    assert four["sampling"].parts["gathered weights"] == 2 * 10**6
    assert "gathered weights" not in phases()["sampling"].parts
    assert phases(model__precision="bf16")["estimate"].parts["gathered weights"] == 2 * (128_000 + 2 * layer)


def test_moments_on_the_host_are_away_while_responses_are_sampled():
    found = phases(device=GPU, optimizer__offload=True)
    assert "moments" not in found["sampling"].parts
    assert found["policy's update"].parts["moments"] == 8 * 10**6
    assert "moments" in phases(optimizer__offload=True)["sampling"].parts  # on a CPU they are on the host anyway


@pytest.mark.parametrize("options", [{"algorithm__kl_coefficient": 0.1}, {"algorithm__ratio": "joint"}])
def test_the_reference_takes_its_weights(options):
    assert memory(**options).resident()["reference"] == 4 * 10**6
    assert memory(ranks=2, **options).resident()["reference"] == 2 * 10**6
    assert "reference" not in memory().resident()
    adapted = Sized(SMALL, 10**6 + 2000, resting=10**6)
    assert "reference" not in memory(policy=adapted, model__lora__rank=4, **options).resident()


def test_weights_that_rest_have_neither_gradients_nor_moments():
    adapted = Sized(SMALL, 1_000_001, resting=1_000_000, quantized=500_000)
    found = phases(policy=adapted)["policy's update"].parts
    assert found["weights"] == 4 * 500_001 + 260_000
    assert (found["moments"], found["gradients"]) == (8, 4)


def test_models_that_judge_are_whole_on_each_device():
    assert memory(scoring=[Sized(SMALL, 1000)]).resident()["scoring models"] == 4000
    assert memory(scoring=[Sized(SMALL, 1000)], device=GPU, ranks=4).resident()["scoring models"] == 2000


def qwen(hidden, layers, heads, kv_heads, inner, vocabulary, tied=False):
    return Qwen2Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=inner, vocab_size=vocabulary, tie_word_embeddings=tied,
    )  # fmt: skip


def sized(architecture, kind):
    with torch.device("meta"):
        return Sized(architecture, sum(weight.numel() for weight in kind.from_config(architecture).parameters()))


SIZES = {
    "0.5B": qwen(896, 24, 14, 2, 4864, 151936, tied=True),
    "1.5B": qwen(1536, 28, 12, 2, 8960, 151936),
    "7B": qwen(3584, 28, 28, 4, 18944, 152064),
}


@pytest.mark.parametrize(
    ("policy", "critic", "ranks", "update", "room", "room_offloaded"),
    [
        ("1.5B", "1.5B", 1, 60, 19, 46), ("1.5B", "0.5B", 1, 43, 36, 54), ("1.5B", "1.5B", 4, 20, 59, 66),
        ("1.5B", "1.5B", 8, 14, 66, 69), ("7B", "7B", 4, 74, 2, 31), ("7B", "7B", 8, 45, 31, 46),
        ("7B", "1.5B", 4, 52, 24, 43), ("7B", "1.5B", 8, 34, 43, 52),
    ],
)  # fmt: skip
def test_sums_that_were_made_by_hand_before(monkeypatch, policy, critic, ranks, update, room, room_offloaded):
    """GB of published sizes on 80 GB cards, 76 usable, with 16,384 tokens a micro-batch and an engine's copy in bf16.

    Those sums had gradients of both models in every phase, and 2 GB less of logits.
    """
    monkeypatch.setitem(ENGINES, "apart", EngineKind(lambda model, setup: None, has_own_weights=True))
    models = sized(SIZES[policy], AutoModelForCausalLM), sized(SIZES[critic], AutoModel)
    options = {
        "policy": models[0], "critic": models[1], "device": GPU, "ranks": ranks, "engine__name": "apart",
        "optimizer__tokens_per_microbatch": 16384, "model__gradient_checkpointing": True,
        "critic__gradient_checkpointing": True,
    }  # fmt: skip
    gradients = 4 * sum(model.parameters for model in models) / ranks
    found, offloaded = phases(**options), phases(optimizer__offload=True, **options)
    assert found["policy's update"].bytes + 4 * models[1].parameters / ranks == pytest.approx(update * 1e9, abs=2.4e9)
    for some, expected in ((found, room), (offloaded, room_offloaded)):
        sampling = some["sampling"]
        assert 76e9 - (sampling.bytes - sampling.cache + gradients) == pytest.approx(expected * 1e9, abs=0.6e9)


def test_weights_in_bfloat16_by_hand_and_against_the_sum_made_before(monkeypatch):
    """7B and a critic of 1.5B on one 80 GB card: 62 GB, 6 of room, 24 with moments on the host."""
    monkeypatch.setitem(ENGINES, "apart", EngineKind(lambda model, setup: None, has_own_weights=True))
    small = phases(critic=Sized(SMALL, 500_000), device=GPU, model__precision="bf16_weights")["policy's update"].parts
    assert (small["weights"], small["gradients"]) == (2 * 1_500_000, 2 * 10**6)
    assert small["moments"] == 1_500_000 * 2 * 260 // 256  # a byte each, and four of each block of 256
    options = {
        "policy": sized(SIZES["7B"], AutoModelForCausalLM), "critic": sized(SIZES["1.5B"], AutoModel), "device": GPU,
        "engine__name": "apart", "optimizer__tokens_per_microbatch": 16384, "model__gradient_checkpointing": True,
        "critic__gradient_checkpointing": True, "model__precision": "bf16_weights",
    }  # fmt: skip
    gradients = 2 * (options["policy"].parameters + options["critic"].parameters)
    found, offloaded = phases(**options), phases(optimizer__offload=True, **options)
    for some, expected in ((found, 6), (offloaded, 24)):
        sampling = some["sampling"]
        assert 76e9 - (sampling.bytes - sampling.cache + gradients) == pytest.approx(expected * 1e9, abs=0.6e9)
    # That sum had the critic's gradients too, no copies that are gathered to compute with, and 2 GB less of logits.
    update = found["policy's update"]
    copies = update.parts["gathered weights"] + update.parts["their gradients"]
    without = update.bytes - copies + 2 * options["critic"].parameters
    assert without == pytest.approx(62e9, abs=2.4e9)
    require_room(memory(optimizer__offload=True, **options), 80 * 10**9)


def test_what_does_not_fit_is_refused_with_what_would_make_it_fit():
    model = sized(SIZES["7B"], AutoModelForCausalLM)
    options = {"sampling__max_response_tokens": 8000, "optimizer__tokens_per_microbatch": 16384}
    plan = memory(policy=model, critic=sized(SIZES["1.5B"], AutoModel), device=GPU, **options)
    with pytest.raises(ModelError) as refused:
        require_room(plan, 80 * 10**9)
    said = str(refused.value)
    peak = plan.peak()
    assert f"The run needs {peak.bytes / 1e9:.1f} GB on this GPU in its policy's update (weights " in said
    assert "there are 80.0 GB. It would fit with --model.gradient_checkpointing true and 4 GPUs (--launcher" in said
    checkpointed = {"model__gradient_checkpointing": True}
    four = memory(policy=model, critic=plan.critic, device=GPU, ranks=4, **checkpointed, **options)
    require_room(four, 80 * 10**9)
    with pytest.raises(ModelError, match=r"on each of 2 GPUs .* It would fit with 4 GPUs \(--launcher torchrun --npr"):
        require_room(replace(four, ranks=2), 80 * 10**9)
    small = sized(SIZES["1.5B"], AutoModelForCausalLM)
    with pytest.raises(ModelError, match=r"It would fit with .*GPUs .*, or with --model.gradient_checkpointing true"):
        require_room(memory(policy=small, device=GPU, **options), 50 * 10**9)
    with pytest.raises(ModelError, match=r"Use a smaller model, .* or --model.precision bf16_weights"):
        require_room(memory(policy=Sized(SIZES["7B"], 10**13), device=GPU), 80 * 10**9)


def test_an_engine_with_weights_of_its_own_takes_its_share(monkeypatch):
    monkeypatch.setitem(ENGINES, "apart", EngineKind(lambda model, setup: None, VllmOptions, has_own_weights=True))
    models = {"policy": sized(SIZES["1.5B"], AutoModelForCausalLM), "critic": sized(SIZES["1.5B"], AutoModel)}
    options = {
        **models, "device": GPU, "engine__name": "apart", "model__gradient_checkpointing": True,
        "critic__gradient_checkpointing": True,
    }  # fmt: skip
    held = 12 * (models["policy"].parameters + models["critic"].parameters)
    assert memory(**options).beside_engine(80e9) == held + 0.5 * 80e9
    with pytest.raises(ModelError, match=r"while it samples, engine apart's share .* with --optimizer.offload true\."):
        require_room(memory(**options), 80 * 10**9)
    require_room(memory(optimizer__offload=True, **options), 80 * 10**9)
    require_room(memory(engine__options={"memory_share": 0.4}, **options), 80 * 10**9)
    assert memory().beside_engine(80e9) == 0


def test_an_engine_elsewhere_takes_nothing_but_a_weight_on_its_way():
    served = {"engine__name": "vllm-server", "engine__options": {"addresses": ["a:1"]}}
    held = {"weights": 4 * 10**6, "moments": 8 * 10**6}
    assert phases(**served)["sampling"].parts == held
    spread = phases(device=GPU, ranks=4, **served)["sampling"]
    # The embeddings, in float32.
    assert spread.parts == {name: size // 4 for name, size in held.items()} | {"a gathered weight": 4 * 64_000}
    assert spread.cache == memory(device=GPU, **served).beside_engine(80e9) == 0
    # An adapter is added to weights that are gathered.
    adapted = phases(device=GPU, model__lora__rank=4, **served)["sampling"]
    assert adapted.parts["gathered weights"] == 2 * 10**6


def test_the_lines_of_a_plan_and_what_was_measured():
    lines = dict(in_words(memory()))
    assert lines["memory: estimate"].startswith("28.2 MB: weights 4.0 MB, moments 8.0 MB, activations 4.2 MB, ")
    assert lines["memory: at most"] == "40.6 MB (policy's update)"
    assert not any("GPU" in label for label in lines)
    large = dict(in_words(memory(policy=sized(SIZES["1.5B"], AutoModelForCausalLM), device=GPU)))
    peak = large["on one GPU: at most"]
    assert peak.endswith("GB (policy's update)")
    assert large["GPUs of 80 GB"] == f"1 or more ({peak.split(' (')[0]} on each, policy's update)"
    assert large["GPUs of 24 GB"].startswith("2 or more (")
    huge = dict(in_words(memory(policy=Sized(SIZES["7B"], 10**13), device=GPU)))
    assert huge["GPUs of 141 GB"] == "more than 64, or other options"
    said = measured(memory(), 30 * 10**6)
    assert said.startswith("Memory of the first step: 30.0 MB at most, planned 40.6 MB (policy's update;")
