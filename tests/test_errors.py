"""What a model or a file wrote is shown as text, and does nothing to a screen."""

from __future__ import annotations

import copy
import json
import pickle
import unicodedata

import pytest

from sppo.errors import ConfigError, DataError, visible

TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
PEOPLE = "x\ty\nz \\frac{1}{2} ½ ± é 漢字 👩‍👩‍👧 שלום क्‍ष \xa0\xad"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;ZXZpbA==\x07", r"\u001b]52;c;ZXZpbA==\u0007"),
        ("\x1b]0;title\x1b\\", r"\u001b]0;title\u001b" "\\"),
        ("\x1b[2J\x9b31m", r"\u001b[2J\u009b31m"),
        ("a\rb\bc\x00\x7f", r"a\rb\bc\u0000\u007f"),
        ("user\u202egnp.exe \u2066x\u2069\u200f", r"user\u202egnp.exe \u2066x\u2069\u200f"),
        ("a\u2028b\x85c", r"a\u2028b\u0085c"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\udb40\udc41"),
        # What people write stays as it is.
        (PEOPLE, PEOPLE),
    ],
)  # fmt: skip
def test_what_would_act_on_a_terminal_is_spelled_out(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


def test_no_control_character_is_left_but_tabs_and_line_ends():
    for number in range(0x110000):
        character = chr(number)
        acts = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character not in "\t\n"
        if acts or unicodedata.bidirectional(character) in TURNS:
            assert visible(character) != character


def test_json_stays_the_same_json():
    value = {"a\x1b": ["\x9b\u202e", "\U000e0041\x7f", "\ud83d"]}
    text = json.dumps(value, ensure_ascii=False)
    assert json.loads(visible(text)) == value
    assert visible(text) != text


def test_errors_show_what_they_quote():
    error = DataError("row 3 holds \x1b]0;x\x07", 3)
    assert str(ConfigError("found \x1b[2J")) == r"found \u001b[2J"
    assert error.args == (r"row 3 holds \u001b]0;x\u0007", 3)
    assert pickle.loads(pickle.dumps(error)).args == copy.copy(error).args == error.args
