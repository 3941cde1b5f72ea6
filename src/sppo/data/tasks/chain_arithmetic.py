"""Built-in task: a chain of additions and subtractions modulo 10, such as `7+1-3+2=`, small enough for a laptop.

A start digit 0..9 is followed by k operations, each plus or minus 1, 2 or 3. The full demonstration restates every
operation with its running value and gives the last one after `#`: `+18-35+27#7`. The terse one leaves each running
value out with probability p_leave_out, the operations and the answer never: `+1-35+2#7`. A model trained on terse
demonstrations skips steps at random, so that reinforcement learning on the final digit has something to find.

A prompt belongs to `held_out` where its hash says so, in every run and for every seed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from sppo.config import DataConfig
from sppo.config.ranges import AtLeastOne, Count, Section, Share
from sppo.data.tasks.built_in import KINDS, read_section, rounds, seed_of_split
from sppo.data.tasks.problem import Problem, Row, Task
from sppo.errors import ConfigError, DataError, did_you_mean

ALPHABET = "0123456789+-=# *()/<>.,:;?!%^|&~@[]{}_"
"""The 14 characters of the task and 24 more: 40 tokens with padding and end of sequence."""

_OPERATIONS = tuple(f"{sign}{digit}" for sign in "+-" for digit in "123")
_PROMPT = re.compile(r"\d(?:[+-][1-3])+=")
_LARGEST_LISTED = 4
"""Up to so many operations (10 x 6^4 prompts) the held-out prompts are listed; longer ones are drawn."""


@dataclass(frozen=True)
class Options(Section):
    """data.options of this task."""

    prompts: AtLeastOne = 20000
    """Number of prompts; of split held_out 1000 unless set."""
    min_operations: AtLeastOne = 1
    """Fewest operations of a prompt."""
    max_operations: Annotated[int, Field(ge=1, le=100)] = 8
    """Most operations of a prompt."""
    p_leave_out: Share = 0.5
    """Terse demonstrations: probability that a running value is left out."""
    demonstrations: Literal["full", "terse"] = "full"
    """Kind of demonstration beside each prompt."""
    seed: Count | None = None
    """Seed of the prompts; default: the run's for train, 0 for held_out, so that runs of all seeds compare."""


def read_options(config: DataConfig, key: str = "data") -> Options:
    """Returns the checked options; `key` is the section that they came from, as errors name it.

    Raises:
        ConfigError: an unknown option, split or kind, or a value out of range.
    """
    options = read_section(Options, config, key, prompts=1000)
    if options.min_operations > options.max_operations:
        raise ConfigError(
            f"{key}.options.min_operations is {options.min_operations}, more than max_operations "
            f"{options.max_operations}."
        )
    return options


def running_values(prompt_text: str) -> tuple[list[str], list[int]]:
    """Returns the operations of a prompt, as "+1", and the value modulo 10 after each of them.

    Raises:
        DataError: the text is no prompt of this task.
    """
    if not _PROMPT.fullmatch(prompt_text):
        raise DataError(f"{prompt_text!r} is no chain_arithmetic prompt; one looks like '7+1-3+2='.")
    operations = [prompt_text[start : start + 2] for start in range(1, len(prompt_text) - 1, 2)]
    value, values = int(prompt_text[0]), []
    for operation in operations:
        value = (value + int(operation)) % 10
        values.append(value)
    return operations, values


def demonstration(prompt_text: str, kind: str, rng: random.Random, p_leave_out: float = 0.5) -> str:
    """Returns a worked response to a prompt, from operation to operation.

    Args:
        prompt_text: A prompt such as `7+1-3+2=`.
        kind: "full" for every running value (`+18-35+27#7`), "terse" for some (`+1-35+2#7`).
        rng: Says which running values a terse demonstration leaves out; not used for a full one.
        p_leave_out: Probability that a terse demonstration leaves a running value out.

    Raises:
        ConfigError: unknown kind.
        DataError: the text is no prompt of this task.
    """
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is no kind of demonstration of chain_arithmetic.{did_you_mean(kind, KINDS)}")
    operations, values = running_values(prompt_text)
    steps = [
        operation if kind == "terse" and rng.random() < p_leave_out else f"{operation}{value}"
        for operation, value in zip(operations, values, strict=True)
    ]
    return f"{''.join(steps)}#{values[-1]}"


def is_held_out(prompt_text: str) -> bool:
    """Returns whether a prompt belongs to the held-out tenth, by its hash alone."""
    digest = hashlib.blake2b(prompt_text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 10 == 0


def make_rows(config: DataConfig, seed: int, key: str = "data") -> Iterator[Row]:
    """Makes the rows: id, prompt, answer, operations (a count) and demonstration.

    The prompts depend on the split, the seed and the range of operations, not on the kind of demonstration.
    """
    options = read_options(config, key)
    seed = seed_of_split(options.seed, config.split, seed)
    rng = random.Random(f"chain_arithmetic prompts {config.split} {seed}")
    texts = _train_texts(options, rng) if config.split == "train" else _held_out_texts(options, rng, key)
    step_rng = random.Random(f"chain_arithmetic demonstrations {config.split} {seed}")
    for number, text in enumerate(texts, start=1):
        operations, values = running_values(text)
        yield {
            "id": f"chain_arithmetic/{config.split}/{number}",
            "prompt": text,
            "answer": str(values[-1]),
            "operations": len(operations),
            "demonstration": demonstration(text, options.demonstrations, step_rng, options.p_leave_out),
        }


def _draw(operations: int, rng: random.Random) -> str:
    return f"{rng.randrange(10)}{''.join(rng.choice(_OPERATIONS) for _ in range(operations))}="


def _train_texts(options: Options, rng: random.Random) -> Iterator[str]:
    """Draws the number of operations first, so that it is uniform although short prompts are few and repeat."""
    for _ in range(options.prompts):
        operations = rng.randint(options.min_operations, options.max_operations)
        text = _draw(operations, rng)
        while is_held_out(text):
            text = _draw(operations, rng)
        yield text


def _held_out_texts(options: Options, rng: random.Random, key: str) -> Iterator[str]:
    """Goes round the numbers of operations, each distinct prompt once: every beginning of it is as even as can be."""
    sources = [_distinct_held_out(k, rng) for k in range(options.min_operations, options.max_operations + 1)]
    given = 0
    for texts in rounds(sources):
        rng.shuffle(texts)
        for text in texts:
            yield text
            given += 1
            if given == options.prompts:
                return
    raise ConfigError(
        f"{key}.options.prompts is {options.prompts}, but with {options.min_operations} to {options.max_operations} "
        f"operations there are only {given} held-out prompts. Ask for at most {given}, or raise max_operations."
    )


def _distinct_held_out(operations: int, rng: random.Random) -> Iterator[str]:
    if operations <= _LARGEST_LISTED:
        chains = itertools.product("0123456789", *[_OPERATIONS] * operations)
        texts = [text for text in (f"{''.join(chain)}=" for chain in chains) if is_held_out(text)]
        rng.shuffle(texts)
        yield from texts
        return
    # About 6 ** operations exist; stopping at half of them keeps the redraws few.
    seen: set[str] = set()
    while len(seen) < 6**operations // 2:
        text = _draw(operations, rng)
        if is_held_out(text) and text not in seen:
            seen.add(text)
            yield text


def load(row: Mapping[str, Any], config: DataConfig) -> Problem:
    """Reads a row made by `make_rows`."""
    count = row["operations"]
    return Problem(
        content=row["prompt"],
        gold=row["answer"],
        id=row["id"],
        has_instruction=True,
        difficulty=f"{count} operation{'' if count == 1 else 's'}",
        demonstration=row["demonstration"],
        columns={"operations": count},
    )


TASK = Task(
    name="chain_arithmetic",
    summary="built in: chains of additions and subtractions modulo 10, such as 7+1-3+2=",
    load=load,
    verifier="final_answer",
    make_rows=make_rows,
    demonstrations=KINDS,
    options=Options,
)
