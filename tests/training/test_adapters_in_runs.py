"""Runs that train an adapter: the base stays, checkpoints hold the adapter, and resuming is exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sppo.cli import main
from sppo.commands.calibrate import calibrate
from sppo.commands.evaluate import evaluate_run
from sppo.commands.train import fine_tune, prefit, train
from sppo.config.compatibility import read_config
from sppo.config.evaluation import evaluation_config
from sppo.config.recipes import load_recipe
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, ModelError, RunFolderError
from sppo.models.adapter_files import AdapterFiles
from sppo.models.adapters import has_adapter
from sppo.models.tokenizers import character_tokenizer
from sppo.rollouts.engines import ENGINES
from sppo.runs.checkpoint import save_checkpoint
from sppo.runs.folder import read_metrics
from sppo.training import loop
from sppo.training.build import build, check
from sppo.training.given import Given
from tests.conftest import files_of, tiny_config, tiny_qwen2
from tests.models.test_adapters import TARGETS, trained
from tests.training.copying import COPYING, CopyingEngine
from tests.training.test_loop import likes_threes

LORA = {"model__lora__rank": 4, "optimizer__learning_rate": 1e-2}
SFT = {"sft__phases": [{"demonstrations": "full", "steps": 25, "batch_size": 16, "learning_rate": 3e-3}]}
POLICY = "checkpoints/last/policy"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A model on the disk, as options of a run that starts from it."""
    folder = tmp_path_factory.mktemp("model") / "pretrained"
    tokenizer = character_tokenizer(ALPHABET)
    tiny_qwen2(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"model__path": str(folder), "model__config": None, "model__tokenizer": None}


def same_metrics(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "throughput/", "eval/"))}
        for line in read_metrics(folder)
    ]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """{file and name: tensor} of the last checkpoint."""
    last = folder / "checkpoints" / "last"
    files = sorted(last.rglob("*/*.safetensors"))
    return {f"{file.relative_to(last)}:{name}": value for file in files for name, value in load_file(file).items()}


def assert_same(left: Path, right: Path) -> None:
    first, second = tensors(left), tensors(right)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert same_metrics(left) == same_metrics(right)


COPIED = {"critic__config": None, "critic__lora__rank": 2}
VARIANTS = {
    "as it is": {},
    "reference": {"algorithm__kl_coefficient": 0.1, "algorithm__old_logprobs": "trainer"},
    "recomputed and packed": {"model__gradient_checkpointing": True, "optimizer__layout": "packed"},
    "probe": {"critic__config": None, "critic__source": "probe"},
    "after a warm start": SFT,
    "the critic's copy of it": {"critic__config": None},
    "an adapter of the critic, too": COPIED,
    "two of them": {**COPIED, "critic__members": 2, "critic__gradient_checkpointing": True},
    "ppo": {**COPIED, "algorithm__name": "ppo"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_six_steps_are_three_and_three_more(tmp_path, pretrained, name):
    options = {**LORA, **VARIANTS[name], "evaluation__every": 0}
    if "critic__lora__rank" in options:
        options |= pretrained
    train(tiny_config(tmp_path / "whole", steps=6, **options))
    train(tiny_config(tmp_path / "parts", steps=3, **options))
    train(tiny_config(tmp_path / "parts", steps=6, **options), resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    saved = tensors(tmp_path / "whole")
    assert {name for name in saved if name.startswith("policy/")} == {
        name for name in saved if name.startswith("policy/adapter_model.safetensors:base_model.model.model.layers.")
    }
    if "critic__lora__rank" in options:
        assert not any("embed_tokens" in name for name in saved)
        assert any(name.startswith("critic/adapter_model.safetensors:") for name in saved)
        assert any(name.startswith("critic/value_head.safetensors:") for name in saved)
    assert not (tmp_path / "whole" / "reference").exists()


def test_the_base_is_kept_once_and_never_changes(tmp_path):
    config = tiny_config(tmp_path / "run", **LORA, **SFT, checkpoint__keep=9)
    seen = {}

    def watched(checkpoints, state, *, policy, **rest):
        weights = {k: v.clone() for k, v in policy.model.state_dict().items() if ".lora_" not in k}
        adapter = AdapterFiles(policy.model).weights()
        seen[state.step] = weights, {name: value.clone() for name, value in adapter.items()}
        return save_checkpoint(checkpoints, state, policy=policy, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", watched)
        train(config)
    assert list(seen) == [0, 1, 2, 3]
    for weights, _ in seen.values():
        assert all(torch.equal(tensor, seen[0][0][name]) for name, tensor in weights.items())
    kept = load_file(tmp_path / "run" / "adapter_base" / "model.safetensors")
    assert all(torch.equal(t, seen[0][0][n.replace("_proj.", "_proj.base_layer.")]) for n, t in kept.items())
    # The warm start trained the base, and the adapter alone from there on.
    torch.manual_seed(0)
    fresh = build(check(config, Given()), Given()).policy.model.state_dict()
    name = "model.layers.0.mlp.up_proj"
    assert not torch.allclose(kept[f"{name}.weight"], fresh[f"{name}.base_layer.weight"], atol=1e-3)
    zero, moved = (seen[step][1][f"base_model.model.{name}.lora_B.weight"] for step in (0, 3))
    assert float(zero.abs().max()) == 0.0 < float(moved.abs().max())
    # 25 steps on a random model: the loss has fallen, so that what was trained was no adapter of noise.
    files = files_of(tmp_path / "run" / "checkpoints" / "step_3" / "policy")
    assert sorted(files) == [
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_the_optimiser_and_the_disk_have_the_adapter_alone(tmp_path):
    config = tiny_config(tmp_path / "run", **LORA, steps=1)
    parts = build(check(config, Given()), Given())
    held = [weight for group in parts.policy.adam.param_groups for weight in group["params"]]
    named = {id(weight): name for name, weight in parts.policy.model.named_parameters()}
    assert {named[id(weight)] for weight in held} == {name for name in named.values() if ".lora_" in name}
    train(config)
    files = files_of(tmp_path / "run" / "checkpoints" / "last")
    heavy = sum(len(content) for name, content in files.items() if name.endswith(".safetensors"))
    # The rest are names and sizes of some 60 tensors.
    assert parts.checkpoint_bytes < heavy < parts.checkpoint_bytes + 60_000


def test_the_reference_is_the_model_without_its_adapter(tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "copying", COPYING)
    monkeypatch.setattr(CopyingEngine, "made", [])
    options = {**LORA, **SFT, "algorithm__name": "astar_po", "evaluation__every": 1}
    for name, engine in (("shared", "hf"), ("copied", "copying")):
        train(tiny_config(tmp_path / name, **options, engine__name=engine), Given(reward_function=likes_threes))
    shared, copied = (read_metrics(tmp_path / name) for name in ("shared", "copied"))
    first, *later = (line["policy/kl_to_reference"] for line in shared[1:])
    assert first == 0.0
    assert min(later) > 1e-3
    for name in ("reward/mean", "critic/optimal_value_mean", "policy/loss", "policy/kl_to_reference", "eval/accuracy"):
        said = [[line[name] for line in lines if name in line] for lines in (shared, copied)]
        assert said[0] == pytest.approx(said[1], rel=1e-3, abs=1e-5), name
    # An engine of its own got the base for the offline samples, and the policy with its adapter again.
    assert CopyingEngine.made[0].loaded == [25, -1, 25, 27, -1, 27, 29, -1, 29, 31]
    state = json.loads((tmp_path / "shared" / "checkpoints" / "last" / "state.json").read_text())
    assert state["reference_is_base"]


def test_an_adapter_that_has_learned_before_has_a_reference_of_its_own(tmp_path):
    train(tiny_config(tmp_path / "first", **LORA))
    policy = {"model__path": str(tmp_path / "first" / POLICY), "model__config": None}
    options = {**policy, **LORA, "algorithm__kl_coefficient": 0.1, "algorithm__old_logprobs": "trainer"}
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        for number, upto in enumerate(steps):
            train(tiny_config(tmp_path / name, **options, steps=upto), resume=number > 0)
    assert sorted(files_of(tmp_path / "parts" / "reference")) == ["adapter_config.json", "adapter_model.safetensors"]
    assert_same(tmp_path / "whole", tmp_path / "parts")
    kl = [line["policy/kl_to_reference"] for line in read_metrics(tmp_path / "whole")[1:]]
    assert kl[0] == 0.0 < kl[-1]
    # It goes on from the first run's adapter, on the first run's base.
    assert not (tmp_path / "whole" / "adapter_base").exists()
    shutil.rmtree(tmp_path / "parts" / "reference")
    with pytest.raises(RunFolderError, match="reference is missing"):
        train(tiny_config(tmp_path / "parts", **options, steps=5), resume=True)


def test_fine_tuning_a_pretrained_model_trains_the_adapter(tmp_path, pretrained):
    fine_tune(tiny_config(tmp_path / "sft", **LORA, **SFT, **pretrained))
    saved = tensors(tmp_path / "sft")
    assert max(float(value.abs().max()) for name, value in saved.items() if "lora_B" in name) > 1e-3
    assert not (tmp_path / "sft" / "adapter_base").exists()
    said = json.loads((tmp_path / "sft" / POLICY / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == pretrained["model__path"]


def test_whatever_loads_a_policy_loads_an_adapter(tmp_path, capsys):
    run = tmp_path / "run"
    train(tiny_config(run, **LORA, critic__prefit__samples=16))
    moved = tmp_path / "moved"
    run.rename(moved)
    config, _ = evaluation_config(str(moved), None, ())
    accuracy = evaluate_run(str(moved), config)["accuracy"]
    assert calibrate(str(moved), config, prompts=4, samples_per_prompt=2)["samples_per_prompt"] == 2
    merged = tmp_path / "merged"
    assert main(["merge", str(moved), "--output", str(merged)]) == 0
    assert f"on the weights of {moved / 'adapter_base'}." in capsys.readouterr().out
    assert evaluate_run(str(merged), config)["accuracy"] == accuracy
    ours = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(moved / "adapter_base"), moved / POLICY)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        expected, found = (m(ids).logits for m in (ours, AutoModelForCausalLM.from_pretrained(merged)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert main(["merge", str(moved), "--output", str(merged)]) == 2
    assert main(["merge", str(merged), "--output", str(tmp_path / "again")]) == 2
    assert main(["merge", str(moved)]) == 2
    assert main(["merge", str(moved), "--output", str(tmp_path / "x"), "--dtype", "float16"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    for part in (
        "exists already. Choose another",
        "holds no adapter",
        "--output is missing",
        "--dtype is not an option",
    ):
        assert part in said
    # It goes on where it was moved to.
    assert train(tiny_config(moved, **LORA, critic__prefit__samples=16, steps=4), resume=True)["steps"] == 4


def test_a_critic_fitted_beforehand_knows_the_adapter_and_its_base(tmp_path, pretrained):
    made = tmp_path / "made"
    prefit(tiny_config(made, **LORA, critic__prefit__samples=16))
    policy = {"model__path": str(made / POLICY), "model__config": None}
    taken = {**LORA, **policy, "critic__prefit__path": str(made)}
    assert train(tiny_config(tmp_path / "run", **taken))["steps"] == 3
    assert not (tmp_path / "run" / "adapter_base").exists()
    with pytest.raises(RunFolderError, match="was fitted to another policy"):
        train(tiny_config(tmp_path / "other", **{**taken, **pretrained}))
    with pytest.raises(ModelError, match="asks for an adapter of rank 8 and alpha 32, but the model has one of rank 4"):
        train(tiny_config(tmp_path / "other", **{**taken, "model__lora__rank": 8}))


OF_ROWS = {
    "prompts_per_step": 8, "optimizer.minibatch_size": 8, "critic.minibatch_size": 8, "threads": 1, "device": "cpu",
    "sampling.max_response_tokens": 6, "data.max_prompt_tokens": 8, "checkpoint.every": 1,
    "optimizer.learning_rate": 1e-2, "evaluation.final_samples_per_prompt": 1,
}  # fmt: skip
ROWS = [{"prompt": f"{a}+{b}="} for a in range(5) for b in range(5)]


def on_rows(folder: Path, model=None, *, resume: bool = False, **options):
    """A run of a model that is handed over; of the one that its checkpoint holds where none is."""
    path = "handed over" if model is not None else read_config(folder)["model"]["path"]
    dotted = {name.replace("__", "."): value for name, value in options.items()}
    config = load_recipe(None, {**OF_ROWS, "output": str(folder), "model.path": path, **dotted})
    tokenizer = None if model is None else character_tokenizer(ALPHABET)
    return train(config, Given(model, tokenizer, ROWS, [{"prompt": "7-3="}], likes_threes), resume=resume)


def wrapped(name="mine", **options):
    return peft.get_peft_model(tiny_qwen2(), peft.LoraConfig(r=2, target_modules=TARGETS, **options), adapter_name=name)


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}])
def test_a_peft_model_is_trained_in_place_and_goes_on_with_and_without_it(tmp_path, options):
    torch.manual_seed(3)
    model = wrapped(**options)
    started = {name: value.clone() for name, value in model.state_dict().items()}
    on_rows(tmp_path / "whole", model, steps=4)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, started[name])}
    assert moved
    assert all(".mine." in name for name in moved)
    for name in ("again", "alone"):
        torch.manual_seed(3)
        on_rows(tmp_path / name, wrapped(**options), steps=2)
    torch.manual_seed(4)
    again = wrapped(**options)
    on_rows(tmp_path / "again", again, steps=4, resume=True)
    on_rows(tmp_path / "alone", steps=4, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "again")
    assert_same(tmp_path / "whole", tmp_path / "alone")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "whole" / POLICY)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(input_ids=ids).logits)


def test_a_model_that_is_handed_over_gets_the_adapter_that_is_asked_for(tmp_path):
    model = tiny_qwen2()
    on_rows(tmp_path / "run", model, steps=1, model__lora__rank=2)
    assert has_adapter(model)
    on_rows(tmp_path / "run", model, steps=2, model__lora__rank=2, resume=True)
    on_rows(tmp_path / "run", tiny_qwen2(seed=1), steps=3, model__lora__rank=2, resume=True)
    kept = load_file(tmp_path / "run" / "adapter_base" / "model.safetensors")
    assert all(torch.equal(tensor, tiny_qwen2().state_dict()[name]) for name, tensor in kept.items())
    with pytest.raises(ModelError, match="a policy that was handed over, whose starting weights no folder has"):
        on_rows(tmp_path / "other", tiny_qwen2(), critic__lora__rank=2)
    both = {"model__lora__rank": 2, "critic__lora__rank": 2}
    on_rows(tmp_path / "both", tiny_qwen2(), steps=1, **both)
    assert on_rows(tmp_path / "both", steps=2, resume=True, **both)["steps"] == 2


def test_what_is_frozen_stays_frozen_when_a_run_goes_on(tmp_path):
    def half_frozen():
        model = tiny_qwen2()
        for name, weight in model.named_parameters():
            weight.requires_grad_("layers.1." in name or "lm_head" in name)
        return model

    on_rows(tmp_path / "whole", half_frozen(), steps=4)
    for name in ("alone", "again"):
        on_rows(tmp_path / name, half_frozen(), steps=2)
    on_rows(tmp_path / "alone", steps=4, resume=True)
    # The checkpoint says what is frozen, whatever the model that is handed over again says.
    on_rows(tmp_path / "again", tiny_qwen2(seed=1), steps=4, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "alone")
    assert_same(tmp_path / "whole", tmp_path / "again")
    trained_weights = load_file(tmp_path / "whole" / POLICY / "model.safetensors")
    for name, weight in half_frozen().named_parameters():
        assert torch.equal(trained_weights[name], weight) == (not weight.requires_grad), name


def test_part_of_an_adapter_may_be_frozen(tmp_path):
    def first_matrices_rest():
        torch.manual_seed(3)
        model = trained(wrapped("default"))
        for name, weight in model.named_parameters():
            weight.requires_grad_("lora_B" in name)
        return model

    on_rows(tmp_path / "whole", first_matrices_rest(), steps=4)
    on_rows(tmp_path / "parts", first_matrices_rest(), steps=2)
    on_rows(tmp_path / "parts", steps=4, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"model__lora__targets": []}, ConfigError, r"model\.lora\.targets is empty: name layers"),
        ({"model__lora__quantize": "4bit"}, ConfigError, r"4bit, .*but model\.lora\.rank is 0"),
        ({"model__lora__rank": 4, "model__lora__quantize": "4bit"}, ConfigError, "model.path names no model to"),
        ({"critic__lora__rank": 4}, ConfigError, r"made new from critic\.config: an adapter of random weights"),
        ({"critic__lora__rank": 4, "critic__config": None}, ConfigError, r"from model\.config, whose backbone"),
        ({"critic__lora__rank": 4, "critic__config": None, "critic__source": "probe"}, ConfigError, "is probe, which"),
        ({"model__lora__rank": -1}, ConfigError, r"model\.lora\.rank is -1, but must be 0 or more"),
        ({"model__lora__rank": 4, "model__lora__targets": ["c_attn"]}, ModelError, "names 'c_attn', but Qwen2"),
    ],
)  # fmt: skip
def test_adapters_with_nothing_to_stand_on_are_refused(tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        train(tiny_config(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_four_bits_need_a_gpu_and_a_trunk_is_no_adapter(tmp_path, pretrained):
    four = {**LORA, **pretrained, "model__lora__quantize": "4bit"}
    with pytest.raises(ModelError, match=r"model\.lora\.quantize is 4bit, but that needs an NVIDIA GPU"):
        train(tiny_config(tmp_path / "run", **four))
    train(tiny_config(tmp_path / "first", **LORA, steps=1))
    path = str(tmp_path / "first" / POLICY)
    with pytest.raises(ModelError, match=r"is an adapter, and a trunk has other layers\. Merge it first: sppo merge"):
        train(tiny_config(tmp_path / "run", critic__path=path))
