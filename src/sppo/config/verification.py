"""Options of verification: what judges responses, within which limits, and each verifier's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from sppo.config.ranges import AtLeastOne, CodePlace, Count, Positive, Section, Share, Trust

Extraction = Literal["wide", "box", "tags"]
"""Where final answers may stand; sppo.verifiers.extraction has the rules."""


@dataclass(frozen=True)
class FormatOptions(Section):
    """What the verifier `format` asks of a response; every demand that is on has to hold."""

    thinking: bool = True
    """Demand one <think>...</think>, at the start, not empty, closed before an answer that is not empty."""
    one_box: bool = True
    r"""Demand exactly one closed \boxed{...} behind the thinking."""
    pattern: str | None = None
    """Demand that this regular expression of Python is found in the response; (?s) lets a dot match line breaks."""


@dataclass(frozen=True)
class LengthOptions(Section):
    """What the verifier `length` pays for."""

    limit: AtLeastOne | None = None
    """Tokens up to which the reward is 1; to be set where the verifier is used."""
    soft: Count = 0
    """Tokens beyond the limit over which the reward falls linearly to 0."""


@dataclass(frozen=True)
class CodeOptions(Section):
    """The verifier code: the response's last block of code is run against tests, in a sandbox."""

    reward: Literal["all", "fraction", "runtime"] = "all"
    """1 if all tests pass, else 0; or the share of tests that pass; or, where all pass, how fast it is beside the
    reference solution."""
    graded: Literal["all", "held_out"] = "all"
    """Tests that make the reward: all, or only those that the prompt does not show."""
    shown_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each problem's tests, its first ones, that count as shown where the data does not say; one at least is
    held out. Where some are shown, the shares passed of both kinds are logged."""
    runtime_target: Positive = 1.0
    """reward runtime: speed-up over the reference solution that earns 1; half of it earns one half."""
    test_seconds: Positive = 5.0
    """Seconds of one test, or of a check function with all its assertions: CPU time, and time in which the program
    sleeps, but not what it waits for a processor. Longer is wrong, not an error."""
    total_seconds: Positive = 30.0
    """Seconds of all tests of one response, counted likewise; ten times as many on the wall's clock. Tests that are not
    done by then are failed."""
    memory_mb: Annotated[int, Field(ge=64)] = 512
    """MiB of address space of a process of the program, and of memory of all of them, with files and pipes; Python
    itself needs 64."""
    packages: CodePlace = None
    """Folder that you trust programs and tests to read, and to import packages from, as `pip install --target FOLDER
    numpy` makes one; default: none but Python's own modules."""
    unsafe_code: Trust = False
    """Run what the model writes with your rights and no sandbox, where this machine has none; otherwise that is
    refused. --unsafe-code for short."""


@dataclass(frozen=True)
class RewardModelOptions(Section):
    """The verifier reward_model: a sequence-classification model scores prompt and response."""

    path: str | None = None
    """Folder or hub name of a sequence-classification model with one label, or two (the second is the good one)."""
    squash: Literal["sigmoid", "none"] = "sigmoid"
    """sigmoid: the reward is sigmoid(scale * (score - shift)), in [0, 1]; none: it is the score itself, any number."""
    scale: Positive = 1.0
    """Multiplies scores before the sigmoid; below 1 keeps large scores apart."""
    shift: float = 0.0
    """Score whose reward is one half."""
    trust_remote_code: Trust = False
    """Allow the reward model's own Python code from the hub to run."""


@dataclass(frozen=True)
class CompositePart(Section):
    """One part of a composite reward: a verifier, or a reward function of yours."""

    verifier: str | None = None
    """Name of a verifier."""
    reward: CodePlace = None
    """Your reward function, as package.module:function or path/to/file.py:function."""
    weight: float = 1.0
    """Weight of the part's reward in the mean; weights need not add up to 1."""
    gate: bool = False
    """Must be 1 before anything else counts: otherwise the whole reward is 0, and the parts after it are not asked."""


@dataclass(frozen=True)
class CompositeOptions(Section):
    """The verifier composite: gates that must hold, and the weighted mean of parts."""

    parts: list[CompositePart] = field(default_factory=list)
    """Gates and parts, asked in this order, gates first."""


@dataclass(frozen=True)
class ProcessOptions(Section):
    """Rewards of single steps, added as potential differences that leave the best policy what it is."""

    function: CodePlace = None
    """Your function f(prompts, completions, steps, **columns) -> one list of numbers in [0, 1] a completion, as
    package.module:function or path/to/file.py:function."""
    model: str | None = None
    """Folder or hub name of a step-reward model instead: token classification, or sequence classification that reads
    each beginning of the response; one label, or two (the second is the good one)."""
    weight: Positive = 0.5
    """What a step's score of 1 rather than 0 counts for, the reward of the whole response being up to 1."""
    split: Literal["blank_lines", "lines", "marker"] = "blank_lines"
    """Where a step ends: at a blank line, at the end of a line, or at a text of your own."""
    marker: str | None = None
    """The text that ends a step, for split marker."""
    trust_remote_code: Trust = False
    """Allow the step-reward model's own Python code from the hub to run."""

    @property
    def used(self) -> bool:
        """Whether steps are scored at all."""
        return self.function is not None or self.model is not None


@dataclass(frozen=True)
class VerificationConfig(Section):
    """How responses are judged, whatever the verifier; and each verifier's own options."""

    workers: AtLeastOne | None = None
    """Processes that verify at the same time; default: the cores at hand, at most 8."""
    time_limit: Positive = 3.0
    """Seconds after which the verification of one response is killed and counts as an error."""
    max_error_share: Share = 0.1
    """Share of responses whose verification failed (errors and timeouts, not wrong answers) above which the run stops;
    judged over a step's responses, at least 100."""
    extraction: Extraction = "wide"
    """Where math, minerva and choice look for the final answer, behind the thinking: wide takes the last <answer> tags,
    else the last box, else the last "Answer: X", "**Final Answer**" or "the answer is X"; box and tags that form
    alone."""
    format: FormatOptions = field(default_factory=FormatOptions)
    length: LengthOptions = field(default_factory=LengthOptions)
    code: CodeOptions = field(default_factory=CodeOptions)
    reward_model: RewardModelOptions = field(default_factory=RewardModelOptions)
    composite: CompositeOptions = field(default_factory=CompositeOptions)
    process: ProcessOptions = field(default_factory=ProcessOptions)
