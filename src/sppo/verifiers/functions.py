"""The user's own reward functions: loading them, calling them in either of two signatures, checking what comes back.

    TRL     f(prompts, completions, **columns) -> list of float or None; called once a batch
    verl    compute_score(data_source, solution_str, ground_truth, extra_info) -> float, or a dict with "score"; called
            once a response

A function with a parameter named solution_str is verl's; any other is TRL's. Both may be `async def`.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from pathlib import Path
from typing import Any

from sppo.config.trust import HANDED_OVER
from sppo.errors import ConfigError, RewardError
from sppo.types import Prompt, Submission, Verdict
from sppo.verifiers.columns import as_struct, ground_truth

RewardFunction = Callable[..., Any]
"""In TRL's signature or verl's, see the module's header."""

_FILES: dict[str, str] = {}
"""Name of each module made from a file of the user's -> the file, as the user wrote it."""


def function_name(function: RewardFunction) -> str:
    """Returns "module:function" or "path/to/file.py:function", as messages and records name it.

    The same in every process: an object that can be called is named by its class, a partial by its function, and a
    module that is run as a program by its own name.
    """
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", "?")
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec else Path(file).stem if file else module
    return f"{_FILES.get(module, module)}:{named.__qualname__}"


def handed_over(function: RewardFunction) -> str:
    """What data.reward notes of a function that a Python program handed over."""
    return HANDED_OVER + function_name(function)


def name_handed_over(target: str | None) -> str | None:
    """The name of the function that `handed_over` noted; None of any other data.reward."""
    return target.removeprefix(HANDED_OVER) if target and target.startswith(HANDED_OVER) else None


def call_reward_function(function: RewardFunction, submissions: Sequence[Submission]) -> list[Verdict]:
    """Calls the user's function and checks what comes back; one verdict a submission, in order.

    Raises:
        RewardError: names the function, and the sample where one is at fault.
    """
    if not submissions:
        return []
    if "solution_str" in _parameters(function):
        return _call_for_each(function, submissions)
    arguments = batch_arguments(submissions)
    name = f"The reward function {function_name(function)}"
    rewards = call_for_batch(function, submissions, arguments, name)
    listed = hasattr(rewards, "__len__") and hasattr(rewards, "__iter__")
    if not listed or isinstance(rewards, (str, bytes, Mapping, Set)):
        raise RewardError(
            f"{name} returned a {type(rewards).__name__}, but must return a list with one number (or None) for each of "
            f"the {len(submissions)} completions."
        )
    rewards = list(rewards)
    if len(rewards) != len(submissions):
        raise RewardError(
            f"{name} returned {len(rewards)} rewards for {len(submissions)} completions; it must return one for each, "
            "in order."
        )
    return [_verdict(function, index, given, rewards[index]) for index, given in enumerate(submissions)]


def call_for_batch(
    function: RewardFunction, submissions: Sequence[Submission], arguments: Mapping[str, list[Any]], name: str
) -> Any:
    """Calls a function of lists with those of `arguments` that it takes; `name` begins the message where it raises.

    Raises:
        RewardError: says what was raised, where, and for which sample.
    """
    try:
        return _resolved([function(**_accepted(function, arguments))])[0]
    except (Exception, SystemExit) as failure:
        # The boundary to code that is not ours: whatever it raised is passed on, named and chained.
        raise RewardError(f"{name} raised {_what_was_raised(function, submissions, arguments, failure)}") from failure


def require_ground_truth(function: RewardFunction, prompts: Iterable[Prompt]) -> None:
    """Refuses prompts without what a function in verl's signature is given as ground_truth, before any is sampled.

    Raises:
        ConfigError: counts them, names the first, and says where the answer is looked for.
    """
    parameters = _parameters(function)
    asked = parameters.get("ground_truth")
    if "solution_str" not in parameters or asked is None or asked.default is not inspect.Parameter.empty:
        return
    prompts = list(prompts)
    lacking = [prompt for prompt in prompts if prompt.gold is None and ground_truth(prompt.columns) is None]
    if lacking:
        raise ConfigError(
            f"The reward function {function_name(function)} takes ground_truth, but {len(lacking)} of {len(prompts)} "
            f"prompts have none, the first is {lacking[0].id!r} (its columns: {', '.join(lacking[0].columns)}). Name "
            "the column in data.answer_column (without it reward_model.ground_truth is read), or give the parameter a "
            "default, ground_truth=None, if the function does without."
        )


def _call_for_each(function: RewardFunction, submissions: Sequence[Submission]) -> list[Verdict]:
    """verl's signature."""
    name = f"The reward function {function_name(function)}"
    scores: list[Any] = []
    for index, given in enumerate(submissions):
        try:
            scores.append(function(**_accepted(function, sample_arguments(given))))
        except (Exception, SystemExit) as failure:
            raise RewardError(f"{name} raised {_at_sample(failure, function, index, given)}") from failure
    for index, score in enumerate(scores := _resolved(scores, raising=False)):
        if isinstance(score, BaseException):
            raise RewardError(f"{name} raised {_at_sample(score, function, index, submissions[index])}") from score
    return [_scored(function, index, given, scores[index]) for index, given in enumerate(submissions)]


def _scored(function: RewardFunction, index: int, given: Submission, score: Any) -> Verdict:
    """The verdict of one score in verl's form; other numbers of a dict are parts, and its "pred" the answer."""
    if not isinstance(score, Mapping):
        return _verdict(function, index, given, score)
    if "score" not in score:
        raise RewardError(
            f'The reward function {function_name(function)} returned a dict without "score" for sample {index} '
            f"(prompt {given.prompt_id!r}); its keys are {', '.join(map(str, score)) or 'none'}."
        )
    verdict = _verdict(function, index, given, score["score"])
    others = {str(key): _plain(value) for key, value in score.items() if key != "score"}
    parts = {key: float(value) for key, value in others.items() if _is_finite(value)}
    answer = others.get("pred")
    return Verdict(verdict.reward, answer if isinstance(answer, str) else None, verdict.reason, parts=parts)


def sample_arguments(given: Submission) -> dict[str, Any]:
    """What verl's signature takes; extra_info is the column of that name, or else the row's other columns."""
    extra = as_struct(given.columns.get("extra_info"))
    return {
        "data_source": given.columns.get("data_source", ""),
        "solution_str": given.sampled,
        "ground_truth": ground_truth_of(given),
        "extra_info": dict(extra) if isinstance(extra, Mapping) else dict(given.columns),
    }


def ground_truth_of(given: Submission) -> Any:
    """What verl's signature takes as ground_truth: the gold answer, or the list of all; or what verl's column holds.

    That may be of any kind, as the numbers and the target of a countdown are, and then is no gold answer of ours.
    """
    if given.gold is None:
        return ground_truth(given.columns)
    return [given.gold, *given.other_golds] if given.other_golds else given.gold


def batch_arguments(submissions: Sequence[Submission]) -> dict[str, list[Any]]:
    """Returns prompts, completions and every column as lists of one entry a sample, None where a row lacks it.

    Chat prompts stay lists of messages, and their completions are `[{"role": "assistant", "content": text}]`. `answer`
    is the gold answer, unless the data has a column of that name. Completions are as sampled, without a `<think>` that
    the chat template wrote.
    """
    arguments: dict[str, list[Any]] = {"prompts": [], "completions": []}
    for given in submissions:
        turns = [dict(message) for message in given.messages]
        arguments["prompts"].append(turns or given.prompt)
        arguments["completions"].append([{"role": "assistant", "content": given.sampled}] if turns else given.sampled)
    names = dict.fromkeys(name for given in submissions for name in given.columns)
    for name in names:
        # A data column called "prompts" or "completions" must not replace the real ones.
        arguments.setdefault(name, [given.columns.get(name) for given in submissions])
    arguments.setdefault("answer", [given.gold for given in submissions])
    return arguments


def _parameters(function: RewardFunction) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Some callables of C have no signature.
        return {"arguments": inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)}


def _accepted(function: RewardFunction, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps what the function's signature takes, so that one without **columns works too."""
    parameters = _parameters(function)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in parameters}


def _resolved(results: list[Any], *, raising: bool = True) -> list[Any]:
    """The results, those of `async def` functions awaited together; on a loop of their own, as ours may run in one."""
    waiting = [result for result in results if inspect.isawaitable(result)]
    if not waiting:
        return results

    async def together(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
        return list(await asyncio.gather(*awaitables, return_exceptions=not raising))

    with ThreadPoolExecutor(max_workers=1) as thread:
        done = iter(thread.submit(asyncio.run, together(waiting)).result())
    return [next(done) if inspect.isawaitable(result) else result for result in results]


def _what_was_raised(
    function: RewardFunction,
    submissions: Sequence[Submission],
    arguments: Mapping[str, list[Any]],
    failure: BaseException,
) -> str:
    """Says what the user's function raised, where, and for which sample, found by calling it for each one alone."""
    # The first frame is our call; where there is no other, the arguments did not fit the function's.
    if isinstance(failure, TypeError) and len(traceback.extract_tb(failure.__traceback__)) == 1:
        return f"TypeError: {failure}. It can take these by name: {', '.join(arguments)}."
    for index, given in enumerate(submissions):
        try:
            alone = {name: column[index : index + 1] for name, column in arguments.items()}
            _resolved([function(**_accepted(function, alone))])
        except (Exception, SystemExit) as failed_alone:
            return _at_sample(failed_alone, function, index, given)
    together = f"for {len(submissions)} completions together, but for none of them alone."
    return f"{_failure(failure, function)} {together}"


def _at_sample(failure: BaseException, function: RewardFunction, index: int, given: Submission) -> str:
    return f"{_failure(failure, function)} for sample {index} (prompt {given.prompt_id!r})."


def _failure(failure: BaseException, function: RewardFunction) -> str:
    """Returns "KeyError: 'level' (rewards.py, line 12)"; the place is the innermost in the function's own file."""
    frames = traceback.extract_tb(failure.__traceback__)[1:]
    source = getattr(getattr(function, "__code__", None), "co_filename", None)
    place = next((frame for frame in reversed(frames) if frame.filename == source), frames[-1] if frames else None)
    where = f" ({Path(place.filename).name}, line {place.lineno})" if place else ""
    return f"{type(failure).__name__}: {failure}{where}"


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's own."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _is_finite(value: Any) -> bool:
    """Whether this is a number that a float can hold, which math.isfinite can't say of a long int."""
    return isinstance(value, Real) and abs(value) <= sys.float_info.max  # type: ignore[operator]


def _verdict(function: RewardFunction, index: int, given: Submission, reward: Any) -> Verdict:
    if reward is None:
        return Verdict(None, reason="left out by the reward function")
    reward = _plain(reward)
    name = function_name(function)
    if not _is_finite(reward):
        raise RewardError(
            f"The reward function {name} returned {reward!r} for sample {index} (prompt {given.prompt_id!r}); "
            "a reward is a finite number, or None to leave the sample out."
        )
    return Verdict(float(reward), reason=f"reward function {name}")


def load_function(target: str, key: str = "data.reward") -> RewardFunction:
    """Loads `package.module:function` or `path/to/file.py:function`; `key` is the option that errors name.

    Raises:
        ConfigError: says which part could not be found, or that the module failed to import; or the function was
            handed over by a Python program, so that there is no place to load it from.
    """
    name = name_handed_over(target)
    if name is not None:
        raise ConfigError(
            f"{key} is the reward function {name}, which a Python program handed over: a run folder holds its name, "
            f"not its code. Hand it over again (reward=FUNCTION in sppo.evaluate or sppo.train), or say where it is: "
            f"--{key} path/to/file.py:function."
        )
    place, colon, attribute = target.rpartition(":")
    if not colon or not place or not attribute:
        raise ConfigError(f"{key} is {target!r}, but must be package.module:function or path/to/file.py:function.")
    module = _load_file(place, target, key) if place.endswith(".py") else _load_module(place, target, key)
    if not hasattr(module, attribute):
        functions = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
        listed = ", ".join(functions) or "none"
        raise ConfigError(f"{key} is {target!r}, but {place} has no {attribute!r}. Functions there: {listed}.")
    function = getattr(module, attribute)
    if not callable(function):
        raise ConfigError(f"{key} is {target!r}, but that is a {type(function).__name__}, not a function.")
    return function


def _load_file(place: str, target: str, key: str) -> Any:
    path = Path(place).expanduser()
    if not path.is_file():
        raise ConfigError(f"{key} is {target!r}, but there is no file {path} (looked from {Path.cwd()}).")
    module_name = f"sppo_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, "a .py file always has a spec"
    assert spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling in the user's file look their module up by name.
    sys.modules[module_name] = module
    _FILES[module_name] = place
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as failure:
        del sys.modules[module_name]
        raise ConfigError(f"{key}: {path} could not be run: {type(failure).__name__}: {failure}") from failure
    return module


def _load_module(place: str, target: str, key: str) -> Any:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as failure:
        missing = failure.name or place
        if place == missing or place.startswith(missing + "."):
            raise ConfigError(
                f"{key} is {target!r}, but there is no module {missing!r} on Python's path; "
                "install it, or give the file: path/to/file.py:function."
            ) from failure
        raise ConfigError(f"{key}: importing {place} needs {missing!r}, which is not installed.") from failure
    except (Exception, SystemExit) as failure:
        raise ConfigError(f"{key}: importing {place} failed: {type(failure).__name__}: {failure}") from failure
