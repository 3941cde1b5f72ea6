"""Rules between rewards, critics and algorithms, checked before any data or model is touched."""

from __future__ import annotations

from collections.abc import Sequence

from sppo.algorithms.algorithm import Algorithm
from sppo.config import DataConfig
from sppo.config.verification import VerificationConfig
from sppo.data.tasks import get_task
from sppo.errors import ConfigError
from sppo.verifiers import reward_model, steps
from sppo.verifiers.functions import load_function
from sppo.verifiers.table import get_verifier, verifiers_behind
from sppo.verifiers.tools import Tools


def check_rewards(
    options: VerificationConfig, sections: Sequence[DataConfig], algorithm: Algorithm, *, has_reward_function: bool
) -> None:
    """Refuses rewards that can't be made, or that the algorithm's critic can't learn; loads functions to see them.

    Args:
        options: of verification.
        sections: of data, that of training first.
        algorithm: that learns from the rewards.
        has_reward_function: whether a Python program handed one over, which grades instead of verifiers.

    Raises:
        ConfigError: names the option, what it has, and the way to mend it.
    """
    tools = Tools(options)
    if options.process.used:
        steps.check(options.process)
        if options.process.function is not None:
            load_function(options.process.function, "verification.process.function")
    judged = not (has_reward_function or sections[0].reward)
    each = [source for section in sections for source in section.each().values()]
    named = [source.verifier or get_task(source.task).verifier for source in each if judged]
    for name in named:
        get_verifier(name).check(options)
    behind = {judge for name in named for judge in verifiers_behind(name, tools)}
    if reward_model.NAME not in behind:
        return
    if options.reward_model.squash == "none" and algorithm.needs_unit_rewards:
        mend = "Set critic.loss to mse, or set" if algorithm.critic == "prompt" else "Use another algorithm, or set"
        raise ConfigError(
            f"verification.reward_model.squash is none, so that rewards may be any number, but {algorithm.name}'s "
            f"critic predicts a probability. {mend} verification.reward_model.squash to sigmoid."
        )
