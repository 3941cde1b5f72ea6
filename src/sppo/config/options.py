"""Every option of a run, as typed dataclasses: range beside each field, help in the line under it.

Recipes are YAML files of these keys; `--section.key value` overrides one. settle.py has the rules between them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from sppo.config.data import DataConfig
from sppo.config.lora import LoraConfig
from sppo.config.ranges import AtLeastOne, Count, NotNegative, Positive, Section, Share, Trust
from sppo.config.verification import VerificationConfig

Beta = Annotated[float, Field(ge=0, lt=1)]
Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class ModelConfig(Section):
    """The policy: any causal language model that transformers loads."""

    path: str | None = None
    """Folder or hub name of the causal language model to train."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; default: its newest. revisions.json in the run folder has the commit."""
    config: dict[str, Any] | None = None
    """Sizes of a new, randomly initialised model, "model_type" among them; used where path is not given."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer, or "characters" for the built-in one; default: the model's own."""
    chat_template_arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the tokenizer's chat template, as in {enable_thinking: false}; they become its defaults, in what is
    saved too."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """Attention kernel that transformers uses; default: its own choice, sdpa where the model has it, else eager."""
    precision: Literal["auto", "bf16", "fp32", "bf16_weights"] = "auto"
    """What models of training compute in: bf16 (bfloat16), fp32 (float32), or auto, bf16 on a GPU and fp32 on a CPU.
    Weights, gradients and moments are float32 all the same, but with bf16_weights: bfloat16 weights, rounded at random,
    bfloat16 gradients and moments in 8 bits, 6 bytes a weight instead of 16 (needs torchao). Logits are float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    trust_remote_code: Trust = False
    """Allow the model's own Python code, and the critic's, from the hub or their folders to run."""
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(frozen=True)
class PrefitConfig(Section):
    """What the critic learns before the first update of the policy."""

    samples: Count = 0
    """Prompts that the starting policy answers once each, for critic, history and choice of prompts to learn from; they
    count as responses of the run."""
    path: str | None = None
    """Folder that `sppo prefit` made from the same policy: its critic is taken instead, its responses are counted."""


@dataclass(frozen=True)
class CriticConfig(Section):
    """The prompt critic V(prompt): any transformers model, with a scalar head, reading the prompt's text."""

    source: Literal["model", "probe"] = "model"
    """Where V comes from: a model of the critic's own; or probe, logistic regression on the policy's state at the last
    prompt token, whose learning rate should be near 1e-2."""
    members: Annotated[int, Field(ge=1, le=2)] = 1
    """Models whose mean V is; where two disagree, V is taken to be worth less."""
    recalibrate: bool = False
    """Bring V in line with each step's outcomes before it is used, those of half the prompts for the other half."""
    history: bool = False
    """Fuse V with the discounted outcomes that a prompt had before; how much V is worth is fitted on the way."""
    known_rates: str | None = None
    """With history: column of the training data that holds solve rates in [0, 1], which begin the counts."""
    known_rates_worth: Positive = 8.0
    """Samples that a known solve rate is worth at the start; it goes stale as outcomes do."""
    path: str | None = None
    """Folder or hub name of the critic's trunk; default: a copy of the policy's starting weights."""
    revision: str | None = None
    """Branch, tag or commit of a hub trunk, as of the model."""
    config: dict[str, Any] | None = None
    """Sizes of a new, randomly initialised trunk, "model_type" among them; used where path is not given."""
    tokenizer: str | None = None
    """Folder or hub name of the critic's tokenizer; default: that of its path, else the policy's."""
    loss: Literal["bce", "mse"] = "bce"
    """How a prompt critic learns: bce makes V a probability, for rewards in [0, 1]; mse makes V any number, for any
    rewards."""
    share: Share = 1.0
    """kappa in A = R - kappa V(prompt): how much of V is the baseline. Published: 1."""
    learning_rate: Positive = 5e-6
    """AdamW learning rate, the highest. Published: 5e-6 (1.5B), 1e-5 (7B)."""
    learning_rate_warmup: Count = 0
    """First steps of training over which the learning rate rises linearly."""
    learning_rate_decay: Decay = "constant"
    """How the learning rate goes on from there: constant, or falling to 0 over the run's steps, linearly or by half a
    cosine."""
    weight_decay: NotNegative = 0.01
    """AdamW weight decay."""
    minibatch_size: AtLeastOne = 128
    """Sequences in one optimiser step of the critic."""
    epochs: AtLeastOne = 1
    """Passes over each step's batch."""
    prior: float | None = None
    """Solve rate (with loss mse: reward) that the critic starts from; default: the first batch's mean reward."""
    gradient_checkpointing: bool = False
    """Recompute the critic's activations in the backward pass: less memory, more time."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    prefit: PrefitConfig = field(default_factory=PrefitConfig)


@dataclass(frozen=True)
class SelectionConfig(Section):
    """Which prompts a step asks, chosen before a token is generated by what the critic believes of them."""

    name: Literal["auto", "uniform", "sqrt", "top", "history", "curriculum"] | None = None
    """uniform takes what comes next; top the prompts of which most is expected, b (1 - b) with b the believed solve
    rate; sqrt draws by the square root of it; history is top by past outcomes alone, without a critic; curriculum goes
    from easy to hard; auto is top of as many candidates as the gain measured against the control group speaks for,
    down to what comes next. Default: auto for sppo, uniform for others."""
    uniform_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a step's prompts that is drawn whatever is believed of them: the control group of choosing."""
    candidates: Annotated[int, Field(ge=2, le=1000)] = 6
    """Candidates judged for each prompt of a step; of auto, at the most."""


@dataclass(frozen=True)
class SamplingConfig(Section):
    """How responses are sampled."""

    max_response_tokens: AtLeastOne = 1024
    """Longest response, in tokens. There is no hidden default elsewhere: longer responses are cut here."""
    samples_per_prompt: AtLeastOne = 1
    """G, responses to each prompt. SPPO's own setting is 1."""
    adaptive_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of a step's responses that are second and third ones, to the prompts of which most is expected; so many
    fewer prompts are asked. Needs samples_per_prompt 1."""
    temperature: Positive = 1.0
    """Divides the logits before sampling."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens with this much probability; 1 is all."""
    top_k: Count = 0
    """Sample from the k most likely tokens; 0 is all."""
    stop_token_ids: list[Count] = field(default_factory=list)
    """Token ids that end a response, beside the tokenizer's and the model's own end tokens."""


@dataclass(frozen=True)
class AlgorithmConfig(Section):
    """What turns rewards into a policy gradient. Where a default is null, it is the algorithm's own."""

    name: str = "sppo"
    """Name in the table of algorithms."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of this algorithm alone, as in --algorithm.options.gae_lambda 0.95; {} stands for their defaults."""
    clip_low: Annotated[float, Field(gt=0, le=1)] | None = None
    """The ratio is clipped below 1 - clip_low; default: the algorithm's, mostly 0.2."""
    clip_high: Positive | None = None
    """The ratio is clipped above 1 + clip_high; default: the algorithm's, mostly 0.2."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """For negative advantages, the loss of a token is at most this many times the advantage; published: 3.0."""
    ratio: Literal["token", "sequence", "joint"] | None = None
    """Ratio of each token, of the sequence's mean log-probability, or of all tokens to the reference policy."""
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] | None = None
    """Mean over all tokens of the mini-batch; mean over sequences of their token means; or of sums over max length."""
    whitening: Literal["none", "sequence", "token"] | None = None
    """Advantages to mean 0 and deviation 1 over the step's batch, each sequence or each token counting once."""
    negative_share: Share = 1.0
    """Share of the tokens of a response with an advantage below 0, the least likely when sampled, that are made less
    likely: at least one; the others count in the loss's denominators still. 1: all."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Old log-probabilities recomputed by the trainer, or the sampler's own (saves a forward pass)."""
    importance_cap: Positive | None = 2.0
    """Truncated importance sampling: tokens weigh min(p_trainer / p_sampler, cap); null switches it off."""
    kl_coefficient: NotNegative = 0.0
    """Weight of each token's KL divergence to the policy that training started from, in the loss aggregated as the
    tokens' losses are; 0: none, and no copy of it is kept."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """Estimate of the KL divergence a token, with r = policy / reference: log r (k1, in the reward), (log r)^2 / 2 or
    1/r - 1 + log r (k2, k3, in the loss); default: k1 in the reward, GRPO's k3 in the loss."""
    kl_place: Literal["loss", "reward"] = "loss"
    """Whether the KL divergence is added to the loss or taken from the reward."""
    entropy_coefficient: NotNegative = 0.0
    """Weight of each token's entropy (nats), which the loss then rewards, aggregated as the tokens' losses are: with
    sequence_sum a response's sum over max length, so the shorter the responses, the less it is."""
    truncated: Literal["keep", "mask", "drop"] = "keep"
    """Responses cut at the length limit: train on them, keep them for baselines only, or leave them out."""
    overlong_penalty_tokens: Count = 0
    """Soft overlong penalty: rewards fall linearly by 1 over this many last tokens before the limit; 0: none."""
    dynamic_sampling: bool | None = None
    """Drop groups that are all right or all wrong and sample other prompts for them, in up to 4 rounds; default: the
    algorithm's."""


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """AdamW on the policy, and how a step's batch is cut."""

    learning_rate: Positive = 1e-6
    """AdamW learning rate, the highest. Published: 1e-6, constant."""
    learning_rate_warmup: Count = 0
    """First steps of training over which the learning rate rises linearly."""
    learning_rate_decay: Decay = "constant"
    """How the learning rate goes on from there: constant, or falling to 0 over the run's steps, linearly or by half a
    cosine; a run that falls so is resumed with the same number of steps."""
    weight_decay: NotNegative = 0.01
    """AdamW weight decay. Published: 0.01 (1.5B), 0.1 (7B)."""
    max_grad_norm: Positive = 1.0
    """Gradient norm above which a gradient is scaled down, of policy and critic alike. Published: 1.0."""
    minibatch_size: AtLeastOne = 128
    """Sequences in one optimiser step. Published: 128 (1.5B), 32 (7B)."""
    epochs: AtLeastOne = 1
    """Passes over each step's batch. Published: 1."""
    tokens_per_microbatch: AtLeastOne = 16384
    """Tokens (prompt and response) in one pass of any model, scoring models too; changes memory and speed, not the
    result."""
    layout: Literal["sorted", "packed"] = "sorted"
    """Micro-batches of rows of like length, or rows laid end to end; changes speed, not the result."""
    offload: bool = False
    """Keep AdamW's moments, of policy and critic, on the host while responses are sampled: 8 bytes a parameter more for
    the engine's cache on a GPU, for two copies a step; not the result."""


@dataclass(frozen=True)
class EngineConfig(Section):
    """Where responses come from."""

    name: str = "hf"
    """Name in the table of engines."""
    max_rows: AtLeastOne = 512
    """Responses decoded at one time; bounds the memory of the key-value cache."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of this engine alone; {} stands for their defaults. hf has none."""


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """Held-out accuracy during and after training."""

    data: DataConfig | None = None
    """Held-out prompts, with the keys of the section data, as in --evaluation.data.task; default: drawn at random from
    the training data. Copies of them are no part of the training data."""
    prompts: AtLeastOne = 256
    """Number of held-out prompts."""
    samples_per_prompt: AtLeastOne = 1
    """Responses to each held-out prompt at an evaluation during training."""
    final_samples_per_prompt: AtLeastOne = 4
    """Responses to each held-out prompt in the first and last evaluation, which the summary reports."""
    every: Count = 10
    """Steps between evaluations; 0: only at checkpoints, which are always measured."""
    temperature: NotNegative | None = None
    """Temperature of evaluation; 0 takes the most likely token, and one response to each prompt, as all would be the
    same; default: that of training."""


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """What is kept on disk."""

    every: Count = 50
    """Steps between checkpoints; the last step is always saved. 0: only the last."""
    minutes: NotNegative = 0.0
    """Minutes after which a checkpoint is due at a step's end, whatever `every` says; no accuracy is measured for it.
    0: none is due by time."""
    keep: AtLeastOne = 2
    """Newest checkpoints kept; the best by held-out accuracy is kept beside them."""


@dataclass(frozen=True)
class LoggingConfig(Section):
    """Where metrics go beside metrics.jsonl and the screen."""

    sinks: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)
    """Other places for the metrics; each is an extra to install, as in pip install "sppo[tensorboard]"."""
    project: str = "sppo"
    """Project name for W&B and trackio."""
    rollouts_every: Count = 1
    """Steps between those whose responses are recorded, a file a step in rollouts/; 0 records none."""


@dataclass(frozen=True)
class SftPhase(Section):
    """One phase of supervised fine-tuning; its learning rate falls linearly to 0."""

    demonstrations: str = "full"
    """Which demonstrations the task gives: full, or terse (built-in tasks leave steps out)."""
    steps: AtLeastOne = 1000
    """Most optimiser steps of the phase."""
    batch_size: AtLeastOne = 64
    """Sequences an optimiser step."""
    learning_rate: Positive = 1e-5
    """AdamW learning rate at the start of the phase."""
    stop_at_accuracy: Share | None = None
    """End the phase once sampled held-out accuracy reaches this; checked every 100 steps."""


@dataclass(frozen=True)
class SftConfig(Section):
    """Supervised fine-tuning: `sppo sft`, and the warm start of `sppo train` where phases are given."""

    phases: list[SftPhase] = field(default_factory=list)
    """Phases in order; none: training starts from the model as loaded."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)
    """AdamW decay rates of the two moments."""


@dataclass(frozen=True)
class Config(Section):
    """One run."""

    output: str = "runs/sppo"
    """Run folder to make."""
    seed: int = 0
    """Seed of everything random: weights, data order, sampling."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where models run; auto: the NVIDIA GPU, or in a ROCm build of torch the AMD one, if there is one. mps is Apple's
    GPU, in one process and float32, which nobody has tried."""
    threads: AtLeastOne | None = None
    """CPU threads of torch; default: all cores. Tiny models are fastest with 1."""
    steps: AtLeastOne = 200
    """Training steps; each samples, grades, and updates the critic and the policy."""
    max_hours: Positive | None = None
    """Hours that this command may take, counted from when it begins to load: it saves and stops before a step that
    would end later, judged by the longest so far. For a scheduler's limit; --resume has as many hours again."""
    prompts_per_step: AtLeastOne = 256
    """P, prompts a step. Published: 256 (1.5B), 512 (7B)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    data: DataConfig = field(default_factory=DataConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    verification: VerificationConfig = field(default_factory=VerificationConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    sft: SftConfig = field(default_factory=SftConfig)

    @property
    def sequences_per_step(self) -> int:
        """B = P * G."""
        return self.prompts_per_step * self.sampling.samples_per_prompt

    @property
    def second_responses_per_step(self) -> int:
        """Responses of a step that are second and third ones, so that it asks so many prompts fewer."""
        return round(self.sampling.adaptive_share * self.prompts_per_step)

    @property
    def evaluation_temperature(self) -> float:
        """Temperature of evaluations."""
        own = self.evaluation.temperature
        return self.sampling.temperature if own is None else own

    def evaluation_samples(self, wanted: int) -> int:
        """Responses to each prompt of an evaluation: one at temperature 0, where all would be the same."""
        return wanted if self.evaluation_temperature > 0 else 1


def to_dict(section: Section) -> dict[str, Any]:
    """Returns a section as nested plain dicts (tuples as lists), ready for YAML or JSON."""
    plain: dict[str, Any] = asdict(section, dict_factory=_plain)
    return plain


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"section.key": value}; lists and option dicts stay whole only where they are empty or not dicts."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
