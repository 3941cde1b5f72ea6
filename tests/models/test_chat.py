"""Chat templates: arguments that become defaults, and limits for templates that come with somebody's model."""

from __future__ import annotations

import re

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sppo.config import ModelConfig
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, ModelError
from sppo.models import chat
from sppo.models.chat import render, require_limits, set_arguments
from sppo.models.loading import load_tokenizer
from sppo.models.tokenizers import character_tokenizer
from sppo.training.given import Given, load_given_tokenizer
from sppo.types import Prompt

TEMPLATE = (
    "\n{%- for message in messages %}\n<{{ message.role }}>{{ message.content }}</>{% endfor %}\n"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    "{% if name is defined %}{{ name | tojson }}{% endif %}{% endif %}"
)
HELLO = Prompt("p", ({"role": "user", "content": "1+1="},))


def tokenizer_with(template: str | None) -> PreTrainedTokenizerFast:
    made = character_tokenizer(ALPHABET)
    made.chat_template = template
    return made


def saved(tmp_path, template):
    folder = str(tmp_path / "tokenizer")
    tokenizer_with(template).save_pretrained(folder)
    return folder


def test_arguments_become_the_templates_defaults():
    tokenizer = tokenizer_with(TEMPLATE)
    plain = render(HELLO, tokenizer)
    assert plain.endswith("<assistant>")
    set_arguments(tokenizer, {"enable_thinking": False})
    assert render(HELLO, tokenizer) == plain + "<think></think>"
    # Whoever renders it may still say otherwise.
    messages = [dict(message) for message in HELLO.content]
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        == plain
    )
    once = tokenizer.chat_template
    set_arguments(tokenizer, {"enable_thinking": False})
    assert tokenizer.chat_template == once


@pytest.mark.parametrize(
    ("value", "text"),
    [("O'Neil \"x\"\n\\", '"O\'Neil \\"x\\"\\n\\\\"'), ("中文😀", '"中文😀"'), (3, "3"), (-1.5, "-1.5"), (None, "null"),
     (True, "true"), ([1, "a"], '[1, "a"]'), ({"a": [None]}, '{"a": [null]}')],
)  # fmt: skip
def test_values_of_every_kind_reach_the_template(value, text):
    tokenizer = tokenizer_with(TEMPLATE)
    set_arguments(tokenizer, {"name": value})
    assert render(HELLO, tokenizer).endswith(f"<assistant>{text}")


def test_arguments_that_the_template_does_not_read_are_refused():
    with pytest.raises(ConfigError, match=r"'enable_thinkin', which the chat template doesn't read.*enable_thinking"):
        set_arguments(tokenizer_with(TEMPLATE), {"enable_thinkin": False})
    with pytest.raises(ConfigError, match="'messages'"):
        set_arguments(tokenizer_with(TEMPLATE), {"messages": []})
    with pytest.raises(ConfigError, match="has no chat template"):
        set_arguments(tokenizer_with(None), {"enable_thinking": False})
    with pytest.raises(ConfigError, match=r"name is nan"):
        set_arguments(tokenizer_with(TEMPLATE), {"name": float("nan")})


def test_they_are_an_option_of_the_model_and_saved_with_it(tmp_path):
    folder = saved(tmp_path, TEMPLATE)
    tokenizer = load_tokenizer(ModelConfig(tokenizer=folder, chat_template_arguments={"enable_thinking": False}))
    assert render(HELLO, tokenizer).endswith("<think></think>")
    again = tmp_path / "again"
    tokenizer.save_pretrained(again)
    assert render(HELLO, AutoTokenizer.from_pretrained(again)).endswith("<think></think>")


def test_a_tokenizer_that_was_handed_over_stays_as_it_is():
    own = tokenizer_with(TEMPLATE)
    source = ModelConfig(chat_template_arguments={"enable_thinking": False})
    used = load_given_tokenizer(Given(tokenizer=own), source, resumed=False)
    assert render(HELLO, used).endswith("<think></think>")
    assert own.chat_template == TEMPLATE


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than|CPU"),
        ("{{ 'a' * 10**10 }}", "fills the memory"),
        ("{% set found = namespace(x='a') %}{% for i in range(40) %}{% set found.x = found.x + found.x %}{% endfor %}",
         "fills the memory"),
        ("{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaa' }}{% endfor %}", "characters of a chat"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", ""),
        ("{% for %}", "is no template"),
    ],
)  # fmt: skip
def test_a_template_that_takes_too_much_is_not_used(template, why, monkeypatch):
    monkeypatch.setattr(chat, "_CPU_SECONDS", 1)
    chat._tried.cache_clear()
    tokenizer = tokenizer_with(template)
    if not why:
        require_limits(tokenizer, "here")
        with pytest.raises(ModelError, match="refuses prompt 'p'"):
            render(HELLO, tokenizer)
        return
    with pytest.raises(ModelError, match=f"The chat template of here .*({why})") as failure:
        require_limits(tokenizer, "here")
    assert re.search(r"model\.tokenizer", str(failure.value))


def test_it_is_tried_when_it_is_loaded(tmp_path):
    folder = saved(tmp_path, "{{ 'a' * 10**10 }}")
    with pytest.raises(ModelError, match="fills the memory"):
        load_tokenizer(ModelConfig(tokenizer=folder))


def test_what_published_templates_use_is_known():
    template = (
        "{% generation %}{{ bos_token }}{% endgeneration %}{% for m in messages %}{% if loop.index > 9 %}{% break %}"
        "{% endif %}{{ m | tojson(indent=2) }}{% endfor %}{{ strftime_now('%Y') }}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    require_limits(tokenizer_with(template), "here")


@pytest.mark.parametrize("template", ["{{ 1 + 'a' }}", "{{ messages[9].content }}", "{{ 1 // 0 }}"])
def test_a_template_that_breaks_is_named_with_its_prompt(template):
    with pytest.raises(ModelError, match="refuses prompt 'p'"):
        render(HELLO, tokenizer_with(template))
