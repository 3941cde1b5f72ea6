"""Where the final answer of a response is looked for; what is right and wrong stands in labelled_answers.jsonl."""

from __future__ import annotations

import pytest

from sppo.config.verification import VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Submission
from sppo.verifiers import VERIFIERS, Tools, check_golds
from sppo.verifiers.extraction import find_answer
from sppo.verifiers.verify import verify

BOX, TAGS = VerificationConfig(extraction="box"), VerificationConfig(extraction="tags")


@pytest.mark.parametrize(
    ("response", "form", "text"),
    [
        (r"\boxed{5} <answer>6</answer>", "tags", "6"),
        ("Answer: 4\n" + r"\boxed{5}", "box", "5"),
        ("Answer: 4\nSo the answer is 6.", "statement", "6."),
        ("the answer is 6\nAnswer: 4", "statement", "4"),
        ("The answer is 6 because it is even.\n#### 4", "statement", "4"),
        (r"<think>\boxed{5} <answer>6</answer></think> Answer: 4", "statement", "4"),
        (r"<answer>a \boxed{1} and \boxed{2}</answer>", "tags", "1, 2"),
        ("<answer>In all, 5</answer>", "tags", "In all, 5"),
    ],
)
def test_the_order_of_the_forms(response, form, text):
    found = find_answer(response)
    assert (found.form, found.text) == (form, text)


@pytest.mark.parametrize("verifier", ["math", "minerva", "choice"])
def test_one_form_alone_is_an_option(verifier):
    gold, other = ("B", "A") if verifier == "choice" else ("5", "6")
    box, tags, said = rf"So \boxed{{{gold}}}.", f"<answer>{gold}</answer>", f"The answer is {gold}."
    for options, right in ((VerificationConfig(), (1, 1, 1)), (BOX, (1, 0, 0)), (TAGS, (0, 1, 0))):
        rewards = tuple(verify(given, gold, verifier, options=options).reward for given in (box, tags, said))
        assert rewards == right, options.extraction
    both = rf"\boxed{{{gold}}} <answer>{other}</answer>"
    assert [verify(both, gold, verifier, options=options).reward for options in (BOX, TAGS)] == [1.0, 0.0]


def test_sympy_reads_the_same_answer():
    response = r"<answer>\sqrt{8}</answer> \boxed{\sqrt{12}}"
    assert verify(response, r"2\sqrt{2}", options=TAGS, time_limit=60.0).reward == 1.0
    assert verify(response, r"2\sqrt{3}", options=BOX, time_limit=60.0).reward == 1.0


def test_why_there_is_none():
    assert find_answer("5").reason == "no final answer"
    assert find_answer("Answer: 5", "box").reason == "no boxed answer"
    assert find_answer(r"\boxed{5}", "tags").reason == "no <answer>"
    assert find_answer("<answer>5 and then").reason == "the last <answer> is not closed"
    assert find_answer(r"<answer>\boxed{5</answer>").reason == "the last box is not closed"


@pytest.mark.parametrize("options", [VerificationConfig(), BOX, TAGS])
def test_golds_verify_whatever_the_form(options):
    rows = [(name, Submission("", gold)) for name, gold in (("math", "5"), ("minerva", "2.5"), ("choice", "B"))]
    assert check_golds(rows, Tools(options)) == {}


def test_there_are_three_ways():
    with pytest.raises(ConfigError, match=r"verification\.extraction"):
        verify("5", "5", options=VerificationConfig(extraction="last"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unit",
    ["<answer>", "</answer>", "<answer>1</answer>", "答案：", "答案是1", "故选", "#### ", "**Final Answer**\n",
     "Answer\n\n", "the answer is\n", "the answer is 5. ", "\n ", "the ", "5. It could ", "Answer: 5\n", "# ",
     r"x=\boxed{3}, ", r"\boxed{4} or ", r"\boxed{4}, or maybe ", "Answer: 4\n5\n"],
)  # fmt: skip
def test_a_megabyte_of_garbage_ends(unit):
    text = unit * (1_000_000 // len(unit))
    for name in ("math", "choice"):
        verdicts = VERIFIERS[name].grade([Submission(given, "C") for given in (text, f"<answer>{text}")], Tools())
        assert [verdict.reward for verdict in verdicts] == [0.0, 0.0]
