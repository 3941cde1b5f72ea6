"""Verifiers: hold a response against a gold answer, in processes that can be killed where sympy is involved."""

from sppo.verifiers.table import VERIFIERS, Verifier, check_golds, get_verifier

__all__ = ["VERIFIERS", "Verifier", "check_golds", "get_verifier"]
