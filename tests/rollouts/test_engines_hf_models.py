"""Which models engine "hf" takes, and how it finds out."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from sppo.errors import ModelError
from sppo.rollouts.engines.cache import RoomyCache
from sppo.rollouts.engines.hf import HFEngine
from sppo.types import Completion, TokenIds
from tests.models.zoo import SETTINGS, tiny_model
from tests.rollouts.test_engines_hf import PROMPTS, full_logits, ids_of, rows, sampled, sampling, tiny


def logprob_error(model: Any, prompts: list[TokenIds], completions: list[Completion], temperature: float) -> float:
    """Largest difference of the engine's log-probabilities from those of one forward without a cache, nats."""
    errors = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logs = (full_logits(model, prompt, completion) / temperature).log_softmax(-1)
        expected = logs.gather(1, torch.tensor(completion.token_ids).long()[:, None]).squeeze(1)
        errors.append(float((torch.tensor(completion.logprobs) - expected).abs().max()))
    return max(errors)


class Renamed(nn.Module):
    """A model whose forward calls its cache by another name."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        taken = inspect.signature(model.forward).parameters
        self.own = next(name for name in ("cache", "past_key_values") if name in taken)
        self.device, self.get_input_embeddings = model.device, model.get_input_embeddings

    def run(self, input_ids: Any, attention_mask: Any, position_ids: Any, cache: Any, **rest: Any) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return self.model(**given, **{self.own: cache}, **rest)


class WithCache(Renamed):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **rest):  # type: ignore[no-untyped-def]
        return self.run(input_ids, attention_mask, position_ids, cache, **rest)


class WithPastKeyValues(Renamed):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **rest):  # type: ignore[no-untyped-def]
        return self.run(input_ids, attention_mask, position_ids, past_key_values, **rest)


class BlindToPadding(Renamed):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **rest):  # type: ignore[no-untyped-def]
        return self.run(input_ids, None, position_ids, cache, **rest)


@pytest.mark.parametrize("kind", [WithCache, WithPastKeyValues])
def test_a_forward_may_call_its_cache_by_either_name(kind: type[Renamed]) -> None:
    expected = sampled(HFEngine(tiny()), PROMPTS, sampling(), 1)
    assert ids_of(sampled(HFEngine(kind(tiny())), PROMPTS, sampling(), 1)) == ids_of(expected)


def test_prompts_of_unequal_length_are_kept_apart_where_padding_is_seen() -> None:
    model = BlindToPadding(tiny())
    completions = sampled(HFEngine(model), PROMPTS, sampling(temperature=2.5), 1)
    assert logprob_error(model.model, PROMPTS, completions, 2.5) < 1e-5


def built(model: nn.Module) -> tuple[HFEngine | None, str]:
    """The engine, or why there is none."""
    try:
        return HFEngine(model), ""
    except ModelError as error:
        return None, str(error)


@pytest.mark.parametrize("model_type", SETTINGS)
def test_a_model_is_sampled_from_rightly_or_refused_when_the_engine_is_built(model_type: str) -> None:
    model = tiny_model(model_type)
    engine, message = built(model)
    if engine is None:
        assert model_type in {"minimax", "recurrent_gemma"}, "which newer releases may have mended"
        assert f"can't sample from {type(model).__name__} (model_type {model_type})" in message
        assert message.endswith("such as Qwen2, Llama, Mistral, Gemma or GPT-2.")
        return
    prompts = rows(*(prompt + 7 for prompt in PROMPTS))
    completions = sampled(engine, prompts, sampling(12, stop_token_ids=frozenset(range(2, 9))), 1)
    assert logprob_error(model, prompts, completions, 1.0) < 1e-3


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_cache_that_loses_its_rows_is_refused(dropped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(cache: RoomyCache, kept: torch.Tensor, movers: torch.Tensor, gaps: torch.Tensor) -> None:
        kept = kept.clone()
        kept[dropped] = 0
        for layer in cache.layers:
            layer.reorder_cache(kept)

    monkeypatch.setattr(RoomyCache, "drop_rows", forget)
    with pytest.raises(ModelError, match="with a cache it gives other logits than in one forward"):
        HFEngine(tiny())


def test_building_an_engine_leaves_the_model_and_the_random_state_alone() -> None:
    model = tiny(attention_dropout=0.5).train()
    model.lm_head.eval()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = torch.get_rng_state()
    HFEngine(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert not model.lm_head.training
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
