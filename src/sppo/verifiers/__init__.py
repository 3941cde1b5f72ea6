"""Verifiers: judge a response, in processes that can be killed where it takes more than reading text."""

from sppo.verifiers.table import VERIFIERS, check_golds, get_verifier, verifiers_behind
from sppo.verifiers.tools import Tools
from sppo.verifiers.verifier import Verifier

__all__ = ["VERIFIERS", "Tools", "Verifier", "check_golds", "get_verifier", "verifiers_behind"]
