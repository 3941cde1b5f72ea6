"""Runs Python programs that nobody has read: no network, no files, no other processes, limits that hold."""

from sppo.verifiers.sandbox.backends import BACKENDS, Backend
from sppo.verifiers.sandbox.process import Job, Limits, Running, SandboxError, code_of
from sppo.verifiers.sandbox.run import Outcome, open_sandbox, run

__all__ = [
    "BACKENDS", "Backend", "Job", "Limits", "Outcome", "Running", "SandboxError", "code_of", "open_sandbox", "run",
]  # fmt: skip
