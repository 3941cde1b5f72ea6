"""Process rewards: where steps end, in text and in tokens; functions and models that score them; whole runs."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
)

from sppo.commands.train import train
from sppo.config.verification import ProcessOptions
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, ModelError, RewardError
from sppo.models.positions import tokens_at
from sppo.models.process_rewards import load_process_rewards
from sppo.models.scoring import StepScorer
from sppo.models.tokenizers import character_tokenizer
from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records
from sppo.types import Completion, Prompt, Rollout, Submission, Verdict
from sppo.verifiers.reward_model import Exchange
from sppo.verifiers.steps import call_step_function, check, step_ends
from tests.conftest import tiny_config

PARAGRAPHS = ProcessOptions(function="f")
LINES = ProcessOptions(function="f", split="lines")
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.5,
}  # fmt: skip
PLUS = ProcessOptions(function="f", split="marker", marker="+")


def cut(text: str, options: ProcessOptions) -> list[str]:
    ends = step_ends(text, options)
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


# Steps of texts


@pytest.mark.parametrize(
    ("text", "options", "steps"),
    [
        ("a\n\nb\n\nc", PARAGRAPHS, ["a\n\n", "b\n\n", "c"]),
        ("a\nb\n\nc\n\n", PARAGRAPHS, ["a\nb\n\n", "c\n\n"]),
        ("a\n \nb", PARAGRAPHS, ["a\n \n", "b"]),
        ("a\r\n\r\nb", PARAGRAPHS, ["a\r\n\r\n", "b"]),
        # The third line break could not be told from the text of the next step when the second one came.
        ("a\n\n\n\nb", PARAGRAPHS, ["a\n\n", "\n\nb"]),
        ("\n\na\n\nb", PARAGRAPHS, ["\n\na\n\n", "b"]),
        ("one step", PARAGRAPHS, ["one step"]),
        ("a\n\n  \n", PARAGRAPHS, ["a\n\n"]),
        ("", PARAGRAPHS, []),
        (" \n\n ", PARAGRAPHS, []),
        ("a\n\nb\n", LINES, ["a\n", "\nb\n"]),
        ("1 ки2 ки", ProcessOptions(function="f", split="marker", marker=" ки"), ["1 ки", "2 ки"]),
        ("1+1.*2", ProcessOptions(function="f", split="marker", marker=".*"), ["1+1.*", "2"]),
    ],
)  # fmt: skip
def test_where_steps_end(text, options, steps):
    assert cut(text, options) == steps


@pytest.mark.parametrize("options", [PARAGRAPHS, LINES])
def test_a_step_that_has_ended_stays_ended_whatever_follows(options):
    # The guarantee of potential differences: the steps of a beginning are the first steps of the whole.
    generator = random.Random(0)
    for _ in range(200):
        text = "".join(generator.choice(["a", "b c", "\n", "\n\n", " "]) for _ in range(12))
        whole = step_ends(text, options)
        for length in range(len(text) + 1):
            ended = [end for end in step_ends(text[:length], options) if end <= length]
            assert ended == [end for end in whole if end <= length]


def test_text_behind_the_last_separator_ends_with_the_response():
    assert step_ends("a\n\nbc", PARAGRAPHS) == [3, 6]
    assert step_ends("a\n\nbc\n\n", PARAGRAPHS) == [3, 7]


# Steps of tokens


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: bytes, so that a rare character is several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the sum is 12.\n\nthen the rest is 7.\n\n"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def sentence_pieces() -> PreTrainedTokenizerFast:
    """As Llama's: a space is part of the piece after it, and dropped at the beginning of what is decoded."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<0x00>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<end>", *bytes_of])
    tokenizer.train_from_iterator(["the sum is 12 then the rest is 7 \n"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


TEXTS = [
    "the sum is 12.\n\nthen the rest is 7.\n\nso 5",
    "so \N{GRINNING FACE} is\n\n\N{GRINNING FACE}\N{GRINNING FACE}\n\n\N{SNOWMAN} then",
    "\n\n the  rest\n\n",
    "7",
]


@pytest.mark.parametrize("make", [byte_level, sentence_pieces])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ended", [True, False])
def test_a_step_ends_with_the_first_token_with_which_its_text_is_there(make, text, ended):
    tokenizer = make()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + ([tokenizer.eos_token_id] if ended else [])
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    ends = step_ends(decoded, PARAGRAPHS)
    expected = []
    for end in ends:
        fitting = [t for t in range(len(ids)) if len(tokenizer.decode(ids[: t + 1], skip_special_tokens=True)) >= end]
        expected.append(fitting[0] if end <= len(decoded) else len(ids) - 1)
    assert tokens_at(ends, ids, decoded, tokenizer) == expected


def test_bytes_that_are_no_text_do_not_move_the_steps_around_them():
    tokenizer = byte_level()
    ids = tokenizer("the\n\nsum\n\n7", add_special_tokens=False)["input_ids"]
    (byte,) = tokenizer("\N{GRINNING FACE}", add_special_tokens=False)["input_ids"][:1]
    for place in (0, 1, len(ids)):
        spoiled = [*ids[:place], byte, *ids[place:]]
        text = tokenizer.decode(spoiled)
        assert "\N{REPLACEMENT CHARACTER}" in text
        found = tokens_at(step_ends(text, PARAGRAPHS), spoiled, text, tokenizer)
        for end, token in zip(step_ends(text, PARAGRAPHS)[:-1], found, strict=False):
            assert tokenizer.decode(spoiled[: token + 1]) == text[:end]


def test_special_tokens_inside_a_response_and_an_empty_one():
    tokenizer = byte_level()
    plain = tokenizer("the\n\nsum", add_special_tokens=False)["input_ids"]
    ids = [0, *plain, 0]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert tokens_at(step_ends(text, PARAGRAPHS), ids, text, tokenizer)[-1] == len(ids) - 1
    assert tokens_at([], [0], "", tokenizer) == []
    assert tokens_at([1], [0], "", tokenizer) == [0]


# Functions


def submission(response: str, **columns: object) -> Submission:
    return Submission(response, "4", prompt="2+2?", columns=columns, prompt_id="p")


def test_a_step_function_sees_prompts_completions_steps_and_columns():
    seen: dict[str, object] = {}

    def score(prompts, completions, steps, **columns):
        seen.update(columns, prompts=prompts, completions=completions, steps=steps)
        return [[0.25] * len(one) for one in steps]

    given = [submission("a\n\nb", level=3), submission("")]
    ends = [step_ends(one.response, PARAGRAPHS) for one in given]
    assert call_step_function(score, given, ends) == [[0.25, 0.25], []]
    assert seen == {
        "prompts": ["2+2?", "2+2?"], "completions": ["a\n\nb", ""], "steps": [["a\n\n", "b"], []],
        "level": [3, None], "answer": ["4", "4"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda steps: [[0.5]], r"returned 1 lists, but must return one list for each of 2"),
        (lambda steps: 0.5, r"returned a float"),
        (lambda steps: [[0.5], [0.5]], r"returned 1 scores for sample 0 \(prompt 'p'\), which has 2 steps"),
        (lambda steps: [0.5, 0.5], r"returned 0.5 for sample 0"),
        (lambda steps: [[0.5, 1.5], [0.5]], r"returned 1.5 for step 1 of sample 0 .*lies in \[0, 1\]"),
        (lambda steps: [[0.5, None], [0.5]], r"returned None for step 1"),
        (lambda steps: [[1 / 0]], r"step-reward function .* raised ZeroDivisionError"),
        (lambda nothing: [], r"It can take these by name: prompts, completions, answer, steps"),
    ],
)
def test_what_a_step_function_does_wrong_is_named(function, message):
    with pytest.raises(RewardError, match=message):
        call_step_function(function, [submission("a\n\nb"), submission("c")], [[3, 4], [1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ProcessOptions(function="f", model="m"), "a function and a model"),
        (ProcessOptions(function="f", split="marker"), "marker is None: give the text"),
        (ProcessOptions(function="f", marker="###"), "split is blank_lines: set split to marker"),
    ],
)
def test_options_that_do_not_say_who_scores_what(options, message):
    with pytest.raises(ConfigError, match=message):
        check(options)


def test_no_scorer_no_process_rewards():
    assert load_process_rewards(ProcessOptions(), character_tokenizer(ALPHABET), "cpu") is None
    with pytest.raises(ConfigError, match=r"verification.process.function is 'no.py:f', but there is no file"):
        load_process_rewards(ProcessOptions(function="no.py:f"), character_tokenizer(ALPHABET), "cpu")


# Models


def saved(kind: type, config: type, folder, labels: int = 1) -> str:
    torch.manual_seed(0)
    tokenizer = character_tokenizer(ALPHABET)
    more = {"num_key_value_heads": 1} if config is Qwen2Config else {}
    model = kind(config(vocab_size=len(tokenizer), num_labels=labels, **SIZES, **more))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


EXCHANGES = [Exchange("1+1=", "3-1+2+#2"), Exchange("2+2+4=", "8"), Exchange("7=", "7+7")]
ENDS = [step_ends(exchange.response, PLUS) for exchange in EXCHANGES]


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("kind", [Qwen2ForSequenceClassification, Qwen2ForTokenClassification])
def test_a_step_model_scores_each_beginning_as_if_it_were_alone(kind, labels, tmp_path):
    path = saved(kind, Qwen2Config, tmp_path, labels)
    scorer = StepScorer.load(ProcessOptions(model=path), "cpu", tokens_per_microbatch=40)
    found = scorer.scores(EXCHANGES, ENDS)
    model, tokenizer = kind.from_pretrained(path).eval(), character_tokenizer(ALPHABET)
    for exchange, ends, scores in zip(EXCHANGES, ENDS, found, strict=True):
        assert scores is not None
        for end, score in zip(ends, scores, strict=True):
            text = exchange.content + exchange.response[:end]
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                logits = model(ids).logits.flatten(0, -2)[-1]
            expected = logits.sigmoid()[0] if labels == 1 else logits.softmax(dim=0)[1]
            assert score == pytest.approx(float(expected), abs=1e-5)
    assert len({round(score, 3) for scores in found if scores for score in scores}) > 3


@pytest.mark.parametrize("kind", [Qwen2ForSequenceClassification, Qwen2ForTokenClassification])
def test_a_special_token_that_a_response_spells_is_letters_to_a_step_model(kind, tmp_path):
    scorer = StepScorer.load(ProcessOptions(model=saved(kind, Qwen2Config, tmp_path)), "cpu")
    # The tokenizer knows none of these letters, so that both are the same to it but for the token <end>.
    exchanges = [Exchange("7=", "3+1<end>+2"), Exchange("7=", "3+1<abc>+2")]
    spelled, other = scorer.scores(exchanges, [step_ends(exchange.response, PLUS) for exchange in exchanges])
    assert spelled is not None
    assert len(spelled) == 3
    assert spelled == pytest.approx(other, abs=1e-5)


def test_a_response_longer_than_the_step_model_reads_has_no_scores(tmp_path):
    scorer = StepScorer.load(ProcessOptions(model=saved(Qwen2ForTokenClassification, Qwen2Config, tmp_path)), "cpu")
    first, second = scorer.scores([Exchange("1=", "1" * 70), EXCHANGES[1]], [[71], ENDS[1]])
    assert first is None
    assert second is not None


def test_a_token_classifier_that_reads_ahead_is_refused(tmp_path):
    path = saved(BertForTokenClassification, BertConfig, tmp_path)
    with pytest.raises(ModelError, match="reads a response in both directions"):
        StepScorer.load(ProcessOptions(model=path), "cpu")


def test_only_responses_with_a_reward_are_scored():
    tokenizer = character_tokenizer(ALPHABET)
    rollouts = []
    for text in ("1++2", "3++4", "5"):
        ids = (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)
        rollouts.append(Rollout(Prompt("p", "1="), (3,), Completion(ids, (-1.0,) * len(ids), "stop"), text))
    options = replace(PLUS, function=f"{__name__}:by_length")
    process = load_process_rewards(options, tokenizer, "cpu")
    assert process is not None
    given = [submission(rollout.text) for rollout in rollouts]
    verdicts = process.add(rollouts, given, [Verdict(1.0), Verdict(None, error="timed out"), Verdict(0.0)])
    assert verdicts[0].step_scores is not None
    assert verdicts[0].step_scores.ends == (1, 4)  # the second step ends with the stop token
    assert verdicts[0].step_scores.scores == (0.2, 0.2)
    assert verdicts[1].step_scores is None
    assert verdicts[2].step_scores is not None
    assert verdicts[2].step_scores.ends == (1,)


def by_length(prompts, completions, steps, **columns):
    return [[min(len(step) / 10, 1.0) for step in one] for one in steps]


# Runs


@pytest.mark.parametrize("name", ["sppo", "ppo"])
def test_a_run_with_process_rewards(tmp_path, name):
    config = tiny_config(
        tmp_path / "run", algorithm__name=name, verification__process__function=f"{__name__}:by_length",
        verification__process__split="marker", verification__process__marker="+", verification__process__weight=0.8,
    )  # fmt: skip
    train(config)
    lines = read_metrics(tmp_path / "run")
    assert {"reward/steps_mean", "reward/step_score_mean"} <= set(lines[1])
    assert lines[1]["reward/steps_mean"] > 1
    records = list(read_records(tmp_path / "run"))
    for record in records:
        steps = record["step_scores"]
        assert len(steps["ends"]) == len(steps["scores"])
        plus = character_tokenizer(ALPHABET)("+")["input_ids"][0]
        ids = record["response_token_ids"]
        assert all(ids[end] == plus or end == len(ids) - 1 for end in steps["ends"])
        if name == "sppo":  # no step is complete before the first token
            assert record["advantage"] == pytest.approx(record["reward"] - record["value"], abs=1e-6)


def test_process_rewards_are_for_training_alone_and_leave_the_reward_what_it_is(tmp_path):
    plain = train(tiny_config(tmp_path / "plain", steps=1))
    config = tiny_config(tmp_path / "run", steps=1, verification__process__function=f"{__name__}:by_length")
    assert train(config)["accuracy_before"] == plain["accuracy_before"]
    first, second = (read_metrics(tmp_path / name)[1] for name in ("plain", "run"))
    assert first["reward/mean"] == second["reward/mean"]
    assert first["critic/loss"] == second["critic/loss"]
