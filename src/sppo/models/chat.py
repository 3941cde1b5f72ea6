"""From a prompt to the text and the token ids that a model reads."""

from __future__ import annotations

import jinja2
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.errors import ModelError
from sppo.types import Prompt


def render(prompt: Prompt, tokenizer: Tokenizer, *, open_turn: bool = True) -> str:
    """Returns the prompt's text: through the chat template for messages, where the tokenizer has one.

    Args:
        prompt: text or chat turns.
        tokenizer: whose template it is.
        open_turn: begin the assistant's turn; False where the turns end with the assistant's own.
    """
    if isinstance(prompt.content, str) or not tokenizer.chat_template:
        return prompt.text
    messages = [dict(message) for message in prompt.content]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)
    except jinja2.TemplateError as error:
        raise ModelError(
            f"The tokenizer's chat template refuses prompt {prompt.id!r}: {error}. Change the prompt's messages "
            "(data.system_prompt adds a system message), or give another tokenizer."
        ) from error
    assert isinstance(text, str)
    return text


def encode(prompt: Prompt, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the prompt's token ids. A chat template writes its special tokens itself; plain text gets them here."""
    return encode_many([prompt], tokenizer)[0]


def encode_many(prompts: list[Prompt], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """`encode` for many prompts at once, which fast tokenizers do in parallel."""
    templated = [not isinstance(prompt.content, str) and bool(tokenizer.chat_template) for prompt in prompts]
    encoded: list[tuple[int, ...]] = [()] * len(prompts)
    for special in (False, True):
        rows = [row for row, chat in enumerate(templated) if chat != special]
        if rows:
            texts = [render(prompts[row], tokenizer) for row in rows]
            for row, ids in zip(rows, tokenizer(texts, add_special_tokens=special)["input_ids"], strict=True):
                encoded[row] = tuple(ids)
    return encoded


def opens_thinking(prompt: Prompt, tokenizer: Tokenizer) -> bool:
    """Whether the chat template itself opens the thinking block, so that the response starts inside it."""
    return render(prompt, tokenizer).rstrip().endswith("<think>")
