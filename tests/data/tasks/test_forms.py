"""Rows in the forms in which data sets are published: answers, structs as text, chats, and several columns."""

from decimal import Decimal

import numpy as np
import pytest

from sppo.config import DataConfig
from sppo.data.tasks import demonstrations, load_prompts
from sppo.errors import ConfigError, DataError
from sppo.types import Submission
from sppo.verifiers import Tools, get_verifier
from sppo.verifiers.functions import require_ground_truth, sample_arguments
from sppo.verifiers.grading import Grader


def load(rows, **fields):
    return load_prompts(DataConfig(**fields), seed=0, rows=rows)


def golds(answer, **fields):
    (prompt,) = load([{"prompt": "?", "answer": answer}], **fields).prompts
    return prompt.golds


def reward(prompt, response):
    given = Submission(response, prompt.gold, columns=prompt.columns, other_golds=prompt.other_golds)
    return get_verifier(prompt.verifier).grade([given], Tools())[0].reward


# ---- answers


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (["$\\sqrt{3}$"], ("$\\sqrt{3}$",)),
        (["1", "2", "1"], ("1", "2")),
        (("1", 2, 0.5), ("1", "2", "0.5")),
        (np.array(["1", "2"], object), ("1", "2")),
        ({"target": ["Paris", "paris"]}, ("Paris", "paris")),
        ({"target": np.array(["7"])}, ("7",)),
        ('["1", "2"]', ("1", "2")),
        ("['1', '2']", ("1", "2")),
        ("[1, 2]", ("[1, 2]",)),  # an interval, or a point
        (np.int64(4), ("4",)),
        (Decimal("4.50"), ("4.5",)),
        (Decimal("1E+2"), ("100",)),
    ],
)
def test_answers_in_every_form(answer, wanted):
    assert golds(answer, verifier="exact") == wanted


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([], "the gold answer is missing"),
        (Decimal("nan"), "the gold answer is missing"),
        (
            {"numbers": [1, 2], "target": 3},
            "row 1: the gold answer in column 'answer' is a dict with the keys numbers, target, not text or a number: "
            "name the one that holds the answer",
        ),
        (
            [["1"], ["2"]],
            "row 1: the gold answer in column 'answer' is a list of lists, not of answers: [['1'], ['2']]",
        ),
    ],
)
def test_answers_that_are_none_are_told_with_the_column_and_what_it_holds(answer, said):
    with pytest.raises(DataError) as caught:
        load([{"prompt": "?", "answer": answer}])
    assert said in str(caught.value)


@pytest.mark.parametrize("verifier", ["math", "minerva", "exact", "final_answer"])
def test_any_answer_of_a_list_is_right_or_all_together(verifier):
    def given(text):
        return {"exact": text, "final_answer": f"#{text}"}.get(verifier, f"\\boxed{{{text}}}")

    (any_of,) = load([{"prompt": "?", "answer": ["3", "7"]}], verifier=verifier).prompts
    assert [reward(any_of, given(text)) for text in ("3", "7", "5")] == [1.0, 1.0, 0.0]
    (all_of,) = load([{"prompt": "?", "answer": ["3", "7"]}], verifier=verifier, answers="all").prompts
    assert all_of.golds == ("3, 7",)
    assert [reward(all_of, given(text)) for text in ("3", "7", "3, 7")] == [0.0, 0.0, 1.0]


def test_answers_of_a_list_that_cannot_be_verified_are_left_out_one_by_one():
    rows = [{"prompt": "A?", "answer": ["\\frac{1}{", "2"]}, {"prompt": "B?", "answer": ["\\frac{1}{", "\\frac{2}{"]}]
    loaded = load(rows)
    assert [prompt.golds for prompt in loaded.prompts] == [("2",)]
    assert list(loaded.left_out) == [2]


# ---- structs as text, verl's rows


@pytest.mark.parametrize(
    "rewarded",
    [
        {"ground_truth": "42", "style": "rule"},
        '{"ground_truth": "42", "style": "rule"}',
        "{'ground_truth': '42', 'style': 'rule'}",
    ],
)
def test_verls_rows_are_read_without_an_option_and_as_text_too(rewarded):
    row = {"data_source": "mine", "prompt": [{"role": "user", "content": "?"}], "reward_model": rewarded}
    (prompt,) = load([row]).prompts
    assert prompt.gold == "42"
    (named,) = load([row], answer_column="reward_model.ground_truth").prompts
    assert named.gold == "42"
    (math,) = load([row], task="dapo_math").prompts
    assert math.gold == "42"


def test_verification_info_is_read_without_an_option():
    row = {"prompt": "?", "verification_info": '{"ground_truth": "42"}'}
    assert load([row]).prompts[0].gold == "42"
    # A column of the usual name comes first.
    assert load([row | {"answer": "5"}]).prompts[0].gold == "5"


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return 0.0


@pytest.mark.parametrize(
    ("truth", "given"), [("42", "42"), (["3", "7"], ["3", "7"]), ({"target": 98, "numbers": [44, 19, 35]},) * 2]
)
def test_verls_function_gets_the_ground_truth_of_verls_rows(truth, given):
    row = {
        "data_source": "mine",
        "prompt": [{"role": "user", "content": "?"}],
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": '{"index": 3}',
    }
    (prompt,) = load([row], reward="my.module:compute_score").prompts
    submission = Submission("5", prompt.gold, columns=prompt.columns, other_golds=prompt.other_golds)
    assert sample_arguments(submission) == {
        "data_source": "mine",
        "solution_str": "5",
        "ground_truth": given,
        "extra_info": {"index": 3},
    }
    Grader(compute_score).prepare([prompt])


def test_prompts_without_a_ground_truth_are_refused_before_any_is_sampled():
    prompts = load([{"prompt": "A?", "solution": "4"}, {"prompt": "B?", "answer": "4"}], reward="m:f").prompts
    with pytest.raises(ConfigError) as caught:
        Grader(compute_score).prepare(prompts)
    for word in ("1 of 2 prompts have none", "'rows/1'", "its columns: solution", "data.answer_column"):
        assert word in str(caught.value)
    require_ground_truth(lambda solution_str, ground_truth=None: 0.0, prompts)
    require_ground_truth(lambda completions, ground_truth: [0.0], prompts)


# ---- chats


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "2+2"}, {"type": "text", "text": "=?"}]
    (prompt,) = load([{"prompt": [{"role": "user", "content": parts}], "answer": "4"}]).prompts
    assert prompt.content == ({"role": "user", "content": "2+2=?"},)
    with pytest.raises(DataError, match=r"whose content is not text: \[\{'type': 'image'"):
        load([{"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}], "answer": "4"}])


def test_sharegpts_turns_are_read_and_the_last_one_of_the_assistant_is_the_demonstration():
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "1+1?"},
        {"from": "gpt", "value": "2"},
        {"from": "human", "value": "2+2?"},
        {"from": "gpt", "value": "It is 4."},
    ]
    row = {"conversations": turns, "answer": "4"}
    (prompt,) = load([row]).prompts
    assert [message["role"] for message in prompt.content] == ["system", "user", "assistant", "user"]
    assert prompt.content[-1]["content"] == "2+2?"
    (shown,) = demonstrations(DataConfig(), "full", 0, rows=[row])
    assert shown.demonstration == "It is 4."


def test_a_chat_that_ends_with_the_assistant_is_asked_without_that_turn():
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    (prompt,) = load([{"messages": turns, "answer": "4"}]).prompts
    assert prompt.content == ({"role": "user", "content": "2+2?"},)
    assert prompt.demonstration == "4"
    (named,) = load([{"messages": turns, "answer": "4", "demonstration": "Two and two is 4."}]).prompts
    assert named.demonstration == "Two and two is 4."
    with pytest.raises(DataError, match="prompt ends with a message of role 'assistant', not 'user'"):
        load([{"messages": [turns[0], turns[1], turns[1]], "answer": "4"}])


# ---- several columns


def test_a_template_makes_the_prompt_of_several_columns():
    row = {"question": "What is $x$?", "options": ["1", "2"], "level": 3, "info": {"topic": "sets"}, "answer": "2"}
    (prompt,) = load(
        [row], prompt_template="{info.topic}, {level}: {question}\n{options}\nAnswer in \\boxed{}."
    ).prompts
    assert prompt.content == "sets, 3: What is $x$?\nA. 1\nB. 2\nAnswer in \\boxed{}."
    assert prompt.columns == row


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{q} \\boxed{answer} {{q}}", "Q? \\boxed{answer} {q}"),
        ("{q}\n{tests}", "Q?\nassert f(1)\nassert f(2)"),
        ("{Question Text}", "spaced"),
        ("{empty}\n\n{q}\n{empty}", "Q?"),
    ],
)
def test_what_a_template_puts_in(template, text):
    row = {"q": "Q?", "tests": ["assert f(1)", "assert f(2)"], "answer": "4", "Question Text": "spaced", "empty": None}
    assert load([row], prompt_template=template).prompts[0].content == text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{questio}", "row 1: no column 'questio'"),
        ("{empty}\n", "row 1: prompt is empty: the columns of the prompt's template hold nothing"),
        ("Words alone", "row 1: prompt is empty"),
        ("{info}", "row 1: column 'info' of the prompt's template is a dict with the keys a"),
    ],
)
def test_what_a_template_cannot_put_in_is_named(template, said):
    with pytest.raises(DataError) as caught:
        load([{"question": "Q?", "answer": "4", "empty": None, "info": {"a": 1}}], prompt_template=template)
    assert said in str(caught.value)


# ---- multiple choice, as published

AQUA = {
    "question": "How far?",
    "options": ["A)21", "B)21.5", "C)22", "D)22.5", "E)23"],
    "rationale": "...",
    "correct": "E",
}
SAT = {
    "passage": None,
    "question": "If x-1=2?",
    "options": ["(A)1", "(B)2", "(C)3", "(D)4"],
    "label": "C",
    "other": None,
}
MMLU = {
    "question": "Which one?",
    "subject": "anatomy",
    "choices": ["a vein", "a bone", "a nerve", "a cell"],
    "answer": 1,
}
ARC = {"question": "Which?", "choices": {"text": ["ice", "steam"], "label": ["1", "2"]}, "answerKey": "2"}


@pytest.mark.parametrize(
    ("row", "answer_column", "text", "gold"),
    [
        (AQUA, "correct", "How far?\nA. 21\nB. 21.5\nC. 22\nD. 22.5\nE. 23", "E"),
        (SAT, "label", "If x-1=2?\nA. 1\nB. 2\nC. 3\nD. 4", "C"),
        (MMLU, "answer", "Which one?\nA. a vein\nB. a bone\nC. a nerve\nD. a cell", "B"),
        (ARC, "answerKey", "Which?\nA. ice\nB. steam", "B"),
        (SAT | {"label": ["A", "D"]}, "label", "If x-1=2?\nA. 1\nB. 2\nC. 3\nD. 4", "AD"),
        (SAT | {"label": "AD"}, "label", "If x-1=2?\nA. 1\nB. 2\nC. 3\nD. 4", "AD"),
        (SAT | {"label": "3"}, "label", "If x-1=2?\nA. 1\nB. 2\nC. 3\nD. 4", None),
        (MMLU | {"answer": "a nerve"}, "answer", "Which one?\nA. a vein\nB. a bone\nC. a nerve\nD. a cell", "C"),
        (
            MMLU | {"question": "A vein, a bone? a vein, a nerve, a cell"},
            "answer",
            "A vein, a bone? a vein, a nerve, a cell",
            "B",
        ),
    ],
)
def test_multiple_choice_as_published(row, answer_column, text, gold):
    given = {"prompt_column": "question", "answer_column": answer_column, "verifier": "choice"}
    if gold is None:
        with pytest.raises(DataError, match=r"'3'.* is no letter"):
            load([row], **given)
        return
    (prompt,) = load([row], **given).prompts
    assert prompt.content == text
    assert prompt.golds == (gold,)
    assert reward(prompt, f"The answer is {gold}.") == 1.0
    assert reward(prompt, "The answer is J.") == 0.0


def test_an_index_that_is_none_is_told():
    for answer in (4, -1):
        with pytest.raises(DataError, match=rf"row 1: the gold answer {answer} is no index of its 4 choices"):
            load([MMLU | {"answer": answer}], prompt_column="question", verifier="choice")


def test_the_column_of_the_choices_is_an_option():
    row = {"ctx": "He", "endings": ["runs.", "sits."], "label": 0}
    given = {"prompt_column": "ctx", "answer_column": "label", "verifier": "choice"}
    (prompt,) = load([row], options_column="endings", **given).prompts
    assert prompt.content == "He\nA. runs.\nB. sits."
    assert reward(prompt, "\\boxed{runs.}") == 1.0
    with pytest.raises(DataError, match="no column 'ends'"):
        load([row], options_column="ends", **given)
    with pytest.raises(DataError, match="column 'ctx' holds no choices"):
        load([row], options_column="ctx", **given)


def test_several_letters_are_right_together_or_any_of_them():
    row = {"prompt": "Which?", "choices": ["a", "b", "c", "d"], "answer": ["D", "A"]}
    (together,) = load([row], verifier="choice").prompts
    assert [reward(together, f"\\boxed{{{text}}}") for text in ("AD", "D, A", "A", "ACD")] == [1.0, 1.0, 0.0, 0.0]
    (any_of,) = load([row], verifier="choice", answers="any").prompts
    assert any_of.golds == ("A", "D")
    assert [reward(any_of, f"\\boxed{{{text}}}") for text in ("A", "D", "B")] == [1.0, 1.0, 0.0]
