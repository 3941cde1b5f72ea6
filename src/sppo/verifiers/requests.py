"""Whether a prompt asks for the form that its verifier reads: a response in another form can never earn."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sppo.config.verification import VerificationConfig


@dataclass(frozen=True)
class Request:
    """What a prompt would say to ask for a form."""

    pattern: re.Pattern[str]
    form: str
    """In words for people."""

    def stands_in(self, prompt: str) -> bool:
        """Whether a prompt's text asks for it."""
        return self.pattern.search(prompt) is not None


def _request(pattern: str, form: str) -> Request:
    return Request(re.compile(pattern, re.IGNORECASE), form)


_BOX = _request(r"boxed", r"\boxed{...}")
_TAGS = _request(r"<answer>", "<answer>...</answer>")
# A prompt that ends in "Answer:" leaves nothing of it to the response.
_STATED = r"answer[\"'”’*]{0,2}\s*[:：](?!\s*\Z)|[\"'“‘]the (?:final )?answer is|####|答案\s*[:：]"
_WIDE = _request(rf"boxed|<answer>|{_STATED}", r'\boxed{...}, <answer>...</answer> or a last line "Answer: ..."')
_LETTER = _request(rf"boxed|<answer>|{_STATED}|letter|option|choice|\bA\)|\(A\)|选", "the letter of a choice")
_MARK = _request(r"#", "a # in front of the final answer")


def request_of(verifier: str, options: VerificationConfig) -> Request | None:
    """Returns what a prompt would ask for, so that this verifier can read responses; None where any form will do."""
    if verifier in ("math", "minerva", "choice"):
        wide = _LETTER if verifier == "choice" else _WIDE
        return {"wide": wide, "box": _BOX, "tags": _TAGS}[options.extraction]
    if verifier == "format" and options.format.one_box:
        return _BOX
    return _MARK if verifier == "final_answer" else None
