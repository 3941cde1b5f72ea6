"""Near-copies by n-grams: what counts as the same problem, and what does not."""

from __future__ import annotations

import pytest

from sppo.data.tasks.contamination import Corpus, find_alike, find_alike_within, words

PIPES = (
    "A cistern of $840$ litres is filled by two pipes. The first pipe alone needs $14$ hours, and the second pipe "
    "alone needs $10$ hours. How many litres has the first pipe brought in when the cistern is full?"
)
ROOTS = r"Let $p$ and $q$ be the roots of $x^2 - 7x + 3 = 0$. What is the value of $\frac{p}{q} + \frac{q}{p}$?"
DICE = "Three fair dice are thrown. What is the probability that the greatest number shown is exactly $5$?"


def alike(row: str, problem: str) -> str:
    """What a row is to a problem: "copy", "variant" or "other"."""
    found = find_alike(Corpus([row]), Corpus([problem]))
    return "other" if not found else "copy" if found[0].copy else "variant"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\dfrac{1}{2}", r"\frac 1 2"),
        (r"$\left( x, y \right)$", "(x,y)"),
        (r"x \leq 3, y \ge 2", "x ≤ 3, y ≥ 2"),
        (r"a \neq b", r"a \not= b"),
        (r"12,500", "12500"),
        (r"12{,}500 and 1,250,000", "12500 and 1250000"),
        (r"\text{If } n \text{ is odd}", "If n is ODD"),
        (r"1, 2, \ldots, n", r"1,2,\cdots,n"),
        (r"3 − 2", "3-2"),
        (r"\[x^{2}\]", "$x^2$"),
        ("the grid [asy] draw((0,0)--(7,7)); [/asy] shown", "the grid shown"),
        (r"3\,x\quad y", "3 x y"),
    ],
)
def test_spellings_of_the_same_words(one, other):
    assert words(one) == words(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("2n - 1", "2n + 1"), ("x^2", "x2"), ("1.5", "15"), ("n = 3", "n > 3"), (r"\sin x", r"\cos x"), ("ab", "a b")],
)
def test_what_stays_different(one, other):
    assert words(one) != words(other)


def test_words_by_hand():
    text = r"If $f(x)=\frac{3x-2}{x+10}$, is 40\% of $f(0)\le 1{,}000$?"
    assert " ".join(words(text)) == "if f x = frac 3 x - 2 x + 10 is 40 % of f 0 < 1000"
    assert words("求 $n$ 的值") == ["求", "n", "的", "值"]


@pytest.mark.parametrize(
    "row",
    [
        PIPES,
        PIPES.replace("$", "").replace(". ", ".  "),
        PIPES + " Give the answer as m + n where the original answer is m over n.",
        PIPES.replace(
            "How many litres has the first pipe brought in", "Find how many litres the first pipe has brought"
        ),
        "Solve this. " + PIPES,
        PIPES.rpartition(" How many")[0] + " In how many hours is it full?",
    ],
    ids=["same", "without dollars", "another form of the answer", "reworded", "after more text", "another question"],
)
def test_copies(row):
    assert alike(row, PIPES) == "copy"


def test_the_same_text_with_another_number_is_a_variant():
    assert alike(PIPES.replace("840", "960"), PIPES) == "variant"
    assert alike(PIPES.replace("14", "10"), PIPES) == "variant"


@pytest.mark.parametrize(("row", "problem"), [(ROOTS, PIPES), (DICE, ROOTS), ("", PIPES), (PIPES, ""), ("", DICE)])
def test_other_problems(row, problem):
    assert alike(row, problem) == "other"


def test_a_problem_too_short_for_runs_must_be_equal():
    assert alike("What is $7 + 5$?", "What is 7+5 ?") == "copy"
    assert alike("What is $7 + 5$? Show it.", "What is 7+5?") == "other"


def test_a_problem_of_few_runs_must_stand_there_as_a_whole():
    # Twelve words, so five runs: a phrase that begins many problems is no copy.
    problem = "Find the number of ways to order the letters of word ABC"
    assert alike("Find the number of ways to order the letters of word XYZ", problem) == "other"
    assert alike("Bob knows. Find the number of ways to order the letters of word ABC.", problem) == "copy"
    # Ten words, so three runs, may stand in other problems by chance.
    problem = "Find the number of ways to order the letters ABC"
    assert alike(problem + " if A comes first", problem) == "other"


def test_a_row_within_a_longer_problem_is_a_copy():
    longer = (
        PIPES.replace("cistern of", "cistern, made of copper and very old, of") + " Explain each step that you take."
    )
    assert alike(PIPES, longer) == "copy"


def test_what_most_rows_begin_and_end_with_is_left_out():
    names = ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "yew"]
    start, end = "Solve the following problem slowly.", "Put the final answer in a box, please."
    corpus = Corpus([f"{start} Count every {name} once. {end}" for name in names] + [ROOTS])
    # "count every" begins most rows too; the other end stops at the name of the tree.
    assert corpus.words[:2] == [["ash"], ["birch"]]
    assert corpus.words[-1] == words(ROOTS)
    few = Corpus([f"{start} Count every {name} once. {end}" for name in names[:9]])
    assert few.words[0] == words(f"{start} Count every ash once. {end}")


def test_a_phrase_that_many_rows_share_says_nothing():
    phrase = "where m and n are relatively prime positive integers, find the value of m + n as a whole number"
    shapes = ["cone", "cube", "disc", "kite", "lens", "prism", "ring", "rhombus", "sphere", "torus", "star", "wedge"]
    rows = [f"The area of the {shape} drawn by {place} hands is m/n, {phrase}." for place, shape in enumerate(shapes)]
    problem = f"The weight of a {{}} box is m/n, {phrase}."
    assert find_alike(Corpus(rows), Corpus([problem])) == []
    # Among fewer rows the phrase is no longer common.
    assert len(find_alike(Corpus(rows[:3]), Corpus([problem]))) == 3


def test_texts_without_a_word_are_not_alike():
    """A figure alone is left with no words, which equals any other such text."""
    assert find_alike(Corpus(["[asy] draw(A--B); [/asy]"]), Corpus(["[asy] fill(circle); [/asy]", "?"])) == []


def test_numbers_of_figures_tell_variants_apart():
    text = "Find the length of the side marked x in the triangle that the diagram shows to scale."
    drawn = text + ' [asy] size({}); draw((0,0)--(3,0)--(0,4)--cycle); label("{}", (1,1)); [/asy]'
    assert alike(drawn.format(100, 5), drawn.format(200, 5)) == "copy"
    assert alike(drawn.format(100, 5), drawn.format(100, 8)) == "variant"
    assert alike(text, drawn.format(100, 8)) == "copy"


def test_pairs_within_one_data_set():
    data = Corpus([PIPES, ROOTS, PIPES.replace("two pipes", "a pair of pipes"), DICE, PIPES.replace("840", "900")])
    found = {(pair.row, pair.other): pair.copy for pair in find_alike_within(data)}
    assert found == {(0, 2): True, (0, 4): False, (2, 4): False}


def test_shares_by_hand():
    # 12 words have 5 runs of 8; the row has the first 11 words, so 4 of them, and 2 runs of its own.
    problem = "one two three four five six seven eight nine ten eleven twelve"
    row = "one two three four five six seven eight nine ten eleven and so"
    assert find_alike(Corpus([row]), Corpus([problem])) == []
    longer = problem + " thirteen fourteen fifteen sixteen"
    row = longer.replace("sixteen", "and so on")
    # 16 words, 9 runs, of which the row has 8.
    (found,) = find_alike(Corpus([row]), Corpus([longer]))
    assert found.share == pytest.approx(8 / 9)


def test_nothing_at_all():
    assert find_alike(Corpus([]), Corpus([])) == []
    assert find_alike(Corpus([]), Corpus([PIPES])) == []
    assert find_alike_within(Corpus([])) == []
