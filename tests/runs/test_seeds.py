"""Seeds: what differs in anything has another one; a row's is that of its place, whatever stands beside it."""

from __future__ import annotations

import numpy as np

from sppo.runs import seeds
from sppo.runs.seeds import derive_seed, row_seeds


def test_seeds_differ_by_purpose_step_and_seed():
    seeds = {derive_seed(s, p, n) for s in (0, 1) for p in ("data", "sampling") for n in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "data", 1) == derive_seed(0, "data", 1)


def test_every_row_of_every_purpose_step_and_run_has_a_seed_of_its_own():
    made = [
        row_seeds(run, purpose, range(4096), step)
        for run in (0, 1)
        for purpose in ("sampling 0", "sampling 1", "greedy", "offline", "evaluation")
        for step in (0, 1, 2)
    ]
    every = [seed for rows in made for seed in rows]
    assert len(set(every)) == len(every) == 2 * 5 * 3 * 4096
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in every)
    assert made[0] == row_seeds(0, "sampling 0", range(4096))


def test_a_rows_seed_is_that_of_its_place_alone():
    whole = row_seeds(3, "sampling 0", range(100), 7)
    assert row_seeds(3, "sampling 0", range(50), 7) == whole[:50]
    for rank in range(3):
        assert row_seeds(3, "sampling 0", range(rank, 100, 3), 7) == whole[rank::3]
    assert row_seeds(3, "sampling 0", [41, 2], 7) == [whole[41], whole[2]]
    assert row_seeds(3, "sampling 0", [], 7) == []


def test_the_seeds_are_the_numbers_of_splitmix64(monkeypatch):
    # The first numbers of the reference generator started at 1234567, less their last bit.
    monkeypatch.setattr(seeds, "derive_seed", lambda *_: 1234567)
    numbers = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert row_seeds(0, "any", range(5)) == [number >> 1 for number in numbers]


def test_the_seeds_of_neighbours_have_nothing_in_common():
    made = np.array(row_seeds(0, "sampling 0", range(4096)), np.uint64)
    bits = (made[:, None] >> np.arange(63, dtype=np.uint64)) & np.uint64(1)
    # Each bit is set in half of the rows, and differs between neighbours in half of them; 5 standard errors of 4,096.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / 64
    assert np.abs((bits[1:] != bits[:-1]).mean(axis=0) - 0.5).max() < 5 * 0.5 / 64
