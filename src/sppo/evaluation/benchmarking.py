"""Sampling and grading a model on benchmarks, in batches that are written as they come, and going on after a stop.

Every response has a seed of its own, made of the benchmark, the problem and the sample's number, so that it does not
depend on what was sampled before it, or together with it (but for rounding inside the model).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config import EngineConfig, ModelConfig, SamplingConfig
from sppo.config.verification import VerificationConfig
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, RewardError
from sppo.evaluation.benchmarks import Problems
from sppo.evaluation.folder import EvaluationFolder, light
from sppo.evaluation.scores import BenchmarkScores, EvaluationResult, Response, score
from sppo.evaluation.statistics import MOST_SAMPLES
from sppo.models.adapter_files import files_like, note_on
from sppo.models.loading import context_length, load_model_config, load_policy, load_tokenizer
from sppo.models.scoring import verifier_tools
from sppo.rollouts.encode import encode_many, opens_thinking
from sppo.rollouts.engines import ALONE, ENGINES, build_engine, engine_options
from sppo.rollouts.engines.engine import Engine, SamplingParameters
from sppo.rollouts.sample import longest_sequence, sample, sampling_parameters
from sppo.runs.checkpoint import require_checkpoint
from sppo.runs.progress import NoProgress, Progress
from sppo.runs.seeds import row_seeds
from sppo.runs.versions import versions
from sppo.types import Prompt, Rollout, Verdict
from sppo.verifiers.functions import RewardFunction
from sppo.verifiers.grading import Grader

_CPU_ROWS = 64
_SAMPLE_BYTES = 2**20


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    name: str
    """As people know it."""
    model: ModelConfig
    output: Path
    """Folder of its evaluations where no other is given."""


@dataclass(frozen=True)
class _Item:
    """One response to be sampled."""

    prompt: Prompt
    sample: int


@dataclass(frozen=True)
class Conditions:
    """What an evaluation depends on beside the model and the problems."""

    sampling: SamplingConfig
    temperature: float
    """Of the evaluation."""
    engine: EngineConfig
    verification: VerificationConfig
    tokens_per_microbatch: int
    """Of models that score responses."""
    seed: int
    device: torch.device


def resolve(path: str, model: ModelConfig, checkpoint: str = "last") -> Subject:
    """Finds the model of a run's checkpoint, or the model itself.

    Args:
        path: a run folder, or a model's folder or hub name.
        model: how it is loaded.
        checkpoint: "best", "last" or "step_N" of a run.

    Raises:
        RunFolderError: the run has no such checkpoint.
    """
    folder = Path(path).expanduser()
    if (folder / "config.yaml").is_file():
        saved = require_checkpoint(folder, checkpoint)
        own = replace(model, path=str(saved / "policy"), tokenizer=None, config=None)
        return Subject(f"{folder} {saved.name}", own, folder / "evaluations" / saved.name)
    name = Path(folder.resolve()).name if folder.exists() else path.rstrip("/").rpartition("/")[2]
    return Subject(path, model, Path("evals") / name)


def run_benchmarks(
    subject: Subject,
    conditions: Conditions,
    benchmarks: Sequence[Problems],
    *,
    samples: int,
    output: Path | None = None,
    limit: int | None = None,
    reward_function: RewardFunction | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Samples n responses to each problem, or those that a folder still lacks, and scores them.

    Args:
        subject: the model.
        conditions: sampling, engine, verification, seed and device.
        benchmarks: what to measure on; `limit`: only the first so many problems of each.
        samples: n.
        output: folder to write to, or to go on with; default: the subject's.
        reward_function: grades instead of the problems' verifiers.

    Raises:
        SppoError: a model that can't be loaded, prompts too long for it, other settings in the folder, rewards
            outside [0, 1].
    """
    progress = progress or NoProgress()
    engine_options(conditions.engine)
    for note in filter(None, [note_on(subject.model.path)]):
        progress.message(note)
    tokenizer = load_tokenizer(subject.model, ALPHABET)
    tools = verifier_tools(conditions.verification, conditions.device, conditions.tokens_per_microbatch)
    graders = {
        problems.name: Grader(reward_function, tools, opens_thinking(problems.prompts[0], tokenizer))
        for problems in benchmarks
    }
    settings = _settings(subject, conditions, benchmarks, tokenizer, graders)
    _require_samples(samples, settings["sampling"]["temperature"])
    for problems in benchmarks:
        graders[problems.name].prepare(problems.prompts)
        for note in problems.notes:
            progress.message(note)
    lines = {problems.name: _lines(problems, graders) for problems in benchmarks}
    folder = EvaluationFolder.open(output or subject.output, settings, lines, progress.message)
    try:
        scores = _Session(subject, conditions, tokenizer, graders, folder, samples, progress).run(
            [replace(problems, prompts=problems.prompts[:limit]) for problems in benchmarks]
        )
        result = EvaluationResult(
            subject.name,
            str(folder.path),
            samples,
            settings["sampling"],
            scores,
            {problems.name: problems.left_out for problems in benchmarks if problems.left_out},
            tuple(note for problems in benchmarks for note in problems.notes),
        )
        folder.write_result(result.to_dict())
    finally:
        folder.close()
    return result


@dataclass
class _Session:
    """One process's share of an evaluation."""

    subject: Subject
    conditions: Conditions
    tokenizer: Tokenizer
    graders: Mapping[str, Grader]
    folder: EvaluationFolder
    samples: int
    progress: Progress

    def run(self, benchmarks: Sequence[Problems]) -> dict[str, BenchmarkScores]:
        """Samples what is missing, and scores each benchmark as it is done."""
        known = self._known(benchmarks)
        total = sum(len(problems.prompts) for problems in benchmarks) * self.samples
        done = sum(len(group) for groups in known.values() for group in groups.values())
        if done:
            self.progress.message(f"{self.folder.path}: {done:,} of {total:,} responses are there already")
        engine, parameters = None, None
        if done < total:
            policy = load_policy(self.subject.model, self.tokenizer, self.conditions.device)
            prompts = [prompt for problems in benchmarks for prompt in problems.prompts]
            longest = longest_sequence(prompts, self.tokenizer, self.conditions.sampling.max_response_tokens)
            engine = build_engine(
                policy,
                self.conditions.engine,
                max_tokens=longest,
                memory_share=ALONE,
                precision=self.subject.model.precision,
            )
            parameters = sampling_parameters(
                self.conditions.sampling, self.tokenizer, policy, self.conditions.temperature
            )
            where = f"{self.folder.path}: every batch of responses is kept; after a stop, the same command goes on"
            self.progress.message(where)
            self.progress.phase(f"evaluation of {self.subject.name}", total, "responses")
            self.progress.update(done, {})
        scores = {}
        try:
            for problems in benchmarks:
                groups = known[problems.name]
                if engine is not None and parameters is not None:
                    with engine.awake():
                        done = self._sample_missing(problems, engine, parameters, groups, done)
                scores[problems.name] = self._score(problems, groups)
        finally:
            if engine is not None:
                engine.close()
        return scores

    def _known(self, benchmarks: Sequence[Problems]) -> dict[str, dict[str, list[Response]]]:
        """{benchmark: {problem: responses}} of those asked for that the folder has."""
        known: dict[str, dict[str, list[Response]]] = {
            problems.name: {prompt.id: [] for prompt in problems.prompts} for problems in benchmarks
        }
        for record in self.folder.responses():
            group = known.get(record["benchmark"], {}).get(record["problem"])
            if group is not None and record["sample"] < self.samples:
                group.append(light(record))
        return known

    def _batches(self, problems: Problems, known: Mapping[str, Sequence[Response]]) -> Iterator[list[_Item]]:
        there = {(response.problem, response.sample) for group in known.values() for response in group}
        missing = [
            _Item(prompt, number)
            for prompt in problems.prompts
            for number in range(self.samples)
            if (prompt.id, number) not in there
        ]
        # On a CPU more rows at a time are hardly faster, and it would be long before the first are written.
        rows = self.conditions.engine.max_rows
        on_cpu = self.conditions.device.type != "cuda" and not ENGINES[self.conditions.engine.name].is_elsewhere
        rows = min(rows, _CPU_ROWS) if on_cpu else rows
        for start in range(0, len(missing), rows):
            yield missing[start : start + rows]

    def _sample_missing(
        self,
        problems: Problems,
        engine: Engine,
        parameters: SamplingParameters,
        groups: Mapping[str, list[Response]],
        done: int,
    ) -> int:
        """Samples what a benchmark lacks; returns how many responses there are then, `done` of them before."""
        for batch in self._batches(problems, groups):
            done += len(batch)
            self._sample(problems.name, batch, engine, parameters, groups)
            rewards = [r.reward for group in groups.values() for r in group if r.reward is not None]
            self.progress.update(done, {"right so far": sum(rewards) / len(rewards)} if rewards else {})
        return done

    def _sample(
        self,
        benchmark: str,
        batch: Sequence[_Item],
        engine: Engine,
        parameters: SamplingParameters,
        groups: Mapping[str, list[Response]],
    ) -> None:
        seeds = [
            own
            for item in batch
            for own in row_seeds(self.conditions.seed, f"{benchmark}/{item.prompt.id}", [item.sample])
        ]
        prompts = [item.prompt for item in batch]
        rollouts = sample(
            engine, prompts, self.tokenizer, parameters, samples_per_prompt=1, seeds=seeds, version=engine.version
        )
        verdicts = self.graders[benchmark].grade(rollouts, evaluation=True)
        _require_shares(rollouts, verdicts)
        records = [
            _record(benchmark, item, rollout, verdict, self.graders[benchmark])
            for item, rollout, verdict in zip(batch, rollouts, verdicts, strict=True)
        ]
        self.folder.append(records)
        for record in records:
            groups[record["problem"]].append(light(record))

    def _score(self, problems: Problems, groups: Mapping[str, Sequence[Response]]) -> BenchmarkScores:
        difficulty = {prompt.id: prompt.difficulty for prompt in problems.prompts}
        scores = score(problems.name, groups, samples=self.samples, votes=problems.votes, difficulty=difficulty)
        self.progress.message(f"{problems.name}: avg@{self.samples} {scores.accuracy.in_words()}")
        return scores


def _require_shares(rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> None:
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        if verdict.reward is not None and not 0 <= verdict.reward <= 1:
            raise RewardError(
                f"The reward of prompt {rollout.prompt.id!r} is {verdict.reward:g}, but scores and their intervals are "
                "shares of right responses, so rewards must lie in [0, 1]. Rescale them, or name benchmarks."
            )


def _record(benchmark: str, item: _Item, rollout: Rollout, verdict: Verdict, grader: Grader) -> dict[str, Any]:
    """One line of responses.jsonl."""
    return {
        "benchmark": benchmark,
        "problem": item.prompt.id,
        "sample": item.sample,
        "response": rollout.text,
        "tokens": rollout.completion.written,
        "finish_reason": rollout.completion.finish_reason,
        **asdict(verdict),
        **grader.describe(item.prompt),
    }


def _settings(
    subject: Subject,
    conditions: Conditions,
    benchmarks: Sequence[Problems],
    tokenizer: Tokenizer,
    graders: Mapping[str, Grader],
) -> dict[str, Any]:
    """Everything that the responses depend on. Reads and checks all prompts before any weights are loaded."""
    sampling, path = conditions.sampling, subject.model.path
    assert path is not None, "an evaluated model has a folder or hub name"
    context = context_length(load_model_config(subject.model))
    sections = {}
    for problems in benchmarks:
        encoded = encode_many(list(problems.prompts), tokenizer)
        _require_context(problems, [len(ids) for ids in encoded], sampling.max_response_tokens, context)
        texts = [[prompt.id, prompt.text, *prompt.golds] for prompt in problems.prompts]
        sections[problems.name] = {
            "source": problems.source,
            "count": len(problems.prompts),
            "votes": problems.votes,
            "problems": _digest(texts),
            "prompts": _digest([ids.tolist() for ids in encoded]),
            **graders[problems.name].describe(problems.prompts[0]),
            "left_out": {str(row): reason for row, reason in problems.left_out.items()},
        }
    return {
        "model": {"name": subject.name, "weights": weights_digest(path)},
        "sampling": {
            "temperature": conditions.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_response_tokens": sampling.max_response_tokens,
            "stop_token_ids": list(sampling.stop_token_ids),
        },
        "seed": conditions.seed,
        "verification": asdict(conditions.verification),
        "versions": versions(),
        "benchmarks": sections,
    }


def _require_samples(samples: int, temperature: float) -> None:
    if samples > 1 and temperature == 0:
        raise ConfigError(f"At temperature 0 all {samples} samples of a problem are the same: give -n 1.")
    if samples > MOST_SAMPLES:
        raise ConfigError(f"{samples} samples a problem: maj@k can be counted for at most {MOST_SAMPLES}.")


def _require_context(problems: Problems, lengths: Sequence[int], response: int, context: int | None) -> None:
    longest = max(lengths)
    if context is not None and longest + response > context:
        room = context - longest
        mend = f"Give --max_response_tokens {room} or less." if room > 0 else "Leave this benchmark out."
        raise ConfigError(
            f"{problems.name}: its longest prompt has {longest} tokens, and with --max_response_tokens {response} that "
            f"makes {longest + response}, but the model was made for {context}. {mend}"
        )


def _lines(problems: Problems, graders: Mapping[str, Grader]) -> list[dict[str, Any]]:
    """Lines of problems.jsonl."""
    return [
        {
            "benchmark": problems.name,
            "problem": prompt.id,
            "prompt": prompt.text,
            "gold": prompt.gold,
            "difficulty": prompt.difficulty,
            **graders[problems.name].describe(prompt),
        }
        for prompt in problems.prompts
    ]


def weights_digest(path: str) -> str:
    """Returns what tells a model's weights apart: a hash of each file's size, first and last megabyte; or a hub name.

    Training changes every weight, so there is no need to read all of them.
    """
    files = [file for kind in ("*.safetensors", "*.bin") for file in files_like(kind, path)]
    if not files:
        return path
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        size = file.stat().st_size
        with open(file, "rb") as handle:
            digest.update(f"{file.name} {size}".encode() + handle.read(_SAMPLE_BYTES))
            handle.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(handle.read())
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, ensure_ascii=False).encode(), digest_size=8).hexdigest()
