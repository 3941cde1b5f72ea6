"""Every loss: numbers worked out by hand, slow definitions with autograd, gradients that no cut or order changes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sppo.algorithms.masked import token_weights, whiten
from sppo.algorithms.policy_loss import LossOptions, PolicyLoss, kl_estimate, policy_loss
from sppo.algorithms.ppo import generalized_advantages
from sppo.algorithms.table import ALGORITHMS
from sppo.algorithms.value_loss import bce_value_loss, clipped_value_loss
from sppo.batch import Credit, Estimates, Outcomes
from sppo.config import OptimizerConfig, SamplingConfig
from sppo.models.chunked import chunked_logprobs
from sppo.training.collate import collate
from sppo.types import Verdict
from sppo.update.logprobs import batch_logprobs
from sppo.update.policy import update_policy
from sppo.update.steps import StepGuard
from tests.conftest import make_rollouts, tiny_qwen2
from tests.update.test_policy import Gradients

TWO = torch.tensor([[True, False], [True, True]])


def log(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).log()


def loss_of(logprobs: Tensor, advantages: list[float], options: LossOptions, mask: Tensor = TWO, **given) -> PolicyLoss:
    """The loss of whole rows, old log-probabilities 0, so that exp(logprobs) is each token's ratio."""
    weights = token_weights(mask, options.aggregation, int(mask.sum()), len(mask), 10)
    return policy_loss(
        logprobs, torch.zeros_like(logprobs), torch.tensor(advantages)[:, None], weights, options, **given
    )


# Literal numbers


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token_mean", (1.0 + 2.0 + 4.0) / 3), ("sequence_mean", (1.0 + 3.0) / 2), ("sequence_sum", (1.0 + 6.0) / 20)],
)
def test_aggregations_by_hand(aggregation, expected):
    # Ratios 1 | 2, 4 and A = -1, so the tokens' losses are 1 | 2, 4; the constant of the sum is 10.
    found = loss_of(log([1.0, 9.0], [2.0, 4.0]), [-1.0, -1.0], LossOptions(aggregation=aggregation))
    assert found.loss.item() == pytest.approx(expected)


def test_the_sequences_ratio_is_the_geometric_mean_of_its_tokens():
    # exp((log 2 + log 0.5) / 2) = 1 and exp(log 1.44 / 2) = 1.2: padding does not count in the mean.
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    options = LossOptions(clip_low=0.1, clip_high=0.1, ratio="sequence", aggregation="sequence_mean")
    found = loss_of(log([2.0, 0.5], [1.44, 1.0], [1.05, 9.0]), [1.0, 1.0, 1.0], options, mask)
    assert found.loss.item() == pytest.approx(-(1.0 + 1.1 + 1.05) / 3)
    assert found.clipped.tolist() == [[False, False], [True, True], [False, False]]


def test_gspos_published_clip_is_narrow_and_uneven():
    options = ALGORITHMS["gspo"].loss
    one = torch.tensor([[True]])
    assert loss_of(log([1.0005]), [1.0], options, one).loss.item() == pytest.approx(-1.0004, rel=1e-6)
    assert loss_of(log([0.9995]), [-1.0], options, one).loss.item() == pytest.approx(0.9997, rel=1e-6)
    assert not loss_of(log([1.0003]), [1.0], options, one).clipped.any()


def test_the_joint_ratio_is_the_product_over_tokens_against_the_reference():
    # Against the reference, not against the old policy: 1.1 * 1.05 = 1.155 and, cut, 1.2 * 1.1 = 1.32.
    mask = torch.ones(2, 2, dtype=torch.bool)
    reference = log([0.5, 0.5], [0.5, 0.5])
    logprobs = reference + log([1.1, 1.05], [1.2, 1.1])
    found = loss_of(logprobs, [1.0, 1.0], LossOptions(ratio="joint"), mask, ref_logprobs=reference)
    assert found.loss.item() == pytest.approx(-(1.155 + 1.2) / 2)
    assert found.clipped.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(("total", "ratio"), [(0.1, math.exp(0.1)), (0.5, math.exp(0.2)), (-0.5, math.exp(-0.5))])
def test_the_joint_band_allows_c_times_the_root_of_the_length(total, ratio):
    # c = 0.1 and four tokens: up to 0.2 nats, whatever the clip range says.
    logprobs, mask = torch.full((1, 4), total / 4), torch.ones(1, 4, dtype=torch.bool)
    options = LossOptions(ratio="joint", joint_band=0.1, clip_low=0.9, clip_high=9.0)
    found = loss_of(logprobs, [1.0], options, mask, ref_logprobs=torch.zeros(1, 4))
    assert found.loss.item() == pytest.approx(-ratio)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("total", [19.0, 25.0, 29.9, -25.0])
def test_the_gradient_is_right_everywhere_inside_a_wide_band(total, advantage):
    # c = 3 and 100 tokens: up to 30 nats. d/dt of -A exp(sum) is -A exp(sum) for each token.
    logprobs, mask = torch.full((1, 100), total / 100, requires_grad=True), torch.ones(1, 100, dtype=torch.bool)
    options = LossOptions(ratio="joint", joint_band=3.0)
    found = loss_of(logprobs, [advantage], options, mask, ref_logprobs=torch.zeros(1, 100))
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    assert gradient[0].tolist() == pytest.approx([-advantage * math.exp(total)] * 100, rel=1e-4)
    assert not found.clipped.any()


@pytest.mark.parametrize(
    ("total", "advantage", "cut"),
    [(30.1, 1.0, True), (30.1, -1.0, False), (-30.1, 1.0, False), (-30.1, -1.0, True), (40.0, -1.0, True)],
)
def test_outside_the_band_the_gradient_ends_and_is_counted_as_clipped(total, advantage, cut):
    # PPO's minimum cuts on one side alone; on the other the ratio is followed a little further, for fear of infinity.
    logprobs, mask = torch.full((1, 100), total / 100, requires_grad=True), torch.ones(1, 100, dtype=torch.bool)
    options = LossOptions(ratio="joint", joint_band=3.0)
    found = loss_of(logprobs, [advantage], options, mask, ref_logprobs=torch.zeros(1, 100))
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    expected = 0.0 if cut else -advantage * math.exp(total)
    assert gradient[0].tolist() == pytest.approx([expected] * 100, rel=1e-4)
    assert bool(found.clipped.all()) == bool(found.clipped.any()) == cut


@pytest.mark.parametrize(("total", "cut"), [(79.0, False), (81.0, True), (99.0, True), (1000.0, True)])
def test_a_band_wider_than_float32_ends_where_exp_does(total, cut):
    # c = 10 and 100 tokens would be 100 nats.
    logprobs, mask = torch.full((1, 100), total / 100, requires_grad=True), torch.ones(1, 100, dtype=torch.bool)
    options = LossOptions(ratio="joint", joint_band=10.0)
    found = loss_of(logprobs, [1.0], options, mask, ref_logprobs=torch.zeros(1, 100))
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    assert found.loss.item() == pytest.approx(-math.exp(min(total, 80.0)), rel=1e-4)
    assert bool((gradient == 0).all()) == bool(found.clipped.all()) == cut
    assert torch.isfinite(gradient).all()


def test_a_token_that_moved_far_counts_whole_in_its_sequences_ratio():
    # 30 nats in one token and -29.9 over the others: the mean of 100, 0.001, lies inside the clip.
    logprobs = torch.cat([torch.tensor([[30.0]]), torch.full((1, 99), -29.9 / 99)], dim=1).requires_grad_()
    found = loss_of(logprobs, [1.0], LossOptions(ratio="sequence"), torch.ones(1, 100, dtype=torch.bool))
    assert found.loss.item() == pytest.approx(-math.exp(0.001), rel=1e-6)
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    assert gradient[0].tolist() == pytest.approx([-math.exp(0.001) / 100] * 100, rel=1e-5)


@pytest.mark.parametrize(("estimator", "value", "slope"), [("k2", 450.0, 30.0), ("k3", 29.0, 1.0)])
def test_the_kl_term_still_pulls_where_the_policy_has_left_the_reference_far_behind(estimator, value, slope):
    # d = 30; the padding's infinity says nothing.
    logprobs = torch.tensor([[0.0, float("inf")]], requires_grad=True)
    options = LossOptions(kl_coefficient=1.0, kl_estimator=estimator)
    mask = torch.tensor([[True, False]])
    found = loss_of(logprobs, [0.0], options, mask, ref_logprobs=torch.tensor([[-30.0, 0.0]]))
    assert found.loss.item() == pytest.approx(value)
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    assert gradient[0].tolist() == [pytest.approx(slope), 0.0]


def test_a_long_response_that_left_the_reference_far_behind_stays_finite():
    logprobs = torch.full((1, 1000), 1.0, requires_grad=True)
    mask = torch.ones(1, 1000, dtype=torch.bool)
    for advantage in (1.0, -1.0):
        found = loss_of(logprobs, [advantage], LossOptions(ratio="joint"), mask, ref_logprobs=torch.zeros(1, 1000))
        (gradient,) = torch.autograd.grad(found.loss, logprobs)
        assert torch.isfinite(found.loss)
        assert torch.isfinite(gradient).all()


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    # A = 2; ratios 0.5, 1.1, 3: weights 0.8, 1.1, 1.2. The gradient is -weight * A / 3 for each, also where cut.
    logprobs = log([0.5, 1.1, 3.0]).requires_grad_()
    options = LossOptions(surrogate="cispo", clip_low=0.2, clip_high=0.2)
    found = loss_of(logprobs, [2.0], options, torch.ones(1, 3, dtype=torch.bool))
    assert found.loss.item() == pytest.approx(
        -(0.8 * math.log(0.5) + 1.1 * math.log(1.1) + 1.2 * math.log(3.0)) * 2 / 3
    )
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    assert gradient[0].tolist() == pytest.approx([-1.6 / 3, -2.2 / 3, -2.4 / 3])
    assert found.clipped.tolist() == [[True, False, True]]


def test_cispos_published_clip_bounds_the_weight_from_above_alone():
    logprobs = log([0.01, 7.0]).requires_grad_()
    found = loss_of(logprobs, [1.0], ALGORITHMS["cispo"].loss, torch.ones(1, 2, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    assert gradient[0].tolist() == pytest.approx([-0.005, -2.5])


@pytest.mark.parametrize(("estimator", "values"), [("k1", (0.5, -0.5)), ("k2", (0.125, 0.125))])
def test_k1_and_k2_by_hand(estimator, values):
    found = kl_estimate(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.5]]), estimator)
    assert found[0].tolist() == pytest.approx(values)


def test_k3_by_hand():
    # exp(-d) - 1 + d with d = log 2: 0.5 - 1 + 0.6931; with d = -log 2: 2 - 1 - 0.6931.
    found = kl_estimate(log([1.0, 0.25]), log([0.5, 0.5]), "k3")
    assert found[0].tolist() == pytest.approx([0.1931472, 0.3068528])


def test_the_expected_k1_and_k3_are_the_kl_divergence():
    policy, reference = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.2, 0.6]])
    divergence = (policy * (policy / reference).log()).sum()
    for estimator in ("k1", "k3"):
        assert (policy * kl_estimate(policy.log(), reference.log(), estimator)).sum() == pytest.approx(divergence)


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_the_mean_gradient_of_each_kl_estimator_over_all_tokens(place):
    """E over the policy of grad k (loss) or k grad log p (reward), against the gradients of both divergences."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, 6, generator=generator, dtype=torch.float64)

    def gradients(distance: float) -> dict[str, Tensor]:
        logits = (start + distance * torch.randn(1, 6, generator=generator, dtype=torch.float64)).requires_grad_()
        policy, reference = logits.log_softmax(-1), start.log_softmax(-1)
        forward = (policy.exp() * (policy - reference)).sum()
        backward = (reference.exp() * (reference - policy)).sum()
        means = {"forward": forward, "backward": backward}
        for name in ("k1", "k2", "k3"):
            k = kl_estimate(policy, reference, name)
            means[name] = (policy.exp().detach() * (k if place == "loss" else k.detach() * policy)).sum()
        return {name: torch.autograd.grad(mean, logits, retain_graph=True)[0] for name, mean in means.items()}

    far, near = gradients(0.5), gradients(1e-3)
    exact = {"atol": 1e-12, "rtol": 1e-9}
    assert (far["forward"] - far["backward"]).norm() > 0.1 * far["forward"].norm()
    if place == "loss":
        torch.testing.assert_close(far["k1"], torch.zeros(1, 6, dtype=torch.float64), **exact)
        torch.testing.assert_close(far["k2"], far["forward"], **exact)
        torch.testing.assert_close(far["k3"], far["backward"], **exact)
    else:
        torch.testing.assert_close(far["k1"], far["forward"], **exact)
        torch.testing.assert_close(far["k3"], far["forward"] - far["backward"], **exact)
        for name in ("k2", "k3"):
            assert near[name].norm() < 0.01 * near["forward"].norm()


def test_kl_and_entropy_in_the_loss_by_hand():
    # Losses -1 | -0.5, -0.5, and k2 = 0.1 | 0.2, 0.3, H = 1 | 2, 3, all over three tokens; the weight 0.5 is of the
    # surrogate alone.
    logprobs, entropy = torch.zeros(2, 2), torch.tensor([[1.0, 9.0], [2.0, 3.0]])
    reference = -torch.tensor([[0.2, 9.0], [0.4, 0.6]]).sqrt()
    options = LossOptions(kl_coefficient=0.5, kl_estimator="k2", entropy_coefficient=0.01)
    found = loss_of(
        logprobs, [1.0, 0.5], options, entropy=entropy, ref_logprobs=reference,
        importance_weights=torch.full((2, 2), 0.5),
    )  # fmt: skip
    assert found.loss.item() == pytest.approx((0.5 * -2.0 + 0.5 * 0.6 - 0.01 * 6.0) / 3)


@pytest.mark.parametrize(
    ("aggregation", "entropy", "kl"),
    [
        ("token_mean", (1.0 + 2.0 + 3.0) / 3, (0.1 + 0.2 + 0.3) / 3),
        ("sequence_mean", (1.0 + 2.5) / 2, (0.1 + 0.25) / 2),
        # Sums over the longest response allowed, 10: a fifth of the mean entropy, as the responses are short.
        ("sequence_sum", (1.0 + 5.0) / 10 / 2, (0.1 + 0.5) / 10 / 2),
    ],
)
def test_entropy_and_kl_are_aggregated_as_the_tokens_losses_are(aggregation, entropy, kl):
    said = torch.tensor([[1.0, 9.0], [2.0, 3.0]])
    reference = -torch.tensor([[0.2, 9.0], [0.4, 0.6]]).sqrt()
    options = LossOptions(aggregation=aggregation, entropy_coefficient=0.5, kl_coefficient=2.0, kl_estimator="k2")
    found = loss_of(torch.zeros(2, 2), [0.0, 0.0], options, entropy=said, ref_logprobs=reference)
    assert found.loss.item() == pytest.approx(2.0 * kl - 0.5 * entropy)


def test_the_clipped_value_loss_by_hand():
    # Old value 0, return 1, clip 0.5. v = 0.2: 0.8^2. v = 0.9: the worse of 0.1^2 and (0.5 - 1)^2, without gradient.
    # v = -2: the worse of 3^2 and 1.5^2, with gradient. Each times 0.5, mean of three; the padding says nothing.
    values = torch.tensor([[0.2, 0.9, -2.0, float("inf")]], requires_grad=True)
    old, targets = torch.zeros(1, 4), torch.ones(1, 4)
    weights = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]])
    loss = clipped_value_loss(values, old, targets, weights, clip=0.5)
    assert loss.item() == pytest.approx(0.5 * (0.64 + 0.25 + 9.0) / 3)
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient[0, :3].tolist() == pytest.approx([-0.8 / 3, 0.0, -3.0 / 3])


# The same from slow definitions


def random_rows(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities, old and reference ones near them, advantages and mask of six sequences."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = -3 * torch.rand(6, 7, generator=generator)
    old, reference = (logprobs + 0.3 * torch.randn(6, 7, generator=generator) for _ in range(2))
    lengths = torch.randint(1, 8, (6,), generator=generator)
    return logprobs, old, reference, torch.randn(6, 1, generator=generator), torch.arange(7) < lengths[:, None]


def both_gradients(logprobs: Tensor, found, slow) -> None:
    """`found` and `slow` map log-probabilities to the loss; both values and gradients must agree."""
    results = []
    for function in (found, slow):
        leaf = logprobs.clone().requires_grad_()
        loss = function(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        results.append((loss.detach(), gradient))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-4)
    assert results[0][1].abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", ["sequence", "joint"])
def test_ratios_of_whole_responses_equal_one_written_out_sequence_by_sequence(seed, ratio):
    logprobs, old, reference, advantages, mask = random_rows(seed)
    options = LossOptions(clip_low=0.15, clip_high=0.25, ratio=ratio, aggregation="sequence_mean")
    weights = token_weights(mask, "sequence_mean", int(mask.sum()), 6)

    def slow(said: Tensor) -> Tensor:
        total = torch.zeros(())
        for row, length in enumerate(mask.sum(1).tolist()):
            mine, a = said[row, :length], advantages[row, 0]
            if ratio == "sequence":
                r = (mine.exp().prod() / old[row, :length].exp().prod()) ** (1 / length)
            else:
                r = mine.exp().prod() / reference[row, :length].exp().prod()
            total = total - torch.minimum(r * a, r.clamp(0.85, 1.25) * a) / 6
        return total

    both_gradients(
        logprobs, lambda said: policy_loss(said, old, advantages, weights, options, ref_logprobs=reference).loss, slow
    )


@pytest.mark.parametrize("seed", range(4))
def test_cispos_gradient_is_the_coefficient_times_that_of_the_log_probability(seed):
    logprobs, old, _, advantages, mask = random_rows(seed)
    options = LossOptions(clip_low=0.3, clip_high=0.2, surrogate="cispo")
    weights = token_weights(mask, "token_mean", int(mask.sum()), 6)
    leaf = logprobs.clone().requires_grad_()
    policy_loss(leaf, old, advantages, weights, options).loss.backward()
    assert leaf.grad is not None
    for row, length in enumerate(mask.sum(1).tolist()):
        for t in range(7):
            ratio = math.exp(logprobs[row, t] - old[row, t])
            coefficient = min(max(ratio, 0.7), 1.2) * advantages[row, 0].item() / int(mask.sum())
            assert leaf.grad[row, t].item() == pytest.approx(-coefficient if t < length else 0.0, rel=1e-4)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_the_token_loss_equals_a_loop_over_tokens(aggregation, estimator, dual_clip):
    logprobs, old, reference, advantages, mask = random_rows(11)
    options = LossOptions(
        clip_low=0.15, clip_high=0.25, aggregation=aggregation, dual_clip=dual_clip, kl_coefficient=0.2,
        kl_estimator=estimator, entropy_coefficient=0.1,
    )  # fmt: skip
    weights = token_weights(mask, aggregation, int(mask.sum()), 6, 20)

    def slow(said: Tensor) -> Tensor:
        rows = []
        for row, length in enumerate(mask.sum(1).tolist()):
            tokens = []
            for t in range(length):
                a, r = advantages[row, 0], said[row, t].exp() / old[row, t].exp()
                surrogate = torch.minimum(r * a, r.clamp(0.85, 1.25) * a)
                if dual_clip and a < 0:
                    surrogate = torch.maximum(surrogate, dual_clip * a)
                quotient = said[row, t].exp() / reference[row, t].exp()
                kl = {"k2": quotient.log() ** 2 / 2, "k3": 1 / quotient - 1 + quotient.log()}
                tokens.append(-surrogate + 0.2 * kl[estimator] - 0.1 * said[row, t] ** 2)
            rows.append(tokens)
        if aggregation == "token_mean":
            return torch.stack([token for tokens in rows for token in tokens]).mean()
        sums = [sum(tokens, torch.zeros(())) for tokens in rows]
        divisors = [20 if aggregation == "sequence_sum" else len(tokens) for tokens in rows]
        return torch.stack([total / divisor for total, divisor in zip(sums, divisors, strict=True)]).mean()

    def found(said: Tensor) -> Tensor:
        # Any function of the log-probabilities serves as an entropy here.
        return policy_loss(said, old, advantages, weights, options, entropy=said**2, ref_logprobs=reference).loss

    both_gradients(logprobs, found, slow)


@pytest.mark.parametrize("seed", range(3))
def test_value_losses_equal_a_loop_over_tokens(seed):
    outputs, old, targets, _, mask = random_rows(seed)
    outputs, targets = outputs + 1.5, targets.abs().clamp(max=1.0)
    weights = mask / mask.sum()
    squares, entropies = 0.0, 0.0
    for row, t in mask.nonzero().tolist():
        v, before, aim = outputs[row, t].item(), old[row, t].item(), targets[row, t].item()
        near = min(max(v, before - 0.2), before + 0.2)
        squares += 0.5 * max((v - aim) ** 2, (near - aim) ** 2)
        p = 1 / (1 + math.exp(-v))
        entropies -= aim * math.log(p) + (1 - aim) * math.log(1 - p)
    count = int(mask.sum())
    assert clipped_value_loss(outputs, old, targets, weights, 0.2).item() == pytest.approx(squares / count, rel=1e-5)
    assert bce_value_loss(outputs, targets, weights).item() == pytest.approx(entropies / count, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
@pytest.mark.parametrize("asked", ["entropy", "both"])
def test_the_entropys_gradient_equals_autograds_for_every_chunk(chunk, asked):
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((7, 3), (11, 3), (11,))]
    hidden, weight, bias = leaves
    targets = torch.randint(0, 11, (7,), generator=generator)
    of_entropy, of_logprobs = torch.randn(2, 7, generator=generator)
    if asked == "entropy":
        of_logprobs = torch.zeros(7)
    logprobs, entropy = chunked_logprobs(hidden, weight, bias, targets, temperature=0.7, chunk=chunk)
    ours = (entropy * of_entropy).sum()
    if asked == "both":
        ours = ours + (logprobs * of_logprobs).sum()
    whole = ((hidden @ weight.T + bias) / 0.7).log_softmax(-1)
    slow = -(whole.exp() * whole).sum(-1) @ of_entropy + whole.gather(1, targets[:, None]).squeeze(1) @ of_logprobs
    found, expected = torch.autograd.grad(ours, leaves), torch.autograd.grad(slow, leaves)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


# No cut into micro-batches and no order of prompts changes a gradient

LOSSES = {
    "token": LossOptions(dual_clip=3.0),
    "sequence mean": LossOptions(aggregation="sequence_mean"),
    "sequence sum": LossOptions(aggregation="sequence_sum", whitening="sequence"),
    "sequence ratio": LossOptions(ratio="sequence", aggregation="sequence_mean", clip_low=0.02, clip_high=0.02),
    "joint ratio": LossOptions(ratio="joint"),
    "joint ratio in a band": LossOptions(ratio="joint", joint_band=0.02),
    "cispo": LossOptions(surrogate="cispo", whitening="token"),
    "regression on the joint ratio": replace(ALGORITHMS["astar_po"].loss, regression_beta=0.5),
    "kl": LossOptions(kl_coefficient=0.3),
    "entropy": LossOptions(entropy_coefficient=0.3),
    "all": LossOptions(whitening="token", kl_coefficient=0.1, kl_estimator="k2", entropy_coefficient=0.1),
}


def unclipped() -> StepGuard:
    return StepGuard(max_norm=1e9, max_skipped=1)


def gradients(options: LossOptions, *, order: list[int], by_token: bool = False, **changes) -> list[Tensor]:
    """The gradient of one mini-batch of four groups of two, its rows in this order."""
    model, (rollouts, _) = tiny_qwen2(), make_rollouts(8)
    rewards = [1.0, 0.0, 0.3, 0.9, 0.0, 1.0, 1.0, 0.5]
    batch = collate(
        [rollouts[row] for row in order], [Verdict(rewards[row]) for row in order], groups=[row // 2 for row in order]
    )
    optimizer = replace(OptimizerConfig(minibatch_size=8), **changes)
    drift = 0.1 * torch.randn(8, 2, batch.mask.shape[1], generator=torch.Generator().manual_seed(0))[order]
    said = batch_logprobs(model, batch, OptimizerConfig(), 0.8)
    before = Estimates(said + drift[:, 0] * batch.mask, ref_logprobs=said + drift[:, 1] * batch.mask)
    credit = ALGORITHMS["rloo"].assign_credit(Outcomes.of(batch, before))
    if by_token:
        ends = torch.nn.functional.one_hot(batch.mask.sum(1) - 1, batch.mask.shape[1]) * batch.rewards[:, None]
        values = 0.5 + drift[:, 0] * batch.mask
        credit = Credit(generalized_advantages(ends, values, batch.mask, 1.0, 0.9))
    recorder = Gradients(model)
    update_policy(
        model, recorder, batch, before, credit, loss_options=options, optimizer=optimizer,
        sampling=SamplingConfig(max_response_tokens=14, temperature=0.8), expected_rows=8, seed=1, guard=unclipped(),
    )  # fmt: skip
    (only,) = recorder.seen
    return only


@pytest.mark.parametrize(
    ("kind", "by_token"), [(kind, False) for kind in LOSSES] + [(kind, True) for kind in LOSSES if "ratio" not in kind]
)
def test_no_cut_layout_or_order_changes_the_gradient(monkeypatch, kind, by_token):
    options, straight = LOSSES[kind], list(range(8))
    expected = gradients(options, order=straight, by_token=by_token)
    assert sum(float(part.norm()) for part in expected) > 0.1
    for chunk, changes in (
        (100, {"tokens_per_microbatch": 30}),
        (100, {"tokens_per_microbatch": 55, "layout": "packed"}),
        (3, {"layout": "packed"}),
        (100, {"order": [5, 2, 7, 0, 3, 6, 1, 4], "tokens_per_microbatch": 40}),
    ):
        monkeypatch.setattr("sppo.models.logprobs.chunk_tokens", lambda vocabulary, device, chunk=chunk: chunk)
        found = gradients(options, by_token=by_token, **{"order": straight, **changes})
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-4)


def test_each_of_these_losses_has_a_gradient_of_its_own():
    made = [torch.cat([part.flatten() for part in gradients(o, order=list(range(8)))]) for o in LOSSES.values()]
    for row, left in enumerate(made):
        for right in made[:row]:
            assert not torch.allclose(left, right, rtol=1e-2, atol=1e-4)


def test_whitening_comes_before_the_cut_into_minibatches():
    # One mini-batch of all rows, or four of two: the advantages are the same, so four gradients add up to one.
    options = LossOptions(whitening="sequence", aggregation="sequence_sum", clip_low=0.9, clip_high=9.0)
    model, batch = tiny_qwen2(), collate(*make_rollouts(8))
    credit = Credit(batch.rewards[:, None])
    before = Estimates(batch_logprobs(model, batch, OptimizerConfig(), 1.0))
    assert whiten(credit.advantages, batch.mask, "sequence").abs().max() > 0.5
    sums = []
    for size in (8, 2):
        recorder = Gradients(model)
        update_policy(
            model, recorder, batch, before, credit, loss_options=options, expected_rows=8, seed=1, guard=unclipped(),
            optimizer=OptimizerConfig(minibatch_size=size), sampling=SamplingConfig(),
        )  # fmt: skip
        sums.append([sum(parts) / len(recorder.seen) for parts in zip(*recorder.seen, strict=True)])
    torch.testing.assert_close(sums[0], sums[1], atol=1e-6, rtol=1e-4)
