"""Runs cases of training in this process, or as one of several ranks, and keeps what the tests compare.

    main([CASES.json, OUTPUT])            with RANK, WORLD_SIZE and so on in the environment, or not

Rewards come from a verifier that a random model earns something from, and AdamW gives way to plain gradient steps: its
first steps are the signs of gradients, which would hide a wrong scale and blow rounding up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import sppo.critics.learning
import sppo.training.build.parts
import sppo.update.sft
from sppo.commands.train import train
from sppo.models.loading import trainable_parameters
from sppo.models.sharding import whole
from sppo.runs import ranks
from sppo.training.given import Given
from sppo.types import Verdict
from sppo.update.steps import StepGuard
from sppo.verifiers.table import VERIFIERS
from tests.conftest import tiny_config, tiny_qwen2

KEPT_STEPS = 4
"""Optimiser steps of each model whose gradients are kept."""


def sum_of_letters(submissions, tools):
    """A reward of 1 for every third response or so; a tenth has none, and the odd one is an error."""
    verdicts = []
    for given in submissions:
        number = sum(map(ord, given.response))
        if number % 11 == 3:
            verdicts.append(Verdict(None, None, "left out"))
        elif number % 13 == 5:
            verdicts.append(Verdict(None, None, "", error="could not tell"))
        else:
            verdicts.append(Verdict(float(number % 3 == 0), None, "counted"))
    return verdicts


def plain_steps(module, learning_rate, weight_decay, betas=(0.9, 0.999)):
    return torch.optim.SGD(list(trainable_parameters(module)), lr=learning_rate, momentum=0.5)


def run_case(name: str, options: Mapping[str, Any], output: Path) -> None:
    """One run; its folder, and the gradients of its first steps in gradients.pt beside it."""
    gradients: dict[str, list[dict[str, torch.Tensor]]] = {}
    step = StepGuard.step

    def noting(self, model, optimizer, module, loss):
        sppo.models.sharding.sum_gradients(module)
        kept = gradients.setdefault(model, [])
        if len(kept) < KEPT_STEPS:
            kept.append({n: whole(p.grad).clone() for n, p in module.named_parameters() if p.grad is not None})
        sum_gradients = sppo.update.steps.sum_gradients
        sppo.update.steps.sum_gradients = lambda module: None
        try:
            return step(self, model, optimizer, module, loss)
        finally:
            sppo.update.steps.sum_gradients = sum_gradients

    StepGuard.step = noting
    options = dict(options)
    handed = options.pop("handed over", None)
    given = Given() if handed is None else Given(model=tiny_qwen2(**handed))
    try:
        train(tiny_config(output / name, **options), given)
    finally:
        StepGuard.step = step
    if ranks.is_main():
        torch.save(gradients, output / name / "gradients.pt")


def main(arguments: Sequence[str]) -> int:
    cases, output = map(Path, arguments)
    torch.set_num_threads(1)
    VERIFIERS["final_answer"] = replace(VERIFIERS["final_answer"], grade=sum_of_letters)
    for module in (sppo.training.build.parts, sppo.critics.learning, sppo.update.sft):
        module.make_optimizer = plain_steps
    with ranks.joined():
        for name, options in json.loads(cases.read_text()).items():
            run_case(name, options, output)
    return 0
