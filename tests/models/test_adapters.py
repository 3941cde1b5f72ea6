"""Adapters in memory: they begin at zero, leave the weights alone, and merge into the model that they make."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from sppo.config.lora import LoraConfig
from sppo.errors import ModelError
from sppo.models.adapters import (
    adapt,
    adapter_config,
    backbone_copy,
    has_adapter,
    merge,
    plain_view,
    plain_weights,
    reference_of,
    training_base,
    unwrapped,
    without_adapter,
)
from sppo.models.checks import adds_nothing, causal_outputs, require_packing, require_recomputation
from sppo.models.loading import enable_gradient_checkpointing
from sppo.models.logprobs import projects_apart, response_logprobs, response_loss
from sppo.models.quantization import quantizable_parameters, quantized_loading, require_quantization
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.hf import HFEngine
from sppo.types import as_token_ids
from tests.conftest import tiny_qwen2
from tests.models.test_logprobs import ROWS, WIDTH, one_by_one

IDS = torch.arange(3, 27).view(2, 12)
TARGETS = ["q_proj", "down_proj"]


def trained(model, std=0.1):
    """The model with an adapter that says something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(std * torch.randn(weight.shape, generator=generator))
    return model


def adapted(rank=4, targets=None, alpha=32, **settings):
    model = tiny_qwen2(**settings)
    adapt(model, LoraConfig(rank=rank, alpha=alpha, targets=targets), "somewhere", "model")
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def flags(model):
    return {name: weight.requires_grad for name, weight in model.named_parameters()}


def test_an_adapter_begins_at_zero_and_is_all_that_is_trained():
    model = adapted(rank=2)
    assert torch.equal(logits(model), logits(tiny_qwen2()))
    assert adds_nothing(model)
    assert not adds_nothing(tiny_qwen2())
    learns = {name for name, on in flags(model).items() if on}
    assert learns == {name for name in flags(model) if ".lora_" in name}
    # Seven linear layers in each of two blocks; no head, no embedding.
    assert len(learns) == 2 * 7 * 2
    # r (inputs + outputs): q 32, k 24, v 24, o 32, gate 48, up 48, down 48 at hidden 16, one KV head of 8, inner 32.
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == 2 * 2 * (32 + 48 + 32 + 144)
    assert not model.training


def test_targets_and_alpha_are_what_they_say():
    model = adapted(rank=4, targets=TARGETS, alpha=8)
    assert {name.split(".")[-4] for name in flags(model) if "lora_A" in name} == set(TARGETS)
    layer = trained(model).model.layers[0].self_attn.q_proj
    inputs = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    by_hand = layer.base_layer(inputs) + 8 / 4 * inputs @ layer.lora_A.default.weight.T @ layer.lora_B.default.weight.T
    torch.testing.assert_close(layer(inputs), by_hand, atol=1e-6, rtol=1e-5)


def test_a_layer_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(
        ModelError, match=r"names 'query', but Qwen2ForCausalLM has no .*: down_proj, gate_proj, k_proj"
    ):
        adapted(targets=["q_proj", "query"])


def test_another_adapter_than_is_there_is_refused():
    model = adapted(rank=4)
    adapt(model, LoraConfig(rank=4), "elsewhere", "model")
    assert adapter_config(model).base_model_name_or_path == "somewhere"
    adapt(model, LoraConfig(), "elsewhere", "model")
    with pytest.raises(ModelError, match=r"rank 8 and alpha 32, but the model has one of rank 4 and alpha 32 already"):
        adapt(model, LoraConfig(rank=8), "elsewhere", "model")


def test_without_its_adapter_a_model_is_its_base_and_afterwards_what_it_was():
    model = trained(adapted())
    model.model.layers[0].self_attn.q_proj.lora_A.default.weight.requires_grad_(False)
    before, said = flags(model), logits(model)
    with without_adapter(model), without_adapter(model):
        assert torch.equal(logits(model), logits(tiny_qwen2()))
    assert torch.equal(logits(model), said)
    assert flags(model) == before
    assert not torch.allclose(said, logits(tiny_qwen2()), atol=0.1)
    with pytest.raises(RuntimeError, match="in between"), without_adapter(model):
        raise RuntimeError("in between")
    assert torch.equal(logits(model), said)


def test_a_reference_is_a_model_of_its_own_or_the_policy_without_its_adapter():
    policy, other = trained(adapted()), tiny_qwen2(seed=1)
    with reference_of(policy, other) as found:
        assert found is other
        assert not torch.equal(logits(policy), logits(tiny_qwen2()))
    with reference_of(policy, policy) as found:
        assert torch.equal(logits(found), logits(tiny_qwen2()))
    with pytest.raises(AssertionError, match="no reference of itself"), reference_of(other, other):
        pass


def test_the_base_alone_can_be_trained_and_the_adapter_rests():
    model = adapted()
    before = flags(model)
    with training_base(model):
        assert {name for name, on in flags(model).items() if not on} == {name for name in before if ".lora_" in name}
        model(input_ids=IDS).logits.sum().backward()
        assert model.model.layers[0].self_attn.q_proj.base_layer.weight.grad is not None
    assert flags(model) == before
    plain = tiny_qwen2()
    with training_base(plain):
        assert all(flags(plain).values())


@pytest.mark.parametrize("tied", [False, True])
def test_plain_views_share_weights_and_plain_weights_are_those_computed_with(tied):
    model = trained(adapted(tie_word_embeddings=tied))
    plain, view = tiny_qwen2(tie_word_embeddings=tied), plain_view(model)
    assert torch.equal(logits(view), logits(plain))
    assert view.state_dict().keys() == plain.state_dict().keys()
    assert view.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert not has_adapter(view)
    assert has_adapter(model)
    said = logits(model)
    weights = dict(plain_weights(model))
    assert weights.keys() == plain.state_dict().keys()
    other = tiny_qwen2(seed=1, tie_word_embeddings=tied)
    other.load_state_dict(weights)
    torch.testing.assert_close(logits(other), said, atol=1e-5, rtol=1e-5)
    with without_adapter(model):
        other.load_state_dict(dict(plain_weights(model)))
    assert torch.equal(logits(other), logits(plain))
    assert torch.equal(logits(model), said)


def test_a_merged_model_is_a_plain_one_with_the_same_logits(tmp_path):
    model = trained(adapted())
    said = logits(model)
    merge(model).save_pretrained(tmp_path)
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), said, atol=1e-5, rtol=0)


def test_a_critics_copy_is_the_base_and_learns_as_a_whole():
    model = trained(adapted())
    copied = backbone_copy(model)
    with torch.no_grad():
        found, expected = (trunk(input_ids=IDS).last_hidden_state for trunk in (copied, tiny_qwen2().model))
    assert torch.equal(found, expected)
    assert all(flags(copied).values())
    assert copied.embed_tokens.weight is not model.model.embed_tokens.weight
    model.is_quantized = True
    with pytest.raises(ModelError, match=r"which is quantized\. Name its trunk with --critic\.path"):
        backbone_copy(model)


@pytest.mark.parametrize("layout", ["sorted", "packed"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_chunked_loss_of_an_adapter_has_the_gradient_of_the_whole_computation(tied, layout):
    upstream = torch.randn(len(ROWS), WIDTH, generator=torch.Generator().manual_seed(1))
    gradients = []
    for ours in (True, False):
        model = trained(adapted(tie_word_embeddings=tied))
        if ours:
            assert projects_apart(model), "the head has no adapter"
            loss = response_loss(
                model, ROWS, lambda said, entropy, row, column: (said * upstream[row, column]).sum(), layout=layout
            )
        else:
            loss = (one_by_one(model) * upstream).sum()
        loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == {name for name in flags(model) if ".lora_" in name}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("options", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_of_the_head_counts_too(options):
    wrapped = peft.get_peft_model(tiny_qwen2(), peft.LoraConfig(r=2, **{"target_modules": ["q_proj"], **options}))
    model = trained(unwrapped(wrapped))
    assert not projects_apart(model)
    with torch.no_grad():
        torch.testing.assert_close(
            response_logprobs(model, ROWS, width=WIDTH).logprobs, one_by_one(model), atol=1e-5, rtol=1e-5
        )
    said = logits(model)
    other = tiny_qwen2(seed=1)
    other.load_state_dict(dict(plain_weights(model)))
    torch.testing.assert_close(logits(other), said, atol=1e-5, rtol=1e-5)
    with without_adapter(model):
        assert torch.equal(logits(model), logits(tiny_qwen2()))
    assert torch.equal(logits(model), said)
    torch.testing.assert_close(logits(merge(model)), said, atol=1e-5, rtol=1e-5)


def test_the_engine_samples_from_the_adapter_and_without_it_from_the_base():
    rows = [as_token_ids([5, 6, 7]), as_token_ids([8, 9])]

    def sampled(model):
        completions = HFEngine(model).generate(rows, SamplingParameters(8), seeds=[1, 2])
        return [completion.token_ids.tolist() for completion in completions]

    model = trained(adapted())
    merged = merge(trained(adapted()))
    assert sampled(model) == sampled(merged) != sampled(tiny_qwen2())
    with without_adapter(model):
        assert sampled(model) == sampled(tiny_qwen2())
    assert sampled(peft.get_peft_model(tiny_qwen2(), peft.LoraConfig(target_modules=TARGETS))) == sampled(tiny_qwen2())


def test_recomputed_activations_and_packed_rows_give_the_same():
    gradients = []
    for recompute in (False, True):
        model = trained(adapted())
        if recompute:
            enable_gradient_checkpointing(model, "model.gradient_checkpointing")
            require_recomputation(model, causal_outputs(model), "model.gradient_checkpointing")
        response_loss(model, ROWS, lambda said, entropy, row, column: said.sum()).backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    require_packing(trained(adapted()))


def test_a_peft_model_is_taken_out_of_its_wrapper_with_its_tensors():
    wrapped = peft.get_peft_model(tiny_qwen2(), peft.LoraConfig(r=2, target_modules=TARGETS), adapter_name="mine")
    inner = unwrapped(wrapped)
    assert inner is wrapped.base_model.model
    assert has_adapter(inner)
    trained(inner)
    with torch.no_grad():
        assert torch.equal(wrapped(input_ids=IDS).logits, logits(inner))
    plain = tiny_qwen2()
    assert unwrapped(plain) is plain


def handed_over(**options):
    return peft.get_peft_model(tiny_qwen2(), peft.LoraConfig(**{"r": 2, "target_modules": TARGETS, **options}))


def two_adapters():
    model = handed_over()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=TARGETS))
    return model


def merged_already():
    model = handed_over()
    model.merge_adapter()
    return model


def trains_a_norm():
    model = handed_over()
    model.base_model.model.model.norm.weight.requires_grad_(True)
    return model


def prompt_tuned():
    return peft.get_peft_model(tiny_qwen2(), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (two_adapters, r"has 2 adapters \(default, second\).*delete_adapter"),
        (merged_already, r"is merged into its weights\. Call model\.unmerge_adapter\(\) first"),
        (trains_a_norm, r"trains weights outside its adapter \(model\.norm\.weight\), which a checkpoint"),
        (prompt_tuned, "an adapter that is of type PROMPT_TUNING; only plain LoRA"),
        (lambda: handed_over(bias="all"), r"trains biases of the model \(bias all\)"),
        (lambda: handed_over(trainable_token_indices=[1]), "trains single tokens"),
    ],
)
def test_adapters_that_a_checkpoint_could_not_hold_are_refused(make, said):
    with pytest.raises(ModelError, match=said):
        unwrapped(make())


def test_a_trunk_gets_an_adapter_in_all_of_its_linear_layers():
    trunk = AutoModel.from_config(tiny_qwen2().config)
    adapt(trunk, LoraConfig(rank=1), "somewhere", "critic")
    assert sum("lora_A" in name for name in flags(trunk)) == 14
    assert adapter_config(trunk).task_type == "FEATURE_EXTRACTION"


def test_four_bits_are_refused_where_they_cannot_be_had(monkeypatch):
    options = LoraConfig(rank=4, quantize="4bit")
    require_quantization(LoraConfig(rank=4), "model.lora", torch.device("cpu"))
    assert quantized_loading(LoraConfig(rank=4), "model.lora", torch.device("cpu")) == {}
    with pytest.raises(
        ModelError, match=r"model\.lora\.quantize is 4bit, but that needs an NVIDIA GPU, .* is cpu\. Or"
    ):
        require_quantization(options, "model.lora", torch.device("cpu"))
    monkeypatch.setattr("sppo.models.quantization.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"bitsandbytes is not installed here \(pip install bitsandbytes\)"):
        quantized_loading(options, "critic.lora", torch.device("cuda"))
    monkeypatch.setattr("sppo.models.quantization.find_spec", lambda name: object())
    made = quantized_loading(options, "model.lora", torch.device("cuda"))
    assert made["quantization_config"].load_in_4bit
    assert made["device_map"] == {"": torch.device("cuda")}
    # Per block: q 256, k 128, v 128, o 256, gate, up, down 512 each.
    assert quantizable_parameters(adapted()) == 2 * (256 + 128 + 128 + 256 + 3 * 512)
