"""Learning rates by step, by hand and in runs."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

import sppo
from sppo.config import CriticConfig, OptimizerConfig
from sppo.errors import RunFolderError
from sppo.runs.folder import read_metrics
from sppo.training.record import Recorder
from sppo.update.schedule import Curve, follow
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("curve", "rates"),
    [
        (Curve(8.0, 3), [8, 8, 8]),
        (Curve(8.0, 6, warmup=4), [2, 4, 6, 8, 8, 8]),
        (Curve(8.0, 4, decay="linear"), [8, 6, 4, 2]),
        (Curve(8.0, 5, warmup=2, decay="linear"), [4, 8, 6, 4, 2]),
        (Curve(8.0, 4, decay="cosine"), [8, 4 + 4 * math.sqrt(0.5), 4, 4 - 4 * math.sqrt(0.5)]),
        (Curve(8.0, 5, warmup=2, decay="cosine"), [4, 8, 4 + 4 * math.sqrt(0.5), 4, 4 - 4 * math.sqrt(0.5)]),
        (Curve(8.0, 2, warmup=2, decay="linear"), [4, 8]),
        (Curve(8.0, 2, warmup=4, decay="cosine"), [2, 4]),
        (Curve(8.0, 1, decay="cosine"), [8]),
    ],
)
def test_rates_rise_to_the_peak_and_fall_towards_the_end(curve, rates):
    assert [curve.at(step) for step in range(1, curve.steps + 1)] == pytest.approx(rates)


def test_a_warm_up_of_one_step_is_none():
    for decay in ("constant", "linear", "cosine"):
        without, one = Curve(3e-4, 7, 0, decay), Curve(3e-4, 7, 1, decay)
        assert [without.at(step) for step in range(1, 8)] == [one.at(step) for step in range(1, 8)]


def test_each_optimizer_follows_its_own_curve():
    optimizers = {name: torch.optim.AdamW([torch.zeros(1, requires_grad=True)]) for name in ("policy", "critic")}
    curves = {
        "policy": Curve.of(OptimizerConfig(learning_rate=4.0, learning_rate_warmup=4), 8),
        "critic": Curve.of(CriticConfig(learning_rate=8.0, learning_rate_decay="linear"), 8),
    }
    assert follow(curves, optimizers, 3) == {"policy/learning_rate": 3.0, "critic/learning_rate": 6.0}
    assert [optimizers[name].param_groups[0]["lr"] for name in curves] == [3.0, 6.0]


FALLING = {
    "optimizer__learning_rate": 1e-3, "optimizer__learning_rate_warmup": 2, "optimizer__learning_rate_decay": "linear",
    "critic__learning_rate": 4e-3, "critic__learning_rate_decay": "cosine",
}  # fmt: skip


def test_a_run_takes_its_steps_at_the_rates_that_it_records(tmp_path, monkeypatch):
    used = []

    def step(self, *args, **kwargs):
        used.append(self.param_groups[0]["lr"])
        return real(self, *args, **kwargs)

    real = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    sppo.train(tiny_config(tmp_path, steps=4, **FALLING))
    lines = read_metrics(tmp_path)[1:]
    policy, critic = ([line[f"{name}/learning_rate"] for line in lines] for name in ("policy", "critic"))
    assert policy == pytest.approx([5e-4, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    assert critic == pytest.approx([4e-3, 2e-3 * (1 + math.sqrt(0.5)), 2e-3, 2e-3 * (1 - math.sqrt(0.5))])
    # Two mini-batches of each a step, the critic's first.
    assert used == [rate for pair in zip(critic, policy, strict=True) for rate in pair for _ in range(2)]


def test_a_run_that_was_stopped_goes_on_at_the_rates_of_its_steps(tmp_path, monkeypatch):
    def stop(self, step):
        if step == 3:
            raise KeyboardInterrupt
        real(self, step)

    sppo.train(tiny_config(tmp_path / "whole", steps=4, **FALLING))
    real = Recorder.end
    monkeypatch.setattr(Recorder, "end", stop)
    with pytest.raises(KeyboardInterrupt):
        sppo.train(tiny_config(tmp_path / "parts", steps=4, **FALLING))
    monkeypatch.undo()
    sppo.train(tiny_config(tmp_path / "parts", steps=4, **FALLING), resume=True)
    for name in ("policy", "critic"):
        left, right = (
            load_file(tmp_path / run / "checkpoints" / "last" / name / "model.safetensors")
            for run in ("whole", "parts")
        )
        assert all(torch.equal(left[key], right[key]) for key in left), name


def test_where_the_rate_falls_a_run_has_as_many_steps_as_it_began_with(tmp_path):
    sppo.train(tiny_config(tmp_path / "constant", steps=1, optimizer__learning_rate_warmup=2))
    sppo.train(tiny_config(tmp_path / "constant", steps=2, optimizer__learning_rate_warmup=2), resume=True)
    for section in ("optimizer", "critic"):
        falling = {f"{section}__learning_rate_decay": "linear"}
        sppo.train(tiny_config(tmp_path / section, steps=1, **falling))
        with pytest.raises(RunFolderError, match=r"Different: steps: 1 -> 2"):
            sppo.train(tiny_config(tmp_path / section, steps=2, **falling), resume=True)
