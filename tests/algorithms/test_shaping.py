"""Process rewards: the sums and the expected gradient that they must not change, on a problem small enough to list."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from sppo.algorithms.options import PpoOptions
from sppo.algorithms.shaping import potential_differences, rewards_to_go
from sppo.algorithms.table import ALGORITHMS, settle_algorithm
from sppo.batch import Batch, Estimates, Outcomes
from sppo.config import AlgorithmConfig
from sppo.config.verification import ProcessOptions
from sppo.errors import ConfigError
from sppo.training.collate import collate
from sppo.types import Completion, Prompt, Rollout, StepScores, Verdict
from sppo.verifiers.steps import step_ends

LINES = ProcessOptions(function="f", split="lines")


def mask_of(*lengths: int) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def differences(steps: list[StepScores], mask: torch.Tensor, weight: float) -> torch.Tensor:
    return potential_differences([said.ends for said in steps], [said.scores for said in steps], mask, weight)


def test_the_differences_by_hand():
    # Steps end at tokens 1, 3 and 5 of six; the last one leads to the end, whose potential is 0.
    steps = StepScores((1, 3, 5), (0.8, 0.4, 0.9))
    shaping = differences([steps], mask_of(6), weight=0.5)
    # c = (0.8 + 0.4) / 2; potentials 0.5 * 0.2 after token 1 and -0.5 * 0.2 after token 3.
    assert shaping.tolist() == [pytest.approx([0, 0.1, 0, -0.2, 0, 0.1])]
    # What is to come at a token is minus the potential of the last step that is complete before it.
    assert rewards_to_go(shaping).tolist() == [pytest.approx([0, 0, -0.1, -0.1, 0.1, 0.1])]


def test_a_step_that_ends_before_the_stop_token_counts_and_a_response_of_one_step_is_not_shaped():
    steps = [
        StepScores((1,), (1.0,)),
        StepScores((3,), (0.3,)),
        StepScores((), ()),
        StepScores((), ()),
        StepScores((1,), (0.0,)),
    ]
    shaping = differences(steps, mask_of(3, 4, 2, 1, 4), weight=2.0)
    assert shaping[0].tolist() == [0.0, 1.0, -1.0, 0.0]  # c = 0.5
    assert shaping[4].tolist() == [0.0, -1.0, 0.0, 1.0]
    assert not shaping[1:4].any()


def test_of_two_steps_that_end_in_one_token_the_later_state_is_there_after_it():
    shaping = differences([StepScores((1, 1), (0.0, 1.0))], mask_of(4), weight=1.0)
    assert shaping.tolist() == [[0.0, 0.5, 0.0, -0.5]]


def test_a_step_that_ends_in_what_the_policy_did_not_write_is_paid_for_at_the_token_before():
    # Token 0 and the last are the policy's, and 3 and 4: steps end before any of its tokens, in the answer to 1, at 4.
    mask = torch.tensor([[False, True, False, True, True, False]])
    steps = StepScores((0, 2, 4), (1.0, 0.8, 0.4))
    assert differences([steps], mask, weight=1.0).tolist() == [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    mask[0, 5] = True
    shaping = differences([steps], mask, weight=1.0)  # c = (0.8 + 0.4) / 2
    assert shaping.tolist() == [pytest.approx([0.0, 0.2, 0.0, 0.0, -0.4, 0.2])]


def test_every_response_of_random_ones_sums_to_zero():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (64,), generator=generator).tolist()
    steps = []
    for length in lengths:
        ends = torch.rand(length, generator=generator).lt(0.3).nonzero().flatten().tolist()
        steps.append(StepScores(tuple(ends), tuple(torch.rand(len(ends), generator=generator).tolist())))
    mask = mask_of(*lengths)
    shaping = differences(steps, mask, weight=0.7)
    assert shaping.abs().max() > 0.1
    assert not shaping[~mask].any()
    torch.testing.assert_close(shaping.sum(dim=1), torch.zeros(64), atol=1e-6, rtol=0)


# A policy whose every response can be listed: tokens a, b, end of line, stop; at most four of them.

TOKENS = ["a", "b", "\n", ""]
STOP = 3
LONGEST = 4


def responses() -> list[tuple[int, ...]]:
    whole = [ids for ids in itertools.product(range(4), repeat=LONGEST) if STOP not in ids]
    ended = [(*ids, STOP) for n in range(LONGEST) for ids in itertools.product(range(3), repeat=n)]
    return whole + ended


def score_of(beginning: str) -> float:
    """Arbitrary, but a function of the beginning alone."""
    return (sum(place * ord(character) for place, character in enumerate(beginning, start=1)) % 7) / 6


def listed_batch(weight: float) -> Batch:
    rollouts, verdicts = [], []
    for ids in responses():
        text = "".join(TOKENS[token] for token in ids)
        ends = step_ends(text, LINES)
        places = tuple(min(end - 1, len(ids) - 1) for end in ends)
        scores = StepScores(places, tuple(score_of(text[:end]) for end in ends))
        completion = Completion(ids, (-1.0,) * len(ids), "stop" if ids[-1] == STOP else "length")
        rollouts.append(Rollout(Prompt("p", "go"), (0,), completion, text))
        verdicts.append(Verdict(float(text.count("a") % 2), step_scores=scores))
    return collate(rollouts, verdicts, process_weight=weight)


def log_probabilities(batch: Batch, table: torch.Tensor) -> torch.Tensor:
    """[B, T] of a policy that has its own logits for every beginning."""
    number: dict[tuple[int, ...], int] = {}
    sampled = [rollout.completion.token_ids.tolist() for rollout in batch.rollouts]
    rows = [[number.setdefault(tuple(ids[:t]), len(number)) for t in range(batch.mask.shape[1])] for ids in sampled]
    targets = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sampled], batch_first=True)
    said = table[torch.tensor(rows)].log_softmax(dim=-1)
    return torch.where(batch.mask, said.gather(2, targets[..., None]).squeeze(2), 0.0)


def expected_gradient(batch: Batch, advantages: torch.Tensor) -> torch.Tensor:
    """The sum over all responses of p * sum over t of A_t grad log pi_t."""
    table = torch.randn(800, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    logprobs = log_probabilities(batch, table)
    probabilities = logprobs.sum(dim=1).exp().detach()
    assert float(probabilities.sum()) == pytest.approx(1.0)
    (probabilities[:, None] * advantages.double() * logprobs).sum().backward()
    assert table.grad is not None
    return table.grad


def advantages_of(name: str, batch: Batch, values: torch.Tensor | None) -> torch.Tensor:
    return ALGORITHMS[name].assign_credit(Outcomes.of(batch, Estimates(batch.sampler_logprobs, values))).advantages


@pytest.mark.parametrize("name", ["sppo", "ppo", "ppo_bce", "reinforce_pp", "rloo", "dr_grpo"])
def test_the_expected_gradient_is_the_same_with_and_without_process_rewards(name):
    shaped, plain = listed_batch(weight=0.9), listed_batch(weight=0.0)
    assert plain.shaping is None
    assert shaped.shaping is not None
    assert shaped.shaping.abs().max() > 0.1
    values = None
    if ALGORITHMS[name].critic is not None:
        by_prompt = ALGORITHMS[name].critic == "prompt"
        values = torch.full((len(plain), 1 if by_prompt else LONGEST), 0.4)
    with_process, without = advantages_of(name, shaped, values), advantages_of(name, plain, values)
    assert (with_process - without).abs().max() > 0.1
    expected = expected_gradient(plain, without)
    assert expected.norm() > 0.05
    torch.testing.assert_close(expected_gradient(shaped, with_process), expected, atol=1e-6, rtol=0)


def test_step_scores_that_are_simply_added_would_change_it():
    batch, values = listed_batch(weight=0.9), torch.full((len(responses()), 1), 0.4)
    plain = advantages_of("sppo", replace(batch, shaping=None), values)
    assert batch.shaping is not None
    paid = rewards_to_go(batch.shaping.clamp(min=0))
    assert (expected_gradient(batch, plain + paid) - expected_gradient(batch, plain)).norm() > 0.01


def test_good_scores_that_predict_the_reward_lower_the_variance_of_the_gradient():
    # Two steps; the first one decides. With the score of the first step known, the second one's tokens get no noise.
    steps = [StepScores((0, 1), (score, 0.5)) for score in (1.0, 0.0)]
    shaping = differences(steps, mask_of(2, 2), weight=1.0)
    advantages = torch.tensor([[0.5], [-0.5]]) + rewards_to_go(shaping)
    assert advantages.tolist() == [[0.5, 0.0], [-0.5, 0.0]]


def test_ppo_gets_the_differences_as_rewards_of_tokens():
    rollout = Rollout(Prompt("p", "go"), (0,), Completion((1, 2, 3), (-1.0,) * 3, "stop"), "abc")
    others = [Verdict(0.0, step_scores=StepScores((0,), (score,))) for score in (0.0, 1.0)]
    batch = collate([rollout, rollout], others, process_weight=1.0)
    values = torch.tensor([[0.3, 0.3, 0.3]] * 2)
    before = Estimates(batch.sampler_logprobs, values)
    credit = replace(ALGORITHMS["ppo"], options=PpoOptions(gae_lambda=0.5)).assign_credit(Outcomes.of(batch, before))
    # Row 1: potential +0.5 after token 0. delta = [0 + 0.5, 0, -0.5 - 0.3]; A_t = delta_t + 0.5 A_{t+1}.
    assert credit.advantages[1].tolist() == pytest.approx([0.5 + 0.5 * (0 + 0.5 * -0.8), 0.5 * -0.8, -0.8])
    assert credit.value_targets is not None
    assert credit.value_targets[1].tolist() == pytest.approx([a + 0.3 for a in credit.advantages[1].tolist()])


def test_a_kl_penalty_and_process_rewards_add_up():
    batch = listed_batch(weight=0.9)
    penalty = torch.where(batch.mask, 0.01, 0.0)
    before = Estimates(batch.sampler_logprobs, kl_penalty=penalty)
    assert batch.shaping is not None
    torch.testing.assert_close(Outcomes.of(batch, before).token_rewards, batch.shaping - penalty)
    both = ALGORITHMS["reinforce_pp"].assign_credit(Outcomes.of(batch, before)).advantages
    alone = ALGORITHMS["reinforce_pp"].assign_credit(Outcomes.of(replace(batch, shaping=None), before)).advantages
    torch.testing.assert_close(both, alone + rewards_to_go(batch.shaping))


@pytest.mark.parametrize(
    ("config", "samples", "message"),
    [
        (AlgorithmConfig(name="gspo"), 8, "with algorithm.ratio sequence .* another algorithm than gspo"),
        (AlgorithmConfig(ratio="joint"), 1, "with algorithm.ratio joint .* Set algorithm.ratio to token, or use"),
        (AlgorithmConfig(name="astar_po"), 1, r"ratio joint .* place for them\. Use another algorithm than astar_po"),
        (AlgorithmConfig(name="grpo"), 8, "aggregation sequence_mean weighs each token by 1 / length"),
        (AlgorithmConfig(name="ppo", options={"gamma": 0.99}), 1, "algorithm.options.gamma is 0.99"),
        (AlgorithmConfig(name="ppo_bce", options={"gae_lambda": 0.95}), 1, "with gae_lambda 0.95"),
    ],
)
def test_algorithms_that_would_not_cancel_them_are_refused(config, samples, message):
    settle_algorithm(config, samples)
    with pytest.raises(ConfigError, match=message):
        settle_algorithm(config, samples, process_rewards=True)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"gspo", "grpo", "astar_po"}))
def test_all_other_algorithms_take_them(name):
    settle_algorithm(AlgorithmConfig(name=name), 8, process_rewards=True)
