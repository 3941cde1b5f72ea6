"""What `--dry-run` says of memory: rough upper estimates from options and architectures, for one device.

Rows are taken to be as long as they may get, and nothing to be sharded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from sppo.algorithms.algorithm import Algorithm
from sppo.config import Config
from sppo.models.adapter_files import is_adapter
from sppo.models.loading import pick_device
from sppo.models.logprobs import chunk_tokens
from sppo.rollouts.engines import ENGINES
from sppo.runs.files import gigabytes

BYTES_TRAINED = 16
"""Bytes a parameter in training: float32 weight, gradient and AdamW's two moments."""
BYTES_FROZEN = 4
"""Bytes a parameter that rests, of an adapter's base or the reference model: float32 weight."""
BYTES_QUANTIZED = 0.52
"""The same in 4 bits: half a byte, and the quantized scales of each 64 weights."""
_KEPT = 17
"""Hidden-wide tensors a layer that are kept for the backward pass; with checkpointing one."""
_LOGITS = 3 * 4
"""Bytes a number of logits: float32, and two more of their size while probabilities are made of them."""


@dataclass(frozen=True)
class Sized:
    """A model before it is loaded."""

    architecture: PretrainedConfig
    parameters: int
    """All of them, those of an adapter among them."""
    resting: int = 0
    """Those that are not trained."""
    quantized: int = 0
    """Those of them that are held in 4 bits."""

    @property
    def trained(self) -> int:
        """Parameters that the optimiser holds."""
        return self.parameters - self.resting

    @property
    def bytes(self) -> int:
        """Of weights, gradients and optimiser."""
        resting = (self.resting - self.quantized) * BYTES_FROZEN + self.quantized * BYTES_QUANTIZED
        return self.trained * BYTES_TRAINED + int(resting)


@dataclass(frozen=True)
class _Sampling:
    """Rows that are decoded together."""

    what: str
    rows: int
    prompts: int
    """Different prompts among them; each is read once."""
    prompt_tokens: int
    tokens: int
    """Longest row, prompt and response."""


def memory(
    config: Config,
    algorithm: Algorithm,
    policy: Sized,
    critic: Sized | None,
    scoring: Sequence[Sized],
    held_out: int,
) -> list[tuple[str, str]]:
    """Returns label and value of each line.

    Args:
        config: all options.
        algorithm: as the run uses it.
        policy: the model that is trained.
        critic: the model beside it; None where there is none.
        scoring: models that judge responses or their steps.
        held_out: prompts to measure on.
    """
    width = _width(config)
    valued = critic.bytes if critic else 0
    # An adapter that begins at zero is switched off for it; one that was trained before has a copy beside it.
    copied = algorithm.needs_reference and not (config.model.lora.rank and not is_adapter(config.model.path))
    reference = policy.parameters * BYTES_FROZEN if copied else 0
    scored = sum(model.parameters for model in scoring) * width
    sampling, sampled = _sampling_need(config, algorithm, policy, held_out, width)
    update = _activations(config, policy, config.model.gradient_checkpointing, width) + _chunk_of_logits(config, policy)
    learning = _activations(config, critic, config.critic.gradient_checkpointing, width) if critic else 0
    total = policy.bytes + valued + reference + scored + max(sampling, update, learning)
    lines = [
        ("policy", f"{gigabytes(policy.bytes)} ({_of_bytes(policy)})"),
        ("critic", f"{gigabytes(valued)} ({_of_bytes(critic)})" if critic else ""),
        ("reference", f"{gigabytes(reference)} (weights of the starting policy: {BYTES_FROZEN} bytes a parameter)"),
        ("scoring models", f"{gigabytes(scored)} (weights: {width} bytes a parameter)"),
        ("sampling", sampled),
        ("update", f"{gigabytes(update)} activations and logits of a micro-batch"),
        ("critic's update", f"{gigabytes(learning)} activations of a micro-batch"),
        (
            "estimate",
            f"{gigabytes(total)} at the peak, unsharded"
            + ("" if width == 4 else "; beside it bfloat16 copies of the weights in use, 2 bytes a parameter"),
        ),
    ]
    absent = {"critic": critic, "critic's update": critic, "reference": reference, "scoring models": scoring}
    return [(f"memory: {label}", value) for label, value in lines if absent.get(label, True)]


def _of_bytes(model: Sized) -> str:
    """What a model's bytes are made of."""
    said = f"weights, gradients, AdamW: {BYTES_TRAINED} bytes a parameter"
    if not model.resting:
        return said
    quantized = f", {BYTES_QUANTIZED} in 4 bits" if model.quantized else ""
    return f"{said} that is trained, {BYTES_FROZEN} of one that rests{quantized}"


def _width(config: Config) -> int:
    """Bytes a number of activations."""
    return 2 if pick_device(config.device).type == "cuda" else 4


def _sampling_need(config: Config, algorithm: Algorithm, policy: Sized, held_out: int, width: int) -> tuple[int, str]:
    """Bytes while responses are sampled, and what they are for."""
    if ENGINES[config.engine.name].has_own_weights:
        copy = policy.parameters * width
        return copy, (
            f"{gigabytes(copy)} weights of engine {config.engine.name}'s own; its key-value cache takes what its share "
            "of the device leaves"
        )
    needs = [(_sampling_bytes(policy, phase, width), phase) for phase in _samplings(config, algorithm, held_out)]
    most, largest = max(needs, key=lambda need: need[0])
    return most, (
        f"{gigabytes(most)} key-value cache and logits of {largest.rows:,} rows of {largest.tokens:,} tokens "
        f"({largest.what})"
    )


def _samplings(config: Config, algorithm: Algorithm, held_out: int) -> list[_Sampling]:
    """Everything that is sampled: in training and for baselines, and in evaluations."""
    data, evaluation = config.data, config.evaluation
    longest = max(data.max_prompt_tokens, evaluation.data.max_prompt_tokens if evaluation.data else 0)

    def at_once(what: str, prompts: int, samples: int, prompt_tokens: int) -> _Sampling:
        rows = min(config.engine.max_rows, prompts * samples)
        tokens = prompt_tokens + config.sampling.max_response_tokens
        # Copies of a prompt stand together, so that this many different ones meet in one part.
        return _Sampling(what, rows, -(-rows // samples), prompt_tokens, tokens)

    prompts, offline = config.prompts_per_step, getattr(algorithm.options, "offline_samples", 0)
    planned = [
        ("training", prompts, config.sampling.samples_per_prompt, data.max_prompt_tokens),
        ("offline samples of prompts", prompts, offline, data.max_prompt_tokens),
        ("evaluation", held_out, config.evaluation_samples(evaluation.samples_per_prompt), longest),
        ("evaluation", held_out, config.evaluation_samples(evaluation.final_samples_per_prompt), longest),
    ]
    return [at_once(*one) for one in planned if one[2]]


def _sampling_bytes(model: Sized, phase: _Sampling, width: int) -> int:
    """The larger of two moments: all prompts are read, with their part of the cache; or all tokens are in the cache."""
    text = model.architecture.get_text_config()
    heads = getattr(text, "num_attention_heads", 1)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    token = text.num_hidden_layers * 2 * kv_heads * head_size * width
    # One layer at a time: its input and output, queries, keys and values, and the three tensors of a gated block.
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    reading = phase.prompts * phase.prompt_tokens * (token + (4 * text.hidden_size + 3 * inner) * width)
    return max(reading, phase.rows * (phase.tokens * token + text.vocab_size * _LOGITS))


def _activations(config: Config, model: Sized, checkpointing: bool, width: int) -> int:
    text = model.architecture.get_text_config()
    kept = 1 if checkpointing else _KEPT
    return config.optimizer.tokens_per_microbatch * text.num_hidden_layers * text.hidden_size * kept * width


def _chunk_of_logits(config: Config, model: Sized) -> int:
    vocabulary = model.architecture.get_text_config().vocab_size
    tokens = min(chunk_tokens(vocabulary, pick_device(config.device)), config.optimizer.tokens_per_microbatch)
    return tokens * vocabulary * _LOGITS
