"""What an engine with weights of its own is handed; and what it may hand back, tried without one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from sppo.config.lora import LoraConfig
from sppo.errors import ConfigError, ModelError, TrainingError
from sppo.models.adapters import adapt, merge, plain_weights
from sppo.rollouts.engines import weights_folder
from sppo.rollouts.engines.engine import SamplingParameters, require_finite, require_room
from sppo.rollouts.engines.vllm_responses import completion_of
from sppo.rollouts.engines.weights import second_names, weight_names
from sppo.rollouts.engines.weights_folder import delete_weights, read_weights, write_weights
from sppo.runs import ranks
from sppo.types import Completion, as_token_ids
from tests.conftest import tiny_qwen2

PROJECTION = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rank", [0, 4])
def test_every_weight_comes_whole_by_its_name_in_a_checkpoint(tied, sharded, rank, tmp_path, monkeypatch):
    model = tiny_qwen2(tie_word_embeddings=tied)
    adapt(model, LoraConfig(rank=rank), "base", "model")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    merged = merge(copy.deepcopy(model)).state_dict()
    assert (torch.equal(merged[PROJECTION], tiny_qwen2(tie_word_embeddings=tied).state_dict()[PROJECTION])) == (
        not rank
    )
    if sharded:
        ranks.group_of_one()
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        assert isinstance(model.lm_head.weight, DTensor)
    handed = {name: weight.clone() for name, weight in plain_weights(model)}
    assert handed.keys() == merged.keys() == weight_names(model)
    assert "lm_head.weight" in handed
    assert second_names(model) == ({"lm_head.weight"} if tied else set())
    for name, weight in handed.items():
        assert not isinstance(weight, DTensor)
        assert not weight.requires_grad
        assert torch.equal(weight, merged[name]), name
    assert {isinstance(weight, DTensor) for weight in model.parameters()} == {sharded}
    # And so through a folder, be it in several files.
    monkeypatch.setattr(weights_folder, "_FILE_BYTES", 4096)
    write_weights(model, tmp_path / "weights", "these", torch.float32)
    read = read_weights(tmp_path / "weights")
    assert (read.label, read.names, read.second) == ("these", weight_names(model), second_names(model))
    assert len(read.files) > 2
    handed = dict(read.weights())
    assert handed.keys() == merged.keys()
    for name, weight in handed.items():
        assert torch.equal(weight, merged[name]), name


def test_a_folder_of_weights_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    model = tiny_qwen2()
    write_weights(model, tmp_path / "weights", "these", torch.bfloat16)
    for name, weight in read_weights(tmp_path / "weights").weights():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, model.state_dict()[name].bfloat16())
    monkeypatch.setattr(weights_folder, "save_file", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        write_weights(model, tmp_path / "more", "others", torch.float32)
    assert not (tmp_path / "more").exists()
    for name in ("weights", "more"):
        delete_weights(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_room_and_finite_numbers_are_checked_for_every_engine():
    rows = [as_token_ids([3] * 5), as_token_ids([3] * 7)]
    require_room(rows, 3, 10, "of it")
    require_room(rows, 3, None, "of it")
    require_room([], 11, 10**6, "of it")
    with pytest.raises(ConfigError, match=r"7 tokens .* is 4: together 11, .* the 10 tokens of it. .* at most 3"):
        require_room(rows, 4, 10, "of it")
    with pytest.raises(ModelError, match="prompt 1 of 2 has no tokens"):
        require_room([rows[0], as_token_ids([])], 1, 10, "of it")
    good, bad = (Completion(as_token_ids([3, 4]), np.array([-1.0, last]), "stop") for last in (-2.0, -np.inf))
    require_finite([good, good], [5, 9])
    with pytest.raises(ModelError, match="response to row 9"):
        require_finite([good, bad, bad], [5, 9, 2])


def said(ids: list[int], reason: str | None, logprobs_of: list[int] | None = None) -> tuple[Any, ...]:
    """What vLLM returns for one row."""
    named = ids if logprobs_of is None else logprobs_of
    return ids, [-0.5] * len(named), named, reason


ASKED = SamplingParameters(max_tokens=3, stop_token_ids=frozenset({1, 2}))


def test_a_whole_response_is_taken():
    for ids, reason in (([5, 1], "stop"), ([2], "stop"), ([5, 6, 7], "length"), ([5, 6, 1], "stop")):
        completion = completion_of(*said(ids, reason), ASKED, 5)
        assert (completion.token_ids.tolist(), completion.finish_reason) == (ids, reason)
        assert completion.logprobs.tolist() == [-0.5] * len(ids)
        assert completion.versions.tolist() == [5] * len(ids)


@pytest.mark.parametrize(
    "wrong",
    [
        said([5, 6], "length"),  # cut before the length asked for
        said([5, 6, 7], "abort"),
        said([5, 6], "repetition"),
        said([], "stop"),
        said([5, 6], "stop"),  # by a stop token that nobody asked for
        said([5, 6, 7, 1], "stop"),
        said([5, 6, 7], "length", [5, 6]),
        said([5, 6, 7], "length", [5, 7, 6]),
        said([5, 6, 7], None),
    ],
)
def test_a_response_that_was_not_asked_for_is_refused(wrong):
    with pytest.raises(TrainingError, match=r"vLLM returned a response of \d tokens .* where at most 3 tokens"):
        completion_of(*wrong, ASKED, 5)
