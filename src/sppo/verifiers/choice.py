r"""The `choice` verifier: is the letter that a response settles on the gold letter?

The answer stands in the tags or the box where the verifier `math` looks for it (`sppo.verifiers.extraction`); else in
the last "the answer is B", "option B" or "B is correct" of the text, or in another last statement that `math` knows, or
it is the whole last line. It is a letter, bare or as
(B), B., **B**, Option B, "B) 12 km" or "B because ..."; where the row has a column `choices` or `options`, the text of
exactly one choice will do too. Where the gold answer is several letters, such as AD, the answer names all of them and
no other, as "AD", "A, D" or "(A) and (D)". "A or B", two boxes and a letter in running prose ("A train ...") score 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sppo.config.verification import Extraction
from sppo.types import Submission, Verdict
from sppo.verifiers.columns import choices_of
from sppo.verifiers.extraction import find_answer
from sppo.verifiers.math.answers import Rules, compare
from sppo.verifiers.math.boxes import text_after_thinking
from sppo.verifiers.math.latex import normalise
from sppo.verifiers.math.verifier import MAX_ANSWER, equal_without_sympy
from sppo.verifiers.tools import Tools
from sppo.verifiers.verifier import Gold

_READ = 2000
_STATEMENT = re.compile(
    r"\b(?:answer|option|choice)\b(?:[ \t]+(?:is|would be|must be|should be))?"
    r"[ \t]*:?[ \t]*(?:(?:option|choice)[ \t]+)?"
    r"(?=([$*(\[\\]{0,4}(?:text\{\(?)?(?-i:[A-Z])(?![A-Za-z'’])[^\n]{0,200}))",
    re.IGNORECASE,
)
_NAME = r"(?:(?i:option|choice|answer|letter)\s*:?\s*)?"
_LETTER = re.compile(rf"{_NAME}[(\[]?\s*(?P<letter>[A-Za-z])\s*[)\]]?")
_EXPLAINED = re.compile(
    rf"{_NAME}(?:[(\[]\s*(?P<bracketed>[A-Z])\s*[)\]]\s*[:.\-]?|(?P<marked>[A-Z])\s*(?:[).:]|-\s|(?=\(|,?\s*(?:because|since|as|which)\b)))"
    r"\s*(?P<rest>\S.*)",
    re.DOTALL,
)
_ANOTHER = re.compile(
    r"\b(?i:or|and|either|both|maybe|perhaps|also|as well as|actually|wait|rather|instead|equals"
    r"|alternatively|unless|second thoughts?|(?:could|may|might) be)\b.{0,20}?"
    r"(?<![A-Za-z])[(\[]?[A-Z](?![A-Za-z])"
    r"|\A[(\[]?[A-Z](?:[)\].]|\Z)|(?<![A-Za-z(\[])[(\[]?[A-J]\s*[)\]:]|\b[A-J] is (?:also|too|right|correct)\b"
)
_RULED_OUT = re.compile(
    r"(?:\b(?:not|never|nor|neither|than|unlike|eliminat\w*|rul\w+ out|exclud\w*|reject\w*|discard\w*|avoid\w*)"
    r"|n['’]t)\b[^.!?,;\n]{0,20}\Z",
    re.IGNORECASE,
)
"""What stands before an option that is named in order to turn it down."""
_SEVERAL_GOLD = re.compile(r"(?=[A-Z]{2,26}\Z)A?B?C?D?E?F?G?H?I?J?K?L?M?N?O?P?Q?R?S?T?U?V?W?X?Y?Z?")
"""Several letters in their order, each once."""
_SEVERAL = re.compile(r"(?:(?i:options?|choices?|answers?):?)?[(\[]?[A-Z][)\]]?(?:(?:,|;|/|&|and)*[(\[]?[A-Z][)\]]?)*")
"""Letters and what stands between them, without white space."""
_CORRECT = re.compile(
    r"(?<![A-Za-z])[(\[]?(?P<letter>[A-Z])[)\]]? is (?:the )?(?:correct|right|best)(?: (?:answer|option|choice|one))?"
)
_NOT_ALONE = re.compile(r"\b(?:and|or|nor|both|neither|either|whether|if)\b[^.;\n]{0,20}\Z", re.IGNORECASE)
_SHOWN = 200


def grade(submissions: Sequence[Submission], tools: Tools) -> list[Verdict]:
    """One verdict a response; strings only, nothing that could fail."""
    extraction = tools.options.extraction
    return [judge(given.response, given.gold or "", choices_of(given.columns), extraction) for given in submissions]


def reference(submission: Submission) -> str | None:
    """A response that gives the gold letter."""
    return None if submission.gold is None else f"<answer>\\boxed{{{submission.gold}}}</answer>"


def read_gold(given: Submission) -> Gold:
    """The letter, with the text of its choice where the row has its choices."""
    gold = normalise((given.gold or "")[:_SHOWN])
    letter = _LETTER.fullmatch(gold)
    text = choices_of(given.columns).get(letter["letter"].upper()) if letter else None
    if letter is None and _SEVERAL_GOLD.fullmatch(gold.strip()):
        return Gold(f"the letters {', '.join(gold.strip())}")
    return Gold(f"the letter {letter['letter'].upper() if letter else gold}" + (f": {text[:_SHOWN]}" if text else ""))


def judge(response: str, gold: str, choices: Mapping[str, str], extraction: Extraction = "wide") -> Verdict:
    """Holds the letter of a response against the gold letter."""
    wanted = _LETTER.fullmatch(normalise(gold[:_SHOWN]))
    several = _SEVERAL_GOLD.fullmatch(gold.strip())
    if wanted is None and several is None:
        return Verdict(0.0, None, f"the gold answer {gold[:_SHOWN]!r} is no letter")
    written, also, reason = _find(response, extraction)
    if written is None:
        return Verdict(0.0, None, reason)
    if wanted is None:
        return _judge_several(written if also is None else f"{written}, {also}", gold.strip())
    letter, why = read(written, choices)
    if letter is None:
        return Verdict(0.0, written[:_SHOWN], why)
    if also is not None and read(also, choices)[0] not in (None, letter):
        return Verdict(0.0, written[:_SHOWN], "two different final answers")
    equal = letter == wanted["letter"].upper()
    return Verdict(float(equal), letter, "equal" if equal else "not equal")


def _judge_several(written: str, wanted: str) -> Verdict:
    """Holds the letters of an answer, in any order, against several gold letters, all of which are asked for."""
    text = re.sub(r"\\(?:text\w*|math\w*)\s*|[{}$*\s]", "", normalise(written[:_SHOWN])).rstrip(".!")
    if not _SEVERAL.fullmatch(text):
        return Verdict(0.0, written[:_SHOWN], "not letters alone")
    letters = "".join(sorted(set(re.findall("[A-Z]", text))))
    return Verdict(float(letters == wanted), letters, "equal" if letters == wanted else "not equal")


def _find(response: str, extraction: Extraction) -> tuple[str | None, str | None, str]:
    """Returns the final answer as written, another one after it, and why there is none."""
    found = find_answer(response, extraction)
    final_text = text_after_thinking(response)
    if extraction != "wide" or final_text is None or found.form in ("tags", "box"):
        return found.whole or found.text, found.also, found.reason
    final = final_text.rstrip()[-_READ:]
    said = [one for one in _STATEMENT.finditer(final) if not _RULED_OUT.search(final[: one.start()][-60:])]
    last_line = final[final.rfind("\n") + 1 :].strip()
    closing = _closing(last_line)
    if closing:
        before = re.search("[A-Z]", said[-1][1]) if said else None
        return closing, before[0] if before else None, ""
    if found.whole is not None and (not said or final.rfind(found.whole) > said[-1].end()):
        return found.whole, found.also, ""
    if said:
        same = found.whole is not None and said[-1][1][:_SHOWN].rstrip() in found.whole
        return said[-1][1], found.also if same else None, ""
    return (last_line, None, "") if last_line else (None, None, "no answer")


def _closing(line: str) -> str | None:
    """The one letter that the last line calls correct: Therefore, B is correct."""
    called = list(_CORRECT.finditer(line))
    if len({found["letter"] for found in called}) != 1 or line[called[-1].end() :].strip(".!*) "):
        return None
    before = line[: called[0].start()]
    return None if _RULED_OUT.search(before[-60:]) or _NOT_ALONE.search(before[-60:]) else called[0]["letter"]


def read(written: str, choices: Mapping[str, str]) -> tuple[str | None, str]:
    """Returns (letter, "") of an answer as written, or (None, why it is none)."""
    if len(written) > MAX_ANSWER:
        return None, f"answer longer than {MAX_ANSWER} characters"
    text = re.sub(r"\\text\s*|[{}$]|\*\*", "", normalise(written)).strip().rstrip("!")
    letter = _LETTER.fullmatch(text)
    if letter:
        return letter["letter"].upper(), ""
    explained = _EXPLAINED.fullmatch(text)
    if explained:
        chosen = explained["bracketed"] or explained["marked"]
        rest = explained["rest"]
        other = _named(rest[1:-1] if rest.startswith("(") and rest.endswith(")") else rest, choices)
        if _ANOTHER.search(rest) or other not in (None, chosen):
            return None, "more than one choice"
        return chosen, ""
    named = _named(written, choices)
    return (named, "") if named else (None, "not one letter, nor the text of one choice")


def _named(text: str, choices: Mapping[str, str]) -> str | None:
    """Returns the letter of the only choice that has this text, or is equal to it as a plain number."""
    answer = normalise(text)
    rules = Rules(equal_without_sympy)
    same = [
        label
        for label, choice in choices.items()
        if choice.strip() and len(choice) <= MAX_ANSWER
        if normalise(choice).casefold() == answer.casefold() or compare(normalise(choice), answer, rules)
    ]
    return same[0] if len(same) == 1 else None
