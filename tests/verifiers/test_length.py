"""The length verifier: 1 up to the limit, a linear fall over the soft zone, then 0."""

from __future__ import annotations

import pytest

from sppo.config.verification import LengthOptions, VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Submission
from sppo.verifiers import VERIFIERS
from sppo.verifiers.tools import Tools
from sppo.verifiers.verify import verify


def tools(**options: int) -> Tools:
    return Tools(VerificationConfig(length=LengthOptions(**options)))


def reward(tokens: int, **options: int) -> float | None:
    return VERIFIERS["length"].grade([Submission("", None, tokens=tokens)], tools(**options))[0].reward


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 1.0), (100, 1.0), (101, 0.975), (110, 0.75), (130, 0.25), (140, 0.0), (1000, 0.0)]
)
def test_falls_linearly_over_the_soft_zone(tokens, expected):
    assert reward(tokens, limit=100, soft=40) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("tokens", "expected"), [(100, 1.0), (101, 0.0)])
def test_without_a_soft_zone_it_is_all_or_nothing(tokens, expected):
    assert reward(tokens, limit=100) == expected


def test_a_length_that_nobody_counted_is_an_error_and_not_a_zero():
    verdict = VERIFIERS["length"].grade([Submission("a b c", None)], tools(limit=5))[0]
    assert verdict.reward is None
    assert verdict.error == "the response's length in tokens is not known"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "limit is not set.*--verification.length.limit 512"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": 5, "soft": -1}, "soft is -1"),
    ],
)
def test_options_that_cannot_work_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        verify("a", None, "length", options=tools(**options).options)


def test_it_needs_no_gold():
    assert not VERIFIERS["length"].needs_gold
