"""Supervised fine-tuning on demonstrations: the warm start of the demo, and `sppo sft`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sppo.config import OptimizerConfig, SftPhase
from sppo.models.logprobs import response_loss
from sppo.models.packing import TokenRow
from sppo.runs import ranks
from sppo.runs.progress import Progress
from sppo.update.deal import DUMMY_ROW, dealt
from sppo.update.schedule import Curve, set_learning_rate
from sppo.update.steps import StepGuard, make_optimizer

CHECK_EVERY = 100
"""Steps between checks of accuracy, in a phase that stops on it: a check costs about as much as ten steps."""


@dataclass(frozen=True)
class PhaseResult:
    """What a phase of fine-tuning did."""

    steps: int
    loss: float
    """Negative log-likelihood of the last mini-batch, nats a token."""
    tokens: int
    """Response tokens trained on."""


def fine_tune_phase(
    policy: PreTrainedModel,
    rows: Sequence[TokenRow],
    phase: SftPhase,
    *,
    betas: tuple[float, float],
    optimizer: OptimizerConfig,
    seed: int,
    progress: Progress,
    guard: StepGuard,
    check: Callable[[], float],
) -> PhaseResult:
    """Minimises the negative log-likelihood of demonstrations, token mean over each mini-batch.

    Args:
        policy: to train.
        rows: encoded demonstrations.
        phase: steps, batch size, learning rate (which falls linearly to 0), stopping accuracy.
        betas: AdamW's decay rates of the two moments.
        optimizer: micro-batch size and layout.
        seed: of the order of demonstrations.
        progress: told of each step.
        guard: takes the optimiser steps.
        check: returns held-out accuracy; called only where the phase stops on accuracy.
    """
    adam = make_optimizer(policy, phase.learning_rate, weight_decay=0.0, betas=betas)
    rates = Curve(phase.learning_rate, phase.steps, decay="linear")
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    loss, tokens, step = float("nan"), 0, 0
    for step in range(1, phase.steps + 1):
        while len(order) < phase.batch_size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = [rows[index] for index in order[: phase.batch_size]], order[phase.batch_size :]
        set_learning_rate(adam, rates.at(step))
        loss = _backward(policy, chosen, optimizer)
        guard.step("policy", adam, policy, loss)
        tokens += sum(len(row.columns) for row in chosen)
        metrics = {"sft/loss": loss}
        if phase.stop_at_accuracy is not None and step % CHECK_EVERY == 0:
            metrics["eval/accuracy"] = check()
        progress.update(step, metrics)
        if metrics.get("eval/accuracy", -1.0) >= (phase.stop_at_accuracy or float("inf")):
            break
    return PhaseResult(step, loss, tokens)


def _backward(policy: PreTrainedModel, rows: Sequence[TokenRow], optimizer: OptimizerConfig) -> float:
    lengths = [row.tokens for row in rows]
    total = sum(len(row.columns) for row in rows)
    loss = 0.0
    for part in dealt(lengths, optimizer.tokens_per_microbatch, optimizer.layout):
        divisor = total if part else math.inf
        part_loss = response_loss(
            policy,
            [rows[row] for row in part] or [DUMMY_ROW],
            lambda logprobs, entropy, row, column, divisor=divisor: -logprobs.sum() / divisor,  # type: ignore[misc]
            layout=optimizer.layout,
        )
        part_loss.backward()
        loss += float(part_loss.detach())
    return ranks.total(loss)
