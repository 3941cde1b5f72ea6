"""A model's text as plain text to another model's tokenizer: what it spells like a special token is none.

A response may spell `<|im_end|>` and `<|im_start|>user` letter by letter. Tokenised as it stands that is the end of its
turn and the beginning of another, and a model that judges it would read praise as the user's. So such a text is cut
within each of these spellings, and its pieces are tokenised one by one. Text without any is tokenised as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.errors import ModelError
from sppo.models.chat import render
from sppo.types import Prompt


@dataclass(frozen=True)
class CutText:
    """A text, and where it is cut before it is tokenised."""

    text: str
    cuts: tuple[int, ...] = ()
    """Places in the text, rising; none: it is tokenised as a whole."""


class Neutraliser:
    """Finds what a tokenizer would take for its special tokens.

    Args:
        tokenizer: of the model that is to read a response.
    """

    def __init__(self, tokenizer: Tokenizer):
        known = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        # Some tokenizers have marks of turns that they don't call special: those around a user's turn are.
        frame = _frame(tokenizer) if tokenizer.chat_template else ""
        framing = {mark for mark in known if mark in frame and len(mark.strip()) > 1}
        marks = {*tokenizer.all_special_tokens, *framing, *(mark for mark, special in known.items() if special)}
        self._single = {mark for mark in marks if len(mark) == 1}
        longer = sorted((mark for mark in marks if len(mark) > 1), key=len, reverse=True)
        # Found within one another, too: none may be left whole.
        self._longer = re.compile("|".join(f"(?={re.escape(mark)})" for mark in longer) or "(?!)")

    def cut(self, response: str, before: str = "") -> CutText:
        """Returns what stands before a response and the response, which is cut within each spelling of a token."""
        plain = "".join(" " if letter in self._single else letter for letter in response) if self._single else response
        return CutText(before + plain, tuple(len(before) + found.start() + 1 for found in self._longer.finditer(plain)))

    def marked(self, response: str, mark: str) -> str:
        """Returns a response with a mark at each of its cuts, for a chat template that moves it about."""
        return mark.join(pieces(self.cut(response)))


def _frame(tokenizer: Tokenizer) -> str:
    """Returns what a chat template writes around a user's turn; nothing where it refuses one that stands alone."""
    try:
        return render(Prompt("an empty turn", ({"role": "user", "content": ""},)), tokenizer, open_turn=False)
    except ModelError:
        return ""


def pieces(given: CutText) -> list[str]:
    """Returns the pieces of a text."""
    ends = [*given.cuts, len(given.text)]
    return [given.text[start:end] for start, end in zip([0, *given.cuts], ends, strict=True)]


def unmarked(text: str, mark: str) -> CutText:
    """Returns a text with its marks taken out, and cut there."""
    cuts, length = [], 0
    *before_marks, _ = text.split(mark)
    for piece in before_marks:
        length += len(piece)
        cuts.append(length)
    return CutText(text.replace(mark, ""), tuple(cuts))


def unused_letter(texts: Sequence[str]) -> str:
    """Returns a letter of Unicode's private use that none of the texts has."""
    used = set().union(*texts)
    return next(letter for letter in map(chr, range(0xE000, 0xF8FF)) if letter not in used)


@dataclass(frozen=True)
class Encoded:
    """A text as a model reads it."""

    input_ids: list[int]
    token_type_ids: list[int]
    """Which of two texts each token belongs to."""
    spans: list[tuple[int, int]]
    """Where each token stands in the text, of a pair in its own; (0, 0) for what the tokenizer adds. Fast ones only."""


def encode_pieces(tokenizer: Tokenizer, texts: Sequence[CutText], *, special: bool) -> Encoded:
    """Tokenises a text, or a pair of texts, piece by piece.

    Args:
        tokenizer: of the model that reads it.
        texts: one or two.
        special: whether the tokenizer adds its own special tokens around them.
    """
    said = [[tokenizer(piece, add_special_tokens=False) for piece in pieces(given) if piece] for given in texts]
    if not tokenizer.is_fast:
        ids = [[token for piece in of_text for token in piece["input_ids"]] for of_text in said]
        if not special:
            return Encoded(ids[0], [0] * len(ids[0]), [])
        types = tokenizer.create_token_type_ids_from_sequences(*ids)
        return Encoded(tokenizer.build_inputs_with_special_tokens(*ids), types, [])
    whole = [Encoding.merge([piece.encodings[0] for piece in of_text], growing_offsets=False) for of_text in said]
    made = tokenizer.backend_tokenizer.post_process(*whole, add_special_tokens=special)
    spans = iter(
        (start + first, start + last)
        for given, of_text in zip(texts, said, strict=True)
        for start, piece in zip(_starts(given), of_text, strict=True)
        for first, last in piece.encodings[0].offsets
    )
    return Encoded(made.ids, made.type_ids, [(0, 0) if added else next(spans) for added in made.special_tokens_mask])


def _starts(given: CutText) -> list[int]:
    return [start for start, piece in zip([0, *given.cuts], pieces(given), strict=True) if piece]
