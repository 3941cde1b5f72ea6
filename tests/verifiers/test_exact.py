"""Verifiers that compare plain text."""

from __future__ import annotations

import pytest

from sppo.verifiers.exact import exact, final_answer


@pytest.mark.parametrize(
    ("response", "gold", "finished", "right"),
    [
        ("abc", "abc", True, True),
        ("  a  b\n", "a b", True, True),
        ("abcd", "abc", True, False),
        ("abc", "abc", False, False),
        ("", "", True, False),
    ],
)
def test_exact(response, gold, finished, right):
    assert exact(response, gold, finished).reward == float(right)


@pytest.mark.parametrize(
    ("response", "gold", "finished", "right"),
    [
        ("+18-35+27#7", "7", True, True),
        ("+18-35+27#7", "7", False, False),
        ("+18-35+27#-7", "7", True, False),
        ("#7#8", "8", True, True),
        ("#7#8", "7", True, False),
        ("7", "7", True, False),
        ("7#", "7", True, False),
        ("She has 7.\n#### 1,007", "1007", True, True),
        ("She has 7.\n#### 1007", "steps\n#### 1,007", True, True),
        ("#### 7 eggs", "7", True, False),
        ("#77", "7", True, False),
        ("#", "", True, False),
    ],
)
def test_final_answer(response, gold, finished, right):
    assert final_answer(response, gold, finished).reward == float(right)
