"""Two ranks with half of a mini-batch each end with the weights of one rank with the whole."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sppo.algorithms.options import SppoOptions
from sppo.algorithms.policy_loss import LossOptions
from sppo.algorithms.sppo import sppo_credit
from sppo.batch import Estimates, Outcomes
from sppo.config import CriticConfig, OptimizerConfig, SamplingConfig
from sppo.critics.models import PromptCritic
from sppo.critics.prompt import PromptModelCritic
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.tokenizers import character_tokenizer
from sppo.training.collate import collate
from sppo.update.policy import update_policy
from sppo.update.steps import StepGuard
from tests.conftest import make_rollouts, tiny_qwen2

ROWS = 8


def one_update(rows: list[int]) -> dict[str, torch.Tensor]:
    """One optimiser step of policy and critic on these rows; returns the weights after it."""
    torch.set_num_threads(1)
    rollouts, verdicts = make_rollouts(ROWS)
    batch = collate([rollouts[row] for row in rows], [verdicts[row] for row in rows])
    policy, critic = tiny_qwen2(), PromptCritic(tiny_qwen2(seed=3).model, character_tokenizer(ALPHABET))
    before = Estimates(batch.sampler_logprobs, critic.values(batch.prompts))
    credit = sppo_credit(Outcomes.of(batch, before), SppoOptions())
    size = len(rows)
    # SGD-like: AdamW's first step is the sign of the gradient, which would hide a wrong scale.
    policy_step = torch.optim.SGD(policy.parameters(), lr=0.1)
    wrapped = PromptModelCritic(critic, CriticConfig(minibatch_size=size))
    wrapped.adam = torch.optim.SGD(critic.parameters(), lr=0.1)
    update_policy(
        policy, policy_step, batch, before, credit, loss_options=LossOptions(),
        optimizer=OptimizerConfig(minibatch_size=size), sampling=SamplingConfig(), expected_rows=size, seed=0,
        guard=StepGuard(max_skipped=1),
    )  # fmt: skip
    wrapped.learn(batch, before, credit, seed=0)
    return {**policy.state_dict(), **{f"critic.{k}": v for k, v in critic.state_dict().items()}}


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # Uneven shares: a mean of the ranks' means would differ.
    torch.save(one_update([0, 1, 2] if rank == 0 else [3, 4, 5, 6, 7]), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    mp.start_processes(run_rank, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    whole = one_update(list(range(ROWS)))
    fresh = tiny_qwen2().state_dict()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, weight in whole.items():
            torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5, msg=name)
    assert any(not torch.equal(whole[name], weight) for name, weight in fresh.items())
