"""Options of the built-in tasks: what is refused, those that both have and each one's own, and what is said of it."""

import pytest

from sppo.config import DataConfig
from sppo.data.tasks import load_prompts
from sppo.errors import ConfigError

TASKS = ("chain_arithmetic", "skills")
SHARED = [
    ({"promts": 5}, ["data.options.promts is not an option", "Did you mean data.options.prompts?"]),
    ({"prompts": 0}, ["data.options.prompts is 0", "at least 1"]),
    ({"prompts": 2.5}, ["data.options.prompts is 2.5"]),
    ({"prompts": True}, ["data.options.prompts is True"]),
    ({"p_leave_out": 1.5}, ["data.options.p_leave_out is 1.5", "in [0, 1]"]),
    ({"p_leave_out": "half"}, ["data.options.p_leave_out is 'half'"]),
    ({"demonstrations": "ful"}, ["data.options.demonstrations is 'ful'", "must be 'full' or 'terse'"]),
    ({"seed": -1}, ["data.options.seed is -1"]),
]
OWN = {
    "chain_arithmetic": [
        ({"min_operations": 0}, ["data.options.min_operations is 0"]),
        ({"max_operations": 101}, ["data.options.max_operations is 101", "in [1, 100]"]),
        (
            {"min_operations": 5, "max_operations": 3},
            ["data.options.min_operations is 5, more than max_operations 3"],
        ),
    ],
    "skills": [
        ({"families": ["sums"]}, ["data.options.families.0 is 'sums'"]),
        ({"min_level": 0}, ["data.options.min_level is 0"]),
        ({"max_level": 9}, ["data.options.max_level is 9", "in [1, 8]"]),
        ({"min_level": 3, "max_level": 2}, ["data.options.min_level is 3, more than max_level 2"]),
        ({"trivial": 1.5}, ["data.options.trivial is 1.5", "in [0, 1]"]),
        ({"hopeless": -0.1}, ["data.options.hopeless is -0.1"]),
        ({"trivial": 0.6, "hopeless": 0.5}, ["data.options.trivial is 0.6 and hopeless 0.5, more than 1 together"]),
        ({"hopeless_length": 0}, ["data.options.hopeless_length is 0"]),
        ({"wrong_golds": 2}, ["data.options.wrong_golds is 2"]),
    ],
}


@pytest.mark.parametrize(
    ("task", "options", "words"), [(task, *case) for task in TASKS for case in [*SHARED, *OWN[task]]]
)
def test_bad_options_are_named(task, options, words):
    with pytest.raises(ConfigError) as caught:
        load_prompts(DataConfig(task=task, options=options), seed=0)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_split_is_named(task):
    with pytest.raises(ConfigError, match=r"data.split is 'held-out'. Did you mean 'held_out'"):
        load_prompts(DataConfig(task=task, split="held-out"), seed=0)
