"""Parts of the `code` verifier: finding the program, comparing what it printed or returned, plain data on the wire."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict

import pytest

from sppo.verifiers.code.blocks import find_code
from sppo.verifiers.code.comparison import same_output, same_value
from sppo.verifiers.code.wire import NotPlain, decode, encode, from_line, to_line


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("first\n```python\nx = 1\n```\nthen\n```py\nx = 2\n```\nso it prints\n```text\n2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nOutput:\n```\n1\n```", "x = 1\n"),
        ("~~~\nx = 1\n~~~", "x = 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("<think>\n```python\nx = 1\n```\n</think>\n```python\nx = 2\n```", "x = 2\n"),
        ("<think>\n```python\nx = 1\n```\n", "the thinking block is not closed"),
        ("```python\nx = 1\n```\n<think> once more", "the thinking block is not closed"),
        ("```python\nx = 1\n```\n```python\nx = 2", "the last block of code is not closed"),
        ("<think>```python\nx = 1\n```</think> done", "no block of Python code"),
        ("```json\n{}\n```", "no block of Python code"),
        ("1. So:\n   ```python\n   if x:\n       y()\n   ```\nDone.", "if x:\n    y()\n"),
        ("```python\ns = 'a\u2028b\x0cc'\r\nt = 1\n```", "s = 'a\u2028b\x0cc'\nt = 1\n"),
        ("x = 1", "no block of Python code"),
        ("", "no block of Python code"),
    ],
)
def test_the_last_block_of_code_counts(response, expected):
    found = find_code(response)
    assert (found.text if found.text is not None else found.reason) == expected


def test_a_megabyte_of_fences_is_read_at_once():
    assert find_code("```\n" * 250_000).text is not None
    assert find_code("```" + " " * 1_000_000 + "`\n```\nx = 1\n```").text == "x = 1\n"


@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "same"),
    [
        ("1 2\n3\n", "1 2\n3", 0, True),
        ("\n 1  2 \n3", "1 2\n3\n\n", 0, True),
        ("1 2 3", "1 2\n3", 0, False),
        ("0.50", "0.5", 0, True),
        ("1e3", "1000", 0, True),
        ("+7", "7", 0, True),
        ("-0.0", "0", 0, True),
        ("101", "00101", 0, False),
        ("07", "7", 1, False),
        ("0.3333333", "0.3333334", 0, False),
        ("0.3333333", "0.3333334", 1e-6, True),
        ("1000001", "1000000", 1e-6, True),
        ("1000002", "1000000", 1e-6, False),
        ("YES", "yes", 0, False),
        ("nan", "nan", 0, True),
        ("inf", "Infinity", 1, False),
        ("1" * 500, "1" * 499 + "2", 1, False),
        ("1_000", "1000", 0, False),
        ("", "", 0, True),
        ("0", "", 0, False),
    ],
)
def test_printed_lines_are_compared_word_by_word(printed, expected, tolerance, same):
    assert same_output(printed, expected, tolerance) is same


@pytest.mark.parametrize(
    ("value", "expected", "tolerance", "same"),
    [
        ((1, (2, 3)), [1, [2, 3]], 0, True),
        ({1: "a"}, {"1": "a"}, 0, True),
        ({1: 0, "1": 2}, {"1": 2}, 0, False),
        ([{"1": 2, 1: 0}], [{"1": 0}], 0, False),
        ({1, 2}, [1, 2], 0, False),
        (1.0, 1, 0, True),
        (0.1 + 0.2, 0.3, 0, False),
        ([0.1 + 0.2], [0.3], 1e-9, True),
        (10**400, 0.5, 1e-9, False),
        (float("nan"), float("nan"), 1, False),
        ("1", 1, 1, False),
        (None, None, 0, True),
    ],
)
def test_values_are_compared_with_what_json_can_say(value, expected, tolerance, same):
    assert same_value(value, expected, tolerance) is same


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**70), 0.1, float("inf"), 1 + 2j, "é\ud800\n", b"\x00\xff", [1, [2]], (1,), {1, 2},
     {(1, 2): [3]}, frozenset({"a"}), [], {}],
)  # fmt: skip
def test_plain_data_crosses_the_wire_unchanged(value):
    received = decode(from_line(to_line({"value": encode(value)}))["value"])
    assert received == value
    assert type(received) is type(value)


def test_kin_of_dicts_and_iterators_cross_as_plain_ones():
    for kin in (Counter("aab"), OrderedDict(a=2, b=1), defaultdict(int, a=2, b=1)):
        received = decode(encode(kin))
        assert type(received) is dict
        assert received == {"a": 2, "b": 1}
    assert list(decode(encode(x * x for x in range(3)))) == [0, 1, 4]


class _Equal(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize("value", [_Equal(1), [_Equal(1)], {"a": object()}, len, int, type("L", (list,), {})(), ...])
def test_nothing_else_crosses_the_wire(value):
    with pytest.raises(NotPlain, match="which is no plain data"):
        encode(value)


@pytest.mark.parametrize("message", [[], ["l"], ["?", 1], ["i", "x"], ["i", 1], ["d", [[["l", []], 1]]], {"a": 1}, 0.5,
                                     ["f", "1e999999z"], ["c", "0x1p0"], ["l", 5], [["l"], []]])  # fmt: skip
def test_messages_that_say_nothing_are_refused(message):
    with pytest.raises(NotPlain):
        decode(message)
