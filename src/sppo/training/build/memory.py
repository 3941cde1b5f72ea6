"""What a run needs of each device, phase by phase: upper estimates from options and architectures alone.

Rows are taken to be as long as they may get. Weights, gradients and moments are float32, but with model.precision
bf16_weights. On a GPU, or over several ranks, each rank keeps its part of them, and gathers a layer at a time in the
precision that is computed in; the outermost weights (embeddings and head) stay gathered from the forward pass to the
backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PretrainedConfig

from sppo.algorithms.algorithm import Algorithm
from sppo.config import Config
from sppo.models.adapter_files import is_adapter
from sppo.models.logprobs import chunk_tokens
from sppo.models.precision import Precision
from sppo.rollouts.engines import BESIDE_TRAINING, ENGINES
from sppo.update.steps import MOMENT_BYTES

SUM = 4
"""Bytes of a number that the head's gradient is added up in: float32."""
QUANTIZED = 0.52
"""Bytes a weight in 4 bits: half a byte, and the quantized scales of each 64 weights."""
LOGITS = 3 * 4
"""Bytes a number of logits: float32, and two more of their size while probabilities are made of them."""
USABLE = 0.95
"""Share of a card that a run can have: the rest is the driver's, libraries' and gaps between what was freed."""


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
    head: bool = True
    """Whether it has an output head, as a causal language model has and a critic's trunk hasn't."""

    @property
    def trained(self) -> int:
        """Parameters that the optimiser holds."""
        return self.parameters - self.resting

    def weights(self, width: int) -> int:
        """Bytes of weights alone, of `width` each but for those in 4 bits."""
        return (self.parameters - self.quantized) * width + int(self.quantized * QUANTIZED)

    @property
    def outermost(self) -> int:
        """Parameters outside of the layers: embeddings, and the head where it isn't tied to them."""
        text = self.architecture.get_text_config()
        one = int(text.vocab_size * text.hidden_size)
        return one if not self.head or getattr(self.architecture, "tie_word_embeddings", True) else 2 * one

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return max(self.parameters - self.outermost, 0) // int(self.architecture.get_text_config().num_hidden_layers)


@dataclass(frozen=True)
class Phase:
    """What one phase of a step needs on each device."""

    name: str
    parts: dict[str, int] = field(default_factory=dict)
    """Bytes, by what they are of."""
    cache: int = 0
    """Bytes of a key-value cache that takes what is left: at least for some rows, which is this."""

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.parts.values()) + self.cache


@dataclass(frozen=True)
class Sampling:
    """Rows that are decoded together."""

    what: str
    rows: int
    prompts: int
    """Different prompts among them; each is read once."""
    prompt_tokens: int
    tokens: int
    """Longest row, prompt and response."""


@dataclass(frozen=True)
class Memory:
    """A run's models on so many devices of a kind."""

    config: Config
    algorithm: Algorithm
    policy: Sized
    critic: Sized | None
    """The model beside it; None where there is none."""
    scoring: Sequence[Sized]
    """Models that judge responses or their steps; each device has them whole."""
    held_out: int
    """Prompts to measure on."""
    device: torch.device
    ranks: int = 1

    @property
    def width(self) -> int:
        """Bytes of a number that is computed with."""
        return self._precision.compute.itemsize

    @property
    def _precision(self) -> Precision:
        return Precision.of(self.config.model.precision, self.device)

    @property
    def _weight(self) -> int:
        """Bytes of a weight that is kept, and of its gradient."""
        return self._precision.weights.itemsize

    @property
    def sharded(self) -> bool:
        """Whether weights are kept in parts and gathered."""
        return self.ranks > 1 or self.device.type == "cuda" or self.width == 2

    @property
    def reference(self) -> int:
        """Bytes of the policy that training started from; an adapter that begins at zero is switched off for it."""
        copied = self.algorithm.needs_reference and not (
            self.config.model.lora.rank and not is_adapter(self.config.model.path)
        )
        return self.policy.weights(self._weight) // self.ranks if copied else 0

    def phases(self) -> list[Phase]:
        """The phases of a step that need most, in their order."""
        found = [self._sampling(), self._estimate()]
        if self.critic is not None:
            found.append(self._update("critic's update", self.critic, self.config.critic.gradient_checkpointing))
        return [*found, self._update("policy's update", self.policy, self.config.model.gradient_checkpointing)]

    def peak(self) -> Phase:
        """The one that needs most."""
        return max(self.phases(), key=lambda phase: phase.bytes)

    def beside_engine(self, size: float) -> float:
        """Bytes of a device of `size` that are taken while an engine with weights of its own is awake; 0 of others.

        What is left of its share beside its weights is its cache.
        """
        if not ENGINES[self.config.engine.name].has_own_weights:
            return 0.0
        share = self.config.engine.options.get("memory_share") or BESIDE_TRAINING
        return sum(self._held_while_sampling().values()) + share * size

    def fits(self, size: float) -> bool:
        """Whether a device of `size` bytes has room for every phase."""
        return max(self.peak().bytes, self.beside_engine(size)) <= size * USABLE

    def resident(self, *, moments: bool = True) -> dict[str, int]:
        """What is there in every phase."""
        models = [self.policy, *([] if self.critic is None else [self.critic])]
        each = MOMENT_BYTES[self._precision.weights]
        judging = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        held = {
            "weights": sum(model.weights(self._weight) for model in models) // self.ranks,
            "moments": int(sum(model.trained for model in models) * each) // self.ranks if moments else 0,
            "reference": self.reference,
            "scoring models": sum(model.parameters for model in self.scoring) * judging.itemsize,
        }
        return {name: size for name, size in held.items() if size}

    def samplings(self) -> list[Sampling]:
        """Everything that is sampled: in training and for baselines, and in evaluations; of one rank's share."""
        config, evaluation = self.config, self.config.evaluation
        asked = config.data.max_prompt_tokens
        longest = max(asked, evaluation.data.max_prompt_tokens if evaluation.data else 0)
        offline = getattr(self.algorithm.options, "offline_samples", 0)
        during = config.evaluation_samples(evaluation.samples_per_prompt)
        final = config.evaluation_samples(evaluation.final_samples_per_prompt)
        planned = [
            ("training", config.prompts_per_step, config.sampling.samples_per_prompt, asked),
            ("offline samples of prompts", config.prompts_per_step, offline, asked),
            ("evaluation", self.held_out, during, longest),
            ("evaluation", self.held_out, final, longest),
        ]
        return [self._together(*one) for one in planned if one[2]]

    def _together(self, what: str, prompts: int, samples: int, prompt_tokens: int) -> Sampling:
        rows = min(self.config.engine.max_rows, -(-prompts * samples // self.ranks))
        # Copies of a prompt stand together, so that this many different ones meet in one part.
        tokens = prompt_tokens + self.config.sampling.max_response_tokens
        return Sampling(what, rows, -(-rows // samples), prompt_tokens, tokens)

    def _held_while_sampling(self) -> dict[str, int]:
        return self.resident(moments=not (self.config.optimizer.offload and self.device.type == "cuda"))

    def _sampling(self) -> Phase:
        held = self._held_while_sampling()
        copy = self.policy.parameters * self.width
        if ENGINES[self.config.engine.name].is_elsewhere:
            return Phase("sampling", {**held, **self._handed_over()})
        needs = [(self._cache_bytes(some), some) for some in self.samplings()]
        if ENGINES[self.config.engine.name].has_own_weights:
            # Its cache takes what is left: room for the longest row of each of a few.
            most = max(some.tokens for _, some in needs)
            return Phase("sampling", {**held, "engine's weights": copy}, cache=_FEW_ROWS * most * self._token_bytes())
        size, largest = max(needs, key=lambda need: need[0])
        if self.sharded:
            held["gathered weights"] = copy
        said = f"cache and logits of {largest.rows:,} rows of {largest.tokens:,} tokens ({largest.what})"
        return Phase("sampling", {**held, said: size})

    def _handed_over(self) -> dict[str, int]:
        """What is gathered to be written for an engine elsewhere: the largest weight; all where there is an adapter."""
        if not self.sharded:
            return {}
        if self.config.model.lora.rank or is_adapter(self.config.model.path):
            return {"gathered weights": self.policy.parameters * self.width}
        text = self.policy.architecture.get_text_config()
        return {"a gathered weight": int(text.vocab_size * text.hidden_size * self._weight)}

    def _estimate(self) -> Phase:
        parts = {**self.resident(), **self._gathered(self.policy, backward=False)}
        return Phase("estimate", {**parts, "activations": self._layer_bytes(self.policy), "logits": self._logits()})

    def _update(self, name: str, model: Sized, checkpointing: bool) -> Phase:
        text = model.architecture.get_text_config()
        parts = {**self.resident(), "gradients": model.trained * self._weight // self.ranks}
        parts |= self._gathered(model, backward=True)
        # With checkpointing a layer's input is kept, and one layer's all at a time.
        inputs = self.config.optimizer.tokens_per_microbatch * text.num_hidden_layers * text.hidden_size * self.width
        layer = self._layer_bytes(model)
        parts["activations"] = inputs + layer if checkpointing else layer * text.num_hidden_layers
        if model is self.policy:
            parts["logits"] = self._logits()
        return Phase(name, parts)

    def _gathered(self, model: Sized, *, backward: bool) -> dict[str, int]:
        """Weights that are whole meanwhile, of the outermost part and two layers; and in a backward pass gradients."""
        if not self.sharded:
            return {}
        weights = (model.outermost + 2 * model.layer) * self.width
        trained = model.trained / model.parameters
        # The head's gradient is added up in float32 before it is that of a gathered weight.
        head = int(model.architecture.get_text_config().vocab_size * model.architecture.get_text_config().hidden_size)
        gradients = int((model.outermost + model.layer) * self.width * trained)
        gradients += int(head * SUM * trained) if model is self.policy else 0
        return {"gathered weights": weights, **({"their gradients": gradients} if backward else {})}

    def _layer_bytes(self, model: Sized) -> int:
        """What a micro-batch leaves of one layer: two norms, four of attention, keys and values, a gated block."""
        text = model.architecture.get_text_config()
        numbers = 6 * text.hidden_size + 2 * _keys(text) + 3 * _inner(text)
        return int(self.config.optimizer.tokens_per_microbatch * numbers * self.width)

    def _logits(self) -> int:
        vocabulary = self.policy.architecture.get_text_config().vocab_size
        return (
            min(chunk_tokens(vocabulary, self.device), self.config.optimizer.tokens_per_microbatch)
            * vocabulary
            * LOGITS
        )

    def _token_bytes(self) -> int:
        """Of a token in the key-value cache."""
        text = self.policy.architecture.get_text_config()
        return int(text.num_hidden_layers * 2 * _keys(text) * self.width)

    def _cache_bytes(self, some: Sampling) -> int:
        """The larger of two moments: all prompts are read, with their part of the cache; or all tokens are in it."""
        text = self.policy.architecture.get_text_config()
        # One layer at a time: its input and output, queries, keys and values, and the three tensors of a gated block.
        token = self._token_bytes()
        reading = some.prompts * some.prompt_tokens * (token + (4 * text.hidden_size + 3 * _inner(text)) * self.width)
        return int(max(reading, some.rows * (some.tokens * token + text.vocab_size * LOGITS)))


_FEW_ROWS = 16
"""Rows for which an engine's own cache should have room at least."""


def _inner(text: PretrainedConfig) -> int:
    """Width of a layer's gated block."""
    return int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size)


def _keys(text: PretrainedConfig) -> int:
    """Numbers of a token's keys in one layer; its values are as many."""
    heads = getattr(text, "num_attention_heads", 1)
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int((getattr(text, "num_key_value_heads", None) or heads) * size)
