"""What is tried on a model when it is built, against what an independent computation says of the same model."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ModelError
from sppo.models.checks import (
    BoundedIndices,
    causal_outputs,
    disagreement,
    readable_tokens,
    require_packing,
    require_recomputation,
    trunk_outputs,
)
from sppo.models.loading import prepare_policy
from sppo.models.logprobs import response_logprobs
from sppo.models.packing import TokenRow
from sppo.models.tokenizers import character_tokenizer
from sppo.types import as_token_ids
from tests.models.zoo import SETTINGS, tiny_model

CPU = torch.device("cpu")
TOKENIZER = character_tokenizer(ALPHABET)
KEY = "model.gradient_checkpointing"
KEEP_APART = {"gemma2", "gpt2", "gptj", "llama", "mistral", "mixtral", "qwen2", "qwen3_moe", "seed_oss", "starcoder2"}
NOISY: dict[str, tuple[str, dict[str, Any]]] = {
    "residual dropout": ("seed_oss", {"residual_dropout": 0.3}),
    "residual dropout of another": ("starcoder2", {"residual_dropout": 0.3}),
    "dropped layers": ("opt", {"layerdrop": 0.5}),
    "dropped layers of another": ("xglm", {"layerdrop": 0.5}),
    "dropped layers of a third": ("biogpt", {"layerdrop": 0.5}),
    "a router's noise": ("mixtral", {"router_jitter_noise": 0.3}),
    "a router's noise of another": ("minimax", {"router_jitter_noise": 0.3}),
}


def rows(seed: int = 1) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(seed)
    return [
        TokenRow(*(as_token_ids(torch.randint(2, 40, (length,), generator=generator).tolist()) for length in lengths))
        for lengths in ((5, 9), (1, 14), (8, 6))
    ]


def refusal(check: Any, *arguments: Any) -> str | None:
    try:
        check(*arguments)
    except ModelError as error:
        return str(error)
    return None


@torch.no_grad()
def packing_error(model: Any) -> float:
    """Largest error of a packed row's log-probabilities, nats."""
    alone = torch.cat([response_logprobs(model, [row], width=14).logprobs for row in rows()])
    return float((response_logprobs(model, rows(), width=14, layout="packed").logprobs - alone).abs().max())


@pytest.mark.parametrize("model_type", SETTINGS)
def test_packing_is_refused_exactly_where_its_log_probabilities_are_wrong(model_type):
    model = tiny_model(model_type)
    message = refusal(require_packing, model)
    error = packing_error(model)
    assert error < 1e-4 or error > 0.05, "right but for rounding, or clearly wrong"
    assert (message is not None) == (error > 0.05)
    assert message is None or "optimizer.layout is packed, but" in message
    assert message is None or message.endswith("Set --optimizer.layout sorted.")
    assert message is None or model_type not in KEEP_APART


@pytest.mark.parametrize("model_type", ["lfm2", "jamba", "falcon_h1"])
def test_packing_is_refused_where_small_weights_hide_what_a_row_sees(model_type):
    with pytest.raises(ModelError, match="a row sees the one before it"):
        require_packing(tiny_model(model_type, initializer_range=0.02))


def test_packing_is_refused_where_it_fails():
    model = tiny_model("qwen2")
    model.model.register_forward_pre_hook(fail_on_positions, with_kwargs=True)
    with pytest.raises(ModelError, match=r"can't read rows laid end to end: no positions\. Set --optimizer.layout"):
        require_packing(model)


def fail_on_positions(module: nn.Module, inputs: Any, kwargs: dict[str, Any]) -> None:
    if kwargs.get("position_ids") is not None:
        raise NotImplementedError("no positions")


@torch.no_grad()
def train_mode_error(model: Any) -> float:
    """Largest difference of log-probabilities between train and eval mode over several seeds, nats."""
    model.eval()
    expected = response_logprobs(model, rows(), width=14).logprobs
    model.train()
    errors = []
    for seed in range(10):
        torch.manual_seed(seed)
        errors.append(float((response_logprobs(model, rows(), width=14).logprobs - expected).abs().max()))
    return max(errors)


@pytest.mark.parametrize(("model_type", "noise"), NOISY.values(), ids=NOISY)
def test_chance_of_train_mode_is_switched_off_for_checkpointing(model_type, noise):
    before = tiny_model(model_type, **noise)
    assert train_mode_error(before) > 0.05, "it acts where nobody switches it off"
    model = prepare_policy(tiny_model(model_type, **noise), TOKENIZER, CPU, gradient_checkpointing=True)
    require_recomputation(model, causal_outputs(model), KEY)
    assert model.training
    assert train_mode_error(model) == 0
    said = [response_logprobs(each.eval(), rows(), width=14).logprobs for each in (model, before)]
    assert torch.equal(*said), "and eval mode is as it was"


def test_checkpointing_is_refused_where_chance_is_part_of_the_model():
    """PhiMoE's routers draw an expert in train mode, and their noise is a threshold in eval mode too."""
    model = prepare_policy(tiny_model("phimoe", router_jitter_noise=0.5), TOKENIZER, CPU, gradient_checkpointing=True)
    before = response_logprobs(model.eval(), rows(), width=14).logprobs
    message = refusal(require_recomputation, model.train(), causal_outputs(model), KEY)
    assert message is not None
    assert message.startswith(f"{KEY} is on, which puts a model into train mode, and there PhimoeForCausalLM")
    assert message.endswith(f"Set --{KEY} false.")
    assert torch.equal(response_logprobs(model.eval(), rows(), width=14).logprobs, before)


class Wavering(nn.Module):
    """A layer's MLP that does something else in train mode, under no name that says so."""

    def __init__(self, inner: nn.Module, chance: float) -> None:
        super().__init__()
        self.inner, self.chance = inner, chance

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        off = self.training and float(torch.rand(())) < self.chance
        return hidden * 0 if off else self.inner(hidden)


@pytest.mark.parametrize("chance", [0.4, 1.0])
def test_checkpointing_is_refused_where_train_mode_is_something_else(chance):
    model = prepare_policy(tiny_model("qwen2"), TOKENIZER, CPU, gradient_checkpointing=True)
    model.model.layers[1].mlp = Wavering(model.model.layers[1].mlp, chance)
    with pytest.raises(ModelError, match="computes something else than in eval mode"):
        require_recomputation(model, causal_outputs(model), KEY)


class Forgetful(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * 0


def test_checkpointing_is_refused_where_the_gradient_is_another():
    model = prepare_policy(tiny_model("qwen2"), TOKENIZER, CPU, gradient_checkpointing=True)
    model.model.layers[1].register_forward_hook(
        lambda module, inputs, output: Forgetful.apply(output) if module.training else output
    )
    with pytest.raises(ModelError, match="outputs or gradients differ"):
        require_recomputation(model, causal_outputs(model), KEY)


@pytest.mark.parametrize("model_type", ["ctrl", "jetmoe"])
def test_checkpointing_is_refused_where_the_class_has_none(model_type):
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"n_embd": 16, "n_layer": 1, "n_head": 2, "dff": 16} if model_type == "ctrl" else {"kv_channels": 8}
    config = AutoConfig.for_model(model_type, **{**(sizes if model_type == "jetmoe" else {"vocab_size": 40}), **more})
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=rf"{KEY} is on, but.*does not support.*Set --{KEY} false"):
        prepare_policy(model, TOKENIZER, CPU, gradient_checkpointing=True)


@pytest.mark.parametrize("model_type", ["qwen2", "opt", "mixtral"])
def test_nothing_is_left_behind(model_type):
    model = prepare_policy(tiny_model(model_type, layerdrop=0.5), TOKENIZER, CPU, gradient_checkpointing=True)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    refusal(require_packing, model)
    require_recomputation(model, causal_outputs(model), KEY)
    readable_tokens(model, causal_outputs(model), 20)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def trunk(model_type: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 30,
    }  # fmt: skip
    return AutoModel.from_config(AutoConfig.for_model(model_type, **{**sizes, **settings})).eval()


def test_a_row_is_read_once_where_the_config_is_true():
    model, lengths = trunk("bert"), []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assert readable_tokens(model, trunk_outputs(model), 30) == 30
    assert lengths == [30]


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_positions_counted_from_behind_the_padding_are_fewer(padding):
    model = trunk("roberta", pad_token_id=padding)
    assert readable_tokens(model, trunk_outputs(model), 30) == 29 - padding
    assert readable_tokens(model, trunk_outputs(model), 20) == 20


@pytest.mark.parametrize(
    "read",
    [
        lambda table, index: torch.nn.functional.embedding(index, table),
        lambda table, index: table.gather(0, index[:, None]),
        lambda table, index: table.index_select(0, index),
        lambda table, index: table[index],
        lambda table, index: table[:, index],
    ],
)
def test_an_index_past_the_end_is_refused_before_a_gpu_sees_it(read):
    table = torch.zeros(5, 5)
    with BoundedIndices():
        read(table, torch.tensor([0, 4]))
        with pytest.raises(IndexError, match=r"^index 5 where there are 5$"):
            read(table, torch.tensor([0, 5]))


def test_disagreement_by_hand():
    expected = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, -2.0, 2.0, -2.0]])
    # Variances over the last dimension are 4/3 and 16/3, so the scale is sqrt(10/3).
    found = expected + torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    assert disagreement(found, expected) == pytest.approx(1.0 / (10 / 3) ** 0.5)
    forbidden = torch.tensor([[1.0, -1.0, -torch.inf], [2.0, -2.0, torch.finfo().min]])
    assert disagreement(forbidden, forbidden) == 0
    assert not disagreement(torch.full((1, 2), torch.nan), torch.tensor([[1.0, 2.0]])) <= 1
    assert disagreement(torch.zeros(1, 2), torch.zeros(1, 2)) == 0
