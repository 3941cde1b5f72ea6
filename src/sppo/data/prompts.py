"""The split into prompts to train on and prompts to measure on."""

from __future__ import annotations

import random
from collections.abc import Sequence

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
