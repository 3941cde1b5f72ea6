r"""Problems that stand in two data sets: near-copies found by normalised n-grams.

The rule, for a row of the data and a problem of an evaluation set:

1. Text becomes words: letters (case folded), numbers and operators; LaTeX that only formats is dropped (`\left`,
   `\text`, `$`, braces), spellings of one symbol become one (`\dfrac`, `\leq`), figures in `[asy]` are left out, and
   so is what begins or ends most rows, such as a request to box the answer.
2. Runs of 8 words are compared. Runs that stand in more than 10 rows and more than 0.5% of the rows ("where m and n
   are relatively prime positive integers, find m + n") say nothing and are not counted.
3. The two are alike where at least half of the evaluation problem's runs stand in the row, and 8 of them (all, where
   it has 4 to 7); or at least half of the row's own stand in the problem, and 8 of them; or all words are equal.
4. Where the row has each number of the evaluation problem, as often, it is a copy; else a variant, which is not the
   same problem. Numbers that label a figure count where both have a figure.

Brown et al. 2020 (arXiv 2005.14165, appendix C) look for runs of 13 words anywhere in the training data. Math problems
are shorter and share long phrases, so the runs here are shorter and half of them must stand in one row.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

RUN_WORDS = 8
"""n of the n-grams."""
LEAST_SHARE = 0.5
LEAST_RUNS, LEAST_OF_SHORT = 8, 4
COMMON_ROWS, COMMON_SHARE = 10, 0.005
"""A run in more rows than both is not counted."""
_FRAME_SHARE, _FRAME_WORDS, _FRAME_ROWS = 0.5, 4, 10
"""What begins or ends this share of the rows, at least so many words, is left out; not judged by fewer rows."""

_FIGURE = re.compile(r"\[asy\].*?(?:\[/asy\]|$)", re.DOTALL)
_LABEL = re.compile(r'"[^"]*"')
_ONE_SPELLING = (
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"≠|\\not\s*=|\\neq?(?![a-z])"), " ne "),
    (re.compile(r"≤|\\leq?(?:slant)?(?![a-z])"), "<"),
    (re.compile(r"≥|\\geq?(?:slant)?(?![a-z])"), ">"),
    (re.compile(r"−"), "-"),
    (re.compile(r"[\u3040-\u30ff\u3400-\u9fff]"), r" \g<0> "),
    (re.compile(r"(?<=\d)(?:,\s?|\{,\}|\\,|,\\!)(?=\d{3}(?!\d))"), ""),
)
_FORMATTING = re.compile(
    r"\\(?:left|right|bigg?[lr]?|displaystyle|text(?:bf|it|rm|tt|sf|normal)?|math(?:rm|bf|it|sf|cal|bb)|operatorname"
    r"|q?quad|begin|end|[lcv]?dots[bcmo]?|overline|underline|overrightarrow)(?![a-z])|\\[,;:! ]"
)
_WORD = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?|[-+*/^=<>!|%]")


def words(text: str) -> list[str]:
    """Returns the words, numbers and operators of a text, as step 1 of the rule says."""
    text = _FIGURE.sub(" ", text.casefold())
    for pattern, spelling in _ONE_SPELLING:
        text = pattern.sub(spelling, text)
    return _WORD.findall(_FORMATTING.sub(" ", text))


@dataclass(frozen=True)
class Likeness:
    """A row of the data and a problem that is like it."""

    row: int
    """Index in the data."""
    other: int
    """Index in the other set."""
    share: float
    """The greater of the two shares: of the problem's runs in the row, and of the row's in the problem."""
    copy: bool
    """Whether the row has all of the problem's numbers; else it is a variant."""


class Corpus:
    """Texts prepared for comparison: about 1 kB a problem. Runs are compared by 64-bit hashes."""

    def __init__(self, texts: Iterable[str]) -> None:
        listed, self.labels = [], []
        for text in texts:
            listed.append(words(text))
            self.labels.append(_labels(text))
        start, end = _frame(listed, forwards=True), _frame(listed, forwards=False)
        self.words = [_without_frame(row, start, end) for row in listed]

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def runs(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(hash, row) of each distinct run of each row, sorted by hash."""
        number: dict[str, int] = {}
        hashes, rows = [], []
        for row, listed in enumerate(self.words):
            if len(listed) >= RUN_WORDS:
                # Equal words must have equal ids in every corpus, so ids come from the words alone.
                ids = np.array([number.setdefault(word, _stable_hash(word)) for word in listed], dtype=np.uint64)
                found = np.unique(_run_hashes(ids))
                hashes.append(found)
                rows.append(np.full(len(found), row))
        if not hashes:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        flat, owners = np.concatenate(hashes), np.concatenate(rows)
        order = np.argsort(flat, kind="stable")
        return flat[order], owners[order]

    def numbers(self, row: int) -> Counter[str]:
        """The numbers of a row and how often each stands there."""
        return _numbers(self.words[row])

    def has_numbers_of(self, row: int, other: Corpus, other_row: int) -> bool:
        """Whether a row has each number of a row of another corpus, as often; the figure's too if both have one."""
        mine, theirs = self.labels[row], other.labels[other_row]
        if mine is not None and theirs is not None and theirs - mine:
            return False
        return not other.numbers(other_row) - self.numbers(row)


def find_alike(data: Corpus, problems: Corpus) -> list[Likeness]:
    """Returns rows of the data that are like an evaluation problem, in the rows' order; the rule is in this header."""
    common = np.concatenate([_common(data, _limit(len(data))), _common(problems, _limit(len(problems)))])
    data_runs, data_counts = _informative(data, common)
    problem_runs, problem_counts = _informative(problems, common)
    found: dict[tuple[int, int], float] = {}
    for row, other, shared in _pairs(data_runs, problem_runs, len(problems)):
        of_problem, of_row = shared / problem_counts[other], shared / data_counts[row]
        in_row = of_problem >= LEAST_SHARE and shared >= min(LEAST_RUNS, max(LEAST_OF_SHORT, problem_counts[other]))
        if in_row or (of_row >= LEAST_SHARE and shared >= LEAST_RUNS):
            found[row, other] = max(of_problem, of_row)
    by_words: dict[tuple[str, ...], list[int]] = {}
    for other, listed in enumerate(problems.words):
        by_words.setdefault(tuple(listed), []).append(other)
    for row, listed in enumerate(data.words):
        if listed:
            found.update({(row, other): 1.0 for other in by_words.get(tuple(listed), ())})
    return [
        Likeness(row, other, share, copy=data.has_numbers_of(row, problems, other))
        for (row, other), share in sorted(found.items())
    ]


def find_alike_within(data: Corpus) -> list[Likeness]:
    """Returns pairs of rows of one data set that are alike, `row` before `other`, by the same rule both ways.

    Only runs in at most 10 rows are compared, so a text that more than 10 rows share is not found by this.
    """
    runs, counts = _informative(data, _common(data, COMMON_ROWS))
    found = []
    for row, other, shared in _pairs(runs, runs, len(data)):
        share = shared / min(counts[row], counts[other])
        if row < other and shared >= LEAST_RUNS and share >= LEAST_SHARE:
            copy = data.has_numbers_of(row, data, other) or data.has_numbers_of(other, data, row)
            found.append(Likeness(row, other, share, copy))
    return found


def _limit(rows: int) -> int:
    return max(COMMON_ROWS, int(COMMON_SHARE * rows))


def _frame(listed: Sequence[Sequence[str]], *, forwards: bool) -> tuple[str, ...]:
    """The words that begin (or, read backwards, end) at least half of the rows; empty where they are few."""
    rows = [row if forwards else row[::-1] for row in listed]
    if len(rows) < _FRAME_ROWS:
        return ()
    frame: list[str] = []
    while True:
        depth = len(frame)
        counts = Counter(row[depth] for row in rows if len(row) > depth)
        word, count = counts.most_common(1)[0] if counts else ("", 0)
        if count < _FRAME_SHARE * len(listed):
            break
        frame.append(word)
        rows = [row for row in rows if len(row) > depth and row[depth] == word]
    return tuple(frame) if len(frame) >= _FRAME_WORDS else ()


def _without_frame(row: list[str], start: tuple[str, ...], end: tuple[str, ...]) -> list[str]:
    if start and tuple(row[: len(start)]) == start:
        row = row[len(start) :]
    if end and tuple(row[: -len(end) - 1 : -1]) == end:
        row = row[: -len(end)]
    return row


def _numbers(listed: Sequence[str]) -> Counter[str]:
    return Counter(word for word in listed if word[0].isdigit())


def _labels(text: str) -> Counter[str] | None:
    """The numbers written into a text's figures; None without a figure."""
    figures = _FIGURE.findall(text)
    if not figures:
        return None
    return _numbers(words(" ".join(label for figure in figures for label in _LABEL.findall(figure))))


def _stable_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


_MULTIPLIERS = np.array([_stable_hash(f"place {place}") | 1 for place in range(RUN_WORDS)], dtype=np.uint64)


def _run_hashes(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One hash for each run of RUN_WORDS words: a sum of products modulo 2^64."""
    windows = np.lib.stride_tricks.sliding_window_view(ids, RUN_WORDS)
    hashes: NDArray[np.uint64] = (windows * _MULTIPLIERS).sum(axis=1, dtype=np.uint64)
    return hashes


def _common(corpus: Corpus, limit: int) -> NDArray[np.uint64]:
    """Hashes of runs in more than `limit` rows."""
    values, counts = np.unique(corpus.runs[0], return_counts=True)
    return values[counts > limit]


def _informative(
    corpus: Corpus, common: NDArray[np.uint64]
) -> tuple[tuple[NDArray[np.uint64], NDArray[np.int64]], list[int]]:
    """The runs without the common ones, and how many each row then has."""
    hashes, rows = corpus.runs
    kept = ~np.isin(hashes, common)
    return (hashes[kept], rows[kept]), np.bincount(rows[kept], minlength=len(corpus)).tolist()


def _pairs(
    left: tuple[NDArray[np.uint64], NDArray[np.int64]],
    right: tuple[NDArray[np.uint64], NDArray[np.int64]],
    width: int,
) -> Iterable[tuple[int, int, int]]:
    """Yields (row of left, row of right, runs they share) of all that share one; `width`: how many rows right has."""
    first = np.searchsorted(right[0], left[0], side="left")
    counts = np.searchsorted(right[0], left[0], side="right") - first
    # Each run of the left stands once for each row of the right that has it.
    rows = np.repeat(left[1], counts)
    places = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    codes, shared = np.unique(rows * width + right[1][places], return_counts=True)
    for code, count in zip(codes.tolist(), shared.tolist(), strict=True):
        yield code // width, code % width, count
