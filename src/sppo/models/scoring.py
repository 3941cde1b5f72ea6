"""Models that score texts: reward models (a score for prompt and response) and step-reward models (one a step).

Any sequence- or token-classification model of transformers, read with its own tokenizer and chat template. A score is
the output of a model with one label; of one with two it is logit 1 - logit 0. Rows are never cut: one that is longer
than the model reads gets no score. Nothing here is trained.

Shapes: S tokens of a row, L labels (1 or 2).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.batch import microbatches
from sppo.config.verification import ProcessOptions, RewardModelOptions, VerificationConfig
from sppo.errors import ModelError
from sppo.models.chat import render
from sppo.models.checks import has_positions, readable_tokens
from sppo.models.loading import (
    LOAD_FAILURES,
    arithmetic,
    cannot_load,
    context_length,
    embedded_tokens,
    read_tokenizer,
)
from sppo.models.plain_text import CutText, Neutraliser, encode_pieces, unmarked, unused_letter
from sppo.models.remote import load_architecture
from sppo.types import Prompt
from sppo.verifiers.reward_model import Exchange, Score
from sppo.verifiers.tools import Tools

_SCORED = "that a reward model scores"


def verifier_tools(options: VerificationConfig, device: torch.device, tokens_per_microbatch: int = 16384) -> Tools:
    """What verifiers run with where models can be loaded: those that score responses among them."""
    load = partial(SequenceScorer.load_reward_model, tokens_per_microbatch=tokens_per_microbatch)
    return Tools(options, str(device), load_scorer=load)


Row = Mapping[str, Sequence[int]]
"""What a tokenizer makes of one text: input_ids and whatever else the model reads beside them, all of one length."""

_KINDS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}


@dataclass(frozen=True)
class Classifier:
    """A loaded model and how it is run."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    max_tokens: int | None
    """Longest row; None: any."""
    tokens_per_microbatch: int
    padding: int | None
    """The model's own padding id, where it has one."""
    by_token: bool
    """Whether it has an output for every token."""
    neutraliser: Neutraliser
    """Finds what responses spell like its special tokens."""

    def scores(self, rows: Sequence[Row]) -> list[Tensor | None]:
        """Scores of each row, float32 on the CPU: [] or, by token, [S]; None for rows that are too long."""
        found: list[Tensor | None] = [None] * len(rows)
        lengths = [len(row["input_ids"]) for row in rows]
        fitting = [index for index, length in enumerate(lengths) if not self.max_tokens or length <= self.max_tokens]
        for part in microbatches([lengths[index] for index in fitting], self.tokens_per_microbatch):
            members = [fitting[index] for index in part]
            for index, logits in zip(members, self._logits([rows[index] for index in members]), strict=True):
                score = logits[..., 1] - logits[..., 0] if logits.shape[-1] == 2 else logits[..., 0]
                found[index] = score[: lengths[index]] if self.by_token else score
        return found

    @torch.no_grad()
    def _logits(self, rows: Sequence[Row]) -> Tensor:
        """[r, L] or [r, S, L] of rows in one forward pass."""
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        padding = self._padding(rows)
        # Sequence classifiers of decoders look for the last token that is not this one.
        self.model.config.pad_token_id = padding
        inputs = {
            name: torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row[name]) for row in rows],
                batch_first=True,
                padding_value=padding if name == "input_ids" else 0,
            )
            for name in rows[0]
        }
        inputs["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        with arithmetic(self.model):
            outputs = self.model(**{name: tensor.to(self.model.device) for name, tensor in inputs.items()})
        logits: Tensor = outputs.logits.float().cpu()
        return logits

    def _padding(self, rows: Sequence[Row]) -> int:
        """The id that fills rows up: the model's own, or for a model without one an id that none of the rows has."""
        if self.padding is not None:
            return self.padding
        used = {token for row in rows for token in row["input_ids"]}
        free = next((token for token in range(embedded_tokens(self.model)) if token not in used), None)
        if free is None:
            raise ModelError("The reward model's config has no pad_token_id, and a batch uses every token: set one.")
        return free

    def encode(self, texts: Sequence[CutText], pairs: Sequence[CutText] | None = None, *, special: bool) -> list[Row]:
        """Token ids of texts, or of pairs of them, without what the model doesn't read."""
        parts = [texts] if pairs is None else [texts, pairs]
        said = self.tokenizer(*([given.text for given in part] for part in parts), add_special_tokens=special)
        read = inspect.signature(self.model.forward).parameters
        names = [name for name in said if name == "input_ids" or (name == "token_type_ids" and name in read)]
        rows: list[Row] = [{name: said[name][index] for name in names} for index in range(len(texts))]
        for index, together in enumerate(zip(*parts, strict=True)):
            if any(text.cuts for text in together):
                encoded = encode_pieces(self.tokenizer, together, special=special)
                rows[index] = {name: getattr(encoded, name) for name in names}
        return rows

    def spans(self, given: CutText, *, special: bool) -> list[tuple[int, int]]:
        """Where each token of a text stands in it, as `encode` makes them."""
        if given.cuts:
            return encode_pieces(self.tokenizer, [given], special=special).spans
        said = self.tokenizer(given.text, add_special_tokens=special, return_offsets_mapping=True)
        return [(first, last) for first, last in said["offset_mapping"]]

    @property
    def reads_pairs(self) -> bool:
        """Whether prompt and response are given as a pair, with the tokenizer's own marks between, as encoders want."""
        marks = self.tokenizer.cls_token is not None and self.tokenizer.sep_token is not None
        return marks and not self.tokenizer.chat_template and not self.by_token


@dataclass(frozen=True)
class SequenceScorer:
    """A reward model: one score for prompt and response."""

    classifier: Classifier

    @classmethod
    def load_reward_model(
        cls, options: RewardModelOptions, device: str, tokens_per_microbatch: int = 16384
    ) -> SequenceScorer:
        """Loads the model of the verifier reward_model.

        Raises:
            ModelError: it can't be loaded, or is no trained sequence classifier with one label or two.
        """
        assert options.path is not None, "the verifier asks for a path"
        key = "verification.reward_model.path"
        loaded = load_classifier(options.path, key, device, tokens_per_microbatch, options.trust_remote_code)
        if loaded.by_token:
            raise ModelError(f"{key} {options.path!r} is a token classifier, which has no score of a whole response.")
        return cls(loaded)

    @property
    def max_tokens(self) -> int | None:
        """Longest exchange that it reads, in its own tokens."""
        return self.classifier.max_tokens

    def scores(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """One score an exchange, in order."""
        rows = self._rows(exchanges)
        return [
            Score(None if score is None else float(score), len(row["input_ids"]))
            for row, score in zip(rows, self.classifier.scores(rows), strict=True)
        ]

    def _rows(self, exchanges: Sequence[Exchange]) -> list[Row]:
        if not exchanges:
            return []
        if self.classifier.tokenizer.chat_template:
            texts = [_closed_turn(exchange, self.classifier) for exchange in exchanges]
            return self.classifier.encode(texts, special=False)
        return beginnings(self.classifier, exchanges)


@dataclass(frozen=True)
class StepScorer:
    """A step-reward model: for each step the probability that it is good."""

    classifier: Classifier

    @classmethod
    def load(cls, options: ProcessOptions, device: str, tokens_per_microbatch: int = 16384) -> StepScorer:
        """Loads the model of process rewards.

        Raises:
            ModelError: it can't be loaded, or is no trained classifier with one label or two, or is a token classifier
                that reads ahead.
        """
        assert options.model is not None, "only called where a model is named"
        key = "verification.process.model"
        loaded = load_classifier(options.model, key, device, tokens_per_microbatch, options.trust_remote_code)
        if loaded.by_token:
            _require_causal(loaded, f"{key} {options.model!r}")
            if not loaded.tokenizer.is_fast:
                raise ModelError(
                    f"{key} {options.model!r} has a slow tokenizer, which can't tell where a token stands."
                )
        return cls(loaded)

    def scores(self, exchanges: Sequence[Exchange], ends: Sequence[Sequence[int]]) -> list[list[float] | None]:
        """Scores in [0, 1] of the steps of each response; None where the model can't read that much.

        Args:
            exchanges: prompts and responses.
            ends: for each response, the place of the character after each step.
        """
        if self.classifier.by_token:
            return self._by_token(exchanges, ends)
        prefixes = [
            Exchange(exchange.content, exchange.response[:end])
            for exchange, places in zip(exchanges, ends, strict=True)
            for end in places
        ]
        said = iter(self.classifier.scores(beginnings(self.classifier, prefixes)))
        found = [[next(said) for _ in places] for places in ends]
        return [_probabilities(scores) for scores in found]

    def _by_token(self, exchanges: Sequence[Exchange], ends: Sequence[Sequence[int]]) -> list[list[float] | None]:
        rows = beginnings(self.classifier, exchanges)
        found: list[list[float] | None] = []
        for exchange, places, row, scores in zip(exchanges, ends, rows, self.classifier.scores(rows), strict=True):
            if scores is None:
                found.append(None)
                continue
            text, special = _beginning(exchange, self.classifier)
            start = len(text.text) - len(exchange.response)
            spans = self.classifier.spans(text, special=special)
            assert len(spans) == len(row["input_ids"]), "the same text has the same tokens"
            # The last token that begins within the step: also where the tokenizer drops the white space at its end.
            last = [max(i for i, (a, b) in enumerate(spans) if b > a and a < start + end) for end in places]
            found.append(_probabilities([scores[index] for index in last]))
        return found


def load_classifier(
    path: str, key: str, device: str, tokens_per_microbatch: int, trust_remote_code: bool
) -> Classifier:
    """Loads a classification model for scoring: bfloat16 weights on a GPU, float32 on a CPU.

    Raises:
        ModelError: names the option `key` and what is wrong with what it gives.
    """
    where = torch.device(device)
    try:
        architectures = load_architecture(path, trust_remote_code).architectures or []
        kind = next((ending for name in architectures for ending in _KINDS if name.endswith(ending)), None)
        if kind is None:
            raise ModelError(
                f"{key} {path!r} is {', '.join(architectures) or 'a model without a head'}, but scores come from a "
                "sequence- or token-classification model."
            )
        model, loading = _KINDS[kind].from_pretrained(
            path,
            dtype=torch.bfloat16 if where.type == "cuda" else torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except LOAD_FAILURES as error:
        raise ModelError(cannot_load(key, path, error)) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"{key} {path!r} has no trained weights for {', '.join(missing[:3])}: its scores would be noise."
        )
    if model.config.num_labels not in (1, 2):
        raise ModelError(
            f"{key} {path!r} has {model.config.num_labels} labels, but a score needs one, or two of which the second "
            "is the good one."
        )
    tokenizer = read_tokenizer(path, key, trust_remote_code)
    model.config.use_cache = False
    model.to(where).eval().requires_grad_(False)
    limits = [context_length(model.config), int(min(tokenizer.model_max_length, 10**9))]
    known = [limit for limit in limits if limit is not None and limit < 10**9]
    most = min(known, default=None)
    if most is not None and has_positions(model):
        most = readable_tokens(model, lambda **inputs: model(**inputs).logits, most)
    return Classifier(
        model,
        tokenizer,
        most,
        tokens_per_microbatch,
        model.config.pad_token_id,
        by_token=kind == "ForTokenClassification",
        neutraliser=Neutraliser(tokenizer),
    )


def beginnings(classifier: Classifier, exchanges: Sequence[Exchange]) -> list[Row]:
    """Rows of prompts and the beginnings of responses, whose turn is not closed."""
    if not exchanges:
        return []
    if classifier.reads_pairs:
        prompts = [CutText(Prompt(_SCORED, exchange.content).text) for exchange in exchanges]
        responses = [classifier.neutraliser.cut(exchange.response) for exchange in exchanges]
        return classifier.encode(prompts, responses, special=True)
    texts = [_beginning(exchange, classifier) for exchange in exchanges]
    return classifier.encode([text for text, _ in texts], special=texts[0][1])


def _beginning(exchange: Exchange, classifier: Classifier) -> tuple[CutText, bool]:
    """Prompt and beginning of a response as one text, and whether the tokenizer adds its special tokens."""
    tokenizer = classifier.tokenizer
    templated = bool(tokenizer.chat_template)
    content: Any = _turns(exchange)[:-1] if templated else exchange.content
    return classifier.neutraliser.cut(exchange.response, render(Prompt(_SCORED, content), tokenizer)), not templated


def _closed_turn(exchange: Exchange, classifier: Classifier) -> CutText:
    """Prompt and response as one text, in which the chat template has closed the response's turn."""
    before = _turns(exchange)[:-1]
    mark = unused_letter([exchange.response, *(turn["content"] for turn in before)])
    response = {"role": "assistant", "content": classifier.neutraliser.marked(exchange.response, mark)}
    return unmarked(render(Prompt(_SCORED, (*before, response)), classifier.tokenizer, open_turn=False), mark)


def _turns(exchange: Exchange) -> tuple[dict[str, str], ...]:
    """The exchange as chat turns, a plain prompt being the user's."""
    plain = isinstance(exchange.content, str)
    before = [{"role": "user", "content": str(exchange.content)}] if plain else [dict(m) for m in exchange.content]  # type: ignore[arg-type]
    return (*before, {"role": "assistant", "content": exchange.response})


def _probabilities(scores: Sequence[Tensor | None]) -> list[float] | None:
    known = [score for score in scores if score is not None and bool(torch.isfinite(score))]
    return [float(score.sigmoid()) for score in known] if len(known) == len(scores) else None


def _require_causal(classifier: Classifier, name: str) -> None:
    """Refuses token classifiers that read ahead: the score of a step would know the steps after it."""
    vocabulary = embedded_tokens(classifier.model)
    rows = [{"input_ids": [token % vocabulary for token in ids]} for ids in ([1, 2, 3, 4], [1, 2, 3, 5])]
    first, second = (score for score in classifier.scores(rows) if score is not None)
    if not torch.allclose(first[:3], second[:3], rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"{name} reads a response in both directions, so that the score of a step would know what comes after it, "
            "and process rewards would move the optimum. Choose a causal model."
        )
