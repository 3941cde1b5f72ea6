"""The store of outcomes: rows by key, growth, memory, and what comes back from a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from safetensors.numpy import load_file, save_file

from sppo.critics.outcomes import OutcomeStore, digests, prompt_keys
from sppo.types import Prompt


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def test_rows_are_given_in_the_order_of_coming_and_stay():
    store = OutcomeStore(2)
    assert store.find(keys(5, 7)).tolist() == [-1, -1]
    assert store.add(keys(9, 3, 9)).tolist() == [0, 1, 0]
    store.alpha[1] = [1.0, 2.0]
    assert store.add(keys(3, 2**64 - 1, 4, 0)).tolist() == [1, 2, 3, 4]
    assert store.find(keys(0, 4, 2**64 - 1, 3, 9, 8)).tolist() == [4, 3, 2, 1, 0, -1]
    assert store.alpha.tolist() == [[0, 0], [1, 2], [0, 0], [0, 0], [0, 0]]
    assert len(store) == 5


def test_a_hundred_thousand_prompts_come_back_whole_and_take_a_tenth_of_200_megabytes(tmp_path):
    store, generator = OutcomeStore(5), np.random.default_rng(0)
    everything = generator.integers(0, 2**64, 100_000, dtype=np.uint64, endpoint=False)
    for part in np.split(everything, 100):
        rows = store.add(part)
        store.alpha[rows], store.beta[rows], store.seen[rows] = generator.random((1000, 5)), 0.5, 7
    assert store.find(everything).tolist() == list(range(100_000))
    assert store.nbytes <= 20e6
    save_file(store.arrays(), tmp_path / "outcomes.safetensors")
    again = OutcomeStore(5)
    again.load(load_file(tmp_path / "outcomes.safetensors"))
    assert again.find(everything).tolist() == list(range(100_000))
    for name, array in store.arrays().items():
        assert np.array_equal(again.arrays()[name], array), name
    # What was loaded goes on as what was saved would have.
    assert again.add(keys(1)).tolist() == store.add(keys(1)).tolist() == [100_000]


def test_prompts_are_told_apart_by_what_they_ask_and_how_they_are_judged():
    prompt = Prompt("a", "1+1=", gold="2")
    chat = Prompt("b", ({"role": "user", "content": "1+1="},), gold="2")
    same = [replace(prompt, id="b"), replace(prompt, difficulty="hard", columns={"source": "x"})]
    other = [replace(prompt, content="1+2="), replace(prompt, gold="3"), replace(prompt, verifier="exact"), chat]
    found = prompt_keys([prompt, *same, *other])
    assert len(set(found[:3].tolist())) == 1
    assert len(set(found.tolist())) == 5
    assert prompt_keys([chat])[0] == prompt_keys([replace(chat, content=({"content": "1+1=", "role": "user"},))])[0]


def test_digests_are_the_same_in_every_process():
    # blake2b of 8 bytes of the empty text, big-endian.
    assert digests([""]).tolist() == [0xE4A6A0577479B2B4]
