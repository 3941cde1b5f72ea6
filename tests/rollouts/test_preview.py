"""What is shown of the data before anything is graded, and what is noted of it."""

from __future__ import annotations

import json

import pytest

from sppo.config.verification import CompositeOptions, CompositePart, VerificationConfig
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.tokenizers import character_tokenizer
from sppo.rollouts.preview import notes_on_template, preview
from sppo.types import Prompt
from sppo.verifiers import Tools
from sppo.verifiers.requests import request_of

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}={{ m.content }}#{% else %}>{{ m.content }}<{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}={% endif %}"
)


def tokenizer_with(template: str | None = TEMPLATE):
    made = character_tokenizer(ALPHABET)
    made.chat_template = template
    return made


def chat(text: str, number: int = 1, gold: str | None = "5", **more) -> Prompt:
    return Prompt(f"p/{number}", ({"role": "user", "content": text},), gold, **more)


BOXED = "Put it in \\boxed{}."


def test_prompts_are_shown_as_the_model_reads_them():
    prompts = [chat(f"{number}+1? {BOXED}", number) for number in range(9)]
    seen = preview(prompts, Tools(), tokenizer_with())
    assert [example.id for example in seen.examples] == ["p/0", "p/4", "p/8"]
    assert seen.examples[0].text == f">0+1? {BOXED}<="
    assert seen.examples[0].understood == "math: the number 5"
    bare = preview(prompts[:1], Tools())
    assert [example.text for example in bare.examples] == [f"[user] 0+1? {BOXED}"]
    assert bare.notes == ()
    assert preview([], Tools()).examples == ()


def test_gold_answers_are_shown_as_their_verifiers_read_them():
    prompts = [chat(BOXED, 1, "9 (in thousands)"), chat(BOXED, 2, None), chat(BOXED, 3, "B", verifier="choice")]
    first, second, third = preview(prompts, Tools()).examples
    assert first.understood.startswith("math: no answer: it has a remark in brackets")
    assert (second.gold, second.understood) == (None, "not needed")
    assert third.understood == "choice: the letter B"
    assert preview(prompts[:1], Tools(), rewarded=True).examples[0].understood == "as the reward function takes it"
    parts = [CompositePart(verifier="format"), CompositePart(verifier="math"), CompositePart(verifier="choice")]
    tools = Tools(VerificationConfig(composite=CompositeOptions(parts)))
    (example,) = preview([chat(BOXED, 1, "B", verifier="composite")], tools).examples
    assert example.understood == "math: the letter B; choice: the letter B"


def test_plain_text_to_a_model_with_a_template_is_noted():
    plain = Prompt("p", f"1+1? {BOXED}", "2")
    (note,) = preview([plain, chat(BOXED)], Tools(), tokenizer_with(), {ord("#")}).notes[:1]
    assert "1 of 2 prompts are plain text" in note
    assert "data.system_prompt" in note
    assert preview([plain], Tools(), tokenizer_with(None)).notes == ()
    assert preview([plain], Tools()).notes == ()


def test_a_chat_that_was_stored_as_text_is_noted():
    stored = json.dumps([{"role": "user", "content": BOXED}])
    prompts = [Prompt("p", stored, "2"), Prompt("q", f"[1, 2] {BOXED}", "2"), Prompt("r", f'["role"] {BOXED}', "2")]
    (note,) = preview(prompts, Tools()).notes
    assert "1 of 3 prompts, the first 'p', are chats that are stored as JSON text" in note
    assert preview(prompts[:1], Tools(), whole=False).notes[0].startswith("1 of the first 1 prompts")


@pytest.mark.parametrize(
    ("verifier", "extraction", "asks", "silent"),
    [
        ("math", "wide", "Finish with 'Answer: X'.", "How many?"),
        ("math", "wide", "End with #### and the number.", "Question: 1+1?\nAnswer:"),
        ("math", "wide", "Write <answer>X</answer>.", "Give the final answer."),
        ("math", "box", BOXED, "Write <answer>X</answer>."),
        ("minerva", "tags", "Write <answer>X</answer>.", BOXED),
        ("choice", "wide", "Name the letter.", "How many?"),
        ("final_answer", "wide", "End with #### and the number.", "How many?"),
        ("format", "wide", BOXED, "How many?"),
    ],
)
def test_prompts_that_do_not_ask_for_the_form_that_is_read_are_counted(verifier, extraction, asks, silent):
    tools = Tools(VerificationConfig(extraction=extraction))
    prompts = [chat(asks, 1, verifier=verifier), chat(silent, 2, verifier=verifier)]
    (note,) = preview(prompts, tools).notes
    assert f"1 of 2 prompts, the first 'p/2', don't ask for a form that verifier {verifier} reads" in note
    assert preview(prompts, tools, taught=True).notes == preview(prompts, tools, rewarded=True).notes == ()


def test_a_verifier_that_reads_all_there_is_needs_no_request():
    assert request_of("exact", VerificationConfig()) is None
    assert preview([chat("1+1=", verifier="exact")], Tools()).notes == ()


def stop_of(text: str) -> set[int]:
    return set(tokenizer_with()(text)["input_ids"])


def test_a_template_that_opens_and_closes_turns_is_not_noted():
    assert [*notes_on_template(tokenizer_with(), stop_of("#"))] == []
    assert [*notes_on_template(tokenizer_with(TEMPLATE.replace("#", "#\n>")), stop_of("#"))] == []


def test_a_template_without_a_generation_prompt_is_noted():
    template = TEMPLATE.replace("{% if add_generation_prompt %}={% endif %}", "")
    (note,) = notes_on_template(tokenizer_with(template), stop_of("#"))
    assert "no generation prompt" in note


def test_a_turn_that_ends_in_no_stop_token_is_noted():
    (note,) = notes_on_template(tokenizer_with(), stop_of("="))
    (stop,) = stop_of("#")
    assert f"with '#' (token {stop}), which is no stop token" in note
    assert f"sampling.stop_token_ids [{stop}]" in note
    (note,) = notes_on_template(tokenizer_with(TEMPLATE.replace("#", "")), stop_of("="))
    assert "writes no token behind" in note


def test_a_template_that_refuses_the_trial_is_not_noted():
    assert [*notes_on_template(tokenizer_with("{{ raise_exception('no') }}"), stop_of("="))] == []
