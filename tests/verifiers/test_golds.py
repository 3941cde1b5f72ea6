"""What a verifier makes of a gold answer: which texts are none of its kind, and how it understands the others."""

from __future__ import annotations

import gzip
import json

import pytest

from sppo.types import Submission
from sppo.verifiers import VERIFIERS, Tools, check_golds
from sppo.verifiers.golds import read_math, taken_before_remark, taken_from_solution
from tests.conftest import SHARED_DATA
from tests.verifiers.test_table import ROWS

NO_ANSWERS = {
    "9 (in thousands)": "data.answer_form noted takes '9'",
    "1/2 (of the cake)": "data.answer_form noted takes '1/2'",
    "4 (in tens); 30 (in all)": "data.answer_form noted takes '4; 30'",
    "It is 3 + 4 = <<3+4=7>>7.\n#### 7": "a worked solution: data.answer_form solution takes '7'",
    "#### 5": "data.answer_form solution takes '5'",
    "答案：5": "data.answer_form solution takes '5'",
    "Adding them, the answer is 5 because 2 + 3 = 5.": "data.answer_form solution takes '5'",
    r"C. {x \mid -3<x<4}": "data.verifier choice",
    "(A) 5": "data.verifier choice",
    "B) 12 km": "data.verifier choice",
    "None": "stands for no value",
    "nan": "stands for no value",
    "NULL": "stands for no value",
    "N/A": "stands for no value",
    "<NA>": "stands for no value",
    "?": "stands for no value",
    "--": "stands for no value",
    "['5']": "stored as text",
    '{"target": 5}': "stored as text",
    "There are five of them. So he has five left.": "prose",
    "first we add the two and then we take away the three that he gave to her": "prose",
    "There is one left.": "prose",
    "John has 7 more apples than Ann": "prose",
    "x = 1\ny = 2": "several lines",
    "(1, 2": "without its partner",
}
ANSWERS = {
    "5": "the number 5", "1,234": "the number 1234", r"\frac12": "the number 1/2", r"5\%": "the number 5 (%)",
    "9 apples": "the number 9 (apples)", "9 (apples)": "the number 9 (apples)", "5 (cm)": "the number 5 (cm)",
    "9 apples and 3 pears": "2 values in any order: 9 apples; 3 pears",
    "1, 2": "2 values in any order: 1; 2", r"\pm 2": "2 values in any order: 2; - 2", "3:4": "the ratio 3:4",
    "52_8": "the numeral 52_8", r"\text{Evelyn}": "the words Evelyn", "undefined": "the words undefined",
    r"\text{none}": "the words none", "All real numbers.": "the words All real numbers", "there is no solution":
    "the words there is no solution", r"\text{(C)}": "the letter C", "(1, 2]": "tuple or interval: (1, 2]",
    "[2,5[": "tuple or interval: [2,5[", "p - q": "the expression p - q", "5 (mod 8)": "the expression 5 (mod 8)",
    "2 (x+1)": "the expression 2 (x+1)", "x > 5": "the statement x > 5", r"\emptyset": r"the expression \emptyset",
    "∅": r"the expression \emptyset", r"So it is \boxed{5} in all.": "the number 5", "The answer is 5": "the number 5",
    "<answer>5</answer>": "the number 5",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}": r"matrix: \begin{pmatrix} 1 \\ 2 \end{pmatrix}",
}  # fmt: skip


@pytest.mark.parametrize(("gold", "why"), NO_ANSWERS.items(), ids=NO_ANSWERS)
def test_what_is_no_answer(gold, why):
    for verifier in ("math", "minerva"):
        unusable = check_golds([(verifier, Submission("", gold)), (verifier, Submission("", "5"))], Tools())
        assert list(unusable) == [0]
        assert why in unusable[0]


@pytest.mark.parametrize(("gold", "text"), ANSWERS.items(), ids=ANSWERS)
def test_how_an_answer_is_understood(gold, text):
    read = read_math(Submission("", gold))
    assert (read.text, read.fault) == (text, "")


def test_a_text_that_is_compared_as_such_may_say_anything():
    rows = [("exact", Submission("", "None")), ("exact", Submission("", "9 (apples)"))]
    rows += [("final_answer", Submission("", "It is 3 + 4.\n#### 7"))]
    assert check_golds(rows, Tools()) == {}
    assert VERIFIERS["final_answer"].read_gold(rows[2][1]).text == "the text '7'"


def test_other_verifiers_say_what_they_hold_responses_against():
    columns = {"choices": ["10 km", "12 km"]}
    assert VERIFIERS["choice"].read_gold(Submission("", "(b)", columns=columns)).text == "the letter B: 12 km"
    assert VERIFIERS["exact"].read_gold(Submission("", "a b")).text == "'a b'"
    tests = {"inputs": ["1", "2"], "outputs": ["1", "2"]}
    assert VERIFIERS["code"].read_gold(Submission("", json.dumps(tests))).text.startswith("2 tests of input and output")
    assert "no tests" in VERIFIERS["code"].read_gold(Submission("", "{}")).text


def test_what_is_taken_out_of_a_column():
    assert taken_from_solution("a #### 1\n#### 1,007 ") == "1,007"
    assert taken_from_solution(r"first \boxed{1}, then \boxed{2}.") == "2"
    assert taken_from_solution("So the answer is 7, which is prime.") == "7"
    assert taken_from_solution("7") == "7"
    assert taken_from_solution("There are seven left.") is None
    assert taken_from_solution("####") is None
    assert [taken_before_remark(text) for text in ("9 (apples)", "9", "f(x)", "1:4 (red)")] == ["9", "9", "f(x)", "1:4"]


def test_a_gold_answer_of_thousands_of_digits_is_one():
    assert read_math(Submission("", "9" * 400)).fault == ""


def test_golds_that_people_labelled_are_answers():
    faulty = {row["gold"]: read_math(Submission("", row["gold"])).fault for row in ROWS if row["verifier"] == "math"}
    # Responses that give the letter are right, but those that give what it stands for are not.
    assert [gold for gold, fault in faulty.items() if fault] == [r"C. {x \mid-3<x<4}"]


@pytest.mark.parametrize("name", ["math_500.parquet", "dapo_math_17k.parquet", "aime24_repeated_8x.parquet"])
def test_no_published_gold_is_taken_for_something_else(name):
    parquet = pytest.importorskip("pyarrow.parquet")
    if not (SHARED_DATA / name).exists():
        pytest.skip(f"{name} is not in {SHARED_DATA}")
    cells = parquet.read_table(SHARED_DATA / name, columns=["reward_model"])["reward_model"].to_pylist()
    golds = {cell["ground_truth"] for cell in cells}
    assert {gold: fault for gold in golds if (fault := read_math(Submission("", gold)).fault)} == {}


def test_worked_solutions_of_gsm8k_are_all_told_and_all_taken():
    path = SHARED_DATA / "gsm8k_test.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {SHARED_DATA}")
    solutions = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert all("worked solution" in read_math(Submission("", text)).fault for text in solutions)
    answers = [read_math(Submission("", taken_from_solution(text))) for text in solutions]
    assert all(answer.text.startswith("the number ") and not answer.fault for answer in answers)


def test_tests_of_programs_are_counted():
    path = SHARED_DATA / "humaneval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {SHARED_DATA}")
    from sppo.config import DataConfig
    from sppo.data.tasks import get_task

    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    task = get_task("humaneval")
    golds = [task.read(row, DataConfig(task="humaneval")).gold for row in rows]
    read = {VERIFIERS["code"].read_gold(Submission("", gold)).text for gold in golds}
    assert read == {"1 test that is a function; with a reference solution"}
