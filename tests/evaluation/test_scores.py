"""avg@n, pass@k, maj@k of hand-made responses, what is left out, and paired differences."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from sppo.cli.scores import as_text, print_comparison, print_scores
from sppo.errors import DataError, TrainingError
from sppo.evaluation.paired import compare
from sppo.evaluation.scores import EvaluationResult, Response, average, score


def group(problem, *answers, **fields):
    """Responses with these answers, of which "7" is right; None gave no answer, "!" is an error."""
    return [
        Response(problem, number, None, None, error="timed out after 3 s", **fields)
        if answer == "!"
        else Response(problem, number, float(answer == "7"), answer, **fields)
        for number, answer in enumerate(answers)
    ]


def responses(**groups):
    return {problem: group(problem, *answers) for problem, answers in groups.items()}


def test_scores_by_hand():
    scores = score("math500", responses(a=["7", "7", "8", "7"], b=["8", "8", "7", None]), samples=4)
    assert scores.accuracy.value == (3 / 4 + 1 / 4) / 2
    assert {k: e.value for k, e in scores.pass_at.items()} == pytest.approx({1: 0.5, 2: (1 + 0.5) / 2, 4: 1})
    # Of b's six pairs: 7 with the silent one wins, 7 with either 8 ties, the others lose; all four: 8 wins.
    assert {k: e.value for k, e in scores.majority_at.items()} == pytest.approx(
        {1: 0.5, 2: ((3 * 1 + 3 * 0.5) / 6 + (1 + 2 * 0.5) / 6) / 2, 4: 0.5}
    )
    assert scores.no_answer_share == 1 / 8
    # sd of (.75, .25) over sqrt 2; each mean's variance is (3/16)/3.
    assert scores.accuracy.stderr == pytest.approx(0.25)
    assert scores.accuracy.sampling_stderr == pytest.approx(math.sqrt(2 * (3 / 16) / 3) / 2)
    # pass@4 of 4 is 1 unless all fail, which happens with 1/256 and 81/256.
    variances = [share * (1 - share) * 4 / 3 for share in (1 / 256, 81 / 256)]
    assert scores.pass_at[4].sampling_stderr == pytest.approx(math.sqrt(sum(variances)) / 2)


def test_a_response_that_made_its_verification_fail_is_wrong_and_one_whose_verifier_failed_is_left_out():
    graded = {
        str(number): [Response(str(number), 0, 1.0, "7") if number < 91 else _failed(str(number), "response")]
        for number in range(100)
    }
    scores = score("math500", graded, samples=1)
    assert scores.accuracy.value == 0.91
    assert (scores.errors, scores.response_errors) == ({}, {"timed out after 3 s": 9})
    graded |= {str(number): [_failed(str(number), "verifier")] for number in range(91, 100)}
    scores = score("math500", graded, samples=1)
    assert scores.accuracy.value == 1.0
    assert (scores.errors, scores.response_errors) == ({"timed out after 3 s": 9}, {})


def _failed(problem: str, caused_by: str) -> Response:
    reward = 0.0 if caused_by == "response" else None
    return Response(problem, 0, reward, error="timed out after 3 s", caused_by=caused_by)


def test_right_answers_vote_together_however_they_are_written():
    written = [Response("a", n, float(n < 2), text) for n, text in enumerate(["1/2", "0.5", "2", "2", "2"])]
    # Of the five subsets of four, the three that leave a wrong one out are ties.
    assert score("math500", {"a": written}, samples=5).majority_at[4].value == pytest.approx(3 / 5 * 0.5)


def test_rewards_without_answers_have_no_majority():
    """Wrong responses of no known answer can't outvote: maj@k would be pass@k."""
    graded = [Response("a", n, float(n < 2)) for n in range(4)]
    scores = score("held_out", {"a": graded}, samples=4)
    assert (scores.majority_at, list(scores.pass_at)) == ({}, [1, 2, 4])


def test_where_nothing_was_solved_pass_at_k_is_less_certain_than_the_accuracy():
    scores = score("aime24", responses(**{name: ["8"] * 4 for name in "abc"}), samples=4)
    highs = {k: estimate.sampling_interval.high for k, estimate in scores.pass_at.items()}
    assert highs == pytest.approx({k: 1 - 0.025 ** (k / 12) for k in (1, 2, 4)})


def test_an_error_is_neither_right_nor_wrong():
    scores = score("aime24", responses(a=["7", "!", "7", "!"], b=["8", "7", "8", "8"], c=["!"] * 4), samples=4)
    assert scores.accuracy.value == (1 + 1 / 4) / 2
    assert (scores.problems, scores.accuracy.problems) == (3, 2)
    assert scores.errors == {"timed out after 3 s": 6}
    # a has two samples left, too few for pass@4.
    assert (scores.pass_at[2].problems, scores.pass_at[4].problems) == (2, 1)
    with pytest.raises(TrainingError, match=r"none of the 1 responses has a reward. The first error: timed out"):
        score("aime24", responses(a=["!"]), samples=1)


def test_one_sample_a_problem_says_nothing_of_the_sampling():
    scores = score("aime24", responses(a=["7"], b=["8"]), samples=1)
    assert scores.accuracy.stderr == pytest.approx(0.5)
    assert scores.accuracy.sampling_interval is None
    assert list(scores.pass_at) == [1]


def test_lengths_and_difficulties():
    cut = {"a": group("a", "7", "8", finished=False, tokens=10), "b": group("b", "7", "7", tokens=20)}
    labels = {"a": "Level 10", "b": "Level 2"}
    scores = score("math500", cut, samples=2, votes=False, difficulty=labels)
    assert (scores.clipped_share, scores.length_mean, scores.majority_at) == (0.5, 15, {})
    assert {label: e.value for label, e in scores.by_difficulty.items()} == {"Level 2": 1, "Level 10": 0.5}


def test_the_average_counts_every_benchmark_the_same():
    small = score("aime24", responses(a=["7", "8"], b=["8", "8"]), samples=2)
    large = score("math500", responses(**{name: ["7", "8"] for name in "abcdefgh"}, i=["7", "7"]), samples=2)
    mean = average([small, large])
    assert mean is not None
    assert mean.value == pytest.approx((0.25 + 5 / 9) / 2)
    assert mean.stderr == pytest.approx(math.hypot(small.accuracy.stderr, large.accuracy.stderr) / 2)
    assert average([small]) is None


# ---- pairs


def test_a_pair_by_hand():
    a = {"math500": responses(p=["7", "7"], q=["7", "8"], r=["8", "8"], s=["7", "7"])}
    b = {"math500": responses(p=["7", "8"], q=["8", "8"], r=["8", "8"], s=["8", "7"])}
    pair = compare("A", "B", a, b).benchmarks["math500"]
    assert (pair.a, pair.b, pair.difference.value) == (5 / 8, 2 / 8, 3 / 8)
    assert (pair.a_better, pair.b_better, pair.equal) == (3, 0, 1)
    assert pair.p_value == pytest.approx(2 / 8)
    # Differences .5, .5, 0, .5: sd .25.
    assert pair.difference.stderr == pytest.approx(0.25 / 2)
    # Variances: q of A, p and s of B, each (.25 * 2) / 2 = .25.
    assert pair.difference.sampling_stderr == pytest.approx(math.sqrt(3 * 0.25) / 4)
    turned = compare("B", "A", b, a).benchmarks["math500"]
    assert (turned.difference.value, turned.p_value) == (-3 / 8, pair.p_value)


def test_the_interval_of_a_difference_by_hand():
    """One sample each, differences 1, 0, 0, 0: sd .5, t quantile at 3 degrees of freedom 3.1824."""
    a = {"x": responses(p=["7"], q=["7"], r=["8"], s=["7"])}
    b = {"x": responses(p=["8"], q=["7"], r=["8"], s=["7"])}
    difference = compare("A", "B", a, b).benchmarks["x"].difference
    assert difference.sampling_interval is None
    assert difference.interval is not None
    assert (difference.interval.low, difference.interval.high) == (pytest.approx(0.25 - 3.182446 * 0.25), 1)


def test_the_total_interval_is_never_shorter_than_the_sampling_one():
    """One right in 16 samples: 3 degrees of freedom for the sampling, 5 for the total."""
    accuracy = score(
        "x", responses(**{name: ["8"] * 4 for name in "bcdef"}, a=["7", "8", "8", "8"]), samples=4
    ).accuracy
    assert accuracy.stderr == pytest.approx(accuracy.sampling_stderr)
    assert accuracy.interval == accuracy.sampling_interval


def test_the_average_difference_weighs_benchmarks_not_problems():
    a = {"x": responses(p=["7"], q=["7"]), "y": responses(**{f"p{n}": ["7"] for n in range(8)})}
    b = {"x": responses(p=["8"], q=["7"]), "y": responses(**{f"p{n}": ["7"] for n in range(8)})}
    comparison = compare("A", "B", a, b)
    assert comparison.average is not None
    assert (comparison.average.difference.value, comparison.average.a) == (0.25, 1)
    assert comparison.average.difference.problems == 10


def test_other_problems_are_refused_and_other_benchmarks_left_out():
    a, b = responses(p=["7"], q=["7"]), responses(p=["7"], r=["8"])
    with pytest.raises(DataError, match=r"math500: A and B were not measured on the same problems.*1 only in A .*'q'"):
        compare("A", "B", {"math500": a}, {"math500": b})
    with pytest.raises(DataError, match=r"A has aime24, B has math500: there is no benchmark in common"):
        compare("A", "B", {"aime24": a}, {"math500": b})
    comparison = compare("A", "B", {"aime24": a, "math500": a}, {"math500": a})
    assert comparison.notes == ("aime24: left out, as only A has it",)
    assert comparison.average is None


def test_a_problem_without_a_reward_of_both_is_left_out():
    a = {"math500": responses(p=["7"], q=["!"], r=["7"])}
    b = {"math500": responses(p=["8"], q=["7"], r=["7"])}
    comparison = compare("A", "B", a, b)
    assert comparison.benchmarks["math500"].difference.problems == 2
    assert "1 problems left out" in comparison.notes[0]


# ---- tables


def result(*scores, **fields):
    sampling = {"temperature": 0.6, "top_p": 1.0, "top_k": 0, "max_response_tokens": 8192}
    by_name = {each.benchmark: each for each in scores}
    return EvaluationResult("my/model", "evals/model", scores[0].samples, sampling, by_name, **fields)


def test_the_table_of_scores():
    first = score("aime24", responses(a=["7", "7"], b=["8", "!"], c=["7", "8"]), samples=2)
    second = score("humaneval", responses(a=["7", "8"], b=["8", "8"]), samples=2, votes=False)
    second = dataclasses.replace(second, response_errors={"out of memory": 2})
    text = as_text(lambda console: print_scores(console, result(first, second, left_out={"aime24": {3: "cut"}})))
    lines = text.splitlines()
    assert lines[1] == "2 responses a problem, temperature 0.6, top_p 1, at most 8,192 tokens"
    heads, one, two, mean = lines[3:7]
    assert " ".join(heads.split()) == "benchmark problems avg@2 95% interval ± sampling pass@2 maj@2 clipped tokens"
    assert one.split()[:3] == ["aime24", "3", "50.0"]
    assert two.split()[-3:] == ["–", "0.0%", "0"]
    assert mean.split()[:3] == ["average", "5", "37.5"]
    assert "aime24: the verifier failed on 1 of 6 responses, left out: timed out after 3 s (1)" in text
    assert "made to fail by 2 of 4 responses, counted as wrong: out of memory (2)" in " ".join(text.split())
    assert "aime24: 1 rows can't be used as published and are left out, named in settings.json" in text


def test_what_is_said_below_the_table_is_what_it_shows():
    """Of 3 samples, pass@2 is the largest power of two; clipped benchmarks share one line; programs don't vote."""
    made = [score(name, responses(a=["7", "7", "8"]), samples=3, votes=False) for name in ("humaneval", "gsm8k")]
    made = [dataclasses.replace(each, clipped_share=0.5) for each in made]
    text = as_text(lambda console: print_scores(console, result(*made)))
    assert "pass@2: solved by at least one of 2 samples.\n" in text
    assert "@3: solved" not in text
    assert "maj@" not in text
    assert "responses cut at the length limit: humaneval 50%, gsm8k 50%; raise --max_response_tokens" in text


def test_results_are_json():
    made = result(score("aime24", responses(a=["7", "7"], b=["8", "!"]), samples=2), left_out={"aime24": {3: "cut"}})
    plain = json.loads(json.dumps(made.to_dict()))
    assert plain["benchmarks"]["aime24"]["pass_at"]["2"]["value"] == 1.0
    assert plain["left_out"]["aime24"]["3"] == "cut"
    pair = compare("A", "B", {"x": responses(p=["7"], q=["7"])}, {"x": responses(p=["7"], q=["8"])})
    assert json.loads(json.dumps(pair.to_dict()))["benchmarks"]["x"]["a_better"] == 1


def test_the_table_of_a_comparison():
    a = {name: responses(p=["7"], q=["7"], r=["8"]) for name in ("aime24", "math500")}
    b = {name: responses(p=["8"], q=["7"], r=["8"]) for name in ("aime24", "math500")}
    lines = as_text(lambda console: print_comparison(console, compare("A1", "B1", a, b))).splitlines()
    assert " ".join(lines[4].split()) == "aime24 3 66.7 33.3 +33.3 -100.0 to +100.0 1.000 1 0 2"
    assert lines[6].split()[:2] == ["average", "6"]
