"""The critic's own start: it learns from responses of the starting policy, here or in a folder of `sppo prefit`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from sppo.batch import Credit, Estimates, Outcomes
from sppo.errors import RunFolderError, TrainingError
from sppo.models.adapter_files import saved_weights, weight_files
from sppo.models.sharding import whole
from sppo.runs.checkpoint import load_state
from sppo.runs.files import read_json
from sppo.training.loop import Parts, Run
from sppo.training.record import Recorder, response_records
from sppo.update.moments import load_optimizers


def prefit(run: Run, parts: Parts, recorder: Recorder) -> None:
    """Lets critic, history and choice learn from responses of the starting policy, which rests.

    They are taken in batches as large as a step's. All are counted and recorded, as those of step 0.

    Raises:
        TrainingError: none of them has a reward.
    """
    samples, most = run.schedule.prefit, parts.collector.prompts * parts.collector.samples
    if not samples:
        return
    recorder.progress.phase("pre-fit of the critic", samples, "responses")
    records: list[dict[str, Any]] = []
    responses, tokens = run.state.responses, run.state.tokens_sampled
    with recorder.timing("prefit"):
        for number, start in enumerate(range(0, samples, most), start=1):
            collected = parts.collector.collect_apart(number, min(most, samples - start), parts.policy.version)
            batch = parts.collector.batch(collected)
            recorder.count(collected, batch)
            estimates = credit = None
            if batch is not None:
                values = parts.critic.values(batch)
                estimates = Estimates(batch.sampler_logprobs, values)
                credit = Credit(torch.zeros(len(batch), 1), batch.rewards[:, None])
                if not parts.algorithm.values_the_prompt:
                    # A critic of tokens learns what the algorithm makes of its own values and the policy's.
                    estimates, _ = parts.policy.estimate(batch, values)
                    credit = parts.algorithm.assign_credit(Outcomes.of(batch, estimates))
                parts.collector.observe(collected, batch)
                parts.critic.learn(batch, estimates, credit, seed=run.seed_of("prefit", number))
            records += response_records(0, collected, batch, estimates, credit, parts.grader)
            recorder.progress.update(start + len(collected.rollouts), {})
    if all(record["reward"] is None for record in records):
        raise TrainingError(f"None of the {samples} responses of critic.prefit has a reward: look at the verifier.")
    run.state.prefit = {
        "responses": run.state.responses - responses,
        "tokens": run.state.tokens_sampled - tokens,
        "seconds": round(run.state.seconds["prefit"], 3),
    }
    run.folder.write_records(0, records)


def spent(made: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of step 0 on what came before the first step; none where nothing did."""
    if not made:
        return {}
    return {
        "responses/total": made["responses"],
        "tokens/total": made["tokens"],
        "time/prefit": made.get("seconds", 0.0),
    }


def read_prefit(folder: Path) -> dict[str, Any]:
    """Returns the responses, tokens and seconds that the critic in a folder of `sppo prefit` has cost.

    Raises:
        RunFolderError: there is none.
    """
    state = read_json(prefit_checkpoint(folder) / "state.json")
    made: dict[str, Any] = (state or {}).get("prefit") or {}
    if not made:
        raise RunFolderError(
            f"critic.prefit.path is {folder}, which holds no critic that was fitted beforehand. Make one with "
            f"sppo prefit RECIPE --critic.prefit.samples 512 --output {folder}."
        )
    return made


def prefit_checkpoint(folder: Path) -> Path:
    """Where a run keeps what it started from: the only checkpoint of `sppo prefit`."""
    return folder / "checkpoints" / "step_0"


def take_up_prefit(parts: Parts, checkpoint: Path) -> None:
    """Goes on from a pre-fit: the critic's optimiser, the walk over the prompts, and what choosing would have gained.

    Raises:
        RunFolderError: it was made from another policy.
    """
    _require_same_policy(parts.policy.model, checkpoint / "policy")
    load_optimizers(parts.critic.optimizers, checkpoint)
    saved, selection = load_state(checkpoint).stream, parts.collector.selection
    # Another seed walks in another order, and begins its own walk.
    if saved["fingerprint"] == selection.stream.state_dict()["fingerprint"]:
        selection.load_state_dict(saved)


def _require_same_policy(policy: PreTrainedModel, folder: Path) -> None:
    """Holds the first row of every tensor against the policy's: enough to tell two apart, whatever their size."""
    weights = saved_weights(policy)
    for file in weight_files(folder):
        with safe_open(file, "pt") as saved:
            for name in saved.keys():  # noqa: SIM118 - it is no dict
                own, first = whole(weights.get(name, torch.empty(0)))[:1].cpu(), saved.get_slice(name)[:1]
                if not torch.equal(own, first.to(own.dtype)):
                    raise RunFolderError(
                        f"The critic of critic.prefit.path was fitted to another policy: {name} is not that of "
                        f"{folder}. Start from that one, with --model.path {folder} --sft.phases [], or fit a critic "
                        "to this one with `sppo prefit`."
                    )
