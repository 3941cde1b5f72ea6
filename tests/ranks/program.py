"""A program that trains twice and measures, as a person would write it for torchrun."""

from __future__ import annotations

from collections.abc import Sequence

import sppo


def main(arguments: Sequence[str]) -> int:
    for recipe in arguments:
        summary = sppo.train(recipe)
        measured = sppo.evaluate(summary["output"])
        assert measured["accuracy"] == summary["accuracy_after"]
    return 0
