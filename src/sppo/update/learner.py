"""The policy as the loop sees it: read before each step's update, then updated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo.algorithms.policy_loss import LossOptions
from sppo.batch import Batch, Credit, Estimates
from sppo.config import AlgorithmConfig, OptimizerConfig, SamplingConfig
from sppo.models.adapter_files import save_pretrained
from sppo.update.estimate import estimate
from sppo.update.policy import update_policy
from sppo.update.steps import StepGuard

Metrics = dict[str, float]


@dataclass
class PolicyLearner:
    """A policy with its optimiser and the form of its loss."""

    model: PreTrainedModel
    adam: torch.optim.Optimizer
    algorithm: AlgorithmConfig
    """Where old log-probabilities come from, importance cap, KL."""
    loss: LossOptions
    optimizer: OptimizerConfig
    sampling: SamplingConfig
    """Temperature and longest response."""
    rows: int
    """B when no sample is left out; fixes the number of mini-batches."""
    guard: StepGuard
    reference: PreTrainedModel | None = None
    """The policy that training started from, frozen, where the algorithm asks for it; `model` itself where that is the
    model without its adapter, as `sppo.models.adapters.reference_of` gives it."""

    @property
    def version(self) -> int:
        """Optimiser steps that the weights have been through, those of fine-tuning included."""
        return self.guard.taken.get("policy", 0)

    def save_pretrained(self, folder: Path) -> None:
        """Writes the policy as a folder that transformers loads; every rank has to call it."""
        save_pretrained(self.model, folder)

    def estimate(self, batch: Batch, values: Tensor | None) -> tuple[Estimates, Metrics]:
        """Old and reference log-probabilities, beside the critic's values, and metrics of them; no gradients."""
        return estimate(batch, self.model, self.reference, values, self.algorithm, self.optimizer, self.sampling)

    def update(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """One step's optimiser steps; `seed` fixes the order of rows."""
        return update_policy(
            self.model,
            self.adam,
            batch,
            before,
            credit,
            loss_options=self.loss,
            optimizer=self.optimizer,
            sampling=self.sampling,
            expected_rows=self.rows,
            seed=seed,
            guard=self.guard,
        )
