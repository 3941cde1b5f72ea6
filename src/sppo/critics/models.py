"""Critics: any transformers trunk with a scalar head.

The prompt critic V(prompt) shares nothing with the policy: its own size, tokenizer and optimiser. The public SPPO code
feeds the policy's token ids to the critic; here it takes text, so it may come from another model family. The token
critic of PPO values each token of the policy's own responses, so it reads the policy's ids.

Shapes: B rows, U distinct prompts among them, S padded length, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config import CriticConfig
from sppo.config.lora import LoraConfig
from sppo.errors import ModelError
from sppo.models.adapter_files import BASE_FOLDER, is_adapter, save_pretrained
from sppo.models.adapters import adapt, backbone_copy, has_adapter
from sppo.models.checks import described, probe_rows, refusing, trunk_outputs
from sppo.models.loading import (
    LOAD_FAILURES,
    align,
    arithmetic,
    build_config,
    cannot_load,
    disable_dropout,
    embedded_tokens,
    enable_gradient_checkpointing,
    load_pretrained,
    read_tokenizer,
)
from sppo.models.packing import TokenRow, lay_out, pad_right
from sppo.models.quantization import quantized_loading
from sppo.models.sharding import inside, let_go, whole
from sppo.rollouts.encode import encode_many
from sppo.runs import ranks
from sppo.types import Prompt, TokenIds
from sppo.update.deal import DUMMY_PROMPT, dealt

Model = TypeVar("Model", bound="ValueModel")

OTHER_TRUNK = "Choose another trunk with --critic.path or --critic.config."
PRIORS = 0.01, 0.99
"""Between these V starts, as the logits of 0 and 1 are infinite."""
HEAD_FILE = "value_head.safetensors"


class ScalarHead(nn.Module):
    """A number from a state; where its value begins, and in which file it is kept."""

    head: nn.Linear

    def __init__(self, file: str) -> None:
        """Begins without a head, which comes behind whatever else has weights, so that their order is that of old."""
        super().__init__()
        self.file = file
        self.started = False
        """Whether the head's bias has been set to where V begins."""
        self.probability = True
        """Whether V of a prompt is sigmoid(output); else it is the output itself (critic.loss mse)."""

    def add_head(self, width: int) -> None:
        """Makes the head, on states of this width."""
        # Zero weights: every value starts at the bias, so the first advantages are R minus a constant.
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def device(self) -> torch.device:
        """Where the critic's weights are."""
        return self.head.weight.device

    def set_prior(self, solve_rate: float) -> None:
        """Starts sigmoid(logit) at `solve_rate`; kept away from 0 and 1, where the logit is infinite."""
        rate = min(max(solve_rate, PRIORS[0]), PRIORS[1])
        self.set_bias(math.log(rate / (1 - rate)))

    def set_bias(self, bias: float) -> None:
        """Starts the head's output at `bias` for every input."""
        with torch.no_grad():
            self.head.bias.fill_(bias)

    def save_pretrained(self, folder: Path) -> None:
        """Writes the head, into a folder that may be there already; every rank has to call it."""
        folder.mkdir(exist_ok=True)
        save_file(
            {name: whole(tensor).contiguous().cpu() for name, tensor in self.head.state_dict().items()},
            folder / self.file,
            metadata={
                "value": "probability" if self.probability else "output",
                "started": "yes" if self.started else "no",
            },
        )

    def load_head(self, folder: Path) -> None:
        """Reads the head that `save_pretrained` wrote.

        Raises:
            ModelError: the folder holds none, or that of another kind of critic.
        """
        require_file(folder, self.file)
        self.head.load_state_dict(load_file(folder / self.file))
        with safe_open(folder / self.file, "pt") as head:
            said = head.metadata() or {}
        self.probability = said.get("value") != "output"
        self.started = said.get("started") != "no"


class ValueModel(ScalarHead):
    """A trunk of any transformers model with a scalar head; saved as a folder that AutoModel loads, and the head."""

    def __init__(
        self,
        trunk: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        tokens_per_microbatch: int = 16384,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Puts a scalar head on a trunk.

        Args:
            trunk: a model whose output has `last_hidden_state`.
            tokenizer: the trunk's own.
            tokens_per_microbatch: padded tokens in one forward pass.
            gradient_checkpointing: recompute activations in the backward pass.

        Raises:
            ModelError: the trunk can't read a row by itself, or can't recompute.
        """
        super().__init__(HEAD_FILE)
        self.trunk = trunk
        self.tokenizer = tokenizer
        self.tokens_per_microbatch = tokens_per_microbatch
        disable_dropout(trunk)
        # A row is read once, so a cache would only take memory.
        trunk.config.use_cache = False
        trunk.eval()
        self.add_head(state_width(trunk))
        if gradient_checkpointing:
            enable_gradient_checkpointing(trunk, "critic.gradient_checkpointing")

    def save_pretrained(self, folder: Path) -> None:
        """Writes the trunk as a folder that `AutoModel.from_pretrained` loads, or its adapter; tokenizer and head."""
        folder.mkdir(exist_ok=True)
        save_pretrained(self.trunk, folder)
        self.tokenizer.save_pretrained(folder)
        super().save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str = "cpu",
        tokens_per_microbatch: int = 16384,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
        lora: LoraConfig = LoraConfig(),  # noqa: B008 - it is frozen
    ) -> Self:
        """Loads what `save_pretrained` wrote.

        Args:
            folder: with trunk, tokenizer and head.
            device: where the critic goes.
            tokens_per_microbatch: padded tokens in one forward pass.
            gradient_checkpointing: recompute activations in the backward pass.
            trust_remote_code: allow Python code that lies in the folder to run.
            lora: where the trunk has an adapter: how its base is held.

        Raises:
            ModelError: the folder holds no critic.
        """
        path = Path(folder)
        require_file(path, HEAD_FILE)
        try:
            quantized = quantized_loading(lora, "critic.lora", torch.device(device))
            trunk = load_pretrained(AutoModel, path, trust_remote_code, **quantized)
        except LOAD_FAILURES as error:
            raise ModelError(cannot_load("critic", str(path), error)) from error
        critic = cls(
            trunk,
            read_tokenizer(str(path), "critic", trust_remote_code),
            tokens_per_microbatch=tokens_per_microbatch,
            gradient_checkpointing=gradient_checkpointing,
        )
        critic.load_head(path)
        critic.to(device)
        align(critic)
        return critic


class PromptCritic(ValueModel):
    """Reads prompts, returns one logit each; V = sigmoid(logit), or the logit itself where V is no probability."""

    def logits(self, token_rows: Sequence[TokenIds]) -> Tensor:
        """Returns [U, 1] float32 logits of U prompts in one forward pass, with gradient where grad is on."""
        return inside(self, self._logits, token_rows)

    def _logits(self, token_rows: Sequence[TokenIds]) -> Tensor:
        with arithmetic(self):
            states = last_states(self.trunk, token_rows)
        logits: Tensor = self.head(states.float())
        return logits

    def values(self, prompts: Sequence[Prompt]) -> Tensor:
        """Returns V [B, 1] as float32 on the CPU; equal prompts are computed once."""
        return self.row_values(encode_many(list(prompts), self.tokenizer))

    @torch.no_grad()
    def row_values(self, encoded: Sequence[TokenIds]) -> Tensor:
        """`values` of prompts that are token ids already."""
        token_rows, inverse = distinct(encoded)
        logits = torch.zeros(len(token_rows), 1)
        for part in dealt([len(row) for row in token_rows], self.tokens_per_microbatch):
            said = self.logits([token_rows[row] for row in part] or [DUMMY_PROMPT]).cpu()
            if part:
                logits[part] = said
        let_go(self)
        ranks.sum_over_ranks(logits)
        return (logits.sigmoid() if self.probability else logits)[inverse]


def require_file(folder: Path, name: str) -> None:
    """Refuses a folder without the file that a kind of critic is read from.

    Raises:
        ModelError: names the file.
    """
    if not (folder / name).is_file():
        raise ModelError(f"{folder} holds no critic of this kind: {name} is missing.")


def last_states(trunk: PreTrainedModel, token_rows: Sequence[TokenIds]) -> Tensor:
    """Returns [U, H], a trunk's state at the last token of each row, in one forward pass."""
    counts = [len(row) for row in token_rows]
    width = max(counts)
    ids = torch.from_numpy(pad_right(token_rows)).to(trunk.device)  # [U, S]
    lengths = torch.tensor(counts, device=trunk.device)
    # Encoders look at padding unless told not to; causal trunks ignore what comes after.
    mask = None if min(counts) == width else (torch.arange(width, device=trunk.device) < lengths[:, None]).long()
    hidden = trunk(input_ids=ids, attention_mask=mask).last_hidden_state  # [U, S, H]
    # The last prompt token by index: right for any padding side that the tokenizer prefers.
    last: Tensor = hidden[torch.arange(len(ids), device=trunk.device), lengths - 1]
    return last


def distinct(encoded: Sequence[TokenIds]) -> tuple[list[TokenIds], Tensor]:
    """Returns U distinct token rows, and [B] which of them each row is."""
    keys = [ids.tobytes() for ids in encoded]
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    rows = dict(zip(keys, encoded, strict=True))
    return [rows[key] for key in number], torch.tensor([number[key] for key in keys])


class TokenCritic(ValueModel):
    """Reads prompt and response as the policy's token ids; a value before each response token (PPO)."""

    def response_values(self, rows: Sequence[TokenRow], width: int) -> Tensor:
        """Returns [r, T] raw head outputs before each response token within the masks, 0 elsewhere, in one pass.

        Args:
            rows: r prompts and responses.
            width: T.
        """
        return inside(self, self._response_values, rows, width)

    def _response_values(self, rows: Sequence[TokenRow], width: int) -> Tensor:
        arranged = lay_out(rows, "sorted", self.device)
        with arithmetic(self):
            hidden = self.trunk(**arranged.inputs).last_hidden_state.flatten(0, 1)
        outputs = self.head(hidden[arranged.sources].float()).squeeze(1)
        spread = torch.zeros(len(rows), width, device=self.device)
        return spread.index_put((arranged.rows, arranged.columns), outputs)


def state_width(trunk: PreTrainedModel) -> int:
    """H, found by reading a short row: configs don't say it in one place, and OPT's may project before the end.

    Raises:
        ModelError: the trunk can't read a row by itself, as an encoder-decoder can't.
    """
    kind = "it is an encoder-decoder, and " if trunk.config.is_encoder_decoder else ""
    why = f"{described(trunk)} can't be a critic, as {kind}its forward fails on a row of tokens alone"
    with refusing(why, OTHER_TRUNK), torch.no_grad(), arithmetic(trunk):
        states = trunk_outputs(trunk)(input_ids=probe_rows(trunk, 1)[:, :4])
    return states.shape[-1]


def make_value_model(
    kind: type[Model],
    options: CriticConfig,
    policy: PreTrainedModel,
    policy_tokenizer: Tokenizer,
    *,
    tokens_per_microbatch: int,
    trust_remote_code: bool = False,
    policy_base: str = "",
) -> Model:
    """Makes the critic of a new run: from critic.path, else critic.config, else a copy of the policy's backbone.

    Args:
        kind: PromptCritic or TokenCritic.
        options: of the critic.
        policy: copied where no other trunk is named.
        policy_tokenizer: used where the critic brings none.
        tokens_per_microbatch: padded tokens in one forward pass.
        trust_remote_code: allow the trunk's own Python code to run.
        policy_base: folder or hub name of the weights that a copy is of, for an adapter to name.

    Raises:
        ModelError: the trunk or its tokenizer can't be loaded, or embeds fewer tokens than the tokenizer has.
    """
    tokenizer = policy_tokenizer
    if kind is TokenCritic and options.tokenizer:
        raise ModelError(
            f"critic.tokenizer is {options.tokenizer}, but a token critic reads the policy's own token ids. Unset it."
        )
    if kind is PromptCritic and (options.tokenizer or options.path):
        key = "critic.tokenizer" if options.tokenizer else "critic.path"
        revision = "main" if options.tokenizer else options.revision or "main"
        tokenizer = read_tokenizer(options.tokenizer or str(options.path), key, trust_remote_code, revision)
    try:
        if options.path is not None:
            if is_adapter(options.path):
                raise ModelError(
                    f"critic.path {options.path!r} is an adapter, and a trunk has other layers. Merge it first: "
                    f"sppo merge {options.path} --output FOLDER, then --critic.path FOLDER."
                )
            quantized = quantized_loading(options.lora, "critic.lora", policy.device)
            revision = options.revision or "main"
            trunk = load_pretrained(AutoModel, options.path, trust_remote_code, revision=revision, **quantized)
        elif options.config is not None:
            settings = {"vocab_size": len(tokenizer), **options.config}
            architecture = build_config(settings, "critic.config")
            trunk = AutoModel.from_config(architecture, dtype=torch.float32, trust_remote_code=False)
        else:
            trunk = backbone_copy(policy)
    except LOAD_FAILURES as error:
        raise ModelError(cannot_load("critic.path", options.path or "made from critic.config", error)) from error
    embedded = embedded_tokens(trunk)
    if len(tokenizer) > embedded:
        raise ModelError(
            f"The critic's tokenizer has {len(tokenizer)} tokens, but the critic embeds only {embedded}. "
            "Give the critic its own tokenizer with --critic.tokenizer."
        )
    if options.lora.rank:
        _adapt(trunk, options, policy, policy_base)
    model = kind(
        trunk,
        tokenizer,
        tokens_per_microbatch=tokens_per_microbatch,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    model.probability = options.loss == "bce"
    model.to(policy.device)
    align(model)
    return model


def _adapt(trunk: PreTrainedModel, options: CriticConfig, policy: PreTrainedModel, policy_base: str) -> None:
    """Gives the trunk its adapter.

    Raises:
        ModelError: no folder would have the weights that it stands on.
    """
    base = options.path or policy_base
    # A run keeps a base for the policy's adapter alone.
    kept_nowhere = Path(base).name == BASE_FOLDER and not Path(base).is_dir() and not has_adapter(policy)
    if not base or kept_nowhere:
        raise ModelError(
            f"critic.lora.rank is {options.lora.rank}, but the critic would stand on a copy of a policy that was "
            "handed over, whose starting weights no folder has. Name the critic's trunk with critic.path, or give the "
            "model by its path."
        )
    adapt(trunk, options.lora, str(Path(base).absolute()) if Path(base).is_dir() else base, "critic")
