"""Options of the verifiers `format` and `length`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FormatOptions:
    """What the verifier `format` asks of a response; every demand that is on has to hold."""

    thinking: bool = True
    """Demand one <think>...</think>, at the start, closed before an answer that is not empty."""
    one_box: bool = True
    r"""Demand exactly one closed \boxed{...} behind the thinking."""
    pattern: str | None = None
    """Demand that this regular expression of Python is found in the response; (?s) lets a dot match line breaks."""


@dataclass(frozen=True)
class LengthOptions:
    """What the verifier `length` pays for."""

    limit: int | None = None
    """Tokens up to which the reward is 1; to be set where the verifier is used."""
    soft: int = 0
    """Tokens beyond the limit over which the reward falls linearly to 0."""
