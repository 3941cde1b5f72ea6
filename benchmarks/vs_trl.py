"""Time to learn against a peer: TRL's GRPOTrainer and sppo, from the same warm start, on the demo's task.

    pip install -r benchmarks/requirements-trl.txt
    python benchmarks/vs_trl.py --seeds 0 1 2 --steps 60 --json vs_trl.json

Same model folder, tokenizer, training prompts, reward, responses a step (512), optimiser (AdamW, constant learning
rate, gradient norm 1) and 4 updates a step. TRL's GRPO and ours take 64 prompts x 8 samples; SPPO takes 512 x 1.

Each contender runs in a process of its own; the processes take turns step by step, so that whatever else the machine
does falls on all of them. A step's seconds are from the word to go on until the step is done, all bookkeeping included.
Accuracy on held-out prompts is measured by the same code for all (sppo's engine and verifier), outside those seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from common import demo_config, machine, peak_bytes, print_machine, warm_start, write_json
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sppo.commands.train import train
from sppo.data.tasks import load_prompts
from sppo.evaluation.held_out import HeldOut
from sppo.rollouts.engines.hf import HFEngine
from sppo.rollouts.sample import sampling_parameters
from sppo.runs.progress import NoProgress
from sppo.training.given import Given
from sppo.verifiers.exact import final_answer
from sppo.verifiers.grading import Grader

RESPONSES, SAMPLES, MINIBATCH, RESPONSE_TOKENS, LEARNING_RATE = 512, 8, 128, 37, 3e-4
HELD_OUT = 512
UPDATES = RESPONSES // MINIBATCH


@dataclass
class Track:
    """What one contender did with one seed."""

    contender: str
    seed: int
    step_seconds: list[float]
    accuracy: dict[int, float]
    """By step, 0 first."""
    peak_bytes: int = 0

    def seconds_to(self, target: float) -> float | None:
        """Training seconds until the first measurement at or above the target; None if it never was."""
        reached = [step for step, accuracy in sorted(self.accuracy.items()) if accuracy >= target]
        return sum(self.step_seconds[: reached[0]]) if reached else None


class Turn:
    """A contender's side of taking turns: `step_done` reports, measures where due, and waits for the word to go on."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        # Whatever a library prints must not mix with the reports.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self.step = 0
        self.began = 0.0
        config = demo_config()
        assert config.evaluation.data is not None, "the demo names its held-out prompts"
        held_out = load_prompts(config.evaluation.data, seed=0).prompts[:HELD_OUT]
        engine, grader = HFEngine(model), Grader()
        parameters = sampling_parameters(config.sampling, tokenizer, model)

        def accuracy() -> float:
            return (
                HeldOut(held_out, engine, tokenizer, grader, parameters, seed=12345)
                .evaluate(1, engine.version)
                .accuracy
            )

        self.accuracy: Callable[[], float] = accuracy

    def step_done(self) -> None:
        """Called once before the first step, and after each."""
        took = time.perf_counter() - self.began
        due = self.step % self.arguments.every == 0 or self.step == self.arguments.steps
        report = {"step": self.step, "seconds": took, "accuracy": self.accuracy() if due else None}
        print(json.dumps({**report, "peak_bytes": peak_bytes()}), file=self.output, flush=True)
        self.step += 1
        if self.step > self.arguments.steps or not sys.stdin.readline():
            raise KeyboardInterrupt
        self.began = time.perf_counter()


class TurnProgress(NoProgress):
    """Takes turns at the place where sppo tells of a step."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        assert step == self.turn.step, f"step {step} where {self.turn.step} was due"
        self.turn.step_done()


def run_sppo(arguments: argparse.Namespace, folder: str) -> None:
    model, tokenizer = load(arguments.model)
    grouped = arguments.contender != "sppo"
    config = demo_config(
        # One step more than is asked for: the last one is followed by an evaluation and a checkpoint.
        steps=arguments.steps + 1,
        output=folder,
        seed=arguments.seed,
        algorithm__name=arguments.contender,
        prompts_per_step=RESPONSES // SAMPLES if grouped else RESPONSES,
        sampling__samples_per_prompt=SAMPLES if grouped else 1,
        sampling__max_response_tokens=RESPONSE_TOKENS,
        optimizer__learning_rate=LEARNING_RATE,
        optimizer__minibatch_size=MINIBATCH,
        sft__phases=[],
        evaluation__every=0,
        evaluation__final_samples_per_prompt=1,
        evaluation__prompts=8,
        checkpoint__every=0,
        threads=arguments.threads,
    )
    train(config, Given(model=model, tokenizer=tokenizer), progress=TurnProgress(Turn(model, tokenizer, arguments)))


def run_trl(arguments: argparse.Namespace, folder: str) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load(arguments.model)
    prompts = load_prompts(demo_config().data, seed=arguments.seed).prompts
    turn = Turn(model, tokenizer, arguments)

    class TurnCallback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turn.step_done()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % UPDATES == 0:
                turn.step_done()

    config = GRPOConfig(
        **grpo_options(folder),
        seed=arguments.seed,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,  # once named gradient_checkpointing
        per_device_train_batch_size=MINIBATCH,
        steps_per_generation=UPDATES,
        gradient_accumulation_steps=1,
        num_generations=SAMPLES,
        max_completion_length=RESPONSE_TOKENS,
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        max_steps=(arguments.steps + 1) * UPDATES,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=final_answer_reward(tokenizer.eos_token_id),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt.text, "gold": prompt.gold} for prompt in prompts]),
        processing_class=tokenizer,
        callbacks=[TurnCallback()],
    )
    # Without it each token would read the whole sequence again, and nothing would say so.
    assert trainer.generation_config.use_cache, "TRL would generate without a cache"
    trainer.train()


def grpo_options(folder: str) -> dict[str, Any]:
    """What TRL's GRPOConfig is given wherever ours is held against it: the same method, and no bookkeeping."""
    return {
        "output_dir": folder,
        "num_iterations": 1,
        "top_p": 1.0,
        "top_k": 0,
        "generation_kwargs": {"use_cache": True},
        "beta": 0.0,
        "loss_type": "grpo",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def final_answer_reward(end: int) -> Callable[..., list[float]]:
    """The task's own verifier in TRL's signature."""

    def reward(completions: list[str], completion_ids: list[list[int]], gold: list[str], **_: Any) -> list[float]:
        verdicts = [
            final_answer(text, answer, bool(ids) and ids[-1] == end)
            for text, ids, answer in zip(completions, completion_ids, gold, strict=True)
        ]
        return [float(verdict.reward) for verdict in verdicts if verdict is not None and verdict.reward is not None]

    return reward


def load(folder: Path) -> tuple[PreTrainedModel, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = True
    return model, AutoTokenizer.from_pretrained(folder)


def take_part(arguments: argparse.Namespace) -> None:
    """What the process of one contender does."""
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # The last turn ends by KeyboardInterrupt, as neither loop has another way out between two steps.
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        run = run_trl if arguments.contender == "trl" else run_sppo
        run(arguments, f"{folder}/run")


def race(seed: int, arguments: argparse.Namespace) -> list[Track]:
    """All contenders with one seed, step by step in turns; who goes first changes from step to step."""
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(start(name, seed, arguments)) for name in arguments.contenders}
        tracks = {name: Track(name, seed, [], {}) for name in running}
        order = list(running)
        for step in range(arguments.steps + 1):
            order = order[1:] + order[:1]
            for name in order:
                if step:
                    print("go", file=running[name].stdin, flush=True)
                report = read_report(name, running[name])
                assert report["step"] == step, f"{name} reports step {report['step']}, not {step}"
                if step:
                    tracks[name].step_seconds.append(report["seconds"])
                if report["accuracy"] is not None:
                    tracks[name].accuracy[step] = report["accuracy"]
                tracks[name].peak_bytes = report["peak_bytes"]
            if step % arguments.every == 0:
                shown = "  ".join(
                    f"{name} {track.accuracy[step]:.3f} after {sum(track.step_seconds):.1f} s"
                    for name, track in tracks.items()
                )
                print(f"seed {seed} step {step}: {shown}", flush=True)
    return list(tracks.values())


@contextlib.contextmanager
def start(name: str, seed: int, arguments: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--contender", name, "--seed", str(seed), "--model", str(arguments.model)]
    for key in ("steps", "every", "threads"):
        command += [f"--{key}", str(getattr(arguments, key))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            yield process
        except EOFError:
            # Every contender's context sees it; only the one that ended has something to say.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
                errors.seek(0)
                print(errors.read(), file=sys.stderr)
            raise
        finally:
            process.kill()
            process.wait()


def read_report(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None, "the process was started with a pipe"
    line = process.stdout.readline()
    if not line:
        raise EOFError(f"{name} has ended early; what it wrote stands above.")
    report: dict[str, Any] = json.loads(line)
    return report


def summarise(tracks: Sequence[Track], target: float) -> list[dict[str, Any]]:
    """A contender a line: medians over seeds, and TRL's time in units of its own, seed by seed."""
    names = list(dict.fromkeys(track.contender for track in tracks))
    by_seed = {(track.contender, track.seed): track for track in tracks}
    rows = []
    for name in names:
        own = [track for track in tracks if track.contender == name]
        peers = [by_seed.get(("trl", track.seed)) for track in own]
        rows.append(
            {
                "contender": name,
                "target": target,
                "seconds_a_step": median([second for track in own for second in track.step_seconds]),
                "seconds_to_target": median([track.seconds_to(target) for track in own]),
                "reached": sum(track.seconds_to(target) is not None for track in own),
                "seeds": len(own),
                "final_accuracy": median([track.accuracy[max(track.accuracy)] for track in own]),
                "peak_bytes": max(track.peak_bytes for track in own),
                "step_ratio": median(
                    [
                        statistics.median(peer.step_seconds) / statistics.median(track.step_seconds)
                        for peer, track in zip(peers, own, strict=True)
                        if peer is not None
                    ]
                ),
                "target_ratios": [
                    theirs / ours
                    for peer, track in zip(peers, own, strict=True)
                    if peer is not None
                    and (theirs := peer.seconds_to(target)) is not None
                    and (ours := track.seconds_to(target)) is not None
                ],
            }
        )
    return rows


def median(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None where fewer than all are, as a median of the fast ones alone would mislead."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None


def show(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.2f}{unit}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="file to write the results to")
    options.add_argument("--threads", type=int, default=1, help="CPU threads of each (default: %(default)s)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    options.add_argument("--steps", type=int, default=60, help="of 512 responses and 4 updates (default: %(default)s)")
    options.add_argument("--every", type=int, default=5, help="steps between accuracies (default: %(default)s)")
    options.add_argument("--target", type=float, default=0.8, help="accuracy to reach (default: %(default)s)")
    options.add_argument("--algorithms", default="sppo,grpo", help="ours, by name (default: %(default)s)")
    options.add_argument("--without-trl", action="store_true", help="leave the peer out")
    options.add_argument("--warm-start", type=Path, default=Path("runs/warm_start"), help="run folder; made if missing")
    options.add_argument("--contender", help=argparse.SUPPRESS)
    options.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.contender:
        take_part(arguments)
        return
    arguments.contenders = [*([] if arguments.without_trl else ["trl"]), *arguments.algorithms.split(",")]
    arguments.model = warm_start(arguments.warm_start)
    described = machine(arguments.threads)
    print_machine(described)
    tracks: list[Track] = []
    for seed in arguments.seeds:
        tracks += race(seed, arguments)
        rows = summarise(tracks, arguments.target)
        # After each seed, as a race of all may take an hour.
        write_json(arguments.json, described, [*rows, *map(asdict, tracks)])
    print(f"{'contender':<12}{'s a step':>9}{'s to target':>13}{'reached':>9}{'final':>7}{'MB':>6}  TRL's time / own")
    for row in rows:
        ratios = ", ".join(f"{ratio:.2f}x" for ratio in row["target_ratios"])
        print(
            f"{row['contender']:<12}{show(row['seconds_a_step']):>9}{show(row['seconds_to_target']):>13}"
            f"{row['reached']:>7}/{row['seeds']}{show(row['final_accuracy']):>7}{row['peak_bytes'] / 1e6:>6.0f}  "
            f"{show(row['step_ratio'], 'x')} a step; to {arguments.target:.0%}: {ratios or '-'}"
        )


if __name__ == "__main__":
    main()
