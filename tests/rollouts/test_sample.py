"""Responses depend on the policy and on a row's place in the step: not on the engine, its batches, or ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sppo.config.recipes import load_recipe
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.tokenizers import character_tokenizer
from sppo.rollouts import encode
from sppo.rollouts.encode import encode_many
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.hf import HFEngine
from sppo.rollouts.sample import sample
from sppo.runs.seeds import row_seeds
from sppo.training.build import build, check
from sppo.training.given import Given
from sppo.types import Completion, Prompt, TokenIds
from tests.conftest import tiny_qwen2

TOKENIZER = character_tokenizer(ALPHABET)
PROMPTS = [Prompt(str(number), f"{number}+{number * number}=") for number in range(24)]
HOW = SamplingParameters(8, stop_token_ids=frozenset({1}))


def responses(engine, prompts: Sequence[Prompt], places: Sequence[int], samples: int = 1) -> list[list[int]]:
    seeds = row_seeds(5, "sampling 0", places, 3)
    rollouts = sample(engine, prompts, TOKENIZER, HOW, samples_per_prompt=samples, seeds=seeds, version=0)
    return [rollout.completion.token_ids.tolist() for rollout in rollouts]


def test_half_of_the_rows_alone_get_the_responses_that_they_get_among_all():
    engine = HFEngine(tiny_qwen2(initializer_range=0.05))
    whole = responses(engine, PROMPTS, range(24))
    assert len({tuple(ids) for ids in whole}) > 20
    assert responses(engine, PROMPTS[::2], range(0, 24, 2)) == whole[::2]
    assert responses(engine, PROMPTS[12:], range(12, 24)) == whole[12:]
    assert responses(engine, PROMPTS[::-1], range(23, -1, -1)) == whole[::-1]


@pytest.mark.parametrize("rows", [1, 5, 24])
def test_how_many_rows_are_decoded_at_one_time_changes_no_response(rows):
    model = tiny_qwen2(initializer_range=0.05)
    expected = responses(HFEngine(model), PROMPTS[:6], range(24), samples=4)
    assert responses(HFEngine(model, max_rows=rows), PROMPTS[:6], range(24), samples=4) == expected


class Ranks:
    """Deals rows to three engines in turn, as to ranks."""

    def __init__(self, engine: HFEngine) -> None:
        self.version, self.awake = engine.version, engine.awake
        self.engines = [HFEngine(engine._model, max_rows=rows) for rows in (2, 3, 512)]

    def generate(
        self, prompts: Sequence[TokenIds], sampling: SamplingParameters, *, seeds: Sequence[int]
    ) -> list[Completion]:
        made: dict[int, Completion] = {}
        for rank, engine in enumerate(self.engines):
            rows = range(rank, len(prompts), 3)
            own = engine.generate([prompts[row] for row in rows], sampling, seeds=[seeds[row] for row in rows])
            made.update(zip(rows, own, strict=True))
        return [made[row] for row in range(len(prompts))]


@pytest.mark.parametrize("name", ["sppo", "remax", "spo", "dapo"])
def test_a_step_sampled_by_several_is_the_step_sampled_by_one(name):
    settings = {
        "model.path": "tiny", "prompts_per_step": 8, "optimizer.minibatch_size": 8, "critic.minibatch_size": 8,
        "sampling.max_response_tokens": 6, "data.max_prompt_tokens": 8, "evaluation.prompts": 4, "device": "cpu",
        "algorithm.name": name, "sampling.samples_per_prompt": 2 if name == "dapo" else 1,
    }  # fmt: skip
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(8) for b in range(8)]

    def shown(prompts, completions, **columns):
        heard.append(list(completions))
        return [float(index % 2) for index in range(len(completions))]

    given = Given(tiny_qwen2(initializer_range=0.05), TOKENIZER, rows, reward_function=shown)
    config = check(load_recipe(None, settings), given)
    found = []
    for engine in (lambda one: one, Ranks):
        heard: list[list[str]] = []
        parts = build(config, given)
        made = engine(parts.engine)
        replace(parts.collector, engine=made).collect(1, version=0)
        replace(parts.held_out, engine=made).evaluate(2, version=0)
        found.append(heard)
    assert found[0] == found[1]
    assert len(found[0]) == {"sppo": 2, "dapo": 2}.get(name, 3)


def test_a_prompt_is_tokenised_once_and_again_where_the_chat_template_changes(monkeypatch):
    tokenizer = character_tokenizer(ALPHABET)
    asked = []
    plain = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, texts, **options: asked.append(texts) or plain(self, texts, **options)
    )
    chat = ({"role": "user", "content": "1+1="},)
    first = encode_many([Prompt("a", "12"), Prompt("b", "3"), Prompt("c", "12"), Prompt("d", chat)], tokenizer)
    assert sum(map(len, asked)) == 3
    again = encode_many([Prompt("e", "3"), Prompt("f", chat)], tokenizer)
    assert sum(map(len, asked)) == 3
    assert [ids.tolist() for ids in again] == [first[1].tolist(), first[3].tolist()]
    tokenizer.chat_template = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
    assert encode_many([Prompt("g", chat)], tokenizer)[0].tolist() != first[3].tolist()


def test_tokenised_prompts_are_forgotten_before_they_fill_the_memory(monkeypatch):
    row = 3 * 4 + encode._OF_A_ROW
    monkeypatch.setattr(encode, "_MOST_BYTES", 10 * row)
    tokenizer = character_tokenizer(ALPHABET)
    for number in range(100, 125):
        encode_many([Prompt("a", str(number))], tokenizer)
    known = encode._ENCODED[tokenizer]
    assert (len(known.rows), known.bytes) == (5, 5 * row)  # of the last five, after two times ten
    # A whole pool is no part of it, nor does it stay whole behind.
    pool = [Prompt("b", str(number)) for number in range(200, 211)]
    encoded = encode_many(pool, tokenizer)
    assert (known.rows, known.bytes) == ({}, 0)
    assert [tokenizer.decode(ids) for ids in encoded] == [prompt.content for prompt in pool]
