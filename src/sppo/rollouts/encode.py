"""From prompts and demonstrations to token ids: nothing else in the house tokenises text."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config import DataConfig
from sppo.errors import ConfigError, DataError
from sppo.models.chat import render
from sppo.models.packing import TokenRow
from sppo.types import Prompt, TokenIds, as_token_ids


def encode(prompt: Prompt, tokenizer: Tokenizer) -> TokenIds:
    """Returns the prompt's token ids. A chat template writes its special tokens itself; plain text gets them here."""
    return encode_many([prompt], tokenizer)[0]


def encode_many(prompts: list[Prompt], tokenizer: Tokenizer) -> list[TokenIds]:
    """`encode` for many prompts at once, those that were not encoded lately.

    A choice of prompts looks at several times as many as it takes, step after step, and a chat template costs more than
    a small critic's forward.
    """
    known = _ENCODED.setdefault(tokenizer, _Encoded())
    if known.template != tokenizer.chat_template:
        known.template, known.rows, known.bytes = tokenizer.chat_template, {}, 0
    keys = [_key(prompt) for prompt in prompts]
    new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known.rows}
    made = dict(zip(new, _encode(list(new.values()), tokenizer), strict=True))
    encoded = [made[key] if key in made else known.rows[key] for key in keys]
    size = sum(ids.nbytes + _OF_A_ROW for ids in made.values())
    if known.bytes + size > _MOST_BYTES:
        known.rows, known.bytes = {}, 0
    if size <= _MOST_BYTES:  # not a whole pool at once, as it is read when a run begins
        known.rows |= made
        known.bytes += size
    return encoded


_MOST_BYTES = 2**26
"""Taken by what is remembered for each tokenizer."""
_OF_A_ROW = 256
"""Bytes of a remembered prompt beside its tokens: an array and its place, the text being the prompt's own."""


@dataclass
class _Encoded:
    """What a tokenizer has made of prompts lately."""

    template: Any = None
    """The chat template that it had."""
    rows: dict[Hashable, TokenIds] = field(default_factory=dict)
    bytes: int = 0


_ENCODED: WeakKeyDictionary[Tokenizer, _Encoded] = WeakKeyDictionary()


def _key(prompt: Prompt) -> Hashable:
    content = prompt.content
    return content if isinstance(content, str) else tuple(tuple(message.items()) for message in content)


def _encode(prompts: list[Prompt], tokenizer: Tokenizer) -> list[TokenIds]:
    templated = [not isinstance(prompt.content, str) and bool(tokenizer.chat_template) for prompt in prompts]
    encoded: list[TokenIds] = [as_token_ids([])] * len(prompts)
    for special in (False, True):
        rows = [row for row, chat in enumerate(templated) if chat != special]
        if rows:
            texts = [render(prompts[row], tokenizer) for row in rows]
            for row, ids in zip(rows, tokenizer(texts, add_special_tokens=special)["input_ids"], strict=True):
                encoded[row] = as_token_ids(ids)
    return encoded


def opens_thinking(prompt: Prompt, tokenizer: Tokenizer) -> bool:
    """Whether the chat template itself opens the thinking block, so that the response starts inside it."""
    return render(prompt, tokenizer).rstrip().endswith("<think>")


def filter_overlong(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, config: DataConfig, key: str = "data"
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """Leaves out prompts longer than max_prompt_tokens, or refuses them, as the config says.

    Returns:
        The prompts kept, and a note that counts the others.

    Raises:
        DataError: overlong prompts where they are refused, or no prompt left.
    """
    lengths = [len(ids) for ids in encode_many(list(prompts), tokenizer)]
    empty = [prompt.id for prompt, length in zip(prompts, lengths, strict=True) if length == 0]
    if empty:
        raise DataError(f"{len(empty)} prompts have no tokens at all, the first is {empty[0]!r}. Leave such rows out.")
    limit = config.max_prompt_tokens
    kept = tuple(prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= limit)
    overlong = [p.id for p, length in zip(prompts, lengths, strict=True) if length > limit]
    if not overlong:
        return kept, ()
    shown = ", ".join(overlong[:5]) + (", ..." if len(overlong) > 5 else "")
    found = f"{len(overlong)} of {len(prompts)} prompts are longer than {key}.max_prompt_tokens {limit} ({shown})"
    longest = f"The longest has {max(lengths)} tokens."
    if config.bad_rows == "refuse":
        raise DataError(f"{found}. {longest} Raise the limit, or set {key}.bad_rows to filter.")
    if not kept:
        raise DataError(f"{found}, so none is left. {longest} Raise the limit.")
    return kept, (f"{found}; left out.",)


def require_context(prompt_tokens: int, response_tokens: int, length: int | None, name: str) -> None:
    """Refuses sequences longer than a model's context.

    Args:
        prompt_tokens: longest prompt.
        response_tokens: longest response.
        length: of the context; None: any.
        name: of the model, for the message.

    Raises:
        ConfigError: names the lengths.
    """
    wanted = prompt_tokens + response_tokens
    if length is not None and wanted > length:
        raise ConfigError(
            f"data.max_prompt_tokens {prompt_tokens} + sampling.max_response_tokens {response_tokens} = {wanted} "
            f"tokens, but {name} was made for {length}. Lower one of them."
        )


def encode_demonstrations(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> list[TokenRow]:
    """Returns prompt ids and response ids (end token included) of each demonstration.

    Raises:
        DataError: a prompt has no demonstration.
    """
    without = [prompt.id for prompt in prompts if not prompt.demonstration]
    if without:
        raise DataError(
            f"{len(without)} of {len(prompts)} prompts have no demonstration to learn from (the first is "
            f"{without[0]!r}). Give rows a column named demonstration, or leave the fine-tuning phases out."
        )
    texts = [prompt.demonstration for prompt in prompts]
    responses = tokenizer(texts, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [
        TokenRow(ids, as_token_ids([*response, end]))
        for ids, response in zip(encode_many(list(prompts), tokenizer), responses, strict=True)
    ]
