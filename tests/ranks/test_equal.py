"""Two and three ranks do what one does: the same responses; losses, metrics, gradients and weights but for rounding."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records

SMALL = {
    "steps": 2, "optimizer__tokens_per_microbatch": 90, "evaluation__prompts": 5, "evaluation__every": 0,
    "evaluation__final_samples_per_prompt": 1, "checkpoint__every": 0, "verification__max_error_share": 1.0,
    "optimizer__learning_rate": 0.05, "critic__learning_rate": 0.05,
}  # fmt: skip
"""Several micro-batches a mini-batch, of which ranks have different numbers."""
GROUPS = {"sampling__samples_per_prompt": 4, "prompts_per_step": 4}
TOKEN_CRITIC = {"critic__config": None}
BELIEFS = {
    "selection__name": "sqrt", "critic__prefit__samples": 16, "critic__history": True, "critic__recalibrate": True,
    "critic__members": 2, "critic__share": 0.5, "sampling__adaptive_share": 0.25, "algorithm__negative_share": 0.5,
}  # fmt: skip
CASES = {
    "sppo": {},
    "sppo with all that a critic can be": BELIEFS,
    "sppo with a probe": {"critic__source": "probe", "critic__config": None, "selection__name": "auto"},
    "sppo, tied, packed, recomputed": {
        "model__config__tie_word_embeddings": True, "optimizer__layout": "packed",
        "model__gradient_checkpointing": True, "critic__gradient_checkpointing": True, "prompts_per_step": 13,
        "optimizer__minibatch_size": 13, "critic__minibatch_size": 13, "critic__loss": "mse",
    },
    "sppo after fine-tuning, learnt weights of two kinds": {
        "sft__phases": [{"demonstrations": "full", "steps": 2, "batch_size": 8, "learning_rate": 1e-3}],
        "algorithm__truncated": "mask", "model__config__model_type": "llama",
    },
    "sppo with an adapter, after fine-tuning": {
        "model__lora__rank": 4, "algorithm__kl_coefficient": 0.1,
        "sft__phases": [{"demonstrations": "full", "steps": 2, "batch_size": 8, "learning_rate": 1e-3}],
    },
    "ppo": {**TOKEN_CRITIC, "algorithm__kl_coefficient": 0.1, "algorithm__kl_place": "reward"},
    "ppo_bce": TOKEN_CRITIC,
    "grpo": {**GROUPS, "algorithm__kl_coefficient": 0.1, "selection__name": "top"},
    "dr_grpo": GROUPS,
    "dapo": {**GROUPS, "prompts_per_step": 2, "optimizer__minibatch_size": 8},
    "rloo": GROUPS,
    "remax": {},
    "reinforce_pp": {"algorithm__kl_coefficient": 0.1, "algorithm__kl_place": "reward"},
    "gspo": GROUPS,
    "cispo": GROUPS,
    "spo": {"data__options": {"prompts": 40}, "steps": 3, "algorithm__options": {"offline_samples": 2}},
    "astar_po": {"algorithm__options": {"offline_samples": 2}},
    "sppo, two prompts": {
        "prompts_per_step": 2, "optimizer__minibatch_size": 2, "critic__minibatch_size": 2, "evaluation__prompts": 1,
        "optimizer__tokens_per_microbatch": 4096,
    },
}  # fmt: skip
THREE = ["sppo", "sppo with all that a critic can be", "ppo", "sppo, two prompts"]
"""Those that three ranks run too; of two prompts one of them has none."""


def settings(name):
    algorithm = name.split()[0].strip(",")
    return {**SMALL, "algorithm__name": algorithm, **CASES[name]}


def run(ranks, output, names, count):
    """Runs the cases on so many ranks."""
    output.mkdir()
    cases = output / "cases.json"
    cases.write_text(json.dumps({name: settings(name) for name in names}))
    for rank, ended in enumerate(ranks.run(count, "tests.ranks.worker", [str(cases), str(output)])):
        assert ended.code == 0, f"rank {rank}: {ended.said[-3000:]}"
    return output


@pytest.fixture(scope="module")
def runs(ranks, tmp_path_factory):
    """{number of ranks: folder of the cases' runs}."""
    folder = tmp_path_factory.mktemp("ranks")
    return {count: run(ranks, folder / str(count), THREE if count == 3 else CASES, count) for count in (1, 2, 3)}


MATRIX = [(name, 2) for name in CASES] + [(name, 3) for name in THREE]


@pytest.mark.parametrize(("name", "count"), MATRIX)
def test_ranks_equal_one(runs, name, count):
    one, many = runs[1] / name, runs[count] / name
    assert responses(many) == responses(one)
    for mine, other in zip(read_metrics(one), read_metrics(many), strict=True):
        kept = {key for key in mine if not key.startswith(("time/", "throughput/"))}
        assert kept == {key for key in other if not key.startswith(("time/", "throughput/"))}
        for key in kept:
            # Early on V differs by so little from prompt to prompt that its correlation magnifies rounding.
            nothing = 1e-3 if key == "critic/pearson" else 1e-6
            assert other[key] == pytest.approx(mine[key], rel=1e-5, abs=nothing), f"{key} of step {mine['step']}"
    mine, other = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, many))
    assert {model: len(steps) for model, steps in mine.items()} == {model: len(steps) for model, steps in other.items()}
    for model, steps in mine.items():
        assert steps, f"{name}: {model} took no step"
        for step, tensors in enumerate(steps):
            assert_near(tensors, other[model][step], f"gradient of {model} in step {step}")
    saved = [*(one / "checkpoints" / "last").rglob("*/*.safetensors"), *one.glob("adapter_base/*.safetensors")]
    for path in sorted(saved):
        inside = path.relative_to(one)
        if "optimizers" not in inside.parts:  # of which each rank writes a file
            assert_near(load_file(path), load_file(many / inside), str(inside))


def responses(folder):
    return [
        (record["step"], record["prompt_id"], record["response_token_ids"], record["reward"], record["error"])
        for record in read_records(folder)
    ]


def assert_near(tensors, others, what):
    """Each tensor's difference is at most 1e-5 of its norm; of one that should be nothing, of all tensors' norm."""
    assert tensors.keys() == others.keys(), what
    whole = sum(float(tensor.double().norm()) ** 2 for tensor in tensors.values()) ** 0.5
    for name, tensor in tensors.items():
        gap = float((tensor.double() - others[name].double()).norm())
        limit = max(1e-5 * float(tensor.double().norm()), 1e-8 * whole, 1e-7)
        assert gap <= limit, f"{what}, {name}: {gap:.2e} is more than {limit:.2e}"
