"""`--dry-run`: what a run would do, from its options and the models' configs; no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sppo.algorithms.algorithm import Algorithm
from sppo.config import Config, to_dict
from sppo.critics.checks import require_prompts
from sppo.data.selection import control_of
from sppo.data.tasks import get_task
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.adapter_files import find_base, is_adapter
from sppo.models.loading import (
    context_length,
    declared_end_tokens,
    load_model_config,
    load_tokenizer,
    pick_device,
)
from sppo.rollouts.encode import require_context
from sppo.rollouts.preview import Example, preview
from sppo.rollouts.sample import end_token_ids
from sppo.runs import ranks
from sppo.runs.checkpoint import find_checkpoint, load_state
from sppo.runs.folder import checkpoint_of, require_new, require_resumable
from sppo.training.build import algorithm_of, check, load_prompts, notes_on
from sppo.training.build.fitting import in_words, on_gpus, planned_memory
from sppo.training.build.memory import Sized
from sppo.training.given import Given, require_again
from sppo.verifiers.functions import load_function
from sppo.verifiers.tools import Tools


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    rows: list[tuple[str, str]]
    """Label and value of each line."""
    examples: tuple[Example, ...]
    """Prompts to train on, as the model would read them."""


def plan(config: Config, *, resume: bool | str = False) -> Plan:
    """Returns what a run would do, and three of its prompts. Loads configs, tokenizers and data, but no weights.

    Args:
        config: all options.
        resume: plan for going on with the run in `config.output` rather than for a new one.

    Raises:
        SppoError: what `train` would refuse before loading weights.
    """
    _require_allowed(config, resume)
    tokenizer = load_tokenizer(config.model, ALPHABET)
    architecture = load_model_config(config.model)
    longest_prompt, longest_response = config.data.max_prompt_tokens, config.sampling.max_response_tokens
    require_context(longest_prompt, longest_response, context_length(architecture), "the model")
    prompts = load_prompts(config, Given(), tokenizer, has_reward_function=config.data.reward is not None)
    training = prompts.training
    algorithm = algorithm_of(config)
    device = pick_device(config.device)
    memory = planned_memory(config, algorithm, tokenizer, architecture, prompts, device, ranks.planned())
    policy, critic = memory.policy, memory.critic
    adapter = config.model.path if is_adapter(config.model.path) else None
    probed = algorithm.critic == "prompt" and critic is None
    require_prompts(config.critic, training, resumed=bool(resume))
    sequences, size = config.sequences_per_step, config.optimizer.minibatch_size
    longest = longest_prompt + longest_response
    sources = [source.label for source in config.data.sources] or [config.data.task]
    updates = sequences // size * config.optimizer.epochs
    rows = [
        ("algorithm", f"{algorithm.name}: {algorithm.summary}"),
        ("run folder", f"{config.output}{_goes_on(config, resume)}"),
        ("device", f"{device}, model.precision {config.model.precision}{_lacking(config)}"),
        ("data", f"{', '.join(sources)}: {len(training):,} training prompts, {len(prompts.held_out):,} held out"),
        ("policy", f"{policy.parameters:,} parameters ({architecture.model_type}){_trained(policy, adapter)}"),
        ("critic", _size(critic, policy) if critic else "a probe of the policy's states" if probed else "none"),
        (
            "a step",
            f"{_asked(config)} = {sequences:,} sequences, at most "
            f"{sequences * config.sampling.max_response_tokens:,} response tokens",
        ),
        ("prompts", _choice(config, algorithm)),
        ("updates a step", f"{updates} of {size} sequences, at most {size * longest:,} tokens each"),
        ("micro-batches", f"{config.optimizer.tokens_per_microbatch:,} tokens ({config.optimizer.layout})"),
        (
            "steps",
            f"{config.steps:,}; prompts asked: {config.steps * config.prompts_per_step / len(training):.2f} x the pool",
        ),
        ("optimiser steps", f"{config.steps * updates:,}"),
        *in_words(memory if config.device == "cpu" else on_gpus(memory)),
    ]
    if config.sft.phases:
        phases = ", then ".join(f"{p.demonstrations} (at most {p.steps:,} steps)" for p in config.sft.phases)
        rows.insert(4, ("warm start", phases))
    seen = preview(
        training,
        Tools(config.verification),
        tokenizer,
        end_token_ids(tokenizer, declared_end_tokens(config.model, architecture), config.sampling.stop_token_ids),
        rewarded=config.data.reward is not None,
        taught=bool(config.sft.phases) or get_task(config.data.task).built_in,
    )
    notes = (*prompts.notes, *notes_on(config, algorithm, len(training)), *seen.notes)
    return Plan(rows + [("note", note) for note in notes], seen.examples)


def _goes_on(config: Config, resume: bool | str) -> str:
    """From where a run would go on, and how far it is; empty of a new one."""
    checkpoint = find_checkpoint(Path(config.output), checkpoint_of(resume)) if resume else None
    if checkpoint is None:
        return ""
    step = load_state(checkpoint).step
    return f", going on from {checkpoint.name}: {config.steps - step:,} steps are left"


def _lacking(config: Config) -> str:
    """What would have to be installed for the run; empty where nothing is."""
    needed = config.model.precision == "bf16_weights" and find_spec("torchao") is None
    return ", for which torchao has to be installed (pip install 'sppo[torchao]')" if needed else ""


def _asked(config: Config) -> str:
    """A step's prompts and the responses to each."""
    prompts, more = config.prompts_per_step, config.second_responses_per_step
    if more:
        return f"{prompts - more:,} prompts and {more:,} second and third responses"
    return f"{prompts:,} prompts x {config.sampling.samples_per_prompt}"


def _choice(config: Config, algorithm: Algorithm) -> str:
    """How prompts are chosen, and what the critic learns from before."""
    before = config.critic.prefit
    fitted = f"; before, {before.samples:,} of them are answered for the critic" if before.samples else ""
    fitted = f"; the critic is that of {before.path}" if before.path else fitted
    if algorithm.selection == "uniform":
        return f"as they come{fitted}"
    asked = config.prompts_per_step - config.second_responses_per_step
    control = control_of(asked, config.selection.uniform_share)
    return f"chosen ({algorithm.selection}), but for {control:,} of {asked:,} a step{fitted}"


def _require_allowed(config: Config, resume: bool | str) -> None:
    check(config, Given(), planned=True)
    if resume:
        require_again(Path(config.output), Given())
        require_resumable(Path(config.output), to_dict(config), checkpoint_of(resume))
    else:
        require_new(Path(config.output))
    if config.data.reward is not None:
        load_function(config.data.reward)


def _size(critic: Sized, policy: Sized) -> str:
    share = critic.parameters / policy.parameters
    return f"{critic.parameters:,} parameters ({share:.1%} of the policy){_trained(critic)}"


def _trained(model: Sized, adapter: str | None = None) -> str:
    """How many of a model's parameters are trained, where that aren't all; and where its adapter comes from."""
    if not model.resting:
        return ""
    begun = f", that in {adapter} on {find_base(adapter)}" if adapter else ""
    return f", of which an adapter's {model.trained:,} are trained{begun}"
