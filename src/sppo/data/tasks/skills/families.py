"""What the problems of task `skills` look like and ask for: seven families that can be learned, and two that can't.

A problem is a digit and some operations, each a sign and a digit, such as `4<8<2=`. The sign tells the family. It is
worked from operation to operation: each makes a new state of the last one, and the last state is the answer. Every
family is worked in this one form, so that walking along the operations and writing the states down is a skill that
they share; what an operation does to a state differs. All signs are among those that tell two prompts apart
(`sppo.data.tasks.prompt_key`), or problems of two families would count as copies.

Trivial problems ask for their first digit. Hopeless ones ask for a digest of their digits, five digits long, which no
model can foresee and chance finds once in 100,000 tries; one is as good as another, so that nothing is ever learned.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sppo.errors import DataError

_ALL = "0123456789"
_PROMPT = re.compile(r"\d(?:[+*^./<>!%]\d)+=")
_LARGEST_LISTED = 20_000
"""Up to so many problems of one family and level are listed to find those not yet drawn; more are drawn at random."""
_TAIL = 1.5
"""Tail index of the Pareto distribution of the lengths of hopeless responses."""


@dataclass(frozen=True)
class Family:
    """Problems of one kind, of any level."""

    name: str
    """Name in data.options.families, and label of difficulty."""
    first: str
    """Digits that a problem may begin with."""
    operations: tuple[str, ...]
    """Operations that may follow."""
    step: Callable[[str, str], str]
    """State, operation -> next state."""
    more: int
    """Operations that each level adds to the two of level 1."""
    begin: Callable[[str], str] = str
    """First digit -> state before the first operation."""
    distinct: bool = False
    """Whether all digits of a problem differ; for families whose operations are the ten digits."""

    def count(self, level: int) -> int:
        """Operations of a problem of a level."""
        return 2 + self.more * (level - 1)

    def size(self, level: int) -> int:
        """Number of problems of a level."""
        if self.distinct:
            return math.perm(len(self.first), self.count(level) + 1)
        return len(self.first) * len(self.operations) ** self.count(level)

    def text(self, level: int, index: int) -> str:
        """Returns a problem of a level by its number, from 0."""
        index, place = divmod(index, len(self.first))
        first, left = self.first[place], list(self.operations)
        parts = [first]
        if self.distinct:
            left = [operation for operation in left if operation[1] != first]
        for _ in range(self.count(level)):
            index, place = divmod(index, len(left))
            parts.append(left.pop(place) if self.distinct else left[place])
        return f"{''.join(parts)}="

    def draw(self, level: int, rng: random.Random) -> Iterator[str]:
        """Yields distinct problems of a level in random order; of very many at most half."""
        yield from (self.text(level, index) for index in _order(self.size(level), rng))


def _order(size: int, rng: random.Random) -> Iterator[int]:
    if size <= _LARGEST_LISTED:
        yield from rng.sample(range(size), size)
        return
    seen: set[int] = set()
    while len(seen) < size // 2:
        index = rng.randrange(size)
        if index not in seen:
            seen.add(index)
            yield index


def _signed(signs: str, digits: str = _ALL) -> tuple[str, ...]:
    return tuple(f"{sign}{digit}" for sign in signs for digit in digits)


def _unchanged(state: str, operation: str) -> str:
    return state


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        # The sum modulo 10.
        Family("sum", _ALL, _signed("+", "123"), lambda s, o: str((int(s) + int(o)) % 10), 2),
        # The product modulo 7.
        Family("product", "123456", _signed("*", "235"), lambda s, o: str(int(s) * int(o[1]) % 7), 2),
        # The largest digit.
        Family("largest", _ALL, _signed("^"), lambda s, o: max(s, o[1]), 2),
        # How many digits are 5 or larger.
        Family(
            "count", _ALL, _signed("."), lambda s, o: str(int(s) + (o[1] >= "5")), 2, begin=lambda f: str(int(f >= "5"))
        ),
        # The digits in their order, in reverse, and sorted.
        Family("copy", _ALL, _signed(">"), lambda s, o: s + o[1], 1, distinct=True),
        Family("reverse", _ALL, _signed("<"), lambda s, o: o[1] + s, 1, distinct=True),
        Family("sort", _ALL, _signed("/"), lambda s, o: "".join(sorted(s + o[1])), 1, distinct=True),
    )
}
"""Families that can be learned, by name."""
TRIVIAL = Family("trivial", _ALL, _signed("!"), _unchanged, 2)
HOPELESS = Family("hopeless", _ALL, _signed("%"), _unchanged, 2)
_BY_SIGN = {
    operation[0]: family for family in (*FAMILIES.values(), TRIVIAL, HOPELESS) for operation in family.operations
}


@dataclass(frozen=True)
class Working:
    """A problem, worked."""

    family: Family
    operations: tuple[str, ...]
    states: tuple[str, ...]
    """After each operation."""
    answer: str

    @property
    def level(self) -> int:
        """Level that the problem is of."""
        return (len(self.operations) - 2) // self.family.more + 1


def work(text: str) -> Working:
    """Works a problem.

    Raises:
        DataError: the text is no problem of this task.
    """
    family = _BY_SIGN.get(text[1:2])
    operations = tuple(text[start : start + 2] for start in range(1, len(text) - 1, 2))
    if family is None or not _PROMPT.fullmatch(text) or not set(operations) <= set(family.operations):
        raise DataError(f"{text!r} is no prompt of task skills; one looks like '4<8<2='.")
    if family is HOPELESS:
        return Working(family, operations, (), f"{digest(text, 'hopeless') % 10**5:05}")
    states, state = [], family.begin(text[0])
    for operation in operations:
        state = family.step(state, operation)
        states.append(state)
    return Working(family, operations, tuple(states), state)


def demonstration(working: Working, kind: str, rng: random.Random, p_leave_out: float, hopeless_length: int) -> str:
    """Returns a worked response: each operation and the state after it, then `#` and the answer.

    Args:
        working: of the problem.
        kind: "full" for every state (`<884<2284#284`), "terse" with blanks for some (`<8__<2284#284`).
        rng: says which states a terse demonstration blanks, and how long a hopeless one is.
        p_leave_out: share of states that terse demonstrations blank on average; each has a rate of its own.
        hopeless_length: median length of hopeless responses in characters.
    """
    end = f"#{working.answer}"
    if working.family is TRIVIAL:
        return end
    if working.family is HOPELESS:
        # Round and round the operations: a length from a Pareto distribution, cut at twice its median.
        wanted = min(2.0, (2 * (1 - rng.random())) ** (-1 / _TAIL)) * hopeless_length - len(end)
        rounds = itertools.cycle(working.operations)
        return "".join(itertools.islice(rounds, max(1, round(wanted / 2)))) + end
    # A rate of its own for each demonstration: u^((1 - m) / m) has mean m.
    rate = rng.random() ** ((1 - p_leave_out) / p_leave_out) if kind == "terse" and p_leave_out else 0.0
    steps = [
        operation + ("_" * len(state) if rate and rng.random() < rate else state)
        for operation, state in zip(working.operations, working.states, strict=True)
    ]
    return "".join(steps) + end


def digest(text: str, purpose: str) -> int:
    """Returns 64 bits that depend on a problem alone; other bits for each purpose."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=purpose.encode()).digest(), "big")
