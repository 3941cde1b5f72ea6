"""Moments in 8 bits, saved on some ranks and read on others."""

from __future__ import annotations

import pytest
import torch

from tests.with_torchao import needs_torchao

pytestmark = needs_torchao


def run(ranks, count, source, steps, output):
    for rank, ended in enumerate(ranks.run(count, "tests.ranks.moments", [str(source), str(steps), str(output)])):
        assert ended.code == 0, f"rank {rank}: {ended.said[-3000:]}"
    return torch.load(output / "full.pt", weights_only=True)


@pytest.mark.parametrize("first", [1, 2])
def test_moments_in_8_bits_go_to_any_number_of_ranks(ranks, tmp_path, first):
    made = run(ranks, first, "-", 3, tmp_path / "made")
    assert made["held"]["0.weight exp_avg"]
    assert made["held"]["1.weight exp_avg_sq"] == (first == 1)  # 3,200 numbers on each of two ranks
    assert not made["held"]["0.bias exp_avg"]
    for count in (1, 2, 3):
        read = run(ranks, count, tmp_path / "made" / "moments", 0, tmp_path / str(count))
        assert any(read["held"].values()) == (count != 3)  # rows that don't divide are held in full
        for name, tensor in made["full"].items():
            if made["held"][name] or not read["held"][name]:
                assert torch.equal(read["full"][name], tensor), f"{name} on {count} ranks"
            else:  # rounded to 8 bits, of a block's largest
                gap = (read["full"][name] - tensor).abs().max()
                assert 0 < gap < tensor.abs().max() / 50, f"{name} on {count} ranks"


def test_ranks_take_the_steps_of_one(ranks, tmp_path):
    one, two = (run(ranks, count, "-", 3, tmp_path / str(count)) for count in (1, 2))
    for name, tensor in one["full"].items():
        if one["held"][name] == two["held"][name]:
            assert torch.equal(two["full"][name], tensor), name
