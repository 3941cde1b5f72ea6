"""From a prompt to the text that a model reads: chat templates, their arguments, and their limits.

A template comes with a model, and is code: it is tried once, in a process that is killed when it takes too much, before
it is used in ours. Arguments, such as enable_thinking, become defaults at the head of the template, so that whatever is
saved with the tokenizer (checkpoints, a critic) writes chats as they were written in training.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.errors import ConfigError, ModelError, did_you_mean
from sppo.models import template_trial
from sppo.types import Prompt

_KEY = "model.chat_template_arguments"
_OURS = {"messages", "add_generation_prompt", "continue_final_message", "chat_template"}
"""What a template is given anyway."""
_BROKEN = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError,
    MemoryError,
)  # fmt: skip
"""What a template may raise."""
_MEGABYTES, _CPU_SECONDS, _SECONDS, _CHARACTERS = 1024, 10, 60, 1_000_000
"""What a template may take for a chat of two short turns: a usual one takes a thousandth of it."""


def render(prompt: Prompt, tokenizer: Tokenizer, *, open_turn: bool = True) -> str:
    """Returns the prompt's text: through the chat template for messages, where the tokenizer has one.

    Args:
        prompt: text or chat turns.
        tokenizer: whose template it is.
        open_turn: begin the assistant's turn; False where the turns end with the assistant's own.

    Raises:
        ModelError: the template refuses the prompt, or breaks on it.
    """
    if isinstance(prompt.content, str) or not tokenizer.chat_template:
        return prompt.text
    messages = [dict(message) for message in prompt.content]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)
    except _BROKEN as error:
        raise ModelError(
            f"The tokenizer's chat template refuses prompt {prompt.id!r}: {error}. Change the prompt's messages "
            "(data.system_prompt adds a system message), or give another tokenizer."
        ) from error
    assert isinstance(text, str)
    return text


def set_arguments(tokenizer: Tokenizer, arguments: Mapping[str, Any]) -> None:
    """Makes arguments the chat template's own defaults.

    Raises:
        ConfigError: there is no template, it doesn't read one of them, or a value can't be written in it.
    """
    if not arguments:
        return
    if not tokenizer.chat_template:
        raise ConfigError(f"{_KEY} is {dict(arguments)}, but the tokenizer has no chat template that could read it.")
    head = "".join(
        f"{{% set {name} = {name} | default({_literal(value, name)}) %}}" for name, value in arguments.items()
    )
    # The empty expression keeps jinja from dropping a line break that the template begins with.
    head += "{{ '' }}"
    template = tokenizer.get_chat_template()
    if template.startswith(head):
        return  # A checkpoint's: it was saved with them.
    read = jinja2.meta.find_undeclared_variables(template_trial.environment().parse(template)) - _OURS
    for name in arguments:
        if name not in read:
            raise ConfigError(
                f"{_KEY} has {name!r}, which the chat template doesn't read.{did_you_mean(name, sorted(read))}"
            )
    tokenizer.chat_template = head + template
    require_limits(tokenizer, "this model")


def _literal(value: Any, name: str) -> str:
    """A plain value as jinja writes it.

    Raises:
        ConfigError: it is none.
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_literal(part, name) for part in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(key, name)}: {_literal(part, name)}' for key, part in value.items())}}}"
    raise ConfigError(f"{_KEY}.{name} is {value!r}, which is no plain value.")


def require_limits(tokenizer: Tokenizer, name: str) -> None:
    """Tries the chat template of a tokenizer, if it has one, where it can be killed.

    Raises:
        ModelError: it takes too much time or memory, or is no template.
    """
    templates = tokenizer.chat_template or {}
    for template in templates.values() if isinstance(templates, Mapping) else [templates]:
        wrong = _tried(template, tuple(sorted(tokenizer.special_tokens_map.items(), key=str)))
        if wrong:
            raise ModelError(
                f"The chat template of {name} {wrong}. It is not used: give another tokenizer with model.tokenizer, or "
                "a copy of the model's folder with a template that you trust."
            )


@lru_cache(maxsize=64)
def _tried(template: str, special_tokens: tuple[tuple[str, Any], ...]) -> str:
    """What is wrong with a template; empty where it keeps the limits."""
    user, assistant = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}
    asked = {
        "template": template,
        "variables": {name: token for name, token in special_tokens if isinstance(token, str)},
        "chats": [
            {"messages": [user], "add_generation_prompt": True},
            {"messages": [{"role": "system", "content": "Be brief."}, user, assistant], "add_generation_prompt": False},
        ],
        "megabytes": _MEGABYTES,
        "seconds": _CPU_SECONDS,
    }
    command = [sys.executable, "-P", str(Path(template_trial.__file__))]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"takes more than {_SECONDS} s for a chat of two short turns"
    if done.returncode < 0:
        return f"takes more than {_CPU_SECONDS} s or {_MEGABYTES} MiB for a chat of two short turns"
    if done.returncode:
        return f"could not be tried: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    said = json.loads(done.stdout)
    if said.get("characters", 0) > _CHARACTERS:
        return f"makes {said['characters']:,} characters of a chat of two short turns"
    return str(said.get("error", ""))
