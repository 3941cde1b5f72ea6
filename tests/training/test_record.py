"""Metrics of a step, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sppo.algorithms.table import ALGORITHMS
from sppo.batch import Credit, Estimates
from sppo.training.collate import LengthRules, collate
from sppo.training.record import credit_metrics, selection_summary
from sppo.types import Verdict
from tests.conftest import make_rollout


@pytest.mark.parametrize("advantages", [[[1.0], [9.0], [0.0]], [[1.0, 1.0], [9.0, 9.0], [0.0, 7.0]]])
def test_advantages_are_measured_on_what_is_trained_on(advantages):
    # The second response was cut at the limit and is masked; the third has one token, and padding.
    rollouts = [make_rollout(name, [5], [7] * length) for name, length in (("a", 2), ("b", 2), ("c", 1))]
    rollouts[1] = replace(rollouts[1], completion=replace(rollouts[1].completion, finish_reason="length"))
    batch = collate(rollouts, [Verdict(1.0)] * 3, rules=LengthRules("mask", 2))
    found = credit_metrics(
        batch, Estimates(batch.sampler_logprobs), Credit(torch.tensor(advantages)), ALGORITHMS["rloo"]
    )
    by_token = len(advantages[0]) == 2
    assert found["advantage/mean"] == pytest.approx(2 / 3 if by_token else 0.5)
    assert found["advantage/std"] == pytest.approx(2**0.5 / 3 if by_token else 0.5)


def test_the_summary_tells_when_prompts_were_chosen_and_whose_the_reward_was():
    def line(step, share, reward, of_control=None, **more):
        known = {} if of_control is None else {"selection/control_reward": of_control}
        if share < 1:
            known["selection/chosen_reward"] = reward
        shares = {"selection/control_share": share, "selection/dead_share": 0.5}
        return {"step": step, "reward/mean": 0.4, **shares, **known, **more}

    steps = [line(n, 1.0, 0.9, 0.9) for n in range(1, 6)]
    steps += [line(n, 0.1, 0.6, 0.2, **{"selection/gain": 3.0 + n, "selection/candidates": 4.0}) for n in range(6, 15)]
    # A step whose control group is half of it counts five times for the control group.
    steps.append(line(15, 0.5, 0.5, 0.8))
    steps.append(line(16, 1.0, 0.9, 0.9))
    found = selection_summary([{"step": 0, "eval/accuracy": 0.5}, *steps], "auto")["selection"]
    assert found.pop("rule") == "auto"
    assert found.pop("auto_from") == {"chooses": 1.5, "hardest": 3.0}
    reward, control = (9 * 0.9 * 0.6 + 0.5 * 0.5) / (9 * 0.9 + 0.5), (9 * 0.1 * 0.2 + 0.5 * 0.8) / (9 * 0.1 + 0.5)
    expected = {"steps": 16, "steps_chosen": 10, "dead_share": 0.5, "candidates": 4.0, "gain": 17.0}
    assert found == pytest.approx({**expected, "reward": reward, "control_reward": control})
    assert "auto_from" not in selection_summary(steps, "top")["selection"]
    assert selection_summary([{"step": 1, "reward/mean": 0.5}], "uniform") == {}
