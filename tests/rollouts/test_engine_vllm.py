"""Engine "vllm" with the real vLLM, on a CPU: `make test-vllm` installs it apart and runs these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import PreTrainedModel

from sppo.errors import ConfigError, ModelError, TrainingError
from sppo.models.adapters import plain_weights
from sppo.rollouts.engines import vllm_process
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.hf import HFEngine
from sppo.rollouts.engines.vllm import VllmEngine
from tests.conftest import tiny_qwen2
from tests.rollouts.with_vllm import (
    EXACT,
    LONG_PROMPTS,
    PROMPTS,
    SIZES,
    engine_of,
    gap,
    moved,
    needs_vllm,
    rows,
    sampled,
    sampling,
)

pytestmark = needs_vllm


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[PreTrainedModel, VllmEngine]]:
    """A model and an engine that has its weights."""
    model = tiny_qwen2(**SIZES, tie_word_embeddings=request.param)
    with closing(engine_of(model)) as engine:
        yield model, engine


untied = pytest.mark.parametrize("pair", [False], ids=["untied"], indirect=True)
"""Where one engine will do."""


def test_logprobs_are_the_trainers(pair):
    model, engine = pair
    completions = sampled(engine, PROMPTS * 8, sampling(temperature=0.6), 1)
    assert len({len(completion) for completion in completions}) > 2, "rows should finish at different times"
    assert gap(model, PROMPTS * 8, completions, 0.6) < EXACT


def test_an_update_changes_what_is_sampled_as_the_trainers_forward_says(pair):
    model, engine = pair
    with torch.no_grad():
        for version in (7, 8):
            before = sampled(engine, LONG_PROMPTS, sampling(temperature=0.6))
            moved(model, version)
            engine.load_weights(model, version)
            # The same prompts again, whose keys and values vLLM would still have.
            after = sampled(engine, LONG_PROMPTS, sampling(temperature=0.6))
            assert engine.version == version
            assert gap(model, LONG_PROMPTS, after, 0.6) < EXACT
            assert gap(model, LONG_PROMPTS, before, 0.6) > 0.5
    # And back at something that is not this model's own, as for offline samples of a reference.
    other = tiny_qwen2(**SIZES, tie_word_embeddings=model.config.tie_word_embeddings, seed=5)
    engine.load_weights(other, -1)
    assert gap(other, LONG_PROMPTS, sampled(engine, LONG_PROMPTS, sampling()), 1.0) < EXACT
    engine.load_weights(model, 9)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "lm_head.weight", "model.layers.1.self_attn.k_proj.bias"]
)
def test_a_weight_that_goes_missing_ends_the_run(pair, monkeypatch, name):
    model, engine = pair
    full = plain_weights

    def without(policy):
        return ((key, weight) for key, weight in full(policy) if key != name)

    with monkeypatch.context() as patch:
        patch.setattr(vllm_process, "plain_weights", without)
        with pytest.raises(ModelError, match=rf"did not take over all .*: 1 are missing, the first is {name}|2 are"):
            engine.load_weights(model, 10)
    with pytest.raises(TrainingError, match="not used again after it failed while taking over the weights"):
        sampled(engine, PROMPTS, sampling())
    engine._died = None
    engine.load_weights(model, 10)
    assert gap(model, PROMPTS, sampled(engine, PROMPTS, sampling()), 1.0) < EXACT


def kept(logits: torch.Tensor, how: SamplingParameters) -> torch.Tensor:
    """[V] log-probabilities after temperature, top_k and top_p, written out."""
    ranked = (logits / how.temperature).softmax(-1).sort(descending=True)
    values = ranked.values[: how.top_k or len(logits)]
    values = values / values.sum()
    values = values[: next((n for n in range(1, len(values) + 1) if values[:n].sum() >= how.top_p), len(values))]
    logprobs = torch.full_like(logits, -torch.inf)
    logprobs[ranked.indices[: len(values)]] = (values / values.sum()).log()
    return logprobs


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"top_k": 5}, {"top_k": 8, "top_p": 0.7}, {"top_k": 1}])
@untied
def test_logprobs_are_of_the_distribution_sampled_from(pair, options):
    model, engine = pair
    how = sampling(temperature=0.6, **options)
    for prompt, completion in zip(PROMPTS * 4, sampled(engine, PROMPTS * 4, how, 2), strict=True):
        ids = torch.tensor([[*prompt.tolist(), *completion.token_ids.tolist()]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        for place, token in enumerate(completion.token_ids.tolist()):
            assert completion.logprobs[place] == pytest.approx(float(kept(logits[place], how)[token]), abs=EXACT)


@untied
def test_frequencies_match_the_softmax(pair):
    model, engine = pair
    draws = 4000
    completions = sampled(engine, rows([3, 4]) * draws, sampling(1, temperature=0.8), 3)
    with torch.no_grad():
        expected = (model(input_ids=torch.tensor([[3, 4]])).logits[0, -1] / 0.8).softmax(-1) * draws
    observed = np.bincount([int(completion.token_ids[0]) for completion in completions], minlength=40)
    common = (expected >= 5).numpy()
    pooled = [np.append(counts[common], counts[~common].sum()) for counts in (observed, expected.double().numpy())]
    assert stats.chisquare(pooled[0], pooled[1] * draws / pooled[1].sum()).pvalue > 0.01


@untied
def test_temperature_0_is_engine_hfs(pair):
    model, engine = pair
    for options in ({}, {"top_p": 0.5, "top_k": 3}):
        how = sampling(temperature=0.0, **options)
        for ours, theirs in zip(sampled(engine, PROMPTS, how), sampled(HFEngine(model), PROMPTS, how), strict=True):
            assert ours.token_ids.tolist() == theirs.token_ids.tolist()
            assert ours.finish_reason == theirs.finish_reason
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=EXACT)


@untied
def test_a_rows_response_does_not_depend_on_the_batch(pair):
    _, engine = pair
    seeds = [0, 1, 2**62, 2**63 - 1, 7]
    with engine.awake():
        together = engine.generate(PROMPTS, sampling(), seeds=seeds)
        assert engine.generate(PROMPTS[::-1], sampling(), seeds=seeds[::-1]) == together[::-1]
        for row, seed in enumerate(seeds):
            assert engine.generate(PROMPTS[row : row + 1], sampling(), seeds=[seed]) == [together[row]]
        others = engine.generate(PROMPTS[:1] * 20, sampling(), seeds=range(20))
    assert len({completion.token_ids.tobytes() for completion in others}) > 15


@untied
def test_stop_tokens(pair):
    _, engine = pair
    how = sampling(6, temperature=1.5, stop_token_ids=frozenset({*range(30, 40), 50, 10**6}))
    completions = sampled(engine, PROMPTS * 40, how, 4)
    for completion in completions:
        stops = [token >= 30 for token in completion.token_ids.tolist()]
        assert not any(stops[:-1])
        assert (completion.finish_reason == "stop") == stops[-1]
        assert stops[-1] or len(completion) == 6
    assert any(len(c) == 6 and c.finish_reason == "stop" for c in completions), "one ends at the last place"
    assert any(c.finish_reason == "length" for c in completions)
    # The model's own end token is a token like any other unless it is among the stop ids.
    endless = sampled(engine, PROMPTS * 40, sampling(6, temperature=1.5, stop_token_ids=frozenset()), 4)
    assert {(len(c), c.finish_reason) for c in endless} == {(6, "length")}
    assert any(1 in c.token_ids[:-1] for c in endless)


@untied
def test_what_can_not_be_asked_for_is_refused(pair):
    _, engine = pair
    assert sampled(engine, [], sampling()) == []
    with pytest.raises(ModelError, match=r"prompt 1 of 2 has no tokens"):
        sampled(engine, rows([3], []), sampling())
    with pytest.raises(ConfigError, match=r"300 tokens .* is 101: together 401, .* 400 tokens that the engine"):
        sampled(engine, LONG_PROMPTS, sampling(101))
    assert {len(c) for c in sampled(engine, LONG_PROMPTS, sampling(100, stop_token_ids=frozenset()))} == {100}
    for temperature in (0.001, 2.5):
        with pytest.raises(ConfigError, match=rf"is {temperature:g}, but vLLM samples at 0, or from 0.01 to 2"):
            sampled(engine, PROMPTS, sampling(temperature=temperature))


@untied
def test_weights_that_are_not_finite_are_told(pair):
    model, engine = pair
    head = model.lm_head.weight
    good = head.detach().clone()
    for damaged in (slice(None), slice(4, 5)):
        with torch.no_grad():
            head[damaged] = torch.nan
        engine.load_weights(model, 1)
        for temperature in (0.0, 1.0):
            with pytest.raises(ModelError, match=r"not finite \(nan or inf\) while sampling the response to row 0"):
                sampled(engine, PROMPTS, sampling(temperature=temperature))
    with torch.no_grad():
        head.copy_(good)
    engine.load_weights(model, 2)
    assert gap(model, PROMPTS, sampled(engine, PROMPTS, sampling()), 1.0) < EXACT


@contextmanager
def asleep_loses_everything(engine: VllmEngine) -> Iterator[list[Any]]:
    """A CPU's vLLM takes the calls for sleep and wakes up with all that it had: here its weights are lost."""
    calls: list[Any] = []
    real_sleep, real_wake, take_over = engine._llm.sleep, engine._llm.wake_up, engine._reload

    def sleep(level: int) -> None:
        calls.append(("sleep", level))
        real_sleep(level=level)
        engine._llm.apply_model(lambda model: [weight.data.fill_(torch.nan) for weight in model.parameters()] and None)

    def wake_up(tags: list[str]) -> None:
        calls.append(("wake", *tags))
        real_wake(tags=tags)

    def reload() -> None:
        calls.append("weights")
        take_over()

    engine._sleeps, engine._llm.sleep, engine._llm.wake_up, engine._reload = True, sleep, wake_up, reload
    engine._sleep()
    try:
        yield calls
    finally:
        engine._wake()
        engine._sleeps = False
        del engine._llm.sleep, engine._llm.wake_up, engine._reload


@untied
def test_an_engine_that_slept_has_the_policys_weights(pair):
    model, engine = pair
    waking = [("wake", "weights"), "weights", ("wake", "kv_cache")]
    with asleep_loses_everything(engine) as calls:
        assert calls == [("sleep", 2)]
        with pytest.raises(AssertionError, match="asked for responses while it sleeps"):
            engine.generate(PROMPTS, sampling(), seeds=range(5))
        # Twice without an update, as an evaluation and the step after it.
        for _ in range(2):
            calls.clear()
            assert gap(model, LONG_PROMPTS, sampled(engine, LONG_PROMPTS, sampling()), 1.0) < EXACT
            assert calls == [*waking, ("sleep", 2)]
        moved(model)
        calls.clear()
        engine.load_weights(model, 3)
        assert not calls, "an update needs the memory until responses are asked for"
        assert gap(model, LONG_PROMPTS, sampled(engine, LONG_PROMPTS, sampling()), 1.0) < EXACT
        with engine.awake():
            calls.clear()
            engine.load_weights(moved(model), 4)
            assert calls == ["weights"]
            completions = engine.generate(LONG_PROMPTS, sampling(), seeds=range(4))
        assert gap(model, LONG_PROMPTS, completions, 1.0) < EXACT
        assert engine.version == 4
