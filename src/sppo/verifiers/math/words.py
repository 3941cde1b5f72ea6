r"""Answers in words that have one meaning in several wordings: no solution, all real numbers, does not exist."""

from __future__ import annotations

import re

_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_PHRASES = tuple(
    (re.compile(rf"(?:{pattern})[.!]?", re.IGNORECASE), meaning)
    for pattern, meaning in (
        (r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?|(?:the )?empty set", r"\emptyset"),
        (r"(?:all|any|every|the set of(?: all)?|the) reals?(?: numbers?)?(?: [a-z])?", r"\mathbb{R}"),
        (r"(?:the limit |it )?(?:does not|doesn't|do not) exist|d\.?n\.?e\.?", "does not exist"),
        (r"infinitely many(?: solutions)?", "infinitely many"),
    )
)
_ARTICLE = re.compile(r"(?:an?|the) (?=[a-z]{3,}(?: [a-z]+)*\Z)", re.IGNORECASE)
_LETTERED = re.compile(r"(?:\(([A-H])\)|([A-H])\s*[).:])\s*(\S.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-H])[).:]?")
_ANOTHER_LETTER = re.compile(r"(?<![A-Za-z])[A-H]\s*[).:]|(?<![A-Za-z])or(?![A-Za-z])")
_LONGEST = 200


def meaning(text: str) -> str:
    r"""Returns \emptyset for "no solution" and the like; anything else as it is, without an article in front."""
    if len(text) > _LONGEST:
        return text
    plain = " ".join(_TEXT.sub(r"\1", text).split())
    if not re.fullmatch(r"[A-Za-z.!' ]+", plain):
        return text
    for phrase, said in _PHRASES:
        if phrase.fullmatch(plain):
            return said
    return _ARTICLE.sub("", plain, count=1) if _ARTICLE.match(plain) else text


def letters(gold: str, answer: str) -> tuple[str, str] | None:
    """Returns the letters of two choices where one is a letter and the other that with its text, as in C. 3 km."""
    found = [_letter(side) for side in (gold, answer)]
    if found[0] is None or found[1] is None or not any(_LETTERED.fullmatch(side) for side in (gold, answer)):
        return None
    return found[0], found[1]


def _letter(text: str) -> str | None:
    bare = _LETTER.fullmatch(text)
    if bare:
        return bare[1]
    lettered = _LETTERED.fullmatch(text)
    if lettered is None or _ANOTHER_LETTER.search(lettered[3]):
        return None
    return lettered[1] or lettered[2]
