"""Chunked log-probabilities against the whole computation, for both layouts and several architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sppo.models.chunked import chunked_logprobs, chunked_loss
from sppo.models.logprobs import projects_apart, response_logprobs, response_loss
from sppo.models.packing import TokenRow, lay_out
from sppo.types import as_token_ids
from tests.conftest import make_rollouts, tiny_qwen2

ROWS = [TokenRow(r.prompt_token_ids, r.completion.token_ids) for r in make_rollouts(6)[0]]
WIDTH = max(len(row.response) for row in ROWS)


def token_row(prompt, response):
    return TokenRow(as_token_ids(prompt), as_token_ids(response))


def one_by_one(model, temperature=1.0):
    """The slow way: each row alone, the whole [T, V] of it."""
    result = torch.zeros(len(ROWS), WIDTH)
    for row, (prompt, response, _) in enumerate(ROWS):
        logits = model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0] / temperature
        said = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        result[row, : len(response)] = said.gather(1, torch.tensor(response).long()[:, None]).squeeze(1)
    return result


@pytest.mark.parametrize("layout", ["sorted", "packed"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_equal_to_each_row_alone(layout, chunk):
    model = tiny_qwen2()
    with torch.no_grad():
        found = response_logprobs(model, ROWS, width=WIDTH, temperature=0.6, chunk=chunk, layout=layout)
        torch.testing.assert_close(found.logprobs, one_by_one(model, 0.6), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["sorted", "packed"])
def test_no_row_sees_another(layout):
    model = tiny_qwen2()
    with torch.no_grad():
        together = response_logprobs(model, ROWS, width=WIDTH, layout=layout).logprobs
        changed = [*ROWS[:-1], token_row([39] * len(ROWS[-1].prompt), [38] * len(ROWS[-1].response))]
        again = response_logprobs(model, changed, width=WIDTH, layout=layout).logprobs
    torch.testing.assert_close(together[:-1], again[:-1], atol=1e-6, rtol=0)
    assert not torch.allclose(together[-1], again[-1])


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_equal_those_of_the_whole_computation(tied):
    upstream = torch.randn(len(ROWS), WIDTH, generator=torch.Generator().manual_seed(1))
    gradients = []
    for ours in (True, False):
        model = tiny_qwen2(tie_word_embeddings=tied)
        said = response_logprobs(model, ROWS, width=WIDTH, chunk=5).logprobs if ours else one_by_one(model)
        (said * upstream).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        # Rounding differs between processors, by about 2e-6 of the largest entry.
        whole = gradients[1][name]
        torch.testing.assert_close(gradient, whole, atol=1e-5 * float(whole.abs().max()), rtol=0, msg=name)


@pytest.mark.parametrize("layout", ["sorted", "packed"])
@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("tied", [False, True])
def test_a_loss_of_single_tokens_is_the_loss_of_the_log_probabilities(tied, chunk, layout):
    """A curved loss of both numbers, so that its gradient at each token depends on what the token was given."""
    aims = torch.randn(len(ROWS), WIDTH, generator=torch.Generator().manual_seed(1))
    found = []
    for at_once in (True, False):
        model = tiny_qwen2(tie_word_embeddings=tied)
        if at_once:
            loss = response_loss(
                model,
                ROWS,
                lambda logprobs, entropy, row, column: (aims[row, column] * (logprobs**2 + entropy * logprobs)).sum(),
                temperature=0.6,
                chunk=chunk,
                layout=layout,
            )
        else:
            said = response_logprobs(model, ROWS, width=WIDTH, temperature=0.6)
            loss = (aims * (said.logprobs**2 + said.entropy * said.logprobs)).sum()
        (3 * loss).backward()
        found.append((loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in found[1][1].values())
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], atol=1e-6 * largest, rtol=1e-4, msg=name)


def test_each_response_token_is_given_to_the_loss_once():
    seen: list[tuple[int, int]] = []

    def count(logprobs, entropy, row, column):
        seen.extend(zip(row.tolist(), column.tolist(), strict=True))
        return logprobs.sum()

    response_loss(tiny_qwen2(), ROWS, count, chunk=7)
    assert sorted(seen) == [(row, place) for row, one in enumerate(ROWS) for place in range(len(one.response))]


def test_a_frozen_projection_gets_no_gradient():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 3, generator=generator, requires_grad=True)
    weight, targets = torch.randn(6, 3, generator=generator), torch.tensor([0, 5, 2, 2])
    loss = chunked_loss(hidden, weight, None, targets, lambda said, *_: said.sum(), temperature=1.0, chunk=3)
    (found,) = torch.autograd.grad(loss, hidden)
    whole = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None]).sum()
    torch.testing.assert_close(found, torch.autograd.grad(whole, hidden)[0])


def test_under_autocast_only_the_weights_are_rounded():
    """Logits and entropies of bfloat16 hidden states keep float32's digits, in both ways of making them."""
    generator = torch.Generator().manual_seed(0)
    weight, targets = torch.randn(50, 8, generator=generator), torch.randint(0, 50, (9,), generator=generator)
    hidden = torch.randn(9, 8, generator=generator).bfloat16().requires_grad_()
    given: list[torch.Tensor] = []

    def keep(logprobs, entropy, part):
        given.append(entropy.detach().clone())
        return entropy.sum() - logprobs.sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, entropy = chunked_logprobs(hidden, weight, None, targets, temperature=0.7, chunk=4)
        loss = chunked_loss(hidden, weight, None, targets, keep, temperature=0.7, chunk=4)
    logs = (hidden.float() @ weight.bfloat16().float().T / 0.7).log_softmax(-1)
    whole = -(logs.exp() * logs).sum(-1)
    torch.testing.assert_close(entropy, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(given), whole, atol=1e-5, rtol=1e-5)
    (expected,) = torch.autograd.grad(entropy.sum() - logprobs.sum(), hidden)
    (found,) = torch.autograd.grad(loss, hidden)
    assert torch.equal(found, expected)


class Adapted(torch.nn.Linear):
    """A head that is a Linear and more, as adapters are."""

    def forward(self, hidden):
        return super().forward(hidden) + torch.linspace(0, 1, self.out_features)


def test_a_head_that_adds_to_its_weights_is_called_itself():
    model = tiny_qwen2()
    old = model.get_output_embeddings()
    head = Adapted(old.in_features, old.out_features, bias=False)
    head.weight = old.weight
    model.set_output_embeddings(head)
    found = response_logprobs(model, ROWS, width=WIDTH).logprobs
    torch.testing.assert_close(found, one_by_one(model), atol=1e-4, rtol=1e-4)


def test_chunked_gradient_passes_a_numerical_check_with_bias_and_temperature():
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((5, 3), (7, 3), (7,)))
    targets = torch.tensor([0, 6, 3, 3, 1])
    for tensor in (hidden, weight, bias):
        tensor.requires_grad_()
    ours, entropy = chunked_logprobs(hidden, weight, bias, targets, temperature=0.7, chunk=2)
    whole = ((hidden @ weight.T + bias) / 0.7).log_softmax(-1)
    torch.testing.assert_close(ours, whole.gather(1, targets[:, None]).squeeze(1))
    torch.testing.assert_close(entropy, -(whole.exp() * whole).sum(-1).detach())
    factors = torch.arange(1.0, 6.0)
    expected = torch.autograd.grad(
        (whole.gather(1, targets[:, None]).squeeze(1) * factors).sum(), (hidden, weight, bias)
    )
    found = torch.autograd.grad((ours * factors).sum(), (hidden, weight, bias))
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


ARCHITECTURES = {
    "llama": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 5.0},
    "cohere": {"logit_scale": 0.25},
    "mistral": {"sliding_window": 4},
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_any_architecture_agrees_with_its_own_forward(model_type):
    sizes = {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **sizes, **ARCHITECTURES[model_type])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
        found = response_logprobs(model, ROWS, width=WIDTH).logprobs
        torch.testing.assert_close(found, one_by_one(model), atol=1e-4, rtol=1e-4)
        loss = response_loss(model, ROWS, lambda logprobs, *_: logprobs.sum())
        torch.testing.assert_close(loss, found.sum(), atol=1e-3, rtol=1e-4)
    assert projects_apart(model) == (model_type not in {"gemma2", "cohere"})


def test_packed_rows_lie_end_to_end_with_positions_from_zero():
    arranged = lay_out([token_row([5, 6], [7]), token_row([8], [9, 1])], "packed", torch.device("cpu"))
    assert arranged.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1]]
    assert arranged.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2]]
    assert arranged.sources.tolist() == [1, 3, 4]
    assert arranged.targets.tolist() == [7, 9, 1]
    assert (arranged.rows.tolist(), arranged.columns.tolist()) == ([0, 1, 1], [0, 0, 1])


def test_sorted_rows_are_padded_on_the_right():
    arranged = lay_out([token_row([5, 6], [7]), token_row([8], [9, 1, 4])], "sorted", torch.device("cpu"))
    assert arranged.inputs["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 1, 4]]
    assert arranged.sources.tolist() == [1, 4, 5, 6]


@pytest.mark.parametrize("layout", ["sorted", "packed"])
def test_tokens_outside_the_mask_are_read_and_not_asked_for(layout):
    rows = [token_row([5, 6], [7, 8, 9])._replace(mask=np.array([True, False, True])), token_row([8], [4])]
    arranged = lay_out(rows, layout, torch.device("cpu"))
    ids = arranged.inputs["input_ids"].flatten().tolist()
    assert ids[:5] == [5, 6, 7, 8, 9]
    assert [ids[source] for source in arranged.sources.tolist()] == [6, 8, 8]
    assert arranged.targets.tolist() == [7, 9, 4]
    assert (arranged.rows.tolist(), arranged.columns.tolist()) == ([0, 0, 1], [0, 2, 0])
