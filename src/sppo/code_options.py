"""Options of the verifier that runs code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CodeOptions:
    """The verifier code: the response's last block of code is run against tests, in a sandbox."""

    reward: Literal["all", "fraction", "runtime"] = "all"
    """1 if all tests pass, else 0; or the share of tests that pass; or, where all pass, how fast it is beside the
    reference solution."""
    graded: Literal["all", "held_out"] = "all"
    """Tests that make the reward: all, or only those that the prompt does not show."""
    shown_share: float = 0.0
    """Share of each problem's tests, its first ones, that count as shown where the data does not say; one at least is
    held out. Where some are shown, the shares passed of both kinds are logged."""
    runtime_target: float = 1.0
    """reward runtime: speed-up over the reference solution that earns 1; half of it earns one half."""
    runtime_floor: float = 0.1
    """reward runtime: least reward of a program that is right."""
    runtime_repeats: int = 3
    """reward runtime: timed runs of the program and of the reference, taking turns; medians count."""
    test_seconds: float = 5.0
    """Wall seconds of one test, or of a check function with all its assertions; longer is wrong, not an error."""
    total_seconds: float = 30.0
    """Wall seconds of all tests of one response, and CPU seconds; tests that are not done by then are failed."""
    memory_mb: int = 512
    """MiB of address space of a process of the program, and of memory of all of them."""
    processes: int = 16
    """Processes and threads of a program at one time."""
    disk_mb: int = 16
    """MiB that a program may write."""
    output_kb: int = 1024
    """KiB that a program may print in one test."""
    unsafe_code: bool = False
    """Run what the model writes with your rights and no sandbox, where this machine has none; otherwise that is
    refused. --unsafe-code for short."""
