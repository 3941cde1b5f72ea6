"""The table of algorithms: each a pure function from rewards and estimates to credit, and the loss it is used with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sppo.algorithms.astar_po import astar_po_credit
from sppo.algorithms.dr_grpo import dr_grpo_credit
from sppo.algorithms.grpo import grpo_credit
from sppo.algorithms.options import ALGORITHM_OPTIONS, AstarPoOptions, GaeOptions, NoOptions, SppoOptions
from sppo.algorithms.policy_loss import LossOptions
from sppo.algorithms.ppo import ppo_bce_credit, ppo_credit
from sppo.algorithms.reinforce_pp import reinforce_pp_credit
from sppo.algorithms.remax import remax_credit
from sppo.algorithms.rloo import rloo_credit
from sppo.algorithms.shaping import rewards_to_go
from sppo.algorithms.spo import spo_credit
from sppo.algorithms.sppo import sppo_credit
from sppo.batch import Credit, Outcomes
from sppo.config import AlgorithmConfig, CriticConfig
from sppo.config.ranges import Section
from sppo.config.settle import own_options
from sppo.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Algorithm:
    """One line of the table, with the published settings; `settle_algorithm` puts those of a run in their place.

    The trainer reads these fields and never the name.
    """

    name: str
    summary: str
    credit: Callable[[Outcomes, Any], Credit]
    """Advantages, and what the critic learns, from rewards and estimates; last come the algorithm's own options."""
    critic: Literal["prompt", "token", "tracker", "history", "optimal"] | None = None
    """V of the prompt by a model, V before each token by a model, V of the prompt by counting, by its past outcomes
    alone, V* of the prompt from the reference's outcomes, or none. One that `credit` doesn't look at serves the choice
    of prompts."""
    selection: str = "uniform"
    """How prompts are chosen, where the run doesn't say."""
    value_loss: Literal["bce", "squared"] = "bce"
    """How the critic learns; "bce" makes V a probability, and rewards outside [0, 1] are refused."""
    share: float = 1.0
    """kappa, the share of V(prompt) that is the baseline."""
    min_samples: int = 1
    """Fewest samples a prompt; 2 where the baseline is the group."""
    greedy_baseline: bool = False
    """Whether each prompt also gets a greedy response, whose reward is the baseline."""
    dynamic_sampling: bool = False
    """Whether groups that are all right or all wrong are sampled anew."""
    loss: LossOptions = field(default_factory=LossOptions)
    """How advantages become a loss."""
    options: Section = field(default_factory=NoOptions)
    """The algorithm's own options, one of the classes in options.py."""
    needs_reference: bool = False
    """Whether log-probabilities of the policy that training started from are used."""
    places_token_rewards: bool = False
    """Whether `credit` looks at what single tokens earn; else process rewards are added to what it returns."""

    @property
    def offline_from_reference(self) -> bool:
        """Whether the outcomes that the critic lacks are those of the policy that training started from."""
        return self.critic == "optimal"

    @property
    def values_the_prompt(self) -> bool:
        """Whether V is a prompt's expected reward, which leaves no place for rewards at single tokens."""
        return self.critic in ("prompt", "tracker", "history")

    @property
    def needs_unit_rewards(self) -> bool:
        """Whether V is a probability, so that rewards must lie in [0, 1]."""
        return self.critic is not None and self.value_loss == "bce"

    def assign_credit(self, outcomes: Outcomes) -> Credit:
        """Advantages and the critic's targets; with the process rewards to come at each token, where there are some."""
        credit = self.credit(replace(outcomes, share=self.share), self.options)
        if outcomes.shaping is None or self.places_token_rewards:
            return credit
        return replace(credit, advantages=credit.advantages + rewards_to_go(outcomes.shaping))  # [B, T]


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
    _check_baseline(settled)
    settled = _with_selection(settled, selection)
    if adaptive_share:
        _check_adaptive(settled, adaptive_share)
    _check_samples(settled, samples_per_prompt)
    _check_rewards(settled, config)
    _check_loss(settled.loss)
    _check_ratio(settled)
    _check_kl(config)
    _check_negative_share(settled, config, process_rewards)
    _check_regression(settled, config)
    if process_rewards:
        _check_process_rewards(settled)
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
        return algorithm if believes else replace(algorithm, selection="uniform")
    if selection == "uniform":
        return replace(algorithm, selection="uniform")
    start = f"selection.name is {selection}, which chooses prompts by how solvable they are believed to be, but "
    if algorithm.dynamic_sampling:
        raise ConfigError(
            f"{start}dynamic sampling throws away the groups that would tell which prompts are never or always solved. "
            "Set algorithm.dynamic_sampling to false, or selection.name to uniform."
        )
    if algorithm.critic is None:
        return replace(algorithm, selection=selection, critic="history" if selection == "history" else "prompt")
    if selection == "history":
        raise ConfigError(
            f"selection.name is history, which is for algorithms without a critic, but {algorithm.name} has one. Set "
            "selection.name to auto or top, and critic.history to true where the critic is a model of the prompt."
        )
    if not believes:
        said = {"token": "values tokens", "optimal": "knows what the starting policy solved alone"}.get(
            algorithm.critic, "predicts rewards of any size (critic.loss mse)"
        )
        raise ConfigError(f"{start}{algorithm.name}'s critic {said}. Set selection.name to uniform.")
    return replace(algorithm, selection=selection)


def _check_adaptive(algorithm: Algorithm, share: float) -> None:
    if not (algorithm.values_the_prompt and algorithm.needs_unit_rewards):
        has = "no critic" if algorithm.critic is None else "one that can't tell"
        raise ConfigError(
            f"sampling.adaptive_share is {share:g}, which gives second responses to the prompts whose solve rate is "
            f"believed to be near one half, but {algorithm.name} needs a critic of prompts for that, and has {has}. "
            "Set it to 0, or use sppo."
        )


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


def _check_baseline(algorithm: Algorithm) -> None:
    """Refuses a share of a V that there is not, and objectives that ask for a probability where V is none."""
    if algorithm.share != 1 and not algorithm.values_the_prompt:
        has = {
            None: "no critic",
            "token": "a critic of tokens, whose estimates build on each other",
            "optimal": "V*, a part of the target that the loss regresses on and no baseline",
        }[algorithm.critic]
        raise ConfigError(
            f"critic.share is {algorithm.share:g}, how much of V(prompt) the baseline is, but {algorithm.name} "
            f"has {has}. Set critic.share to 1, or use an algorithm that values prompts, such as sppo."
        )
    objective = algorithm.options.objective if isinstance(algorithm.options, SppoOptions) else "solve_rate"
    if objective != "solve_rate" and algorithm.value_loss == "squared":
        raise ConfigError(
            f"algorithm.options.objective is {objective}, which weighs prompts by the probability of solving them, but "
            "with critic.loss mse V is no probability. Set critic.loss to bce, or the objective to solve_rate."
        )


def _check_samples(algorithm: Algorithm, samples_per_prompt: int) -> None:
    if samples_per_prompt < algorithm.min_samples:
        raise ConfigError(
            f"{algorithm.name} compares the samples of one prompt with each other, but sampling.samples_per_prompt is "
            f"{samples_per_prompt}: with one, the advantage would be 0 (or, without a baseline, the bare reward). Set "
            "sampling.samples_per_prompt to 8, or use sppo, which needs one."
        )
    if algorithm.dynamic_sampling and samples_per_prompt < 2:
        raise ConfigError(
            "algorithm.dynamic_sampling drops groups that are all right or all wrong, which a single sample always "
            "is. Set sampling.samples_per_prompt to 8, or algorithm.dynamic_sampling to false."
        )


def _check_rewards(algorithm: Algorithm, config: AlgorithmConfig) -> None:
    """Refuses what would take rewards out of [0, 1] where the critic is a probability."""
    if not algorithm.needs_unit_rewards:
        return
    if config.overlong_penalty_tokens:
        raise ConfigError(
            f"algorithm.overlong_penalty_tokens takes up to 1 from the reward, but {algorithm.name}'s critic predicts "
            "a probability, so rewards must stay in [0, 1]. Set it to 0, or use algorithm.truncated."
        )
    if config.kl_coefficient and config.kl_place == "reward" and algorithm.values_the_prompt:
        raise ConfigError(
            f"algorithm.kl_place is reward, but {algorithm.name}'s critic predicts the probability of solving, which "
            "a KL penalty is no part of. Set algorithm.kl_place to loss."
        )


def _check_loss(loss: LossOptions) -> None:
    if loss.surrogate == "cispo" and loss.dual_clip is not None:
        raise ConfigError("algorithm.dual_clip bounds PPO's surrogate; cispo's weights are clipped already. Unset it.")
    if loss.surrogate == "cispo" and loss.ratio != "token":
        raise ConfigError(f"algorithm.ratio is {loss.ratio}, but cispo weighs each token's log-probability: use token.")


def _check_ratio(algorithm: Algorithm) -> None:
    """Refuses one ratio for a whole response where each token has an advantage of its own."""
    ratio = algorithm.loss.ratio
    if algorithm.places_token_rewards and ratio != "token":
        raise ConfigError(
            f"algorithm.ratio is {ratio}, which all tokens of a response share, but {algorithm.name} gives each token "
            "an advantage of its own: every token would be moved by the mean of them. Set algorithm.ratio to token, or "
            "use an algorithm with one advantage a response, such as sppo or gspo."
        )


def _check_kl(config: AlgorithmConfig) -> None:
    """Refuses estimators of the KL divergence whose gradient is next to nothing where they are placed."""
    estimator, place = config.kl_estimator, config.kl_place
    if not config.kl_coefficient or estimator is None or (estimator == "k1") == (place == "reward"):
        return
    if place == "loss":
        raise ConfigError(
            "algorithm.kl_estimator is k1 and algorithm.kl_place is loss, but k1's gradient is that of the policy's "
            "log-probability, whose mean over the policy's own responses is 0: it would add noise and hold nothing. "
            "Set algorithm.kl_estimator to k2 or k3, or algorithm.kl_place to reward."
        )
    raise ConfigError(
        f"algorithm.kl_estimator is {estimator} and algorithm.kl_place is reward, but near the reference the gradient "
        "that it has as a reward vanishes: it would hold next to nothing. Set algorithm.kl_estimator to k1, or "
        "algorithm.kl_place to loss."
    )


def _check_negative_share(algorithm: Algorithm, config: AlgorithmConfig, process_rewards: bool) -> None:
    """Refuses to pick tokens of a failed response where none fails as a whole, or its tokens share one ratio."""
    if algorithm.loss.negative_share == 1:
        return
    start = (
        f"algorithm.negative_share is {algorithm.loss.negative_share:g}, which picks tokens of a response whose "
        "advantage is below 0, but "
    )
    mend = "Set algorithm.negative_share to 1"
    if algorithm.loss.ratio != "token":
        raise ConfigError(
            f"{start}with algorithm.ratio {algorithm.loss.ratio} every token moves by the ratio of the whole response, "
            f"whichever are picked. {mend}, or algorithm.ratio to token."
        )
    own = "each token has an advantage of its own"
    if algorithm.critic == "token":
        raise ConfigError(f"{start}with {algorithm.name} {own}. {mend}, or use an algorithm with one a response.")
    if process_rewards:
        raise ConfigError(f"{start}with verification.process {own}. {mend}, or leave process rewards out.")
    if algorithm.places_token_rewards and config.kl_coefficient and config.kl_place == "reward":
        raise ConfigError(f"{start}with algorithm.kl_place reward {own}. {mend}, or algorithm.kl_place to loss.")


def _check_regression(algorithm: Algorithm, config: AlgorithmConfig) -> None:
    """Refuses what a square around R - V* of whole responses has no place for, or what would move its optimum."""
    loss, name = algorithm.loss, algorithm.name
    if loss.surrogate != "regression":
        return
    bounds = [key for key in ("clip_low", "clip_high", "dual_clip") if getattr(config, key) is not None]
    bounds += ["options.joint_band"] if loss.joint_band is not None else []
    if bounds:
        raise ConfigError(
            f"algorithm.{bounds[0]} bounds a ratio, but {name} regresses its logarithm and clips none. Leave it out."
        )
    for key, needed, why in (
        ("ratio", "joint", "regresses the whole response's log-ratio to the policy that training started from"),
        ("aggregation", "sequence_mean", "is a mean over responses: any other would weigh a response by its length"),
        ("whitening", "none", "regresses on R - V*, whose zero and scale say where the policy shall end"),
    ):
        if getattr(loss, key) != needed:
            raise ConfigError(
                f"algorithm.{key} is {getattr(loss, key)}, but {name} {why}. Leave it out, or set it to {needed}."
            )
    if config.kl_coefficient:
        raise ConfigError(
            f"algorithm.kl_coefficient is {config.kl_coefficient:g}, but {name} holds the policy near its start "
            "already, as strongly as algorithm.options.beta says. Set kl_coefficient to 0 and raise beta instead."
        )


def _check_process_rewards(algorithm: Algorithm) -> None:
    """Refuses what would keep process rewards from cancelling, so that they would move the optimum."""
    loss, options = algorithm.loss, algorithm.options
    start = "verification.process adds rewards of single steps, but "
    if loss.ratio != "token":
        mend = "Use" if loss.surrogate == "regression" else "Set algorithm.ratio to token, or use"
        raise ConfigError(
            f"{start}with algorithm.ratio {loss.ratio} all tokens of a response share one ratio, which leaves no place "
            f"for them. {mend} another algorithm than {algorithm.name}."
        )
    if loss.aggregation == "sequence_mean":
        raise ConfigError(
            f"{start}algorithm.aggregation sequence_mean weighs each token by 1 / length, which is not known before "
            "the response ends, so they would not cancel. Set algorithm.aggregation to token_mean or sequence_sum."
        )
    if not isinstance(options, GaeOptions):
        return
    if options.gamma != 1.0:
        raise ConfigError(
            f"{start}algorithm.options.gamma is {options.gamma:g}, and potential differences keep the optimum for "
            "gamma 1. Set it to 1."
        )
    if algorithm.value_loss == "bce" and options.gae_lambda != 1.0:
        raise ConfigError(
            f"{start}{algorithm.name}'s critic learns the reward alone, so that with gae_lambda "
            f"{options.gae_lambda:g} they would not cancel. Set algorithm.options.gae_lambda to 1, or use ppo."
        )
