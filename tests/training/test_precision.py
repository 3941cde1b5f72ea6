"""What models compute in, what of them is float32 all the same, and moments that make room for the engine."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from sppo.commands.train import train
from sppo.models.chunked import chunked_logprobs
from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records
from sppo.training.build import build, check
from sppo.training.given import Given
from sppo.training.offload import moments_on_host
from tests.conftest import tiny_config

BF16 = {"model__precision": "bf16", "algorithm__old_logprobs": "trainer"}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")],
    ),
]


def weights_of(folder):
    places = sorted((folder / "checkpoints" / "last").rglob("*/*.safetensors"))
    return {(path.parent.name, name): tensor for path in places for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_computes_in_bfloat16_and_keeps_weights_and_moments_in_float32(tmp_path, device):
    config = check(tiny_config(tmp_path / "run", device=device, **BF16), Given())
    parts = build(config, Given())
    computed = []
    norm = parts.policy.model.model.layers[0].mlp.gate_proj
    norm.register_forward_hook(lambda module, inputs, output: computed.append((module.weight.dtype, output.dtype)))
    with parts.engine.awake():
        parts.collector.collect(1, parts.policy.version)
    assert set(computed) == {(torch.bfloat16, torch.bfloat16)}
    assert {parameter.dtype for parameter in parts.policy.model.parameters()} == {torch.float32}
    parts.engine.close()
    train(config)
    assert {tensor.dtype for tensor in weights_of(tmp_path / "run").values()} == {torch.float32}
    (moments,) = (tmp_path / "run" / "checkpoints" / "last" / "optimizers").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(moments).values()} == {torch.float32}


def test_bf16_goes_where_fp32_goes(tmp_path):
    for precision in ("fp32", "bf16"):
        train(tiny_config(tmp_path / precision, **{**BF16, "model__precision": precision}))
    one, two = (read_metrics(tmp_path / precision)[1:] for precision in ("fp32", "bf16"))
    for mine, other in zip(one, two, strict=True):
        for key in ("policy/loss", "policy/grad_norm", "critic/loss", "critic/grad_norm"):
            assert other[key] == pytest.approx(mine[key], rel=0.03), key
        # Sampler and trainer round differently; a wrong precision somewhere would be a hundred times this.
        assert 1e-5 < other["sampler/logprob_gap_mean"] < 5e-3


def test_bf16_resumes_to_the_bit(tmp_path):
    train(tiny_config(tmp_path / "whole", steps=4, **BF16))
    train(tiny_config(tmp_path / "parts", steps=2, **BF16))
    train(tiny_config(tmp_path / "parts", steps=4, **BF16), resume=True)
    mine, other = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert mine.keys() == other.keys()
    assert all(torch.equal(other[name], tensor) for name, tensor in mine.items())


@pytest.mark.parametrize("device", DEVICES)
def test_the_heads_logits_are_not_rounded_to_bfloat16(device):
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(6, 32, generator=generator) * 8).bfloat16().to(device)
    weight = (torch.randn(50, 32, generator=generator) * 4).bfloat16().to(device)
    targets = torch.arange(6, device=device)
    exact = (hidden.double() @ weight.double().T).log_softmax(dim=-1)[torch.arange(6), targets]
    found, _ = chunked_logprobs(hidden, weight, None, targets, temperature=1.0, chunk=4)
    rounded = (hidden @ weight.T).float().log_softmax(dim=-1)[torch.arange(6), targets]
    assert (found - exact).abs().max() < 1e-3
    assert (rounded - exact).abs().max() > 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_moments_make_room_while_responses_are_sampled(tmp_path, device):
    options = {"device": device, "model__precision": "bf16"}
    train(tiny_config(tmp_path / "plain", **options))
    train(tiny_config(tmp_path / "offloaded", optimizer__offload=True, **options))
    mine, other = weights_of(tmp_path / "plain"), weights_of(tmp_path / "offloaded")
    assert all(torch.equal(other[name], tensor) for name, tensor in mine.items())
    records = [[r["response_token_ids"] for r in read_records(tmp_path / name)] for name in ("plain", "offloaded")]
    assert records[0] == records[1]


@pytest.mark.parametrize("device", DEVICES)
def test_moments_are_on_the_host_and_come_back_whole(device):
    weight = torch.nn.Parameter(torch.ones(4, device=device))
    adam = torch.optim.AdamW([weight])
    weight.grad = torch.full_like(weight, 0.5)
    adam.step()
    before = {name: value.clone() for name, value in adam.state[weight].items()}
    with moments_on_host({"policy": adam}):
        assert {value.device.type for value in adam.state[weight].values()} == {"cpu"}
    for name, value in before.items():
        assert adam.state[weight][name].device == value.device
        assert torch.equal(adam.state[weight][name], value)
