"""Rules between rewards, critics and algorithms, checked before any data or model is touched."""

from __future__ import annotations

from sppo.algorithms.table import choose_algorithm
from sppo.config import Config
from sppo.data.tasks import get_task
from sppo.errors import ConfigError
from sppo.verifiers import reward_model, steps
from sppo.verifiers.functions import load_function
from sppo.verifiers.table import get_verifier, verifiers_behind
from sppo.verifiers.tools import Tools


def check_rewards(config: Config, *, has_reward_function: bool = False) -> None:
    """Refuses rewards that can't be made, or that the algorithm's critic can't learn; loads functions to see them.

    Args:
        config: all options.
        has_reward_function: whether a Python program handed one over, which grades instead of verifiers.

    Raises:
        ConfigError: names the option, what it has, and the way to mend it.
    """
    options, tools = config.verification, Tools(config.verification)
    if options.process.used:
        steps.check(options.process)
        if options.process.function is not None:
            load_function(options.process.function, "verification.process.function")
    sections = [config.data] if config.evaluation.data is None else [config.data, config.evaluation.data]
    judged = not (has_reward_function or config.data.reward)
    named = [data.verifier or get_task(data.task).verifier for data in sections if judged]
    for name in named:
        get_verifier(name).check(options)
    behind = {judge for name in named for judge in verifiers_behind(name, tools)}
    if reward_model.NAME not in behind:
        return
    algorithm = choose_algorithm(config.algorithm.name, config.critic.loss)
    if options.reward_model.squash == "none" and algorithm.needs_unit_rewards:
        mend = "Set critic.loss to mse, or set" if algorithm.critic == "prompt" else "Use another algorithm, or set"
        raise ConfigError(
            f"verification.reward_model.squash is none, so that rewards may be any number, but {algorithm.name}'s "
            f"critic predicts a probability. {mend} verification.reward_model.squash to sigmoid."
        )
