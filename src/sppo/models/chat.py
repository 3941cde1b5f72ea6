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
