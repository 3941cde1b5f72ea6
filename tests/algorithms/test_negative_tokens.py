"""Failed responses make only their least likely tokens less likely."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sppo
from sppo.algorithms.masked import blame_least_likely
from sppo.algorithms.policy_loss import LossOptions
from sppo.algorithms.table import settle_algorithm
from sppo.batch import Credit, Estimates
from sppo.config import AlgorithmConfig
from sppo.errors import ConfigError
from sppo.runs.folder import read_metrics
from sppo.training.collate import collate
from sppo.update.policy import update_policy
from tests.conftest import make_rollouts, tiny_config, tiny_qwen2
from tests.update.test_policy import OPTIMIZER, SAMPLING, Gradients, unclipped

LOGPROBS = torch.tensor(
    [[-1.0, -3.0, -0.5, -2.0, -0.1], [-1.0, -3.0, -0.5, -2.0, -0.1], [-9.0, -1.0, -1.0, -9.0, -1.0]]
)
OWN = torch.tensor([[True] * 5, [True] * 5, [False, True, True, False, True]])


@pytest.mark.parametrize(
    ("share", "first", "third"),
    [
        (1.0, [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        (0.5, [1, 1, 0, 1, 0], [0, 1, 1, 0, 0]),  # 2.5 and 1.5 tokens: 3 and 2; of equals the earlier
        (0.4, [0, 1, 0, 1, 0], [0, 1, 0, 0, 0]),  # 2 and 1.2
        (0.0, [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]),  # at least one
    ],
)
def test_in_failures_the_least_likely_tokens_of_the_policys_own_keep_their_advantage(share, first, third):
    advantages = torch.tensor([[-0.5], [0.5], [-2.0]]).expand(3, 5)
    found = blame_least_likely(advantages, LOGPROBS, OWN, share)
    assert (found / advantages).tolist() == [first, [1] * 5, third]


def gradients(share: float, *, given: Tensor | None = None, kl: float = 0.0, **changes) -> list[Tensor]:
    """Of one step's mini-batches: 8 responses, each with an advantage, or the ones given for each token."""
    model, batch = tiny_qwen2(), collate(*make_rollouts(8))
    advantages = torch.tensor([[1.0], [-1.0], [-0.5], [0.5], [-2.0], [0.25], [-0.25], [-1.0]])
    recorder = Gradients(model)
    update_policy(
        model, recorder, batch, Estimates(batch.sampler_logprobs, ref_logprobs=batch.sampler_logprobs - 0.3),
        Credit(advantages if given is None else given),
        loss_options=LossOptions(dual_clip=3.0, negative_share=share, kl_coefficient=kl, entropy_coefficient=kl),
        optimizer=replace(OPTIMIZER, **changes), sampling=SAMPLING, expected_rows=8, seed=1, guard=unclipped(),
    )  # fmt: skip
    return [gradient for step in recorder.seen for gradient in step]


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", ["sorted", "packed"])
@pytest.mark.parametrize("budget", [30, 55, 10_000])
def test_which_tokens_are_trained_depends_on_no_cut_and_the_denominators_stay(layout, budget):
    batch = collate(*make_rollouts(8))
    advantages = torch.tensor([1.0, -1.0, -0.5, 0.5, -2.0, 0.25, -0.25, -1.0])
    by_token = torch.zeros(batch.mask.shape)
    for row in range(8):
        length = int(batch.mask[row].sum())
        likely = sorted(range(length), key=lambda t, row=row: float(batch.sampler_logprobs[row, t]))  # type: ignore[misc]
        kept = likely if advantages[row] > 0 else likely[: max(int(0.3 * length + 0.5), 1)]
        by_token[row, kept] = advantages[row]
    assert 0 < int((by_token != 0).sum()) < int(batch.mask.sum())
    # With all shares kept, advantages of 0 have their weight in the mean over tokens.
    expected = gradients(1.0, given=by_token)
    close(gradients(0.3, tokens_per_microbatch=budget, layout=layout), expected)
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(gradients(1.0), expected, strict=True))


def test_the_kl_and_the_entropy_term_hold_at_all_tokens():
    pulls = [
        [more - less for more, less in zip(gradients(share, kl=0.5), gradients(share), strict=True)]
        for share in (1.0, 0.3)
    ]
    assert max(float(pull.abs().max()) for pull in pulls[0]) > 1e-2
    close(pulls[1], pulls[0])


@pytest.mark.parametrize("name", ["sppo", "grpo", "rloo", "remax", "reinforce_pp", "cispo", "spo"])
def test_every_algorithm_with_one_advantage_a_response_takes_it(name):
    assert settle_algorithm(AlgorithmConfig(name=name, negative_share=0.3), 8).loss.negative_share == 0.3


@pytest.mark.parametrize(
    ("config", "process_rewards", "message"),
    [
        (AlgorithmConfig(name="ppo", negative_share=0.3), False, "negative_share is 0.3, .* with ppo each token"),
        (AlgorithmConfig(name="ppo_bce", negative_share=0.3), False, "with ppo_bce each token"),
        (AlgorithmConfig(name="gspo", negative_share=0.3), False, "with algorithm.ratio sequence every token moves by"),
        (AlgorithmConfig(ratio="joint", negative_share=0.3), False, "with algorithm.ratio joint"),
        (AlgorithmConfig(negative_share=0.3), True, "with verification.process each token has an advantage of its own"),
        (
            AlgorithmConfig(name="reinforce_pp", negative_share=0.3, kl_coefficient=0.1, kl_place="reward"), False,
            "with algorithm.kl_place reward each token",
        ),
    ],
)  # fmt: skip
def test_it_is_refused_where_no_response_fails_as_a_whole(config, process_rewards, message):
    settle_algorithm(replace(config, negative_share=1.0), 8, process_rewards=process_rewards)
    with pytest.raises(ConfigError, match=message):
        settle_algorithm(config, 8, process_rewards=process_rewards)


def test_a_run_does_as_its_option_says(tmp_path):
    norms = []
    for share in (1.0, 0.3):
        settings = {"algorithm__negative_share": share, "optimizer__minibatch_size": 16, "critic__prior": 0.9}
        sppo.train(
            tiny_config(tmp_path / str(share), steps=1, **settings),
            reward=lambda prompts, completions, **columns: [0.0] * len(prompts),
        )
        norms.append(read_metrics(tmp_path / str(share))[1]["policy/grad_norm"])
    assert norms[1] != pytest.approx(norms[0], rel=0.05)
