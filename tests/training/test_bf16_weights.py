"""Weights that are kept in bfloat16: steps too small for them, moments in 8 bits, runs that go on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sppo.commands.train import train
from sppo.config.recipes import load_recipe
from sppo.errors import ConfigError
from sppo.runs.folder import read_metrics
from sppo.training.build import check, checks
from sppo.training.given import Given
from sppo.update.eight_bit import AdamW8bit, in_full, packed
from tests.conftest import tiny_config
from tests.training.test_saving import assert_same_run, weights_and_moments
from tests.with_torchao import needs_torchao

BF16 = {
    "model__precision": "bf16_weights", "algorithm__old_logprobs": "trainer", "model__config__hidden_size": 64,
    "model__config__intermediate_size": 128, "critic__config__hidden_size": 64,
}  # fmt: skip
"""Layers of 4,096 numbers and more, whose moments are held in 8 bits."""


def with_torchao(test):
    for mark in needs_torchao:
        test = mark(test)
    return test


@with_torchao
def test_steps_below_a_weights_resolution_are_taken_on_average():
    torch.manual_seed(0)
    weights, few = (nn.Parameter(torch.ones(rows, 256, dtype=torch.bfloat16)) for rows in (64, 1))
    nearest = nn.Parameter(weights.detach().clone())
    for optimizer in (AdamW8bit([weights, few], lr=1e-5), torch.optim.AdamW([nearest], lr=1e-5)):
        for _ in range(40):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    # A step of 1e-5 from 1, where the next bfloat16 below is 1/256 away: 40 steps down are .0004, and decay 4e-6.
    assert torch.equal(nearest, torch.ones_like(nearest))
    moved = 1 - weights.detach().double()
    assert not (moved * 256 % 1).any()
    # 16,384 weights, each moved by 1/256 with a probability of a tenth: the mean's deviation is 9.5e-6.
    assert moved.mean() == pytest.approx(4.04e-4, abs=4 * 9.5e-6)


@with_torchao
def test_moments_are_those_of_adamw_within_8_bits():
    torch.manual_seed(0)
    weights = nn.Parameter(torch.randn(64, 128))
    twin = nn.Parameter(weights.detach().clone())
    ours, theirs = AdamW8bit([weights], lr=1e-3), torch.optim.AdamW([twin], lr=1e-3)
    for _ in range(20):
        weights.grad = torch.randn(64, 128)
        twin.grad = weights.grad.clone()
        ours.step()
        theirs.step()
    for key in ("exp_avg", "exp_avg_sq"):
        held, exact = packed(ours.state[weights][key], weights), theirs.state[twin][key]
        assert held is not None
        assert held.codes.dtype == torch.uint8
        gap = (in_full(held.codes, held.scale, signed=key == "exp_avg") - exact).norm() / exact.norm()
        assert 1e-4 < gap < 0.03, key
    # float32 weights aren't rounded at random; what they differ by is the moments' 8 bits.
    moved = (weights - twin).norm() / (twin - weights.detach() + 1).norm()
    assert moved < 1e-4


@with_torchao
def test_a_run_keeps_weights_in_bfloat16_and_goes_on_to_the_bit(tmp_path):
    train(tiny_config(tmp_path / "whole", steps=4, **BF16))
    train(tiny_config(tmp_path / "parts", steps=2, **BF16))
    train(tiny_config(tmp_path / "parts", steps=4, **BF16), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    mine = weights_and_moments(tmp_path / "whole")
    kinds = {place: {t.dtype for (where, _), t in mine.items() if where == place} for place, _ in mine}
    assert kinds["policy"] == {torch.bfloat16}
    assert kinds["critic"] == {torch.bfloat16, torch.float32}  # its head
    assert kinds["optimizers"] == {torch.uint8, torch.float32}
    before, after = (read_metrics(tmp_path / "whole")[place] for place in (1, -1))
    assert before["policy/grad_norm"] > 0
    assert after["sampler/logprob_gap_mean"] < 5e-3


@with_torchao
def test_it_goes_where_bf16_goes(tmp_path):
    for precision in ("bf16", "bf16_weights"):
        train(tiny_config(tmp_path / precision, **{**BF16, "model__precision": precision}))
    one, two = (read_metrics(tmp_path / precision)[1:] for precision in ("bf16", "bf16_weights"))
    for mine, other in zip(one, two, strict=True):
        for key in ("policy/loss", "policy/grad_norm", "critic/loss", "critic/grad_norm"):
            assert other[key] == pytest.approx(mine[key], rel=0.1), key


@with_torchao
def test_an_adapter_trains_in_bfloat16_too(tmp_path):
    options = {**BF16, "model__lora__rank": 64, "algorithm__kl_coefficient": 0.1}
    train(tiny_config(tmp_path / "whole", steps=3, **options))
    train(tiny_config(tmp_path / "parts", steps=1, **options))
    train(tiny_config(tmp_path / "parts", steps=3, **options), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    mine = weights_and_moments(tmp_path / "whole")
    adapter = [tensor for (place, _), tensor in mine.items() if place == "policy"]
    assert {tensor.dtype for tensor in adapter} == {torch.bfloat16}
    assert any(tensor.any() for tensor in adapter)


def options(**changed):
    return load_recipe("demo", {"model.precision": "bf16_weights", "device": "cpu", **changed})


def test_what_can_not_be_had_is_refused(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"torchao is not installed: pip install 'sppo\[torchao\]'"):
        check(options(), Given())
    check(options(), Given(), planned=True)
    with pytest.raises(ConfigError, match="device is mps"):
        check(options(device="mps"), Given())
    monkeypatch.setattr(checks, "require_quantization", lambda *given: None)
    with pytest.raises(ConfigError, match=r"model\.lora\.quantize 4bit holds them in 4 bits"):
        check(options(**{"model.lora.rank": 4, "model.lora.quantize": "4bit", "model.path": "x"}), Given())
