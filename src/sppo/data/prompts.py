"""The split into prompts to train on and prompts to measure on, of which no problem stands on both sides."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sppo.config import DataConfig
from sppo.data.tasks import get_task
from sppo.data.tasks.problem import prompt_key
from sppo.errors import DataError
from sppo.types import Prompt


def hold_out(prompts: Sequence[Prompt], n: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Splits off n held-out prompts, drawn at random but the same for the same prompts and seed.

    Copies of a problem (equal letters, digits and operators, `sppo.data.tasks.prompt_key`) never stand on both sides:
    of a problem drawn for the held-out side its first prompt is kept, and its copies are in neither list.

    Args:
        prompts: All prompts.
        n: Number of held-out prompts, each another problem.
        seed: Seed of the draw.

    Returns:
        Training prompts and held-out prompts, each in the order given.

    Raises:
        DataError: n problems held out would leave none to train on.
    """
    assert n >= 0, f"cannot hold out {n} prompts"
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt_key(prompt.text), []).append(index)
    if n >= len(groups):
        raise DataError(
            f"{n} held-out prompts would leave none to train on: there are {len(groups)} distinct prompts. Lower "
            "evaluation.prompts, or give evaluation.data."
        )
    drawn = random.Random(f"held-out prompts {seed}").sample(list(groups.values()), n)
    first = {indices[0] for indices in drawn}
    gone = {index for indices in drawn for index in indices}
    train = [prompt for index, prompt in enumerate(prompts) if index not in gone]
    return train, [prompts[index] for index in sorted(first)]


_FEWEST_FRAMED = 10
"""Distinct prompts from which on what all of them begin and end with is no part of the problem."""


def copy_keys(prompts: Sequence[Prompt], config: DataConfig) -> list[frozenset[str]]:
    """Returns for each prompt what its copies share: the key of its text, and that of the problem in it.

    Two data sets may ask for the answer in other words. The instruction and the system prompt of the options are no
    part of the problem, nor is what all prompts of a published data set begin or end with.

    Args:
        prompts: of one data set, or of its sources.
        config: where they came from.
    """
    if not config.sources:
        return _keys_of_one(prompts, config)
    found: dict[int, frozenset[str]] = {}
    for name, section in config.each().items():
        places = [place for place, prompt in enumerate(prompts) if prompt.source == name]
        found.update(zip(places, _keys_of_one([prompts[place] for place in places], section), strict=True))
    return [found[place] for place in range(len(prompts))]


def _keys_of_one(prompts: Sequence[Prompt], config: DataConfig) -> list[frozenset[str]]:
    task = get_task(config.task)
    instruction = task.instruction if config.instruction is None else config.instruction
    whole, bare = [], []
    for prompt in prompts:
        text, problem = prompt.text, _problem(prompt, config.system_prompt, instruction)
        whole.append(prompt_key(text))
        bare.append(whole[-1] if problem == text else prompt_key(problem))
    if task.hub_name is not None and len(set(bare)) >= _FEWEST_FRAMED:
        start, end = _shared(bare), _shared([key[::-1] for key in bare])
        bare = [key[start : len(key) - end] or key for key in bare]
    return [frozenset(keys) for keys in zip(whole, bare, strict=True)]


def _shared(keys: Sequence[str]) -> int:
    """How many characters all keys begin with alike."""
    first, last = min(keys), max(keys)
    return next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def _problem(prompt: Prompt, system: str | None, instruction: str | None) -> str:
    """The prompt's text without what the options put before and behind it."""
    text = prompt.text
    if system:
        text = text.removeprefix(f"{system}\n")
    return text.removesuffix(f"\n{instruction}") if instruction else text


def leave_out_copies(
    prompts: Sequence[Prompt], config: DataConfig, unseen: frozenset[str]
) -> tuple[tuple[Prompt, ...], int]:
    """Returns the prompts that are no copies of the unseen ones, and how many are.

    Args:
        prompts: of one data set.
        config: where they came from.
        unseen: all keys of other prompts, from `copy_keys`.
    """
    kept = tuple(
        prompt for prompt, keys in zip(prompts, copy_keys(prompts, config), strict=True) if unseen.isdisjoint(keys)
    )
    return kept, len(prompts) - len(kept)
