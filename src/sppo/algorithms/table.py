"""The table of algorithms, and what a run's options make of its lines."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from sppo.algorithms import rules
from sppo.algorithms.algorithm import Algorithm
from sppo.algorithms.astar_po import astar_po_credit
from sppo.algorithms.dr_grpo import dr_grpo_credit
from sppo.algorithms.grpo import grpo_credit
from sppo.algorithms.options import ALGORITHM_OPTIONS, AstarPoOptions
from sppo.algorithms.policy_loss import LossOptions
from sppo.algorithms.ppo import ppo_bce_credit, ppo_credit
from sppo.algorithms.reinforce_pp import reinforce_pp_credit
from sppo.algorithms.remax import remax_credit
from sppo.algorithms.rloo import rloo_credit
from sppo.algorithms.spo import spo_credit
from sppo.algorithms.sppo import sppo_credit
from sppo.config import AlgorithmConfig, CriticConfig
from sppo.config.settle import own_options
from sppo.errors import ConfigError, did_you_mean

_GRPO = LossOptions(aggregation="sequence_mean")

ALGORITHMS = {
    algorithm.name: replace(algorithm, options=ALGORITHM_OPTIONS[algorithm.name]())
    for algorithm in (
        Algorithm(
            "sppo", "A = R - V(prompt), one sample a prompt (2604.08865)", sppo_credit, critic="prompt",
            selection="auto",
        ),
        Algorithm(
            "ppo", "GAE from a token critic, squared error (1707.06347)", ppo_credit, critic="token",
            value_loss="squared", loss=LossOptions(whitening="token"), places_token_rewards=True,
        ),
        Algorithm(
            "ppo_bce", "PPO with a token critic trained by cross-entropy on R (SPPO's ablation)", ppo_bce_credit,
            critic="token", loss=LossOptions(whitening="token"), places_token_rewards=True,
        ),
        Algorithm("grpo", "A = (R - mean) / std of the group (2402.03300)", grpo_credit, min_samples=2, loss=_GRPO),
        Algorithm(
            "dr_grpo", "A = R - mean of the group, token sum over a constant (2503.20783)", dr_grpo_credit,
            min_samples=2, loss=LossOptions(aggregation="sequence_sum"),
        ),
        Algorithm(
            "dapo", "GRPO, clip 0.2/0.28, token mean, dynamic sampling (2503.14476)", grpo_credit, min_samples=2,
            dynamic_sampling=True, loss=LossOptions(clip_high=0.28),
        ),
        Algorithm("rloo", "A = R - mean of the others (2402.14740)", rloo_credit, min_samples=2),
        Algorithm("remax", "A = R - R(greedy response) (2310.10505)", remax_credit, greedy_baseline=True),
        Algorithm(
            "reinforce_pp", "R less KL, whitened over the batch (2501.03262)", reinforce_pp_credit,
            loss=LossOptions(whitening="token"), places_token_rewards=True,
        ),
        Algorithm(
            "gspo", "GRPO with the sequence's ratio, clip 3e-4/4e-4 (2507.18071)", grpo_credit, min_samples=2,
            loss=LossOptions(clip_low=3e-4, clip_high=4e-4, ratio="sequence", aggregation="sequence_mean"),
        ),
        Algorithm(
            "cispo", "GRPO with clipped importance weights on log pi (2506.13585)", grpo_credit, min_samples=2,
            loss=LossOptions(clip_low=1.0, clip_high=4.0, surrogate="cispo"),
        ),
        Algorithm(
            "spo", "A = R - v(prompt) from discounted counts (2509.13232)", spo_credit, critic="tracker",
            loss=LossOptions(clip_high=0.28, whitening="sequence"),
        ),
        Algorithm(
            "astar_po", "(beta log ratio to the reference - (R - V*))^2 (2505.20686)", astar_po_credit,
            critic="optimal",
            value_loss="squared", needs_reference=True,
            loss=LossOptions(
                ratio="joint", surrogate="regression", aggregation="sequence_mean", regression_beta=AstarPoOptions.beta
            ),
        ),
    )
}  # fmt: skip


def get_algorithm(name: str) -> Algorithm:
    """Returns the algorithm of that name.

    Raises:
        ConfigError: there is none; names the near ones.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"algorithm.name is {name!r}, which is no algorithm here.{did_you_mean(name, ALGORITHMS)}")
    return ALGORITHMS[name]


_CRITIC = CriticConfig()


def settle_algorithm(
    config: AlgorithmConfig,
    samples_per_prompt: int,
    *,
    critic: CriticConfig = _CRITIC,
    process_rewards: bool = False,
    selection: str | None = None,
    adaptive_share: float = 0.0,
) -> Algorithm:
    """Returns the algorithm as a run uses it: the table's line with all that the run's options say in it.

    Args:
        config: the run's section algorithm.
        samples_per_prompt: G.
        critic: the run's section critic: how a prompt critic learns, and how much of V is the baseline.
        process_rewards: whether single steps are rewarded, too.
        selection: how prompts are chosen; None: as the algorithm does.
        adaptive_share: of a step's responses that are second and third ones.

    Raises:
        ConfigError: no such algorithm or option, or a combination that cannot mean what it says; gives the reason and
            the way out.
    """
    algorithm = get_algorithm(config.name)
    if critic.loss == "mse":
        algorithm = _with_squared_critic(algorithm)
    own, joint = own_options(config)
    loss = _loss(algorithm.loss, config, joint.joint_band)
    if isinstance(own, AstarPoOptions):
        loss = replace(loss, regression_beta=own.beta)
    dynamic = algorithm.dynamic_sampling if config.dynamic_sampling is None else config.dynamic_sampling
    settled = replace(
        algorithm,
        share=critic.share,
        options=own,
        loss=loss,
        dynamic_sampling=dynamic,
        needs_reference=config.kl_coefficient > 0 or loss.ratio == "joint",
    )
    rules.check_baseline(settled)
    settled = _with_selection(settled, selection)
    if adaptive_share:
        rules.check_adaptive(settled, adaptive_share)
    rules.check_samples(settled, samples_per_prompt)
    rules.check_rewards(settled, config)
    rules.check_loss(settled.loss)
    rules.check_ratio(settled)
    rules.check_kl(config)
    rules.check_negative_share(settled, config, process_rewards)
    rules.check_regression(settled, config)
    if process_rewards:
        rules.check_process_rewards(settled)
    return settled


def _with_squared_critic(algorithm: Algorithm) -> Algorithm:
    if algorithm.critic != "prompt":
        kind = algorithm.critic
        has = "no critic" if kind is None else f"one of the kind {kind}, which learns in its own way"
        raise ConfigError(
            f"critic.loss is mse, but that is for prompt critics, and {algorithm.name} has {has}. Leave it out."
        )
    return replace(algorithm, value_loss="squared")


def _with_selection(algorithm: Algorithm, selection: str | None) -> Algorithm:
    """The algorithm with its choice of prompts, and a critic for it where it has none of its own."""
    believes = algorithm.values_the_prompt and algorithm.needs_unit_rewards
    if selection is None:
        return algorithm if believes and not algorithm.dynamic_sampling else replace(algorithm, selection="uniform")
    if selection == "uniform":
        return replace(algorithm, selection="uniform")
    start = f"selection.name is {selection}, which chooses prompts by how solvable they are believed to be, but "
    if algorithm.dynamic_sampling:
        raise ConfigError(
            f"{start}dynamic sampling throws away the groups that would tell which prompts are never or always solved. "
            "Set algorithm.dynamic_sampling to false, or selection.name to uniform."
        )
    if algorithm.critic is None:
        kind: Literal["history", "prompt"] = "history" if selection == "history" else "prompt"
        return replace(algorithm, selection=selection, critic=kind, critic_is_baseline=False)
    if selection == "history" and believes:
        fused = ", and critic.history to true" if algorithm.critic == "prompt" else ""
        raise ConfigError(
            f"selection.name is history, which is for algorithms without a critic, but {algorithm.name} has one. Set "
            f"selection.name to auto or top{fused}."
        )
    if not believes:
        said = {"token": "values tokens", "optimal": "knows what the starting policy solved alone"}.get(
            algorithm.critic, "predicts rewards of any size (critic.loss mse)"
        )
        raise ConfigError(f"{start}{algorithm.name}'s critic {said}. Set selection.name to uniform.")
    return replace(algorithm, selection=selection)


def _loss(published: LossOptions, config: AlgorithmConfig, joint_band: float) -> LossOptions:
    """The loss's form: the algorithm's, with what the config says over it."""
    said = {
        name: value
        for name in ("clip_low", "clip_high", "dual_clip", "ratio", "aggregation", "whitening")
        if (value := getattr(config, name)) is not None
    }
    return replace(
        published,
        **said,
        negative_share=config.negative_share,
        joint_band=joint_band or None,
        kl_coefficient=config.kl_coefficient if config.kl_place == "loss" else 0.0,
        kl_estimator="k2" if config.kl_estimator == "k2" else "k3",
        entropy_coefficient=config.entropy_coefficient,
    )
