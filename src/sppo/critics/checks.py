"""What a critic's trunk must do, tried when the critic is built."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch

from sppo.config import CriticConfig
from sppo.critics.belief import Floats
from sppo.critics.models import OTHER_TRUNK, PromptCritic, TokenCritic, last_states
from sppo.errors import ConfigError, DataError, ModelError
from sppo.models.checks import (
    agree,
    described,
    disagreement,
    probe_rows,
    probing,
    readable_tokens,
    refusing,
    trunk_outputs,
)
from sppo.models.loading import context_length, embedded_tokens
from sppo.rollouts.encode import encode_many
from sppo.types import Prompt, as_token_ids


def require_readable(critic: PromptCritic, prompts: Sequence[Prompt]) -> None:
    """Refuses prompts that are empty or too long for the critic, in tokens of its own tokenizer.

    Raises:
        DataError: names the first such prompt.
    """
    encoded = encode_many(list(prompts), critic.tokenizer)
    longest = max(1, *map(len, encoded))
    said = context_length(critic.trunk.config) or longest
    limit = readable_tokens(critic.trunk, trunk_outputs(critic.trunk), min(longest, said))
    limit = said if limit == longest else limit
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not 0 < len(ids) <= limit:
            raise DataError(
                f"Prompt {prompt.id!r} has {len(ids)} tokens in the critic's tokenizer, but the critic reads 1 to "
                f"{limit}. Lower data.max_prompt_tokens, or choose another critic."
            )


def require_prompts(config: CriticConfig, prompts: Sequence[Prompt], *, resumed: bool) -> None:
    """Refuses prompts that lack what the critic begins with, before models are loaded.

    Raises:
        ConfigError: fewer prompts than a pre-fit asks, each once.
        DataError: prompts without the solve rates that are said to be known.
    """
    if config.known_rates is not None and not resumed:
        known_rates(prompts, config.known_rates)
    samples = config.prefit.samples
    if samples > len(prompts):
        raise ConfigError(
            f"critic.prefit.samples is {samples}, but there are only {len(prompts)} prompts to train on, each asked "
            "once. Set it to at most that."
        )


def known_rates(prompts: Sequence[Prompt], column: str) -> Floats:
    """Returns [N] the solve rate that a column of each prompt's row gives.

    Raises:
        DataError: a row without it, or with something else than a number in [0, 1]; names the row and what it has.
    """
    rates = np.empty(len(prompts))
    for place, prompt in enumerate(prompts):
        if column not in prompt.columns:
            raise DataError(
                f"critic.known_rates is {column}, but prompt {prompt.id!r} has no such column; it has: "
                f"{', '.join(map(str, prompt.columns)) or 'none'}."
            )
        value = prompt.columns[column]
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise DataError(
                f"critic.known_rates is {column}, but in prompt {prompt.id!r} that is {value!r}, no solve rate in "
                "[0, 1]. Mend or leave out such rows, or name another column."
            )
        rates[place] = float(value)
    return rates


@torch.no_grad()
def require_masking(critic: PromptCritic) -> None:
    """Refuses trunks that see the padding behind a prompt: V would depend on the prompts that it is read with.

    Raises:
        ModelError: the state at a prompt's end changes with a longer prompt beside it.
    """
    long, short = (as_token_ids(row.tolist()) for row in probe_rows(critic.trunk, 2))
    short = short[: len(short) // 2]
    with refusing(f"{described(critic.trunk)} can't be a critic", OTHER_TRUNK), probing(critic.trunk):
        together, alone = last_states(critic.trunk, [short, long])[:1], last_states(critic.trunk, [short])
    if not agree(together, alone, critic.trunk):
        raise ModelError(
            f"The critic's trunk, {described(critic.trunk)}, sees the padding behind a prompt (its states differ by "
            f"{disagreement(together, alone):.1e} of their spread), so that V of a prompt would depend on those that "
            f"it is read with. {OTHER_TRUNK}"
        )


@torch.no_grad()
def require_causal(critic: TokenCritic) -> None:
    """Refuses trunks that read ahead: V before a token would know the tokens after it.

    Raises:
        ModelError: the trunk's first state depends on its last token.
    """
    first = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=critic.device) % embedded_tokens(critic.trunk)
    states = critic.trunk(input_ids=first).last_hidden_state[:, 0]
    if not torch.allclose(states[0].float(), states[1].float(), rtol=1e-4, atol=1e-4):
        raise ModelError(
            f"The critic's trunk, {critic.trunk.config.model_type}, reads a response in both directions, so that the "
            "value of a token would know what comes after it. Choose a causal model for a token critic."
        )
