"""Grading: rollouts in, one verdict each out, by the prompts' verifiers or by the user's reward function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from sppo.errors import ConfigError, RewardError
from sppo.types import Prompt, Rollout, Submission, Verdict
from sppo.verifiers.table import get_verifier
from sppo.verifiers.tools import Tools

RewardFunction = Callable[..., "Sequence[float | None]"]
"""TRL's signature: f(prompts=[...], completions=[...], **columns) -> list of float or None."""


class Grader:
    """Grades a step's rollouts.

    Args:
        reward_function: the user's, called once a batch; default: each prompt's own verifier.
        tools: what verifiers run with; default: their default options.
        prompt_opens_thinking: the chat template ends in an open `<think>`, so that a response without `</think>`
            never left its thinking block. Only verifiers are told; a reward function sees the response as it is.
    """

    def __init__(
        self,
        reward_function: RewardFunction | None = None,
        tools: Tools | None = None,
        prompt_opens_thinking: bool = False,
    ):
        self.reward_function = reward_function
        self.tools = tools or Tools()
        self.prompt_opens_thinking = prompt_opens_thinking

    def describe(self, prompt: Prompt) -> dict[str, str]:
        """Who grades responses to this prompt, for the audit record: name and version."""
        if self.reward_function is not None:
            return {"verifier": f"reward function {function_name(self.reward_function)}", "verifier_version": ""}
        return {"verifier": prompt.verifier, "verifier_version": get_verifier(prompt.verifier).version}

    def grade(self, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """Returns one verdict a rollout, in order.

        Raises:
            RewardError: if the reward function raised or returned something that is no list of rewards.
            ConfigError: if a prompt names an unknown verifier.
        """
        if not rollouts:
            return []
        if self.reward_function is not None:
            return call_reward_function(self.reward_function, rollouts)
        return self._verify(rollouts)

    def _verify(self, rollouts: Sequence[Rollout]) -> list[Verdict]:
        by_verifier: dict[str, list[int]] = {}
        for index, rollout in enumerate(rollouts):
            prompt = rollout.prompt
            if prompt.gold is None and get_verifier(prompt.verifier).needs_gold:
                raise ConfigError(
                    f"Prompt {prompt.id!r} has no gold answer, which the verifier {prompt.verifier!r} needs: "
                    "name the column in data.answer_column, or set data.reward to your own reward function."
                )
            by_verifier.setdefault(prompt.verifier, []).append(index)
        verdicts: dict[int, Verdict] = {}
        for name, indices in by_verifier.items():
            given = [self._submission(rollouts[index]) for index in indices]
            verdicts.update(zip(indices, get_verifier(name).grade(given, self.tools), strict=True))
        return [verdicts[index] for index in range(len(rollouts))]

    def _submission(self, rollout: Rollout) -> Submission:
        response, prompt = rollout.text, rollout.prompt
        if self.prompt_opens_thinking and not response.lstrip().startswith("<think>"):
            response = "<think>" + response
        return Submission(
            response,
            prompt.gold,
            rollout.finished,
            tokens=len(rollout.completion.token_ids),
            prompt=prompt.text,
            columns=prompt.columns,
        )


_REWARD_FILES: dict[str, str] = {}
"""Name of each module made from a file of the user's -> the file, as the user wrote it."""


def function_name(function: RewardFunction) -> str:
    """Returns "module:function" or "path/to/file.py:function", as messages and records name it."""
    module = getattr(function, "__module__", "?")
    return f"{_REWARD_FILES.get(module, module)}:{getattr(function, '__qualname__', repr(function))}"


def call_reward_function(function: RewardFunction, rollouts: Sequence[Rollout]) -> list[Verdict]:
    """Calls the user's function once for the batch, in TRL's signature, and checks what comes back.

    Raises:
        RewardError: names the function, and the sample where one is at fault.
    """
    name = function_name(function)
    arguments = reward_arguments(rollouts)
    try:
        rewards = function(**_accepted(function, arguments))
    except Exception as failure:
        # The boundary to code that is not ours: whatever it raised is passed on, named and chained.
        raise RewardError(_what_was_raised(function, rollouts, arguments, failure)) from failure
    if isinstance(rewards, (str, bytes)) or not hasattr(rewards, "__len__") or not hasattr(rewards, "__iter__"):
        raise RewardError(
            f"The reward function {name} returned a {type(rewards).__name__}, but must return a list with one number "
            f"(or None) for each of the {len(rollouts)} completions."
        )
    rewards = list(rewards)
    if len(rewards) != len(rollouts):
        raise RewardError(
            f"The reward function {name} returned {len(rewards)} rewards for {len(rollouts)} completions; "
            "it must return one for each, in order."
        )
    return [_verdict(name, i, rollout, rewards[i]) for i, rollout in enumerate(rollouts)]


def _what_was_raised(
    function: RewardFunction, rollouts: Sequence[Rollout], arguments: dict[str, list[Any]], failure: Exception
) -> str:
    """Says what the user's function raised, where, and for which sample, found by calling it for each one alone."""
    start = f"The reward function {function_name(function)} raised "
    # The first frame is our call; where there is no other, the arguments did not fit the function's.
    if isinstance(failure, TypeError) and len(traceback.extract_tb(failure.__traceback__)) == 1:
        return f"{start}TypeError: {failure}. It can take these by name: {', '.join(arguments)}."
    for index, rollout in enumerate(rollouts):
        try:
            function(**_accepted(function, {name: column[index : index + 1] for name, column in arguments.items()}))
        except Exception as alone:
            return f"{start}{_failure(alone, function)} for sample {index} (prompt {rollout.prompt.id!r})."
    together = f"for {len(rollouts)} completions together, but for none of them alone."
    return f"{start}{_failure(failure, function)} {together}"


def _failure(failure: Exception, function: RewardFunction) -> str:
    """Returns "KeyError: 'level' (rewards.py, line 12)"; the place is the innermost in the function's own file."""
    frames = traceback.extract_tb(failure.__traceback__)[1:]
    source = getattr(getattr(function, "__code__", None), "co_filename", None)
    place = next((frame for frame in reversed(frames) if frame.filename == source), frames[-1] if frames else None)
    where = f" ({Path(place.filename).name}, line {place.lineno})" if place else ""
    return f"{type(failure).__name__}: {failure}{where}"


def reward_arguments(rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    """Returns prompts, completions and every column as lists of one entry a rollout, None where a row lacks it.

    Chat prompts stay lists of messages, and their completions are `[{"role": "assistant", "content": text}]`. `answer`
    is the gold answer, unless the data has a column of that name.
    """
    arguments: dict[str, list[Any]] = {"prompts": [], "completions": []}
    for rollout in rollouts:
        content = rollout.prompt.content
        plain = isinstance(content, str)
        arguments["prompts"].append(content if plain else [dict(message) for message in content])  # type: ignore[arg-type]
        arguments["completions"].append(rollout.text if plain else [{"role": "assistant", "content": rollout.text}])
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.prompt.columns)
    for name in names:
        # A data column called "prompts" or "completions" must not replace the real ones.
        arguments.setdefault(name, [rollout.prompt.columns.get(name) for rollout in rollouts])
    arguments.setdefault("answer", [rollout.prompt.gold for rollout in rollouts])
    return arguments


def _accepted(function: RewardFunction, arguments: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Keeps what the function's signature takes, so that one without **columns works too."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return arguments
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _verdict(name: str, index: int, rollout: Rollout, reward: Any) -> Verdict:
    if reward is None:
        return Verdict(None, reason="left out by the reward function")
    if hasattr(reward, "item") and getattr(reward, "ndim", 0) == 0:
        reward = reward.item()
    if not isinstance(reward, Real) or not math.isfinite(reward):
        raise RewardError(
            f"The reward function {name} returned {reward!r} for sample {index} (prompt {rollout.prompt.id!r}); "
            "a reward is a finite number, or None to leave the sample out."
        )
    return Verdict(float(reward), reason=f"reward function {name}")


def load_reward_function(target: str) -> RewardFunction:
    """Loads `package.module:function` or `path/to/file.py:function`.

    Raises:
        ConfigError: says which part could not be found, or that the module failed to import.
    """
    place, colon, attribute = target.rpartition(":")
    if not colon or not place or not attribute:
        raise ConfigError(
            f"data.reward is {target!r}, but must be package.module:function or path/to/file.py:function."
        )
    module = _load_file(place, target) if place.endswith(".py") else _load_module(place, target)
    if not hasattr(module, attribute):
        functions = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
        listed = ", ".join(functions) or "none"
        raise ConfigError(f"data.reward is {target!r}, but {place} has no {attribute!r}. Functions there: {listed}.")
    function = getattr(module, attribute)
    if not callable(function):
        raise ConfigError(f"data.reward is {target!r}, but that is a {type(function).__name__}, not a function.")
    return function


def _load_file(place: str, target: str) -> Any:
    path = Path(place).expanduser()
    if not path.is_file():
        raise ConfigError(f"data.reward is {target!r}, but there is no file {path} (looked from {Path.cwd()}).")
    module_name = f"sppo_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, "a .py file always has a spec"
    assert spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling in the user's file look their module up by name.
    sys.modules[module_name] = module
    _REWARD_FILES[module_name] = place
    try:
        spec.loader.exec_module(module)
    except Exception as failure:
        del sys.modules[module_name]
        raise ConfigError(f"data.reward: {path} could not be run: {type(failure).__name__}: {failure}") from failure
    return module


def _load_module(place: str, target: str) -> Any:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as failure:
        missing = failure.name or place
        if place == missing or place.startswith(missing + "."):
            raise ConfigError(
                f"data.reward is {target!r}, but there is no module {missing!r} on Python's path; "
                "install it, or give the file: path/to/file.py:function."
            ) from failure
        raise ConfigError(f"data.reward: importing {place} needs {missing!r}, which is not installed.") from failure
    except Exception as failure:
        raise ConfigError(f"data.reward: importing {place} failed: {type(failure).__name__}: {failure}") from failure


def grading_metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Returns reward/mean over the samples that have a reward, and the shares that failed or were left out, of all.

    reward/mean is missing where no sample has a reward.
    """
    if not verdicts:
        return {}
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    errors = sum(verdict.error is not None for verdict in verdicts)
    metrics = {
        "reward/error_share": errors / len(verdicts),
        "reward/left_out_share": (len(verdicts) - len(rewards) - errors) / len(verdicts),
    }
    return {"reward/mean": sum(rewards) / len(rewards)} | metrics if rewards else metrics
