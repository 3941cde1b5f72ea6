"""What will be graded, shown before anything is: prompts as the model reads them, gold answers as verifiers do.

With notes on what makes a reward mean nothing: a prompt that doesn't ask for the form that its verifier reads, or that
reaches the model without its chat template, and a template after which responses don't begin or end as turns.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sppo.types import Prompt, Submission
from sppo.verifiers import get_verifier, verifiers_behind
from sppo.verifiers.requests import request_of
from sppo.verifiers.tools import Tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_SHOWN = 3
_REPLY = "Reply-7319"
"""Stands in for what an assistant said, to see what a template writes behind it."""


@dataclass(frozen=True)
class Example:
    """One prompt as the model reads it, and what its responses are held against."""

    id: str
    text: str
    """Chat template included, where the model is known; else the turns one below the other."""
    gold: str | None
    understood: str
    """The gold answer as the verifier understands it, or why it is no answer."""


@dataclass(frozen=True)
class Preview:
    """What is shown of a data set."""

    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    as_read: bool
    """Whether the examples are as a model reads them, which was known."""


def preview(
    prompts: Sequence[Prompt],
    tools: Tools,
    tokenizer: Tokenizer | None = None,
    stop_ids: Collection[int] = (),
    *,
    rewarded: bool = False,
    taught: bool = False,
    whole: bool = True,
) -> Preview:
    """Looks at three of the prompts, and notes what is odd about all of them.

    Args:
        prompts: of one data set.
        tools: what verifiers run with.
        tokenizer: of the model that will read them; None: not known yet.
        stop_ids: tokens that end a response of that model.
        rewarded: whether a reward function judges, so that verifiers don't.
        taught: whether demonstrations teach the model the form of an answer.
        whole: whether these are all prompts; else the first ones.
    """
    places = dict.fromkeys((0, len(prompts) // 2, len(prompts) - 1)) if prompts else {}
    examples = tuple(_example(prompts[place], tools, tokenizer, rewarded) for place in list(places)[:_SHOWN])
    of = f"{len(prompts):,} prompts" if whole else f"the first {len(prompts):,} prompts"
    notes = [*_notes_on_chats(prompts, tokenizer, of)]
    if not (rewarded or taught):
        notes += _notes_on_requests(prompts, tools, of)
    if tokenizer is not None and tokenizer.chat_template and any(not isinstance(p.content, str) for p in prompts):
        notes += notes_on_template(tokenizer, stop_ids)
    return Preview(examples, tuple(notes), tokenizer is not None)


def _example(prompt: Prompt, tools: Tools, tokenizer: Tokenizer | None, rewarded: bool) -> Example:
    if tokenizer is not None:
        from sppo.models.chat import render  # heavy

        text = render(prompt, tokenizer)
    elif isinstance(prompt.content, str):
        text = prompt.content
    else:
        text = "\n".join(f"[{turn['role']}] {turn['content']}" for turn in prompt.content)
    if rewarded or prompt.gold is None:
        return Example(prompt.id, text, prompt.gold, "as the reward function takes it" if rewarded else "not needed")
    given = Submission("", prompt.gold, prompt=prompt.text, columns=prompt.columns)
    read = {}
    for name in verifiers_behind(prompt.verifier, tools):
        verifier = get_verifier(name)
        if verifier.needs_gold:
            gold = verifier.read_gold(given)
            read[name] = f"no answer: it {gold.fault}" if gold.fault else gold.text
    return Example(
        prompt.id, text, prompt.gold, "; ".join(f"{name}: {understood}" for name, understood in read.items())
    )


def _notes_on_chats(prompts: Sequence[Prompt], tokenizer: Tokenizer | None, of: str) -> Iterator[str]:
    plain = [prompt for prompt in prompts if isinstance(prompt.content, str)]
    stored = [prompt.id for prompt in plain if _is_stored_chat(str(prompt.content))]
    if stored:
        yield (
            f"{len(stored)} of {of}, the first {stored[0]!r}, are chats that are stored as JSON text, which the model "
            "would read as it stands. Store lists of role and content."
        )
    if plain and tokenizer is not None and tokenizer.chat_template:
        yield (
            f"{len(plain)} of {of} are plain text, which the model reads without its chat template. That is right for "
            "a base model. For one that was tuned to chat, store chats, or set data.system_prompt, which makes chats "
            "of them."
        )


def _is_stored_chat(text: str) -> bool:
    if not text.lstrip().startswith("[") or '"role"' not in text:
        return False
    try:
        turns = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) and "role" in turn for turn in turns)


def _notes_on_requests(prompts: Sequence[Prompt], tools: Tools, of: str) -> Iterator[str]:
    lacking: dict[tuple[str, str], list[Prompt]] = {}
    for prompt in prompts:
        for name in verifiers_behind(prompt.verifier, tools):
            asked = request_of(name, tools.options)
            if asked is not None and not asked.stands_in(prompt.text):
                lacking.setdefault((name, asked.form), []).append(prompt)
    for (name, form), some in lacking.items():
        yield (
            f"{len(some)} of {of}, the first {some[0].id!r}, don't ask for a form that verifier {name} reads: "
            f"{form}. Ask for it with data.instruction, or responses in another form earn nothing."
        )


def notes_on_template(tokenizer: Tokenizer, stop_ids: Collection[int]) -> Iterator[str]:
    """What a chat template does that responses can't begin or end with."""
    from sppo.errors import ModelError
    from sppo.models.chat import render  # heavy

    user, reply = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": _REPLY}
    try:
        closed, opened = (render(Prompt("", (user,)), tokenizer, open_turn=open_turn) for open_turn in (False, True))
        told = render(Prompt("", (user, reply)), tokenizer, open_turn=False)
    except ModelError:
        return  # The prompts themselves are rendered, and say so, should it refuse them.
    if opened == closed:
        yield (
            "The chat template has no generation prompt, so that a response doesn't begin as the assistant's turn. "
            "Give a tokenizer whose template reads add_generation_prompt."
        )
    _, found, behind = told.rpartition(_REPLY)
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if found and behind.strip() else []
    if found and not ids:
        yield "The chat template writes no token behind the assistant's turn, so that no response could end as one."
    elif ids and stop_ids and ids[0] not in stop_ids:
        yield (
            f"The chat template ends the assistant's turn with {tokenizer.decode(ids[:1])!r} (token {ids[0]}), which "
            f"is no stop token, so that responses go on behind it: set sampling.stop_token_ids [{ids[0]}]."
        )
