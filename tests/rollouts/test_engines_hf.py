"""Engine "hf" on tiny, randomly initialised models of many architectures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
import transformers
from scipy import stats
from torch import nn

from sppo.config import EngineConfig
from sppo.errors import ConfigError, ModelError
from sppo.rollouts.engines import build_engine
from sppo.rollouts.engines.cache import RoomyCache
from sppo.rollouts.engines.draw import draw, row_uniforms
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.hf import HFEngine
from sppo.runs.seeds import row_seeds
from sppo.types import Completion, TokenIds, as_token_ids

VOCABULARY = 24
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.5,
}  # fmt: skip
SLIDING = {"sliding_window": 6, "head_dim": 8, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "llama": {"num_key_value_heads": 4},
    "mistral": SLIDING,
    "gemma2": {**SLIDING, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0},
    "gemma3_text": {**SLIDING, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.5},
    "bloom": {},
}


def rows(*prompts: Sequence[int]) -> list[TokenIds]:
    return [as_token_ids(prompt) for prompt in prompts]


PROMPTS = rows([3, 4, 5], range(6, 14), [14], [3, 4, 5], [*range(15, 24), 5, 6])


def tiny(name: str = "qwen2", **overrides: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **{**COMMON, **ARCHITECTURES[name], **overrides})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def sampling(max_tokens: int = 20, **overrides: Any) -> SamplingParameters:
    return SamplingParameters(max_tokens=max_tokens, **{"stop_token_ids": frozenset({2, 3}), **overrides})


def full_logits(model: nn.Module, prompt: TokenIds, completion: Completion) -> torch.Tensor:
    """[T, V] logits before each response token, from one forward pass without a cache."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        return model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()


def sampled(engine: HFEngine, prompts: list[TokenIds], how: SamplingParameters, seed: int) -> list[Completion]:
    return engine.generate(prompts, how, seeds=row_seeds(seed, "test", range(len(prompts))))


def ids_of(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [tuple(completion.token_ids.tolist()) for completion in completions]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logprobs_are_those_of_the_full_forward(name: str) -> None:
    model = tiny(name)
    completions = sampled(HFEngine(model), PROMPTS * 4, sampling(temperature=2.5), 1)
    assert len({len(completion.token_ids) for completion in completions}) > 2, "rows should finish at different times"
    assert max(len(completion.token_ids) for completion in completions) > 8, "and run past the sliding window"
    for prompt, completion in zip(PROMPTS * 4, completions, strict=True):
        expected = (full_logits(model, prompt, completion) / 2.5).log_softmax(-1)
        expected = expected.gather(1, torch.tensor(completion.token_ids).long()[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_generate(name: str) -> None:
    model = tiny(name)
    completions = sampled(HFEngine(model), PROMPTS, sampling(temperature=0, stop_token_ids=frozenset({2})), 0)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = torch.tensor(prompt)[None]
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, eos_token_id=2
        )
        assert list(completion.token_ids) == expected[0, len(prompt) :].tolist()


def test_greedy_logprob_is_that_of_the_plain_softmax() -> None:
    model = tiny()
    (completion,) = sampled(HFEngine(model), rows([3, 4]), sampling(temperature=0), 0)
    expected = full_logits(model, [3, 4], completion).log_softmax(-1).max(-1).values
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


def test_top_k_and_top_p_renormalise_and_keep_to_their_support() -> None:
    model = tiny()
    options = sampling(temperature=2.0, top_k=8, top_p=0.7, stop_token_ids=frozenset())
    completions = sampled(HFEngine(model), PROMPTS * 4, options, 2)
    for prompt, completion in zip(PROMPTS * 4, completions, strict=True):
        for logits, token, logprob in zip(
            full_logits(model, prompt, completion), completion.token_ids, completion.logprobs, strict=True
        ):
            # Written out one token at a time: temperature, the 8 largest, then the fewest that hold 0.7 of those.
            ranked = (logits / 2.0).softmax(-1).sort(descending=True)
            eight = (ranked.values[:8] / ranked.values[:8].sum()).tolist()
            size = next(n for n in range(1, 9) if sum(eight[:n]) >= 0.7)
            support = dict(zip(ranked.indices[:size].tolist(), eight[:size], strict=True))
            assert token in support
            assert logprob == pytest.approx(torch.tensor(support[token] / sum(support.values())).log().item(), abs=1e-5)


def test_frequencies_match_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -torch.inf], dtype=torch.float64)
    draws = 20000
    chosen, _ = draw(logits.expand(draws, -1), uniforms(range(draws), 1)[0], SamplingParameters(1, temperature=0.8))
    observed = torch.bincount(chosen, minlength=6)
    expected = (logits / 0.8).softmax(-1) * draws
    assert observed[5] == 0
    assert stats.chisquare(observed[:5], expected[:5]).pvalue > 0.01


def test_draw_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.0, 0.3, 0.2]])
    cases = [(0.0, 0), (0.49, 0), (0.51, 2), (0.79, 2), (0.81, 3), (1 - 2**-24, 3)]
    for uniform, token in cases:
        chosen, logprob = draw(probabilities.log(), torch.tensor([uniform]), SamplingParameters(1))
        assert chosen.item() == token
        assert logprob.item() == pytest.approx(probabilities[0, token].log().item(), abs=1e-6)
    # top_p 0.6 keeps 0.5 and 0.3, renormalised to 5/8 and 3/8; top_p 0.5 keeps the first alone.
    chosen, logprob = draw(probabilities.log(), torch.tensor([0.63]), SamplingParameters(1, top_p=0.6))
    assert (chosen.item(), logprob.item()) == (2, pytest.approx(-0.980829, abs=1e-5))
    chosen, logprob = draw(probabilities.log(), torch.tensor([1 - 2**-24]), SamplingParameters(1, top_p=0.5))
    assert (chosen.item(), logprob.item()) == (0, pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-24])
def test_a_token_without_probability_is_never_drawn(edge: float) -> None:
    logits = torch.full((64, 50), -torch.inf)
    logits[:, 10:20] = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    chosen, logprobs = draw(logits, torch.full((64,), edge), SamplingParameters(1))
    assert ((chosen >= 10) & (chosen < 20)).all()
    assert logprobs.isfinite().all()


def test_one_seed_a_row_frees_a_response_of_the_rows_beside_it() -> None:
    engine, seeds = HFEngine(tiny(), max_rows=3), [11 * row for row in range(len(PROMPTS))]
    together = ids_of(engine.generate(PROMPTS, sampling(temperature=2.0), seeds=seeds))
    turned = ids_of(engine.generate(PROMPTS[::-1], sampling(temperature=2.0), seeds=seeds[::-1]))
    assert turned[::-1] == together
    assert ids_of(engine.generate(PROMPTS[2:3], sampling(temperature=2.0), seeds=seeds[2:3])) == together[2:3]
    again = ids_of(engine.generate([PROMPTS[0]] * 3, sampling(temperature=2.0), seeds=[5, 6, 5]))
    assert again[0] == again[2] != again[1]


def uniforms(seeds: Iterable[int], positions: int) -> torch.Tensor:
    return row_uniforms(list(seeds), positions, torch.device("cpu"))


def test_row_uniforms_depend_on_seed_and_position_alone() -> None:
    table = uniforms(range(100), 50)
    assert torch.equal(uniforms([70, 4], 20), table[:20, [70, 4]])
    assert len(table[0].unique()) == 100
    assert ((table >= 0) & (table < 1)).all()
    assert uniforms([-1], 1).item() == uniforms([2**64 - 1], 1).item()


def test_row_uniforms_are_uniform_and_uncorrelated() -> None:
    table = uniforms(range(300), 300)
    counts = torch.histc(table, bins=100, min=0, max=1)
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    for other in (uniforms(range(300, 600), 300), table.roll(1, 0), table.roll(1, 1), table.T):
        correlation = torch.corrcoef(torch.stack([table[1:, 1:].flatten(), other[1:, 1:].flatten()]))[0, 1]
        assert abs(correlation) < 0.015, "4.5 standard errors of 90,000 pairs"


def test_first_value_of_the_stream_is_splitmix64() -> None:
    # Seeded with 0 the reference generator starts with 0xE220A8397B1DCDAF; seed 0 is mixed to that start, 0.
    assert uniforms([0], 1).item() == (0xE220A8397B1DCDAF >> 40) / 2**24


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_responses_do_not_depend_on_max_rows(name: str) -> None:
    model = tiny(name).double()  # so that rounding, which depends on the batch, is far below the tolerance
    prompts = [PROMPTS[i % 5][: 1 + i % 7] for i in range(40)]
    many, few = (sampled(HFEngine(model, max_rows=rows), prompts, sampling(), 5) for rows in (64, 4))
    assert ids_of(many) == ids_of(few)
    for one, other in zip(many, few, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-6)


def test_seeds_reproduce_and_differ() -> None:
    engine = HFEngine(tiny())
    assert sampled(engine, PROMPTS, sampling(), 1) == sampled(engine, PROMPTS, sampling(), 1)
    assert ids_of(sampled(engine, PROMPTS, sampling(), 1)) != ids_of(sampled(engine, PROMPTS, sampling(), 2))


def test_equal_prompts_get_independent_responses() -> None:
    completions = sampled(HFEngine(tiny()), rows([3, 4, 5]) * 16, sampling(temperature=3.0), 0)
    assert len(set(ids_of(completions))) > 12


def test_global_random_state_is_left_alone() -> None:
    engine = HFEngine(tiny())
    before = torch.get_rng_state()
    sampled(engine, PROMPTS, sampling(), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_stop_token_is_included_and_ends_the_response() -> None:
    completions = sampled(HFEngine(tiny()), PROMPTS * 8, sampling(12, temperature=3.0), 3)
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert len(completion.token_ids) == len(completion.logprobs)
        assert not {2, 3} & set(completion.token_ids[:-1])
        if completion.finish_reason == "stop":
            assert completion.token_ids[-1] in (2, 3)
        else:
            assert len(completion.token_ids) == 12
            assert completion.token_ids[-1] not in (2, 3)


def test_a_shorter_limit_gives_prefixes() -> None:
    engine = HFEngine(tiny())
    long, short = (sampled(engine, PROMPTS, sampling(limit), 1) for limit in (20, 6))
    assert [ids[:6] for ids in ids_of(long)] == ids_of(short)


def test_no_stop_ids_one_token_and_no_prompts() -> None:
    engine = HFEngine(tiny())
    (one,) = sampled(engine, rows([5]), sampling(1, stop_token_ids=frozenset()), 0)
    assert (len(one.token_ids), one.finish_reason) == (1, "length")
    assert sampled(engine, [], sampling(), 0) == []
    # Ids past the vocabulary, which tokenizers with added tokens have, can never be sampled.
    assert len(sampled(engine, rows([5]), sampling(4, stop_token_ids=frozenset({999})), 0)[0].token_ids) == 4


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_use_cache_false_in_the_config_and_gradient_checkpointing_change_nothing() -> None:
    expected = sampled(HFEngine(tiny()), PROMPTS, sampling(), 1)
    model = tiny(use_cache=False, attention_dropout=0.5)
    model.gradient_checkpointing_enable()
    model.train()
    model.lm_head.eval()
    engine = HFEngine(model)
    columns: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: columns.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assert sampled(engine, PROMPTS, sampling(), 1) == expected
    assert set(columns[1:]) == {1}, "after the prompt one column a step: the cache was used"
    assert model.training
    assert model.model.layers[0].training
    assert not model.lm_head.training, "each module is left in the mode it was found in"


@pytest.mark.parametrize("rope", ["default", "dynamic", "longrope"])
def test_training_goes_on_after_sampling(rope: str) -> None:
    # These rotary embeddings replace their buffers inside forward, past 16 tokens.
    scaling: dict[str, Any] = {"rope_type": rope, "rope_theta": 10000.0, "factor": 2.0}
    if rope == "longrope":
        scaling |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
    model = tiny("llama", rope_parameters=scaling, max_position_embeddings=96 if rope == "default" else 40)
    sampled(HFEngine(model), PROMPTS, sampling(25, stop_token_ids=frozenset()), 1)
    model.train()
    ids = torch.arange(20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(buffer.is_inference() for buffer in model.buffers())


def test_finished_rows_leave_the_batch_and_equal_prompts_are_read_once() -> None:
    model = tiny()
    engine = HFEngine(model)
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    completions = sampled(engine, rows([3, 4, 5]) * 32, sampling(60, temperature=3.0), 0)
    lengths = [len(completion.token_ids) for completion in completions]
    assert shapes[0] == (1, 3)
    assert shapes[1][0] > 20
    computed = sum(rows for rows, _ in shapes[1:])
    needed = sum(lengths) - len(lengths)
    assert needed <= computed <= needed / (1 - 1 / 16), "fewer than a sixteenth of the rows of any step were idle"


def test_no_mask_where_no_row_has_padding() -> None:
    model = tiny()
    engine = HFEngine(model)
    masks: list[Any] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True)
    sampled(engine, rows([3, 4], [5, 6]), sampling(), 0)
    assert all(mask is None for mask in masks)
    masks.clear()
    sampled(engine, rows([3, 4], [5]), sampling(), 0)
    assert masks[0].tolist() == [[True, True], [False, True]]


def test_cache_drops_rows_in_place_as_by_selection() -> None:
    torch.manual_seed(0)
    cache = RoomyCache(tiny().config, most_tokens=50)
    history = []
    for width in (3, 1, 1):
        keys, values = torch.randn(6, 2, width, 8), torch.randn(6, 2, width, 8)
        history.append((keys, values))
        cache.update(keys, values, 0)
    kept = torch.tensor([0, 5, 2, 4])  # rows 1 and 3 are done: 5 and 4 fill the gaps
    cache.drop_rows(kept, movers=torch.tensor([5, 4]), gaps=torch.tensor([1, 3]))
    more = torch.randn(4, 2, 1, 8), torch.randn(4, 2, 1, 8)
    keys, values = cache.update(*more, 0)
    assert torch.equal(keys, torch.cat([*(k[kept] for k, _ in history), more[0]], dim=2))
    assert torch.equal(values, torch.cat([*(v[kept] for _, v in history), more[1]], dim=2))
    assert cache.get_seq_length() == 6


def test_cache_grows_past_its_first_room() -> None:
    cache = RoomyCache(tiny().config, most_tokens=1000)
    states = torch.arange(400.0).reshape(1, 1, 400, 1)
    for start in range(400):
        keys, _ = cache.update(states[:, :, start : start + 1], states[:, :, start : start + 1], 0)
    assert torch.equal(keys, states)


def test_load_weights_shares_the_module_and_leaves_the_one_it_had_alone() -> None:
    model, other = tiny(), tiny()
    with torch.no_grad():
        other.lm_head.weight.mul_(-1)
    engine = HFEngine(model)
    assert engine.version == 0
    engine.load_weights(model, version=3)
    assert engine.version == 3
    own, others = (ids_of(sampled(HFEngine(one), PROMPTS, sampling(), 1)) for one in (model, other))
    assert own != others
    engine.load_weights(other, version=4)
    assert engine.version == 4
    assert ids_of(sampled(engine, PROMPTS, sampling(), 1)) == others
    engine.load_weights(model, version=5)
    assert ids_of(sampled(engine, PROMPTS, sampling(), 1)) == own


def test_context_is_checked_before_sampling() -> None:
    model = tiny(max_position_embeddings=30)
    engine = HFEngine(model)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ConfigError, match=r"11 tokens .* is 20: together 31, more than .* 30 tokens .* at most 19"):
        sampled(engine, PROMPTS, sampling(20), 0)
    assert not calls
    sampled(engine, PROMPTS, sampling(19), 0)


def test_errors_name_the_trouble() -> None:
    with pytest.raises(ModelError, match=r"prompt 1 of 2 has no tokens"):
        sampled(HFEngine(tiny()), rows([3], []), sampling(), 0)
    with pytest.raises(ModelError, match="Linear is no causal language model"):
        HFEngine(nn.Linear(2, 2))
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[4] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="not finite"):
            sampled(HFEngine(model), rows([3]), sampling(temperature=temperature), 0)
    assert isinstance(build_engine(tiny(), EngineConfig(max_rows=7), max_tokens=30, memory_share=0.5), HFEngine)


@pytest.mark.parametrize(
    "wrong",
    [{"max_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1},
     {"stop_token_ids": frozenset({-1})}],
)  # fmt: skip
def test_sampling_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplingParameters(**{"max_tokens": 4, **wrong})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_in_bfloat16() -> None:
    model = tiny().cuda()
    completions = sampled(HFEngine(model), PROMPTS * 8, sampling(temperature=2.5), 1)
    for prompt, completion in zip(PROMPTS * 8, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion.token_ids]], device="cuda")
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().cpu()
        expected = (
            (logits / 2.5).log_softmax(-1).gather(1, torch.tensor(completion.token_ids).long()[:, None]).squeeze(1)
        )
        assert (torch.tensor(completion.logprobs) - expected).abs().mean() < 0.1
