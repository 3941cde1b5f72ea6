"""Numbers that are not finite: a run skips those steps, then ends and says whose they are; nothing raises before."""

from __future__ import annotations

import json
import math

import pytest
import torch

from sppo.critics.models import ValueModel
from sppo.errors import TrainingError
from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records
from sppo.update import estimate as estimating
from tests.algorithms.test_runs import GROUPS, SHORT
from tests.training.test_loop import train_on_rows


def strict(line: str) -> dict:
    """JSON as the standard has it, without NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(line, parse_constant=refuse)


def damaged(value: float):
    """`ValueModel.__init__` whose head has a weight of this value."""
    original = ValueModel.__init__

    def init(self, *arguments, **options):
        original(self, *arguments, **options)
        torch.nn.init.constant_(self.head.weight, value)

    return init


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "options",
    [
        {"algorithm__name": "sppo"},
        {"algorithm__name": "sppo", "critic__loss": "mse"},
        {"algorithm__name": "ppo"},
        {"algorithm__name": "ppo_bce"},
    ],
    ids=["sppo", "sppo, mse", "ppo", "ppo_bce"],
)
def test_a_critic_that_is_not_finite(tmp_path, monkeypatch, options, value):
    monkeypatch.setattr(ValueModel, "__init__", damaged(value))
    # One mini-batch a step, so that four steps are skipped and recorded before the fifth ends the run.
    sizes = {"optimizer__minibatch_size": 32, "critic__minibatch_size": 32}
    said = r"The critic's loss or gradient was not finite in 5 optimiser steps in a row"
    with pytest.raises(TrainingError, match=said):
        train_on_rows(tmp_path / "run", steps=9, **options, **sizes, **{**SHORT, "evaluation__every": 2})
    lines = read_metrics(tmp_path / "run")[1:]
    # The critic's and the policy's; but V of the first batch is the mean reward of others, whatever the critic says.
    assert [line["update/skipped_steps"] for line in lines] == [1, 3, 5, 7]
    for record in read_records(tmp_path / "run"):
        assert (strict(json.dumps(record))["value"] is None) == (record["step"] > 1)


@pytest.mark.parametrize("name", ["sppo", "ppo", "grpo", "remax", "reinforce_pp", "gspo", "cispo", "spo", "astar_po"])
def test_a_policy_whose_log_probabilities_are_not_finite(tmp_path, monkeypatch, name):
    monkeypatch.setattr(
        estimating, "batch_logprobs", lambda model, batch, *_: torch.full_like(batch.sampler_logprobs, math.nan)
    )
    options = GROUPS if name in ("grpo", "gspo", "cispo") else {}
    with pytest.raises(TrainingError, match=r"The policy's loss or gradient was not finite in 5 optimiser steps"):
        train_on_rows(tmp_path / "run", steps=9, algorithm__name=name, **options, **SHORT)
    lines = read_metrics(tmp_path / "run")[1:]
    assert [line["update/skipped_steps"] for line in lines] == [2, 4]
    assert all(math.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("name", ["ppo", "grpo", "remax", "reinforce_pp", "rloo"])
def test_a_reference_whose_log_probabilities_are_not_finite(tmp_path, monkeypatch, name):
    original = estimating.batch_logprobs
    calls = []

    def second_is_damaged(model, batch, *rest):
        calls.append(model)
        said = original(model, batch, *rest)
        return said if len(calls) % 2 else torch.full_like(said, math.nan)

    monkeypatch.setattr(estimating, "batch_logprobs", second_is_damaged)
    options = GROUPS if name in ("grpo", "rloo") else {}
    with pytest.raises(TrainingError, match=r"loss or gradient was not finite in 5 optimiser steps in a row"):
        train_on_rows(
            tmp_path / "run", steps=9, algorithm__name=name, algorithm__kl_coefficient=0.1,
            algorithm__kl_place="reward", **options, **SHORT,
        )  # fmt: skip
