"""Two ranks with a vLLM each do what one does; the policy is spread over them, and updates reach both."""

from __future__ import annotations

import json

import pytest

from sppo.runs.folder import read_metrics
from tests.ranks.starting import starter
from tests.ranks.test_equal import SMALL, responses
from tests.rollouts.with_vllm import EXACT, needs_vllm

pytestmark = needs_vllm

CASES = {
    "whole": {},
    "adapter": {"model__lora__rank": 4},
}


def test_two_ranks_with_an_engine_each_sample_what_one_samples(tmp_path):
    wide = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    shape = {f"model__config__{name}": size for name, size in wide.items()}
    common = {**SMALL, **shape, "engine__name": "vllm", "algorithm__old_logprobs": "trainer", "prompts_per_step": 7}
    common |= {"optimizer__minibatch_size": 7, "critic__minibatch_size": 7}
    (tmp_path / "cases.json").write_text(json.dumps({name: {**common, **case} for name, case in CASES.items()}))
    with starter(tmp_path) as ranks:
        for count in (1, 2):
            arguments = [str(tmp_path / "cases.json"), str(tmp_path / str(count))]
            for ended in ranks.run(count, "tests.ranks.worker", arguments):
                assert ended.code == 0, ended.said[-3000:]
    for name in CASES:
        one, two = (tmp_path / count / name for count in ("1", "2"))
        assert responses(two) == responses(one)
        for mine, other in zip(read_metrics(one)[1:], read_metrics(two)[1:], strict=True):
            assert other["sampler/logprob_gap_max"] < EXACT
            assert other["policy/grad_norm"] == pytest.approx(mine["policy/grad_norm"], rel=1e-4)
