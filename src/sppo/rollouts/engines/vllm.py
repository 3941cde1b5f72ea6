"""Engine "vllm": vLLM in this process, on the device that trains, with a copy of the weights of its own.

The copy gets the policy's weights in place after each update. On a GPU vLLM sleeps while the policy learns: weights and
cache are dropped, and come back when responses are asked for, the weights from the policy. Each rank has an engine.

What vLLM does silently is checked here: names of weights that it did not take, a cache that outlives the weights that
made it, responses that it cut, numbers that are not finite. When the engine is built, its log-probabilities of a few
tokens are held against the policy's own, so that a model that vLLM computes otherwise is refused.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sppo.errors import ModelError, SppoError, TrainingError
from sppo.models.checks import causal_outputs, described, probe_rows, probing, undisturbed
from sppo.models.loading import context_length
from sppo.models.sharding import let_go
from sppo.rollouts.engines.engine import EngineSetup, SamplingParameters, require_finite, require_room
from sppo.rollouts.engines.vllm_options import require_temperature
from sppo.rollouts.engines.vllm_process import kept_threads, last_lines, refusing, shut_down, start, take_over
from sppo.types import Completion, TokenIds, as_token_ids

_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""Nats by which a token's log-probability may differ from the policy's in float32, by vLLM's precision. On a CPU with
float32 both were within 2e-5; a model that is computed otherwise is off by whole nats."""


class VllmEngine:
    """Samples from vLLM, which keeps a batch full by taking up rows as others end."""

    _present: ClassVar[VllmEngine | None] = None
    """The one in this process: vLLM's groups of ranks and its allocator are there once."""

    def __init__(self, model: PreTrainedModel, setup: EngineSetup) -> None:
        """Starts vLLM with the weights of `model`; asleep afterwards on a GPU.

        Args:
            model: the policy, on the device that vLLM is to run on; may be sharded, then every rank calls this.
            setup: with `VllmOptions`.

        Raises:
            ConfigError: the vLLM that is installed is for another kind of device.
            ModelError: vLLM can't run this model, or computes something else than the policy does.
        """
        if VllmEngine._present is not None:
            VllmEngine._present.close()  # of a run that failed before it could
        context = context_length(model.config)
        self._limit = setup.max_tokens if context is None else min(setup.max_tokens, context)
        self._limit_is = (
            "of the model's context (max_position_embeddings)"
            if self._limit == context
            else "that the engine was made for"
        )
        self._version = 0
        self._source: nn.Module = model
        self._sleeps = model.device.type == "cuda"
        self._is_awake = True
        self._died: str | None = None
        self._is_closed = False
        self._llm: Any = None
        self._shares_ranks = torch.distributed.is_initialized()
        self._folder = tempfile.TemporaryDirectory(prefix="sppo-vllm-")
        VllmEngine._present = self
        try:
            with refusing(model), undisturbed(), kept_threads():
                self._llm = start(model, self._folder.name, self._limit, setup, shares_ranks=self._shares_ranks)
                self._reload()
                self._compare(model, _ROUNDING[setup.dtype])
            self._sleep()
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """Version of the weights that `generate` samples from."""
        return self._version

    def load_weights(self, model: nn.Module, version: int) -> None:
        """Samples from `model`'s weights from now on; an engine that sleeps reads them when it is woken.

        They may not change between the two unless a newer version is handed over, which `sample` checks.

        Raises:
            ModelError: vLLM did not take all of them.
            TrainingError: vLLM failed, now or earlier.
        """
        self._source, self._version = model, version
        if self._is_awake:
            with self._alive("taking over the weights"):
                self._reload()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Has weights and cache in memory inside; on a GPU they are read from the policy as it is entered.

        Where the policy is sharded, every rank enters together.
        """
        self._wake()
        try:
            yield
        finally:
            self._sleep()

    def close(self) -> None:
        """Ends vLLM and frees its memory; a second time it does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        VllmEngine._present = None
        shut_down(self._llm, shares_ranks=self._shares_ranks)
        self._llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._folder.cleanup()

    def generate(
        self, prompts: Sequence[TokenIds], sampling: SamplingParameters, *, seeds: Sequence[int]
    ) -> list[Completion]:
        """Samples one response to each row of token ids.

        The log-probabilities are those of the distribution sampled from, after temperature, top_k and top_p; at
        temperature 0 those of the model's own softmax.

        Args:
            prompts: rows of token ids, none empty.
            sampling: length, distribution and stop ids.
            seeds: one a row, in [0, 2^63).

        Returns:
            One completion a row, in the rows' order.

        Raises:
            ConfigError: the longest prompt and max_tokens together exceed what the engine was made for, or vLLM has no
                such temperature.
            ModelError: an empty prompt, or logits that are not finite.
            TrainingError: vLLM failed, now or earlier, or returned what was not asked for.
        """
        assert self._is_awake, "asked for responses while it sleeps"
        assert len(seeds) == len(prompts), f"{len(seeds)} seeds for {len(prompts)} rows"
        require_room(prompts, sampling.max_tokens, self._limit, self._limit_is)
        if not len(prompts):
            return []
        parameters = self._parameters(sampling, seeds)
        asked = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        # vLLM draws from the trainer's generators too, if to no effect.
        with undisturbed(), self._alive("sampling"):
            outputs = self._llm.generate(asked, parameters, use_tqdm=False)
            completions = [
                _completion(output.outputs[0], own, self._version)
                for output, own in zip(outputs, parameters, strict=True)
            ]
        require_finite(completions, range(len(prompts)))
        return completions

    def _parameters(self, sampling: SamplingParameters, seeds: Sequence[int]) -> list[Any]:
        """vLLM's parameters, one a row."""
        from vllm import SamplingParams

        require_temperature(sampling.temperature)
        assert not self._is_closed, "the engine is closed"
        vocabulary = self._llm.model_config.get_vocab_size()
        return [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=seed,
                max_tokens=sampling.max_tokens,
                stop_token_ids=sorted(token for token in sampling.stop_token_ids if token < vocabulary),
                ignore_eos=True,  # what ends a response is among the stop ids
                logprobs=0,  # of the sampled token alone
                flat_logprobs=True,
                detokenize=False,
            )
            for seed in seeds
        ]

    def _wake(self) -> None:
        """Takes memory and reads the weights anew, where they were dropped."""
        if self._is_awake:
            return
        with self._alive("waking up"):
            # What the trainer's allocator keeps for itself is no memory that vLLM could have.
            torch.cuda.empty_cache()
            self._llm.wake_up(tags=["weights"])
            self._reload()
            self._llm.wake_up(tags=["kv_cache"])
        self._is_awake = True

    def _sleep(self) -> None:
        if self._sleeps and self._is_awake and self._died is None:
            with self._alive("going to sleep"):
                self._llm.sleep(level=2)
            self._is_awake = False

    def _reload(self) -> None:
        """Copies the policy's weights over vLLM's, and forgets the keys and values that the old ones made."""
        (missing,) = self._llm.collective_rpc(take_over, args=(self._source,))
        if missing:
            raise ModelError(
                f"vLLM did not take over all of the policy's weights: {len(missing)} are missing, the first is "
                f"{missing[0]}. It would sample from another policy; use --engine.name hf for this model."
            )
        if not self._llm.reset_prefix_cache():
            raise TrainingError(
                "vLLM's cache of prompts could not be emptied after an update, so that it would sample with keys and "
                "values of the weights before it."
            )

    @torch.no_grad()
    def _compare(self, model: PreTrainedModel, most: float) -> None:
        """Holds vLLM's log-probabilities of a few sampled tokens against those of the policy's forward.

        Raises:
            ModelError: they differ by more than `most` nats.
        """
        width = min(8, self._limit - 1)
        prompts = [as_token_ids(row[:width].tolist()) for row in probe_rows(model, 4)]
        sampling = SamplingParameters(min(4, self._limit - width))
        completions = self.generate(prompts, sampling, seeds=range(len(prompts)))
        gaps = []
        with probing(model):
            for prompt, completion in zip(prompts, completions, strict=True):
                ids = torch.tensor([[*prompt.tolist(), *completion.token_ids.tolist()]], device=model.device)
                logits: Tensor = causal_outputs(model)(input_ids=ids)[0, len(prompt) - 1 : -1]  # [T, V]
                said = logits.float().log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).squeeze(1)
                gaps.append(float((said.cpu() - torch.tensor(completion.logprobs)).abs().max()))
        let_go(model)
        if not max(gaps) <= most:
            raise ModelError(
                f"vLLM computes something else than {described(model)} does: log-probabilities of a few sampled tokens "
                f"differ by up to {max(gaps):.3g} nats, and rounding explains {most:g}. Use --engine.name hf."
            )

    @contextmanager
    def _alive(self, doing: str) -> Iterator[None]:
        """Around calls of vLLM; what fails in it leaves an engine of unknown state, which is not used again."""
        assert not self._is_closed, "the engine is closed"
        if self._died is not None:
            raise TrainingError(f"Engine vllm is not used again after it failed while {self._died}.")
        try:
            yield
        except BaseException as error:
            self._died = doing
            if isinstance(error, Exception) and not isinstance(error, (SppoError, torch.OutOfMemoryError)):
                raise TrainingError(
                    f"Engine vllm failed while {doing}: {last_lines(error)} The run ends here, and goes on from its "
                    "last checkpoint with --resume."
                ) from error
            raise


def _completion(said: Any, parameters: Any, version: int) -> Completion:
    """A completion of what vLLM returned for one row, if that is what was asked for; version is the policy's."""
    ids, logprobs, reason = list(said.token_ids), said.logprobs, said.finish_reason
    whole = {"stop": bool(ids) and ids[-1] in parameters.stop_token_ids, "length": len(ids) == parameters.max_tokens}
    if not whole.get(reason, False) or len(ids) > parameters.max_tokens or logprobs.token_ids != ids:
        raise TrainingError(
            f"vLLM returned a response of {len(ids)} tokens and {len(logprobs.token_ids)} log-probabilities that ended "
            f"by {reason!r}, where at most {parameters.max_tokens} tokens were asked for."
        )
    sampled = np.asarray(logprobs.logprobs, np.float32)
    return Completion(as_token_ids(ids), sampled, reason, versions=np.array(version))
