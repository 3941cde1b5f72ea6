"""The math verifier on hand-labelled answers; each row was judged by a person, not by the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppo.types import Submission, Verdict
from sppo.verifiers import VERIFIERS, Tools, check_golds
from sppo.verifiers.latex import find_answer, list_boxes, normalise
from sppo.verifiers.math import MAX_ANSWER, fast, slow
from sppo.verifiers.pool import VerifierPool

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

# (whole response, gold, right?): what counts as the answer.
RESPONSES = [
    (r"so \boxed{73}.", "73", True),
    (r"\boxed{1} no, \boxed{2}", "2", True),
    (r"\boxed{2} no, \boxed{1}", "2", False),
    (r"\boxed{2} or rather \boxed{2}", "2", True),
    (r"I will put it in \boxed later. The answer is 5", "5", True),
    (r"The result: \boxed{5}. As asked, I used \boxed .", "5", True),
    (r"Fill in \boxed{}: I get \boxed{5}", "5", True),
    (r"I get \boxed{5}, given in \boxed{}", "5", True),
    (r"\boxed{5} wait \boxed{7", "5", False),
    (r"\boxed{5} wait \boxed{7", "7", False),
    (r"$\boxed 5$", "5", True),
    (r"\fbox{5}", "5", True),
    (r"\boxed{\frac{1}{2}}", r"\frac12", True),
    (r"\boxed{5 \text{ or } \boxed{7}}", "7", False),
    (r"<think>\boxed{5}", "5", False),
    (r"<think>so \boxed{5} hmm, then", "5", False),
    (r"<think>\boxed{4}</think> It is \boxed{5}.", "5", True),
    (r"hmm \boxed{4}</think> It is \boxed{5}.", "5", True),
    (r"<think>\boxed{5}</think> I do not know.", "5", False),
    (r"<think>a</think>\boxed{5}<think>wait", "5", False),
    ("Steps.\nAnswer: 34", "34", True),
    ("Steps.\nAnswer: $34$", "34", True),
    ("Answer: 33\nno\n**Answer:** 34", "34", True),
    ("**Final Answer: 34**", "34", True),
    ("Answer: 34\nMore: \\boxed{35}", "34", False),
    ("So the answer is 34.", "34", True),
    ("The final answer is: 34 degrees", "34", True),
    ("The answer is 34, not 35.", "34", False),
    ("34", "34", False),
    ("", "34", False),
    ("The answer is", "34", False),
]

# (answer inside the box, gold, right?)
ANSWERS = [
    # numbers
    ("073", "73", True),
    ("73", "073", True),
    ("73.0", "73", True),
    ("27", "27.0", True),
    ("500", "5", False),
    ("5", "500", False),
    ("0.05", "5", False),
    (r"5\%", "5", True),
    ("5", r"5\%", True),
    (r"5\%", "0.05", False),
    ("0.05", r"5\%", False),
    (r"5\%", r"5^\circ", False),
    ("−3", "-3", True),
    ("3", "-3", False),
    ("1,234", "1234", True),
    (r"1{,}234", "1234", True),
    (r"10,\!080", "10080", True),
    ("1,234,567.5", "1234567.5", True),
    ("4.5e33", r"4.5 \times 10^{33}", True),
    (r"4.5 \cdot 10^{33}", "4.5e33", True),
    ("4.5e32", r"4.5 \times 10^{33}", False),
    ("45e32", r"4.5 \times 10^{33}", True),
    (".5", r"\frac12", True),
    (r"\frac24", r"\frac12", True),
    (r"\dfrac{1}{2}", "1/2", True),
    (r"\tfrac12", "0.5", True),
    (r"\frac{1}2", "0.5", True),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    (r"\frac{2}{1}", r"\frac{1}{2}", False),
    ("0.333", r"\frac13", False),
    ("0.333333", r"\frac13", False),
    (r"1\frac{4}{5}", r"\frac{9}{5}", True),
    ("3.14", r"\pi", False),
    (r"\frac{1}{0}", "0", False),
    ("52_8", "52_{8}", True),
    ("52", "52_8", False),
    ("52_8", "52_9", False),
    ("999999999999999999999", "1000000000000000000000", False),
    # wrapping and units
    ("**73**", "73", True),
    (r"\mathbf{73}", "73", True),
    (r"\text{73}", "73", True),
    ("$73$", "73", True),
    ("73.", "73", True),
    (r"73^\circ", "73", True),
    ("73°", r"73^{\circ}", True),
    ("73 degrees", r"73^\circ", True),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}", True),
    (r"15\mbox{ cm}^2", "15", True),
    (r"15 \text{ cm}^3", r"15\mbox{ cm}^2", False),
    (r"5 \text{ m}", r"5 \text{ cm}", False),
    (r"864 \text{ square inches}", r"864 \mbox{ inches}^2", True),
    (r"\$18.90", "18.90", True),
    ("18.9", r"\$18.90", True),
    ("5m", "5", False),
    ("x = 5", "5", True),
    ("5", "x=5", True),
    ("y=5", "x=5", False),
    ("x = 2 + 3 = 5", "5", True),
    ("x = 5 = 6", "6", False),
    # words and choices
    (r"\text{Evelyn}", "Evelyn", True),
    ("evelyn", r"\text{Evelyn}", True),
    ("Navin", r"\text{Evelyn}", False),
    ("C", r"\text{(C)}", True),
    ("(B)", r"\text{(C)}", False),
    ("even", r"\text{odd}", False),
    # several values, order, hedging
    ("2 or 1", r"1 \text{ or } 2", True),
    ("1, 2", "2,1", True),
    (r"\{1, 2\}", "1, 2", True),
    (r"\{2, 1\}", r"\{1, 2\}", True),
    ("1", "1, 2", False),
    ("1, 1", "1, 2", False),
    ("5 or 6", "5", False),
    (r"5 \text{ or } 6 \text{ or } 7", "6", False),
    ("5, 6", "5", False),
    ("5 and 6", "5", False),
    ("(1, 2)", "(2, 1)", False),
    ("(1,2)", "(1, 2)", True),
    ("(1,2)", "[1,2]", False),
    ("(3,4]", r"\left(3,4\right]", True),
    ("[3,4)", "(3,4]", False),
    ("n=2,3,4", "n=1,2,3", False),
    ("n=1,2,3", "1,2,3", True),
    ("x=2,y=1", "x=1,y=2", False),
    ("y=2, x=1", "x=1,y=2", True),
    (r"3 \pm \sqrt{2}", r"3+\sqrt{2}, 3-\sqrt{2}", True),
    (r"\pm 2", "-2, 2", True),
    (r"\pm 2", "2", False),
    ("2", r"\pm 2", False),
    (r"\{-2, 1+\sqrt5, 1-\sqrt5\}", r"\{1\pm\sqrt{5},-2\}", True),
    (r"(3,\infty)\cup(-\infty,2)", r"(-\infty, 2) \cup (3, \infty)", True),
    (r"(-\infty,2)\cup(2,\infty)", r"(-\infty, 2) \cup (3, \infty)", False),
    (r"[-2,7]", r"x \in [-2,7]", True),
    (r"\begin{pmatrix} -0.5 \\ 2/4 \end{pmatrix}", r"\begin{pmatrix} -1/2 \\ 1/2 \end{pmatrix}", True),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", False),
    # symbols
    (r"\sqrt{8}", r"2\sqrt2", True),
    (r"\sqrt{8}", r"2\sqrt3", False),
    (r"\pi \cdot 2", r"2\pi", True),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}", True),
    ("π/2", r"\frac{\pi}{2}", True),
    ("2+3", "5", True),
    ("2+3", "6", False),
    ("-q+p", "p - q", True),
    ("q-p", "p-q", False),
    ("(b+2)(a+5)", "(a+5)(b+2)", True),
    ("9i+6", "6+9i", True),
    ("6-9i", "6+9i", False),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
    ("10^{-10}", r"2 \cdot 10^{-10}", False),
    (r"\frac{1}{10^{10}}", "0", False),
    (r"(\frac{\pi}{2}, 3)", r"\left( 3, \frac{\pi}{2} \right)", False),
    (r"(3, \pi/2)", r"\left( 3, \frac{\pi}{2} \right)", True),
    # equations and inequalities
    ("2x + 3", "y = 2x + 3", True),
    ("y - 3 = 2x", "y = 2x + 3", True),
    ("y = 2x - 3", "y = 2x + 3", False),
    ("10x - 14y + 22z + 8 = 0", "5x - 7y + 11z + 4 = 0", True),
    ("x^2 - x^2 = 0", "a + b = b + a", False),
    ("0 = 0", "5x - 7y + 11z + 4 = 0", False),
    ("x + y = 1", "x^2 + y^2 = 1", False),
    ("x = 0", "y^2 = 0", False),
    ("x > 5", "x > 5", True),
    ("5 < x", "x > 5", True),
    ("x < 5", "x > 5", False),
    (r"-2 \le x \le 7", r"x \in [-2,7]", True),
    (r"(5,\infty)", "x > 5", True),
    # found by trying to fool it
    (r"\{5\}", "5", True),
    ("5; 6", "5", False),
    ("5 (or 6)", "5", False),
    (r"5 \neq 6", "5", False),
    (r"5 \neq 6", "6", False),
    (r"5 \approx 6", "6", False),
    (r"2\sqrt{113} \approx 21.26", r"2\sqrt{113}", True),
    (r"5 \text{ but maybe } 6", "5", False),
    (r"5 \text{ (not 6)}", "5", False),
    ("5 6", "6", False),
    (r"5 \vee 6", "5", False),
    ("2x+3y=5", "5", False),
    ("x=5,6", "5", False),
    ("5!", "5", False),
    ("5!", "120", True),
    ("1024", "2^{10}", True),
    (r"\infty", r"-\infty", False),
    ("32,348 dollars", r"\$32,\!348", True),
    (r"6.72\times 10^{-5}", ".0000672", True),
    ("11,111,111,100", r"11,\! 111,\! 111,\! 100", True),
    (r"x = -2 \text{ or } x = 1", "1,-2", True),
    (r"3, 5, \text{ and } 7", "3, 5, 7", True),
    (r"-\sqrt{3}<x<\sqrt{3}", r"(-\sqrt{3}, \sqrt{3})", True),
    (r"\frac{\cos x}{\sin x}", r"\cot x", True),
    (r"x\ge 2", r"(2,\infty)", False),
    (r"x\ge 2", r"[2,\infty)", True),
    # garbage
    (r"\frac{1}{", "5", False),
    (r"\foo\bar{", "5", False),
    ("?", "5", False),
    ("...", "5", False),
]


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=2, time_limit=10.0) as running:
        yield running


def grade(pool: VerifierPool, rows: list[tuple[str, str]]) -> list[Verdict]:
    verdicts = [fast(response, gold, True) for response, gold in rows]
    undecided = [i for i, verdict in enumerate(verdicts) if verdict is None]
    for i, verdict in zip(undecided, pool.run([(slow, *rows[i]) for i in undecided]), strict=True):
        verdicts[i] = verdict
    return [verdict for verdict in verdicts if verdict is not None]


def test_responses_as_labelled(pool):
    verdicts = grade(pool, [(response, gold) for response, gold, _ in RESPONSES])
    wrong = [(*row, v) for row, v in zip(RESPONSES, verdicts, strict=True) if v.reward != float(row[2])]
    assert not wrong


def test_answers_as_labelled(pool):
    rows = [(rf"Thus \boxed{{{answer}}}.", gold) for answer, gold, _ in ANSWERS]
    verdicts = grade(pool, rows)
    wrong = [(*row, v) for row, v in zip(ANSWERS, verdicts, strict=True) if v.reward != float(row[2])]
    assert not wrong


def test_plain_numbers_need_no_process():
    for answer, gold in [("73", "073"), (r"\frac24", "0.5"), ("4.5e33", r"4.5\times10^{33}"), ("(1,2)", "(2,1)")]:
        assert fast(rf"\boxed{{{answer}}}", gold, True) is not None


def test_sympy_is_only_asked_where_strings_cannot_tell():
    assert fast(r"\boxed{\sqrt{8}}", r"2\sqrt{2}", True) is None
    assert fast(r"\boxed{2\sqrt 2}", r"2\sqrt{2}", True).reward == 1.0


def test_long_answers_are_wrong_and_not_errors():
    verdict = fast("\\boxed{" + "1+" * MAX_ANSWER + "1}", "5", True)
    assert verdict.reward == 0.0
    assert verdict.error is None
    assert "longer than" in verdict.reason


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "\\boxed ", "{", "}", "$", "Answer: ", "answer is ", "\\frac", "**", "(", "<think>", " ", "1,"]
)
def test_a_megabyte_of_garbage_is_decided_by_strings(unit):
    for text in (unit * (1_000_000 // len(unit)), "\\boxed{" + unit * (1_000_000 // len(unit)) + "}"):
        verdict = fast(text, "5", True)
        assert verdict is not None
        assert verdict.reward == 0.0


@pytest.mark.parametrize("unit", ["(", "{", "\\frac", "^", "\\text{", "a ", "1,", "\\pm", "=", " ", "\\sqrt", "$", "-"])
def test_an_answer_at_the_limit_does_not_blow_up(unit):
    # A pattern that backtracks exponentially would never come back from this.
    for gold in ("5", r"x \in (1, 2)"):
        verdict = fast("\\boxed{" + (unit * MAX_ANSWER)[:MAX_ANSWER] + "}", gold, True)
        assert verdict is None or verdict.reward == 0.0


def test_boxes_of_a_text():
    assert list_boxes(r"a \boxed{1} b \fbox{ {2} } \boxed{\{3\}}") == ["1", "{2}", r"\{3\}"]
    assert list_boxes(r"\boxed{1} \boxed{2") == ["1", None]
    assert list_boxes("no box, {only} braces") == []


def test_why_there_is_no_answer():
    assert find_answer("<think> hm").reason == "the thinking block is not closed"
    assert find_answer(r"\boxed{7").reason == "the last box is not closed"
    assert find_answer("seven").reason == "no boxed answer"


def test_normalise_is_idempotent_on_the_labelled_answers():
    for answer, gold, _ in ANSWERS:
        for text in (answer, gold):
            assert normalise(normalise(text)) == normalise(text)


def load_golds(name: str) -> list[str]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in {DATA}")
    if name.endswith(".jsonl"):
        return [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    parquet = pytest.importorskip("pyarrow.parquet")
    return [
        row["ground_truth"] for row in parquet.read_table(path, columns=["reward_model"])["reward_model"].to_pylist()
    ]


@pytest.mark.parametrize(
    ("name", "rows", "verifier"),
    [
        ("math_500.parquet", 500, "math"),
        ("dapo_math_17k.parquet", 17_398, "math"),
        ("aime24_repeated_8x.parquet", 240, "math"),
        ("gsm8k_train.jsonl", 7_473, "final_answer"),
        ("gsm8k_test.jsonl", 1_319, "final_answer"),
    ],
)
def test_every_published_gold_verifies_against_itself(name, rows, verifier):
    golds = load_golds(name)
    assert len(golds) == rows
    assert check_golds([(verifier, Submission("", gold)) for gold in golds], Tools()) == {}


def test_math_500_golds_are_only_equal_to_themselves_by_sympy_too(pool):
    golds = load_golds("math_500.parquet")[::5]
    rows = [(rf"\boxed{{{gold}+1}}", gold) for gold in golds if gold.lstrip("-").isdigit() or "sqrt" in gold]
    verdicts = grade(pool, rows)
    assert [v.reward for v in verdicts] == [0.0] * len(rows)


def test_golds_that_cannot_be_used_are_listed():
    golds = [("5", "math"), ("", "math"), (None, "math"), (r"\frac{1}{2", "math"), ("  ", "exact"), ("a", "exact")]
    unusable = check_golds([(verifier, Submission("", gold)) for gold, verifier in golds], Tools())
    assert sorted(unusable) == [1, 2, 3, 4]
    assert "missing" in unusable[1]
    assert "does not verify against itself" in unusable[3]


def test_the_table_names_each_verifier_by_its_key():
    assert all(name == verifier.name for name, verifier in VERIFIERS.items())
