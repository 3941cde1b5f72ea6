"""From places in a decoded response to its tokens. Token ids are the sampled ones; nothing is tokenised again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from transformers import PreTrainedTokenizerBase as Tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are no whole character."""
_MOST_BYTES = 4
"""Bytes of a character in UTF-8."""


def tokens_at(ends: Sequence[int], token_ids: Sequence[int], text: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the token that completes each beginning `text[:end]`: the first with which so much text is there.

    Args:
        ends: places in the text, rising; one beyond the text is the end of the response, its last token.
        token_ids: [T] sampled ids.
        text: them decoded without special tokens.
        tokenizer: of the policy.

    Returns:
        Places in `token_ids`, from 0, one an end.
    """
    final = len(token_ids) - 1
    lengths = _decoded_lengths(token_ids, text, tokenizer)
    if lengths is not None:
        return [min(bisect_left(lengths, end), final) for end in ends]
    # Bytes that are no text at all, or tokens without a text of their own: the beginnings themselves are decoded.
    return [
        bisect_left(range(final), end, key=lambda last: len(_decoded(token_ids[: last + 1], tokenizer))) for end in ends
    ]


def _decoded_lengths(token_ids: Sequence[int], text: str, tokenizer: Tokenizer) -> list[int] | None:
    """[T] characters decoded up to and with each token; None where the tokens one by one don't make up the text.

    A token is decoded behind another one, as many tokenizers drop a space at the beginning of what they decode; and
    tokens that are bytes of one character, together.
    """
    anchor = next((token for token in token_ids if _whole(_decoded([token], tokenizer).strip())), None)
    if anchor is None:
        return None
    skipped = len(_decoded([anchor], tokenizer))
    pieces = {token: _decoded([anchor, token], tokenizer)[skipped:] for token in set(token_ids)}
    said: list[str] = []
    held: list[int] = []
    for place, token in enumerate(token_ids):
        held.append(token)
        if len(held) > place:
            piece = _decoded(held, tokenizer)
        else:
            piece = pieces[token] if len(held) == 1 else _decoded([anchor, *held], tokenizer)[skipped:]
        broken = _BROKEN in piece
        if broken and len(held) == _MOST_BYTES:
            return None
        said.append("" if broken else piece)
        held = held if broken else []
    return list(accumulate(map(len, said))) if "".join(said) == text else None


def _whole(text: str) -> bool:
    return bool(text) and _BROKEN not in text


def _decoded(token_ids: Sequence[int], tokenizer: Tokenizer) -> str:
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text
