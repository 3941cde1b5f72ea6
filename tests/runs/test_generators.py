"""Generators go on where they were, from files that run nothing, by this version and by those before."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sppo.errors import RunFolderError
from sppo.runs.checkpoint import read_old_optimizers
from sppo.runs.generators import restore_random_state, save_random_state


def old_random_state() -> dict[str, object]:
    """What random.pt held, up to version 0.3.0."""
    name, words, place, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [],
        "numpy": (name, words.tolist(), int(place), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def save_old(folder: Path) -> None:
    torch.save(old_random_state(), folder / "random.pt")


def drawn():
    """The next number of every generator, twice for those that make two at a time."""
    return [
        torch.rand(2).tolist(),
        np.random.standard_normal(1).item(), np.random.standard_normal(1).item(), np.random.rand(700).tolist(),
        random.gauss(0, 1), random.gauss(0, 1), [random.random() for _ in range(700)],
    ]  # fmt: skip


@pytest.mark.parametrize("save", [save_random_state, save_old])
@pytest.mark.parametrize("half_used", [False, True])
def test_generators_go_on_where_they_were(tmp_path, half_used, save):
    if half_used:
        np.random.standard_normal(1)
        random.gauss(0, 1)
    save(tmp_path)
    expected = drawn()
    drawn()
    restore_random_state(tmp_path)
    assert drawn() == expected


def test_they_are_kept_as_plain_tensors_and_json(tmp_path):
    save_random_state(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["random.json", "random.safetensors"]
    assert load_file(tmp_path / "random.safetensors").keys() == {"torch", "numpy", "python"}
    assert json.loads((tmp_path / "random.json").read_text())["numpy"][0] == "MT19937"


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("name", "read"),
    [("random.pt", restore_random_state), ("optimizers.pt", read_old_optimizers)],
)
@pytest.mark.parametrize("form", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_checkpoint_of_somebody_else_runs_no_code(tmp_path, name, read, form):
    form({"torch": Evil(tmp_path / "ran")}, tmp_path / name)
    with pytest.raises(RunFolderError, match=f"{name} holds something else than tensors and numbers"):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        # numpy would read so far beyond its words.
        ({"numpy": ["MT19937", 10**6, 0, 0.0]}, {}), ({"numpy": ["MT19937", -1, 0, 0.0]}, {}),
        ({"numpy": ["Other", 3, 0, 0.0]}, {}), ({"numpy": []}, {}), ({"python": [9, None]}, {}), ({"cuda": 2}, {}),
        ({}, {"torch": torch.zeros(3, dtype=torch.uint8)}), ({}, {"python": torch.full((625,), -5)}),
        ({}, {"numpy": torch.zeros(2, dtype=torch.int64)}), ({}, {"python": torch.tensor(3.0)}),
    ],
)  # fmt: skip
def test_states_that_cannot_be_are_told(tmp_path, changes, tensors):
    save_random_state(tmp_path)
    numbers = json.loads((tmp_path / "random.json").read_text())
    (tmp_path / "random.json").write_text(json.dumps(numbers | changes))
    save_file(load_file(tmp_path / "random.safetensors") | tensors, tmp_path / "random.safetensors")
    with pytest.raises(RunFolderError, match=r"random\.safetensors holds no states of generators, or is damaged"):
        restore_random_state(tmp_path)


@pytest.mark.parametrize("name", ["random.json", "random.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[1]", b"damaged"])
def test_a_file_that_is_none_is_told(tmp_path, name, content):
    save_random_state(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(RunFolderError, match=r"random"):
        restore_random_state(tmp_path)


def test_an_old_state_beyond_its_words_is_told_too(tmp_path):
    state = old_random_state()
    name, words, _, *rest = state["numpy"]
    torch.save(state | {"numpy": (name, words, 10**6, *rest)}, tmp_path / "random.pt")
    with pytest.raises(RunFolderError, match=r"random\.pt holds no states of generators.*word 1000000 of 624"):
        restore_random_state(tmp_path)
