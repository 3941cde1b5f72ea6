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

import torch
from torch import nn
from transformers import PreTrainedModel

from sppo.errors import ModelError, SppoError, TrainingError
from sppo.models.checks import undisturbed
from sppo.rollouts.engines.engine import EngineSetup, SamplingParameters, require_finite, require_room
from sppo.rollouts.engines.vllm_process import kept_threads, last_lines, refusing, shut_down, start, take_over
from sppo.rollouts.engines.vllm_responses import completion_of, limit_of, require_same, row_parameters
from sppo.types import Completion, TokenIds


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
        self._limit, self._limit_is = limit_of(model, setup.max_tokens)
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
                require_same(model, self.generate, self._limit, setup.dtype, "vLLM")
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
        from vllm import SamplingParams

        assert not self._is_closed, "the engine is closed"
        vocabulary = self._llm.model_config.get_vocab_size()
        parameters = [
            SamplingParams(**row_parameters(sampling, seed, vocabulary), flat_logprobs=True) for seed in seeds
        ]
        asked = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        # vLLM draws from the trainer's generators too, if to no effect.
        with undisturbed(), self._alive("sampling"):
            outputs = [output.outputs[0] for output in self._llm.generate(asked, parameters, use_tqdm=False)]
            completions = [
                completion_of(
                    list(said.token_ids),
                    said.logprobs.logprobs,
                    said.logprobs.token_ids,
                    said.finish_reason,
                    sampling,
                    self._version,
                )
                for said in outputs
            ]
        assert len(completions) == len(prompts), f"vLLM returned {len(completions)} responses to {len(prompts)} rows"
        require_finite(completions, range(len(prompts)))
        return completions

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
