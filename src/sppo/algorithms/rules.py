"""Combinations of an algorithm with a run's options that cannot mean what they say: each refused with its reason.

All raise ConfigError.
"""

from __future__ import annotations

from sppo.algorithms.algorithm import Algorithm
from sppo.algorithms.options import GaeOptions, SppoOptions
from sppo.algorithms.policy_loss import LossOptions
from sppo.config import AlgorithmConfig
from sppo.errors import ConfigError


def check_adaptive(algorithm: Algorithm, share: float) -> None:
    """Refuses second responses by beliefs that nobody has."""
    if not (algorithm.values_the_prompt and algorithm.needs_unit_rewards):
        has = "no critic" if algorithm.critic is None else "one that can't tell"
        raise ConfigError(
            f"sampling.adaptive_share is {share:g}, which gives second responses to the prompts whose solve rate is "
            f"believed to be near one half, but {algorithm.name} needs a critic of prompts for that, and has {has}. "
            "Set it to 0, or use sppo."
        )


def check_baseline(algorithm: Algorithm) -> None:
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


def check_samples(algorithm: Algorithm, samples_per_prompt: int) -> None:
    """Refuses groups of one where samples of a prompt are compared with each other."""
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


def check_rewards(algorithm: Algorithm, config: AlgorithmConfig) -> None:
    """Refuses what would take rewards out of [0, 1] where the critic is a probability."""
    if not algorithm.needs_unit_rewards:
        return
    if config.overlong_penalty_tokens:
        whose = f"{algorithm.name}'s critic" if algorithm.critic_is_baseline else "the critic that chooses prompts"
        instead = "" if algorithm.critic_is_baseline else ", or selection.name to uniform"
        raise ConfigError(
            f"algorithm.overlong_penalty_tokens takes up to 1 from the reward, but {whose} predicts a probability, so "
            f"rewards must stay in [0, 1]. Set it to 0, or use algorithm.truncated{instead}."
        )
    own = algorithm.critic_is_baseline and algorithm.values_the_prompt
    if config.kl_coefficient and config.kl_place == "reward" and own:
        raise ConfigError(
            f"algorithm.kl_place is reward, but {algorithm.name}'s critic predicts the probability of solving, which "
            "a KL penalty is no part of. Set algorithm.kl_place to loss."
        )


def check_loss(loss: LossOptions) -> None:
    """Refuses what cispo's weights have no place for."""
    if loss.surrogate == "cispo" and loss.dual_clip is not None:
        raise ConfigError("algorithm.dual_clip bounds PPO's surrogate; cispo's weights are clipped already. Unset it.")
    if loss.surrogate == "cispo" and loss.ratio != "token":
        raise ConfigError(f"algorithm.ratio is {loss.ratio}, but cispo weighs each token's log-probability: use token.")


def check_ratio(algorithm: Algorithm) -> None:
    """Refuses one ratio for a whole response where each token has an advantage of its own."""
    ratio = algorithm.loss.ratio
    if algorithm.places_token_rewards and ratio != "token":
        raise ConfigError(
            f"algorithm.ratio is {ratio}, which all tokens of a response share, but {algorithm.name} gives each token "
            "an advantage of its own: every token would be moved by the mean of them. Set algorithm.ratio to token, or "
            "use an algorithm with one advantage a response, such as sppo or gspo."
        )


def check_kl(config: AlgorithmConfig) -> None:
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


def check_negative_share(algorithm: Algorithm, config: AlgorithmConfig, process_rewards: bool) -> None:
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
            f"whichever are picked. {mend}"
            + (", or algorithm.ratio to token." if algorithm.loss.surrogate != "regression" else ".")
        )
    own = "each token has an advantage of its own"
    if algorithm.critic == "token":
        raise ConfigError(f"{start}with {algorithm.name} {own}. {mend}, or use an algorithm with one a response.")
    if process_rewards:
        raise ConfigError(f"{start}with verification.process {own}. {mend}, or leave process rewards out.")
    if algorithm.places_token_rewards and config.kl_coefficient and config.kl_place == "reward":
        raise ConfigError(f"{start}with algorithm.kl_place reward {own}. {mend}, or algorithm.kl_place to loss.")


def check_regression(algorithm: Algorithm, config: AlgorithmConfig) -> None:
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


def check_process_rewards(algorithm: Algorithm) -> None:
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
