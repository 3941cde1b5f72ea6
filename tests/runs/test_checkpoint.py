"""What a checkpoint holds of generators, and of whom it is."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sppo.errors import RunFolderError
from sppo.runs.checkpoint import (
    TrainingState,
    load_state,
    random_state,
    read_old_optimizers,
    restore_random_state,
)
from sppo.runs.files import write_json


def drawn():
    """The next number of every generator, twice for those that make two at a time."""
    return [
        torch.rand(2).tolist(),
        np.random.standard_normal(1).item(), np.random.standard_normal(1).item(), np.random.rand(700).tolist(),
        random.gauss(0, 1), random.gauss(0, 1), [random.random() for _ in range(700)],
    ]  # fmt: skip


@pytest.mark.parametrize("half_used", [False, True])
def test_generators_go_on_where_they_were(tmp_path, half_used):
    if half_used:
        np.random.standard_normal(1)
        random.gauss(0, 1)
    torch.save(random_state(), tmp_path / "random.pt")
    expected = drawn()
    drawn()
    restore_random_state(tmp_path)
    assert drawn() == expected


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


def test_the_state_names_the_version_that_wrote_it(tmp_path):
    for saved, version in (({"step": 3}, r"0\.1\.0"), ({"sppo": "9.1", "step": 3, "horizon": 1}, r"9\.1")):
        write_json(tmp_path / "state.json", saved)
        with pytest.raises(RunFolderError, match=f"was written by sppo {version},.*evaluated, calibrated and plotted"):
            load_state(tmp_path)
    write_json(tmp_path / "state.json", {"sppo": "0.2.0", "step": 3, "best_step": 2})
    assert load_state(tmp_path) == TrainingState(step=3, best_step=2)
