"""Adapters on the disk: peft reads ours, we read peft's, and a stranger's folder is told what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from sppo.config import ModelConfig
from sppo.config.lora import LoraConfig
from sppo.errors import ModelError
from sppo.evaluation.benchmarking import weights_digest
from sppo.models.adapter_files import (
    find_base,
    is_adapter,
    load_adapter,
    note_on,
    save_base,
    saved_bytes,
    saved_form,
    saved_weights,
    weight_files,
)
from sppo.models.adapters import adapt, adapter_config, based_on, unwrapped
from sppo.models.loading import load_model_config, load_policy, load_tokenizer
from sppo.models.tokenizers import character_tokenizer
from tests.conftest import tiny_qwen2
from tests.models.test_adapters import flags, logits, trained

CPU = torch.device("cpu")


def saved(folder: Path, base: str | None = None, seed: int = 0, **options) -> torch.Tensor:
    """An adapter in `folder`/policy on the base in `folder`/base; returns the logits of both together."""
    model = tiny_qwen2(seed=seed)
    adapt(model, LoraConfig(**{"rank": 4, **options}), base or str(folder / "base"), "model")
    save_base(trained(model), folder / "base")
    saved_form(model).save_pretrained(folder / "policy")
    return logits(model)


def policy_of(folder: Path, tokenizer):
    return load_policy(ModelConfig(path=str(folder / "policy")), tokenizer, CPU)


def change(folder: Path, **settings):
    file = folder / "policy" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_a_folder_holds_the_adapter_alone_and_whoever_reads_it_gets_the_same_model(tmp_path, tokenizer):
    said = saved(tmp_path)
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    ours = policy_of(tmp_path, tokenizer)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "policy")
    for model in (ours, theirs, AutoModelForCausalLM.from_pretrained(tmp_path / "policy")):
        assert torch.equal(logits(model), said)
    assert [name for name, on in flags(ours).items() if on] == [name for name in flags(ours) if ".lora_" in name]
    assert load_model_config(ModelConfig(path=str(tmp_path / "policy"))).hidden_size == 16


def test_what_peft_has_saved_is_read(tmp_path, tokenizer):
    tiny_qwen2().save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], use_dora=True),
        adapter_name="mine",
    )
    trained(model).save_pretrained(tmp_path / "saved")
    shutil.move(tmp_path / "saved" / "mine", tmp_path / "policy")
    ours = policy_of(tmp_path, tokenizer)
    assert torch.equal(logits(ours), logits(model))
    # And written and read once more.
    saved_form(ours).save_pretrained(tmp_path / "again")
    again = load_policy(ModelConfig(path=str(tmp_path / "again")), tokenizer, CPU)
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_that_changed_its_base_when_it_began_is_read_on_the_base_as_it_is(tmp_path, tokenizer):
    # PiSSA begins with the largest parts of the weights, and takes them from the base.
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    model = unwrapped(peft.get_peft_model(tiny_qwen2(), config))
    adapter_config(model).base_model_name_or_path = str(tmp_path / "base")
    save_base(model, tmp_path / "base")
    saved_form(trained(model)).save_pretrained(tmp_path / "policy")
    assert torch.equal(logits(policy_of(tmp_path, tokenizer)), logits(model))


def test_the_tokenizer_may_be_beside_the_adapter_or_its_base(tmp_path):
    saved(tmp_path)
    character_tokenizer("0123").save_pretrained(tmp_path / "base")
    config = ModelConfig(path=str(tmp_path / "policy"))
    assert len(load_tokenizer(config)) == 6
    character_tokenizer("01234567").save_pretrained(tmp_path / "policy")
    assert len(load_tokenizer(config)) == 10


def test_a_runs_own_base_is_found_wherever_the_run_has_been_moved(tmp_path, tokenizer):
    run, policy = tmp_path / "run", Path("checkpoints/step_3/policy")
    for place in (run, tmp_path / "other"):
        said = saved(place, base=str(run / "adapter_base"), seed=0 if place == run else 1)
        (place / policy).parent.mkdir(parents=True)
        shutil.move(place / "policy", place / policy)
        shutil.move(place / "base", place / "adapter_base")
    # Another run's base lies where the adapter's own was: the one above the adapter is meant.
    shutil.move(run, tmp_path / "moved")
    shutil.move(tmp_path / "other", run)
    moved = load_policy(ModelConfig(path=str(tmp_path / "moved" / policy)), tokenizer, CPU)
    assert based_on(moved) == str(tmp_path / "moved" / "adapter_base")
    with torch.no_grad():
        assert torch.equal(moved.model.embed_tokens.weight, tiny_qwen2().model.embed_tokens.weight)
    assert torch.equal(logits(load_policy(ModelConfig(path=str(run / policy)), tokenizer, CPU)), said)
    # A copy of the adapter alone goes by the name.
    shutil.copytree(run / policy, tmp_path / "apart")
    assert find_base(tmp_path / "apart") == str(run / "adapter_base")


def no_safetensors(folder):
    (folder / "policy" / "adapter_model.safetensors").rename(folder / "policy" / "adapter_model.bin")


def stacked(folder):
    shutil.copytree(folder / "policy", folder / "first")
    change(folder, base_model_name_or_path=str(folder / "first"))


def other_base(folder):
    shutil.rmtree(folder / "base")
    tiny_qwen2(num_hidden_layers=1).save_pretrained(folder / "base")


def wider_base(folder):
    shutil.rmtree(folder / "base")
    tiny_qwen2(hidden_size=32).save_pretrained(folder / "base")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_safetensors, r"has no adapter_model\.safetensors, and adapters are read from that alone"),
        (stacked, r"names .* as .*first, which is an adapter itself\. Merge that one first with `sppo merge`"),
        (other_base, r"The adapter in .*policy doesn't fit .*base: .*layers\.1\..* has no counterpart"),
        (wider_base, r"The adapter in .*policy doesn't fit .*base: size mismatch"),
        (
            lambda folder: shutil.rmtree(folder / "base"),
            r"as .*base, and there is no such folder\. Put it back, or write into that file",
        ),
        (lambda folder: change(folder, base_model_name_or_path=None), r"\(base_model_name_or_path\) nowhere\. Write"),
        (lambda folder: change(folder, peft_type="IA3"), "holds an adapter of type IA3; only LoRA"),
        (lambda folder: change(folder, peft_type="NONSENSE"), r"adapter_config\.json can't be read: "),
        (lambda folder: tiny_qwen2().save_pretrained(folder / "policy"), "holds both a model and an adapter"),
    ],
)
def test_folders_that_cannot_be_used_are_told_why(tmp_path, tokenizer, spoil, said):
    saved(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=said):
        policy_of(tmp_path, tokenizer)


def test_a_strangers_base_runs_no_code(tmp_path, tokenizer):
    saved(tmp_path)
    config = tmp_path / "base" / "config.json"
    code = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": code, "model_type": "evil"}))
    (tmp_path / "base" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    with pytest.raises(ModelError, match=r"can't be loaded"):
        policy_of(tmp_path, tokenizer)
    with pytest.raises(ModelError, match=r"model\.path '.*base' can't be loaded .*trust_remote_code true"):
        load_model_config(ModelConfig(path=str(tmp_path / "policy")))
    assert not (tmp_path / "ran").exists()
    assert note_on(tmp_path / "policy") == (
        f"The model is the adapter in {tmp_path / 'policy'} on the weights of {tmp_path / 'base'}."
    )


def test_a_module_that_an_adapter_names_is_not_imported(tmp_path, tokenizer, monkeypatch):
    said = saved(tmp_path)
    (tmp_path / "megatron_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    change(tmp_path, megatron_config={"params_dtype": "float32"}, megatron_core="megatron_evil")
    assert torch.equal(logits(policy_of(tmp_path, tokenizer)), said)
    assert not (tmp_path / "ran").exists()


def test_names_sizes_and_digests_tell_adapters_apart(tmp_path, tokenizer):
    assert not is_adapter("Qwen/Qwen2.5-0.5B")
    assert not is_adapter(None)
    assert note_on("Qwen/Qwen2.5-0.5B") is None
    for name, seed in (("a", 0), ("b", 1)):
        saved(tmp_path / name, seed=seed)
    first, second = (str(tmp_path / name / "policy") for name in ("a", "b"))
    # The same adapter on other weights is another model.
    assert weights_digest(first) != weights_digest(second)
    model = policy_of(tmp_path / "a", tokenizer)
    assert saved_bytes(model) == 4 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert saved_bytes(tiny_qwen2()) == 4 * sum(weight.numel() for weight in tiny_qwen2().parameters())
    names = saved_weights(model).keys()
    assert tiny_qwen2().state_dict().keys() < names
    assert sum(name.startswith("base_model.model.model.layers.0.") for name in names) == 14
    assert [file.parent.name for file in weight_files(first)] == ["policy", "base"]


def test_an_adapter_is_put_into_another_model_of_the_same_kind(tmp_path):
    said = saved(tmp_path)
    model = tiny_qwen2()
    load_adapter(model, tmp_path / "policy", "here")
    assert torch.equal(logits(model), said)
    assert based_on(model) == "here"
