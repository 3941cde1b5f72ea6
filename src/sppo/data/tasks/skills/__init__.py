"""Built-in task: seven families of small problems, with shares that nobody can solve and that anybody can.

`sppo.data.tasks.skills.families` says what they are. Solve rates differ by family and level, and a real pool's dead
prompts, which reinforcement learning has nothing to learn from, can be added in three ways:

- trivial: solved always, after a short response;
- hopeless: solved never, after the longest responses of all, with a heavy tail;
- wrong golds: an answer that no response reaches, which the text of the prompt does not tell.

As in chain_arithmetic, the full demonstration of a problem writes every state down, `<884<2284#284` for `4<8<2=`, and
the terse one blanks some: `<8__<2284#284`. How many is drawn for each demonstration, from none to all, so that a model
trained on them is careful or hasty at random, in all families alike, and rewards have to teach it to be careful.
Blanks, rather than nothing, keep the walk along the operations in step: the states alone are lost, and few
demonstrations teach the habit without spoiling the rest.

The prompts of a split are distinct as long as there are enough. A prompt belongs to `held_out` where its hash says so,
in every run and for every seed. Held-out prompts are live ones unless the options say otherwise: what is measured is
what can be learned.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from sppo.config import DataConfig
from sppo.config.ranges import AtLeastOne, Count, Section, Share
from sppo.data.tasks.built_in import KINDS, read_section, rounds, seed_of_split
from sppo.data.tasks.problem import Problem, Row, Task
from sppo.data.tasks.skills.families import FAMILIES, HOPELESS, TRIVIAL, Family, demonstration, digest, work
from sppo.errors import ConfigError

Level = Annotated[int, Field(ge=1, le=8)]
_DEAD_LEVEL = 2
"""Level of trivial and hopeless prompts: four operations."""
FamilyName = Literal["sum", "product", "largest", "count", "copy", "reverse", "sort"]


@dataclass(frozen=True)
class Options(Section):
    """data.options of this task."""

    prompts: AtLeastOne = 20000
    """Number of prompts; of split held_out 1000 unless set."""
    families: list[FamilyName] = field(default_factory=list)
    """Families of the live prompts; none: all seven."""
    min_level: Level = 1
    """Lowest level: two operations; each further one adds two, in copy, reverse and sort one."""
    max_level: Level = 3
    """Highest level."""
    trivial: Share = 0.1
    """Share of prompts that are always solved; of split held_out 0 unless set."""
    hopeless: Share = 0.1
    """Share of prompts that are never solved, as their text tells; of split held_out 0 unless set."""
    hopeless_length: AtLeastOne = 28
    """Median length of demonstrations of hopeless prompts, in characters; the longest have twice as many."""
    wrong_golds: Share = 0.0
    """Share of the golds that no response reaches, which the text does not tell; of split train alone."""
    p_leave_out: Share = 0.5
    """Terse demonstrations: share of running values that are blanked on average; each has a rate of its own."""
    demonstrations: Literal["full", "terse"] = "full"
    """Kind of demonstration beside each prompt."""
    seed: Count | None = None
    """Seed of the prompts; default: the run's for train, 0 for held_out, so that runs of all seeds compare."""


def read_options(config: DataConfig, key: str = "data") -> Options:
    """Returns the checked options; `key` is the section that they came from, as errors name it.

    Raises:
        ConfigError: an unknown option, split, family or kind, or a value out of range.
    """
    options = read_section(Options, config, key, prompts=1000, trivial=0.0, hopeless=0.0)
    if options.min_level > options.max_level:
        raise ConfigError(f"{key}.options.min_level is {options.min_level}, more than max_level {options.max_level}.")
    if options.trivial + options.hopeless > 1:
        raise ConfigError(
            f"{key}.options.trivial is {options.trivial} and hopeless {options.hopeless}, more than 1 together."
        )
    if options.wrong_golds and config.split != "train":
        raise ConfigError(
            f"{key}.options.wrong_golds is {options.wrong_golds}, but golds of split {config.split} are right, or "
            "nothing could be measured: leave it out."
        )
    return options


def is_held_out(text: str) -> bool:
    """Returns whether a prompt belongs to the held-out tenth, by its hash alone."""
    return digest(text, "held out") % 10 == 0


def has_wrong_gold(text: str, share: float) -> bool:
    """Returns whether a prompt is among the share whose gold is wrong, by its hash alone."""
    return digest(text, "wrong gold") < share * 2**64


def wrong_gold(text: str, answer: str) -> str:
    """Returns a gold of two digits more than the answer has, so that no slip of the pen reaches it."""
    return f"{answer}{digest(text, 'wrong digits') % 100:02}"


def make_rows(config: DataConfig, seed: int, key: str = "data") -> Iterator[Row]:
    """Makes the rows: id, prompt, answer, family, level (a count), wrong_gold (whether) and demonstration.

    The prompts depend on the split, the seed, the families, levels and shares, not on the kind of demonstration, which
    always ends in the right answer.
    """
    options = read_options(config, key)
    seed = seed_of_split(options.seed, config.split, seed)
    texts = _texts(options, config.split, random.Random(f"skills prompts {config.split} {seed}"), key)
    rng = random.Random(f"skills demonstrations {config.split} {seed}")
    for number, text in enumerate(texts, start=1):
        working = work(text)
        wrong = has_wrong_gold(text, options.wrong_golds)
        yield {
            "id": f"skills/{config.split}/{number}",
            "prompt": text,
            "answer": wrong_gold(text, working.answer) if wrong else working.answer,
            "family": working.family.name,
            "level": working.level,
            "wrong_gold": wrong,
            "demonstration": demonstration(
                working, options.demonstrations, rng, options.p_leave_out, options.hopeless_length
            ),
        }


def _texts(options: Options, split: str, rng: random.Random, key: str) -> list[str]:
    """Counts are exact, not drawn: families even, and the levels of each as far as there are enough of the lowest."""

    def draw(family: Family, level: int) -> Iterator[str]:
        return (text for text in family.draw(level, rng) if is_held_out(text) == (split == "held_out"))

    trivial, hopeless = round(options.trivial * options.prompts), round(options.hopeless * options.prompts)
    trivial = min(trivial, options.prompts - hopeless)  # both may have been rounded up
    levels = range(options.min_level, options.max_level + 1)
    live = [
        _in_turns([draw(family, level) for level in levels])
        for name, family in FAMILIES.items()
        if name in options.families or not options.families
    ]
    wanted = {
        "live": (options.prompts - trivial - hopeless, _in_turns(live)),
        "trivial": (trivial, draw(TRIVIAL, _DEAD_LEVEL)),
        "hopeless": (hopeless, draw(HOPELESS, _DEAD_LEVEL)),
    }
    texts: list[str] = []
    for kind, (count, source) in wanted.items():
        found = list(itertools.islice(source, count))
        if len(found) < count:
            raise ConfigError(
                f"{key}.options.prompts asks for {count} {kind} prompts of split {split}, but there are only "
                f"{len(found)}. Ask for fewer, or raise max_level."
            )
        texts += found
    rng.shuffle(texts)
    return texts


def _in_turns(sources: Sequence[Iterator[str]]) -> Iterator[str]:
    return itertools.chain.from_iterable(rounds(sources))


def load(row: Mapping[str, object], config: DataConfig) -> Problem:
    """Reads a row made by `make_rows`."""
    return Problem(
        content=str(row["prompt"]),
        gold=str(row["answer"]),
        id=str(row["id"]),
        has_instruction=True,
        difficulty=str(row["family"]),
        demonstration=str(row["demonstration"]),
        columns={name: row[name] for name in ("family", "level", "wrong_gold")},
    )


TASK = Task(
    name="skills",
    summary="built in: seven families of small problems such as 4<8<2=, with prompts never and always solved",
    load=load,
    verifier="final_answer",
    make_rows=make_rows,
    demonstrations=KINDS,
    options=Options,
)
