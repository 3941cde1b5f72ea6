r"""The `math` verifier: does the final answer of a response equal the gold answer?

What counts: the final answer as `sppo.verifiers.extraction` finds it, compared exactly. Decisions where graders differ,
all on the strict side:

- A unit, degree, currency or percent sign may be left out, but two different ones never agree. The value is never
  rescaled: 5\% equals 5, and neither equals 0.05 or 500.
- Decimals are exact: 27.0 equals 27, 0.333 does not equal 1/3, 3.14 does not equal \pi.
- "A or B" counts only where the gold answer has as many alternatives; sets and bare lists have no order, tuples do.
- Two different final answers, in one statement or one after the box, are wrong.
- What stands before \approx counts. Of x = 2 + 3 = 5 every value has to be right. A left side that only names the value
  (m+n, |S|, f^{-1}(x), P(X=1)) is dropped; an equation that is left to be solved (2x=10) is not.
- A sum, integral, limit, gcd or the like that is left to be worked out is no answer, unless the gold answer has one.
- Order counts in products of matrices, which ^T or ^{-1} gives away, and of vectors; primes, prose and gcd(m,n) count.
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
from sppo.verifiers.math.names import is_quantity, sides
from sppo.verifiers.math.numerals import parse_base_numeral, parse_congruence, parse_number, parse_ratio
from sppo.verifiers.math.units import split_unit

MAX_ANSWER = 2000
"""Characters of an answer, or twice the gold answer's length if that is more."""

_WORDS = re.compile(r"(?![A-Z]{1,3}(?:-[A-Z]{1,3})+\Z)[A-Za-z]{2,}(?:[ \-'][A-Za-z]+)+|[A-Za-z]{4,}|(?i:yes|no|odd)")
_CHOICE = re.compile(r"\(?([A-Z])[).:]?")
_CAPITALS = re.compile(r"[A-Z]{2,}")
_PLAIN_INTEGER = re.compile(r"-?[0-9]{1,30}")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
# The parser drops these; those that relate two things belong to the answer on either side.
_DROPPED = re.compile(r"[\"]|\\(?:[hv]?phantom|hspace|label|tag|cancel|vs)(?![a-zA-Z])")
_MARKS = re.compile(r"['#@&]|\\(?:ldots|equiv|cong|sim|simeq|propto)(?![a-zA-Z])")
_D = r"(?:\{\s*)?(?:d|\\partial|\\text\s*\{\s*d\s*\})(?:\s*\})?"
_OPEN_NAMES = "sum|prod|lim|limsup|liminf|max|min|sup|inf|gcd|lcm|det|[bp]?mod"
_LEFT_OPEN = re.compile(
    rf"\\(i{{0,3}}nt|oint|ldots|{_OPEN_NAMES})(?![a-zA-Z])"
    rf"|\\(?:text|operatorname\*?)\s*\{{\s*({_OPEN_NAMES})\s*\}}"
    rf"|(?<![a-zA-Z\\])(sum|prod|lim|max|min|gcd|lcm|det|int)(?=\s?[(_]|\s?\\\{{)|(?<=\d)\s*(mod)\s*(?=\d)"
    rf"|\\(frac)\s*\{{\s*{_D}(?![a-zA-Z]{{2}})[^{{}}]{{0,20}}\}}\s*\{{\s*{_D}\s*[a-zA-Z]|(?<![a-zA-Z\\])(d)\s*/\s*d\s?[a-z](?![a-zA-Z])"
)
# Only some are numerals of another base; the parser drops all.
_LOWERED = re.compile(r"(?<![\w^.])(\d[\d.,]*)\s*\)?\s*_\s*(\w|\\[a-z]+|\{(?:[^{}]|\{[^{}]*\})*\})")
_MOD = re.compile(r"^[bp](?=mod)")
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
    from sppo.verifiers.math.symbolic import equal_by_sympy, real_number

    rules = Rules(cheap_first(equal_by_sympy), order=real_number, last=True)
    return conclude(find_answer(response, extraction), gold, rules, equal_by_sympy)


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
    if _left_open(answer, reference):
        return Verdict(0.0, answer[:_SHOWN], "left to be worked out")
    equal = compare(reference, answer, rules)
    return None if equal is None else _verdict(equal, answer, "")


def _left_open(answer: str, gold: str) -> bool:
    """Whether the answer has a sum, a limit or the like that the gold answer lacks, other than as its value's name."""
    if not _LEFT_OPEN.search(answer) or parse_number(answer) is not None:
        return False
    first, *values = sides(answer)
    if values and is_quantity(first):
        answer = " = ".join(values)
    return not _open_names(answer) <= _open_names(gold)


def _open_names(text: str) -> set[str]:
    found = [(next(name for name in match.groups() if name), match[0]) for match in _LEFT_OPEN.finditer(text)]
    # Derivatives are alike where they are of the same thing.
    return {re.sub(r"\\text|[{}\s]", "", whole) if name == "frac" else _MOD.sub("", name) for name, whole in found}


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
    if set(_LOWERED.findall(gold)) != set(_LOWERED.findall(answer)):
        return False
    # What the parser drops, or reads as a product of letters, has to stand on both sides.
    if set(_MARKS.findall(gold)) != set(_MARKS.findall(answer)) or _prose(gold) != _prose(answer):
        return False
    if _DROPPED.search(answer) and not _DROPPED.search(gold):
        return False
    if parse_number(gold) is not None and not re.search(r"[\d\\]", answer):
        return False
    # Two numbers side by side are no product.
    return False if re.search(r"(?<![_^])\d \d", answer) else _same_class(gold, answer)


def _same_class(gold: str, answer: str) -> bool | None:
    """Compares residues: 5 mod 8 and 5 mod 7 are both 5 to the parser, and two classes."""
    first, second = parse_congruence(gold), parse_congruence(answer)
    if first and second:
        return first[0] == second[0] and first[2] == second[2] and (first[1] - second[1]) % first[2] == 0
    moduli = [_MODULUS.search(side) for side in (gold, answer)]
    return False if moduli[0] and moduli[1] and key(moduli[0][1]) != key(moduli[1][1]) else None


def _prose(text: str) -> set[str]:
    """The words in \\text{...}, but for those that only join."""
    words = re.findall(r"[a-z]{2,}", " ".join(_TEXT.findall(text)).lower()) if r"\text" in text else []
    return set(words) - {"and", "or"}


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
