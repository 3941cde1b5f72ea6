r"""The `math` verifier: does the final answer of a response equal the gold answer?

What counts: the final answer as `sppo.verifiers.extraction` finds it, compared exactly. Decisions where graders differ,
all on the strict side:

- A unit, degree, currency or percent sign may be left out, but two different ones never agree. The value is never
  rescaled: 5\% equals 5, and neither equals 0.05 or 500.
- Decimals are exact: 27.0 equals 27, 0.333 does not equal 1/3, 3.14 does not equal \pi.
- "A or B" counts only where the gold answer has as many alternatives; sets and bare lists have no order, tuples do.
- Two different final answers, in one statement or one after the box, are wrong.
- What stands before \approx counts. Of x = 2 + 3 = 5 every value has to be right.
- A sum, integral, limit, gcd or the like that is left to be worked out is no answer, unless the gold answer has one.
- An answer longer than `MAX_ANSWER` characters is wrong, not an error.

`fast` decides on strings and fractions in the caller; `slow` asks sympy and belongs in a process that can be killed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from sppo.config.verification import Extraction
from sppo.types import Verdict
from sppo.verifiers.extraction import FoundAnswer, find_answer
from sppo.verifiers.math.answers import Rules, compare, key
from sppo.verifiers.math.latex import normalise
from sppo.verifiers.math.numerals import parse_base_numeral, parse_number, parse_ratio
from sppo.verifiers.math.units import split_unit

MAX_ANSWER = 2000
"""Characters of an answer, or twice the gold answer's length if that is more."""

_WORDS = re.compile(r"[A-Za-z]{2,}(?:[ \-'][A-Za-z]+)+|[A-Za-z]{4,}|(?i:yes|no|odd)")
_CHOICE = re.compile(r"\(?([A-Z])[).:]?")
_CAPITALS = re.compile(r"[A-Z]{2,}")
_PLAIN_INTEGER = re.compile(r"-?[0-9]{1,30}")
_TEXT = re.compile(r"\\text\s*\{[^{}]*[a-zA-Z]{2}")
_DROPPED = re.compile(
    r"['\"#@&]|\\(?:prime|equiv|cong|sim|simeq|propto|[hv]?phantom|hspace|label|tag|cancel|vs)(?![a-zA-Z])"
)
_LEFT_OPEN = re.compile(
    r"\\(?:sum|prod|i{0,3}nt|oint|lim|limsup|liminf|max|min|sup|inf|gcd|lcm|det|[bp]?mod|ldots|dots|cdots)(?![a-zA-Z])"
    r"|\\frac\s*\{\s*(?:d|\\partial)[^{}]{0,20}\}\s*\{\s*(?:d|\\partial)\s*[a-zA-Z]|\\operatorname\s*\{\s*(?:gcd|lcm)"
)
_MODULUS = re.compile(r"\\[bp]?mod(?![a-zA-Z])(.*)", re.DOTALL)
_SHOWN = 200


def fast(response: str, gold: str, finished: bool, extraction: Extraction = "wide") -> Verdict | None:
    """Decides by strings and exact fractions; None where only sympy can tell.

    Args:
        response: the whole response as decoded.
        gold: the gold answer, LaTeX or plain, boxed or not.
        finished: not looked at; an answer counts wherever the text has one.
        extraction: where the answer may stand.
    """
    return decide(find_answer(response, extraction), gold, Rules(equal_without_sympy))


def slow(response: str, gold: str, extraction: Extraction = "wide") -> Verdict:
    """Decides with sympy what `fast` left open. May take forever or crash on hostile input: run it in the pool."""
    from sppo.verifiers.math.symbolic import equal_by_sympy

    found = find_answer(response, extraction)
    return conclude(found, gold, Rules(cheap_first(equal_by_sympy)), equal_by_sympy)


def conclude(
    found: FoundAnswer,
    gold: str,
    rules: Rules,
    equal: Callable[[str, str], bool],
    read: Callable[[str], str] = normalise,
) -> Verdict:
    """As `decide`; what the rules leave open is for `equal` to say of the answers as wholes."""
    verdict = decide(found, gold, rules, read)
    if verdict is not None:
        return verdict
    answer = read(found.text or "")
    return _verdict(equal(normalise_gold(gold), answer), answer, "as mathematics")


def decide(found: FoundAnswer, gold: str, rules: Rules, read: Callable[[str], str] = normalise) -> Verdict | None:
    """Compares the final answer with the gold answer; None where the rules leave it open.

    Args:
        found: the response's final answer.
        gold: the gold answer.
        rules: what decides about parts that are not the same string.
        read: brings the answer as written to its one spelling.
    """
    if found.text is None:
        return Verdict(0.0, None, found.reason)
    if len(found.text) > max(MAX_ANSWER, 2 * len(gold)):
        return Verdict(0.0, found.text[:_SHOWN], f"answer longer than {MAX_ANSWER} characters")
    if _contradicts_itself(found):
        return Verdict(0.0, found.text[:_SHOWN], "two different final answers")
    if found.text == gold.strip():
        return _verdict(True, found.text, "as strings")
    if _PLAIN_INTEGER.fullmatch(found.text) and _PLAIN_INTEGER.fullmatch(gold):
        return _verdict(rules.numbers_equal(Fraction(gold), Fraction(found.text)), found.text, "as integers")
    answer, reference = read(found.text), normalise_gold(gold)
    if not set(_LEFT_OPEN.findall(answer)) <= set(_LEFT_OPEN.findall(reference)):
        return Verdict(0.0, answer[:_SHOWN], "left to be worked out")
    equal = compare(reference, answer, rules)
    return None if equal is None else _verdict(equal, answer, "")


def _contradicts_itself(found: FoundAnswer) -> bool:
    """Whether another number is given behind the box; one within 1% is the same, rounded."""
    if found.also is None or found.text is None:
        return False
    box, other = (parse_number(split_unit(normalise(text[:_SHOWN]))[0]) for text in (found.text, found.also))
    return box is not None and other is not None and abs(box - other) > abs(box) / 100


def _verdict(equal: bool, answer: str, how: str) -> Verdict:
    return Verdict(1.0 if equal else 0.0, answer[:_SHOWN], f"{'equal' if equal else 'not equal'} {how}".strip())


def normalise_gold(gold: str) -> str:
    """Returns the gold answer in its one spelling, taken out of its box or its <answer> tags if it has them."""
    found = find_answer(gold) if "boxed" in gold or "</answer>" in gold else None
    return normalise(found.text if found and found.text is not None else gold)


def cheap_first(expensive: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """Asks sympy only about what strings cannot settle."""

    def scalar_equal(gold: str, answer: str) -> bool:
        decided = equal_without_sympy(gold, answer)
        return expensive(gold, answer) if decided is None else decided

    return scalar_equal


def equal_without_sympy(gold: str, answer: str) -> bool | None:
    """Settles words, choices, ratios and numerals of another base, on which sympy has nothing to say."""
    if gold.casefold() == answer.casefold() and (_WORDS.fullmatch(gold) or _capitalised(gold, answer)):
        return True
    gold_choice, answer_choice = _CHOICE.fullmatch(gold), _CHOICE.fullmatch(answer)
    if gold_choice and answer_choice:
        return gold_choice[1] == answer_choice[1]
    if _WORDS.fullmatch(gold) or (_CAPITALS.fullmatch(gold) and _CAPITALS.fullmatch(answer)):
        return False
    for parse in (parse_base_numeral, parse_ratio):
        gold_value, answer_value = parse(gold), parse(answer)
        if gold_value is not None or answer_value is not None:
            return gold_value == answer_value or _ratio_is_fraction(gold, answer)
    # 5 mod 8 and 5 mod 7 are both 5 to the parser, and two classes.
    moduli = [_MODULUS.search(side) for side in (gold, answer)]
    if moduli[0] and moduli[1] and key(moduli[0][1]) != key(moduli[1][1]):
        return False
    # The parser drops these, or reads words as products of letters.
    if any(mark.search(answer) and not mark.search(gold) for mark in (_TEXT, _DROPPED)):
        return False
    if parse_number(gold) is not None and not re.search(r"[\d\\]", answer):
        return False
    # Two numbers side by side are no product.
    if re.search(r"(?<![_^])\d \d", answer):
        return False
    return None


def _capitalised(*words: str) -> bool:
    """Whether these are words of at least three letters, with or without a capital in front: Red and red."""
    return all(re.fullmatch(r"[A-Z]?[a-z]{2,}", word) and len(word) > 2 for word in words)


def _ratio_is_fraction(gold: str, answer: str) -> bool:
    """3:4 equals 3/4, and 2:1 equals 2."""
    ratios, numbers = [parse_ratio(side) for side in (gold, answer)], [parse_number(side) for side in (gold, answer)]
    ratio, number = ratios[0] or ratios[1], numbers[0] if ratios[0] is None else numbers[1]
    return (
        ratio is not None and number is not None and len(ratio) == 2 and ratio[1] != 0 and ratio[0] / ratio[1] == number
    )
