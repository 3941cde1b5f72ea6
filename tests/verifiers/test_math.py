"""The math verifier on hand-labelled answers; each row was judged by a person, not by the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppo.config.verification import VerificationConfig
from sppo.types import Submission, Verdict
from sppo.verifiers import VERIFIERS, Tools, check_golds
from sppo.verifiers.extraction import find_answer
from sppo.verifiers.math.boxes import list_boxes
from sppo.verifiers.math.latex import normalise
from sppo.verifiers.math.verifier import MAX_ANSWER, fast, slow
from sppo.verifiers.pool import VerifierPool
from tests.conftest import SHARED_DATA

TOOLS = Tools(VerificationConfig(time_limit=60.0))
LABELLED = Path(__file__).with_name("labelled_answers.jsonl")

# What goes wrong elsewhere, each by its name: (response, gold, right?). The full table is labelled_answers.jsonl.
KNOWN_FAILURES = {
    "a factor of 100": (r"\boxed{500}", "5", False),
    "a factor of 100, as a percentage": (r"\boxed{0.05}", r"5\%", False),
    "a box in an unfinished thinking block": (r"<think>so \boxed{5} hmm, then", "5", False),
    "a box in a thinking block that a second one reopens": (r"<think>a</think>\boxed{5}<think>wait", "5", False),
    "the last of several boxes counts": ("\\boxed{1}\nNo, that is wrong:\n\\boxed{2}", "2", True),
    "only the last of several boxes counts": ("\\boxed{1}\nNo, that is wrong:\n\\boxed{2}", "1", False),
    "the same box twice counts once": (r"\boxed{2}, so \boxed{2}", "2", True),
    "two different final answers": (r"It is \boxed{1} or \boxed{2}.", "2", False),
    "a second thought behind the box": (r"It is $\boxed{3}$, or maybe 4.", "3", False),
    "another answer behind the box": ("\\boxed{3}\n\nFinal answer: 4", "3", False),
    "Unicode minus": (r"\boxed{−3}", "-3", True),
    "frac without braces": (r"\boxed{\frac24}", r"\frac12", True),
    "dfrac": (r"\boxed{\dfrac{1}{2}}", "0.5", True),
    "degrees": (r"\boxed{73^\circ}", "73", True),
    "percent": (r"\boxed{73\%}", "73", True),
    "units": (r"\boxed{15\mbox{ cm}^2}", "15", True),
    "another unit": (r"\boxed{5 \text{ m}}", r"5 \text{ cm}", False),
    "bold": (r"\boxed{**73**}", "73", True),
    "thousands separators": (r"\boxed{1{,}234{,}567}", "1234567", True),
    "e-notation": (r"\boxed{4.5e33}", r"4.5 \times 10^{33}", True),
    "order inside a pi product": (r"\boxed{\pi \cdot 2}", r"2\pi", True),
    "order inside a set": (r"\boxed{\{2, 1\}}", r"\{1, 2\}", True),
    "order inside a tuple": (r"\boxed{(2, 1)}", "(1, 2)", False),
    "plus-minus": (r"\boxed{3 \pm \sqrt{2}}", r"3-\sqrt{2}, 3+\sqrt{2}", True),
    "half of plus-minus": (r"\boxed{2}", r"\pm 2", False),
    "1 or 2": (r"\boxed{2 \text{ or } 1}", "1, 2", True),
    "A or B or C": (r"\boxed{5 \text{ or } 6 \text{ or } 7}", "6", False),
    "boxed in prose": (r"I will put it in \boxed later. The answer is 5", "5", True),
    "1/2004! is not 1/2006!": (r"\boxed{\frac{1}{2004!}}", r"\frac{1}{2006!}", False),
    "n = 2,3,4 is not n = 1,2,3": (r"\boxed{n=2,3,4}", "n=1,2,3", False),
    "unrelated equations": (r"\boxed{x^2 - x^2 = 0}", "a + b = b + a", False),
    "AIME, leading zeros": (r"\boxed{073}", "73", True),
    "AMC, gold 27.0": (r"\boxed{27}", "27.0", True),
    "no tolerance": (r"\boxed{0.333}", r"\frac13", False),
    "interval for inequality": (r"\boxed{(5,\infty)}", "x > 5", True),
    "inequality for interval": (r"\boxed{x > 5}", r"(5,\infty)", True),
    "the question given back": (r"\boxed{\sum_{k=1}^{10} k}", "55", False),
    "a word that changes the value": (r"\boxed{10 \text{ million}}", "10", False),
    "a capital is another variable": (r"\boxed{X}", "x", False),
    "a long decimal is not pi": (r"\boxed{3.141592653589793}", r"\pi", False),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=2, time_limit=60.0) as running:
        yield running


def grade(pool: VerifierPool, rows: list[tuple[str, str]]) -> list[Verdict]:
    verdicts = [fast(response, gold, True) for response, gold in rows]
    undecided = [i for i, verdict in enumerate(verdicts) if verdict is None]
    for i, verdict in zip(undecided, pool.run([(slow, *rows[i]) for i in undecided]), strict=True):
        verdicts[i] = verdict
    return [verdict for verdict in verdicts if verdict is not None]


@pytest.mark.parametrize(("response", "gold", "right"), KNOWN_FAILURES.values(), ids=KNOWN_FAILURES.keys())
def test_what_goes_wrong_elsewhere(pool, response, gold, right):
    assert grade(pool, [(response, gold)])[0].reward == float(right)


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
    "unit",
    [
        "\\boxed{",
        "\\boxed ",
        "{",
        "}",
        "$",
        "Answer: ",
        "answer is ",
        "\\frac",
        "**",
        "(",
        "<think>",
        " ",
        "1,",
        "\\",
        "9",
        "\\boxed{1} or ",
        "\\boxed{1}\nAnswer: ",
        "\n",
        "a or ",
        "the final answer is: ",
    ],
)
def test_a_megabyte_of_garbage_is_decided_by_strings(unit):
    for text in (unit * (1_000_000 // len(unit)), "\\boxed{" + unit * (1_000_000 // len(unit)) + "}"):
        verdict = fast(text, "5", True)
        assert verdict is not None
        assert verdict.reward == 0.0


@pytest.mark.parametrize(
    "unit",
    [
        "(",
        "{",
        "\\frac",
        "^",
        "\\text{",
        "a ",
        "1,",
        "\\pm",
        "=",
        " ",
        "\\sqrt",
        "$",
        "-",
        "°",
        ";",
        "9",
        "\\(",
        "x<1 or ",
    ],
)
def test_an_answer_at_the_limit_does_not_blow_up(unit):
    # A pattern that backtracks exponentially would never come back from this.
    for gold in ("5", r"x \in (1, 2)"):
        verdict = fast("\\boxed{" + (unit * MAX_ANSWER)[:MAX_ANSWER] + "}", gold, True)
        assert verdict is None or verdict.reward == 0.0


def test_boxes_of_a_text():
    assert [box.text for box in list_boxes(r"a \boxed{1} b \fbox{ {2} } \boxed{\{3\}}")] == ["1", "{2}", r"\{3\}"]
    assert [box.text for box in list_boxes(r"\boxed{1} \boxed{2")] == ["1", None]
    assert [box.text for box in list_boxes("no box, {only} braces")] == []


def test_why_there_is_no_answer():
    assert find_answer("<think> hm").reason == "the thinking block is not closed"
    assert find_answer(r"\boxed{7").reason == "the last box is not closed"
    assert find_answer("seven").reason == "no final answer"


def test_normalise_is_idempotent_on_the_labelled_answers():
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for text in (row.get("answer", ""), row["gold"]):
            assert normalise(normalise(text)) == normalise(text)


def load_golds(name: str) -> list[str]:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in {SHARED_DATA}")
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
    assert check_golds([(verifier, Submission("", gold)) for gold in golds], TOOLS) == {}


def test_math_500_golds_are_only_equal_to_themselves_by_sympy_too(pool):
    golds = load_golds("math_500.parquet")[::5]
    rows = [(rf"\boxed{{{gold}+1}}", gold) for gold in golds if gold.lstrip("-").isdigit() or "sqrt" in gold]
    verdicts = grade(pool, rows)
    assert [v.reward for v in verdicts] == [0.0] * len(rows)


def test_golds_that_cannot_be_used_are_listed():
    golds = [("5", "math"), ("", "math"), (None, "math"), (r"\frac{1}{2", "math"), ("  ", "exact"), ("a", "exact")]
    unusable = check_golds([(verifier, Submission("", gold)) for gold, verifier in golds], TOOLS)
    assert sorted(unusable) == [1, 2, 3, 4]
    assert "missing" in unusable[1]
    assert "does not verify against itself" in unusable[3]


def test_the_table_names_each_verifier_by_its_key():
    assert all(name == verifier.name for name, verifier in VERIFIERS.items())
