r"""Reads gold answers as a verifier would: what it holds responses against, or why the text is no answer of its kind.

Every text equals itself, so that a worked solution, "9 (in thousands)" or "None" would pass any check by comparing, and
then no right answer would ever earn. What is refused here is what a person would see at a glance to be something else
than an answer. An answer in words, or mathematics that only its own text will match, is none of that.
"""

from __future__ import annotations

import re

from sppo.types import Submission
from sppo.verifiers.extraction import find_answer
from sppo.verifiers.math.answers import take_apart
from sppo.verifiers.math.latex import normalise
from sppo.verifiers.math.numerals import parse_base_numeral, parse_number, parse_ratio
from sppo.verifiers.math.units import split_unit
from sppo.verifiers.math.verifier import fast, normalise_gold
from sppo.verifiers.verifier import Gold

_MARK = "####"
_PLAIN = re.compile(r"-?[0-9]{1,30}")
_ABSENT = re.compile(r"None|NaN|nan|NaT|[Nn]ull|NULL|nil|<NA>|NA|[Nn]/[Aa]|TBD|TODO")
"""What programs write where there is no value; undefined, and none in a \\text{}, are answers."""
_REMARK = re.compile(r"(?P<value>.*\S)\s+\((?P<remark>(?=[^()]*[a-zA-Z]{2})(?!mod\b|base\b)[^()\\^_=<>\d]{2,60})\)")
_LETTERED = re.compile(r"\(?[A-H]\)?[.):]\s*(?=[^\s).:])(?!\s*\Z).*", re.DOTALL)
_LISTED = re.compile(r"\[\s*(?:'.*'|\".*\")\s*\]|\{\s*(?:'\w+'|\"\w+\")\s*:.*\}", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\begin\{.*?\\end\{", re.DOTALL)
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z][a-zA-Z'’]+")
_MOST_WORDS, _MOST_OF_A_SENTENCE = 12, 4
_VERB = re.compile(r"(?<![\\a-zA-Z])(?:is|are|was|were|has|have|had|will|can|gives?|gets?|so|because|therefore|then)\b")
_SENTENCE_END = re.compile(r"[a-z)\d$][.!?]\s+[A-Z][a-z]*\s")
_SHOWN = 200


def taken_from_solution(text: str) -> str | None:
    """Returns the final answer of a worked solution: behind ####, else as in a response; None where it has none.

    A single word or number is one already.
    """
    if _MARK in text:
        return text.rpartition(_MARK)[2].strip() or None
    found = find_answer(text).text or (text if len(text.split()) == 1 else "")
    return found.strip() or None


def taken_before_remark(text: str) -> str | None:
    """Returns what stands before a remark in brackets, 9 of "9 (in thousands)"; the text itself where there is none."""
    parts = [(_REMARK.fullmatch(part.strip()), part.strip()) for part in text.split(";")]
    return "; ".join(noted["value"].strip() if noted else part for noted, part in parts)


def read_math(given: Submission) -> Gold:
    """Reads a gold answer as math and minerva do."""
    gold = (given.gold or "").strip()
    if _PLAIN.fullmatch(gold):
        return Gold(f"the number {int(gold)}")
    text = normalise_gold(gold)
    fault = _why_no_answer(gold, text)
    return Gold(gold[:_SHOWN] if fault else in_words(text)[:_SHOWN], fault)


def _why_no_answer(gold: str, text: str) -> str:
    if _ABSENT.fullmatch(gold) or not re.search(r"\w", text.replace("_", "")):
        return "stands for no value"
    if "\\boxed" in gold or "\\fbox" in gold or "</answer>" in gold:
        return ""  # what is in it is read
    if _MARK in gold:
        return _taken("is a worked solution", "solution", taken_from_solution(gold))
    if _LISTED.fullmatch(gold):
        return "is a list or dict that was stored as text"
    stated = find_answer(gold).text
    if stated is not None and normalise(stated) != text:
        return _taken("is a text that says where its answer is", "solution", taken_from_solution(gold))
    if _LETTERED.fullmatch(gold) and parse_number(normalise(gold)) is None:
        return "is the letter of a choice with its text; with data.verifier choice the letter alone will do"
    if all(map(_is_noted, gold.split(";"))) and not _reads_past_remark(gold):
        return _taken("has a remark in brackets, which no answer has", "noted", taken_before_remark(gold))
    return _why_prose(gold, text)


def _reads_past_remark(gold: str) -> bool:
    """Whether an answer without the remarks is right: verifiers know names of units and things, as in 9 (apples)."""
    verdict = fast(f"\\boxed{{{taken_before_remark(gold)}}}", gold, True)
    return verdict is not None and verdict.reward == 1.0


def _is_noted(gold: str) -> bool:
    """Whether it is a number with a remark in brackets behind it."""
    noted = _REMARK.fullmatch(gold.strip())
    value = split_unit(normalise(noted["value"]))[0] if noted else ""
    return parse_number(value) is not None or parse_ratio(value) is not None


def _why_prose(gold: str, text: str) -> str:
    words = len(_WORD.findall(text)) + gold.endswith(".")
    sentence = words > _MOST_OF_A_SENTENCE and _VERB.search(text)
    if words > _MOST_WORDS or sentence or _SENTENCE_END.search(gold):
        return "is prose; responses give an answer alone"
    if "\n" in gold.strip() and not _ENVIRONMENT.search(gold):
        return "is of several lines; responses give an answer alone"
    opened = sum(gold.count(bracket) for bracket in "([])")
    return "has a bracket without its partner: was it cut off?" if opened % 2 and "\\left." not in gold else ""


def _taken(what: str, form: str, answer: str | None) -> str:
    """A fault with the way out: which option takes the answer out of the text, and what it would be."""
    if not answer:
        return what
    short = answer if len(answer) <= 40 else f"{answer[:40]}..."
    return f"{what}: data.answer_form {form} takes {short!r} out of it"


def in_words(text: str) -> str:
    """Says what a normalised answer is to the verifier: a number, words, several values, an expression."""
    value, unit = split_unit(text)
    number = parse_number(value)
    if number is not None:
        # A fraction of 5,000 digits has no text in Python.
        return f"the number {number if len(value) < 40 else value}" + (f" ({unit})" if unit else "")
    if parse_base_numeral(value) or parse_ratio(value):
        return f"{'the numeral' if parse_base_numeral(value) else 'the ratio'} {value}"
    letter = re.fullmatch(r"\(?([A-Za-z])\)?", value)
    if letter or re.fullmatch(r"[A-Za-z]{2,}(?:[ '-][A-Za-z]+)*", value):
        return f"the letter {letter[1]}" if letter else f"the words {value}"
    answer = take_apart(value)
    if answer.kind == "scalar":
        relation = re.search(r"[=<>]|\\(?:le|ge|ne|in)(?![a-zA-Z])", value)
        return f"{'the statement' if relation else 'the expression'} {value}"
    if answer.kind in ("list", "set"):
        return f"{len(answer.parts)} values in any order: {'; '.join(answer.parts)}"
    return f"{answer.kind if answer.kind.isalpha() else 'tuple or interval'}: {value}"
