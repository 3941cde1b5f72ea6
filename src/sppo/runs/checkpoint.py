"""Checkpoints: whole or absent, loadable by anyone, enough to go on bit for bit.

    checkpoints/step_N/policy/         HF folder: AutoModelForCausalLM.from_pretrained and its tokenizer; of a policy
                                       with an adapter, the adapter alone, as peft reads it
    checkpoints/step_N/critic/         HF folder: AutoModel.from_pretrained (trunk), PromptCritic.from_pretrained (all)
    checkpoints/step_N/optimizers/     AdamW states: tensors by torch.distributed.checkpoint, the rest as JSON
    checkpoints/step_N/random.*        generators of torch, CUDA, numpy and Python: safetensors and JSON
    checkpoints/step_N/state.json      step, data cursor, counters
    checkpoints/step_N/checksums.json  size and CRC-32 of each of these files
    checkpoints/last, best             links to two of them

A checkpoint is written under a hidden name, synced, and renamed; so every step_N that exists is whole. Weights are
written at once, and optimisers' states, which are twice as large, in a thread beside the next steps.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sppo import __version__
from sppo.errors import RunFolderError, TrainingError
from sppo.runs import ranks
from sppo.runs.files import read_json, whole_folder, write_json
from sppo.runs.generators import load_pickled, save_random_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


_CHECKSUMS = "checksums.json"
_READ_BYTES = 1 << 22


class Saved(Protocol):
    """What a checkpoint asks of policy and critic."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes itself into a folder of its own; every rank calls it, and what the main one writes is kept."""


@dataclass
class TrainingState:
    """What a run remembers from step to step, beside weights and optimisers."""

    step: int = 0
    stream: dict[str, Any] = field(default_factory=dict)
    """The prompt stream's cursor."""
    held_out: str = ""
    """Digest of the held-out prompts, which a resumed run has to measure on too."""
    prior_is_set: bool = False
    """Whether the critic's bias has been set to the first batch's mean reward."""
    best_accuracy: float | None = None
    best_step: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time by phase."""
    responses: int = 0
    tokens_sampled: int = 0
    tokens_trained: int = 0
    skipped_optimizer_steps: int = 0
    skipped_in_a_row: dict[str, int] = field(default_factory=dict)
    idle_steps: int = 0
    """Steps without a response to train the policy on."""
    optimizer_steps: dict[str, int] = field(default_factory=dict)
    """Taken by each model, those of fine-tuning included; the policy's are its version."""
    left_out: int = 0
    """Responses without a reward."""
    reliability: list[dict[str, Any]] = field(default_factory=list)
    """V, as read before each update, against R: reliability bins over all responses so far."""
    prefit: dict[str, Any] = field(default_factory=dict)
    """Responses, tokens and seconds that the critic has cost before the first step; empty where there were none."""
    before: dict[str, Any] = field(default_factory=dict)
    """Accuracy and examples before training, for the summary."""
    alarms: dict[str, Any] = field(default_factory=dict)
    """Reasons of the first verdicts, {reason: times}, and what was said of the run once, {alarm: step}."""
    frozen: list[str] = field(default_factory=list)
    """Names of the policy's parameters that rest: a file of weights doesn't say."""
    reference_is_base: bool = False
    """Whether what training started from is the policy without its adapter, so that no copy is kept."""


class Saving:
    """A checkpoint that is being written in a thread; every rank has one, and they take part in the same order."""

    def __init__(self, finish: Callable[[], None], began: float) -> None:
        """Starts the thread; every rank has to call it.

        Args:
            finish: writes what is left.
            began: when the checkpoint was begun, by the monotonic clock.
        """
        self.seconds = 0.0
        """What it took, once it is there."""
        self._began = began
        self._error: BaseException | None = None
        self._finish = finish
        # Of a process that ends at once, half a checkpoint is left under a hidden name, which the next one removes.
        self._thread = threading.Thread(
            target=self._run, args=(ranks.group_beside(),), daemon=True, name="sppo checkpoint"
        )
        self._thread.start()

    def _run(self, group: Any) -> None:
        with ranks.within(group):
            try:
                self._finish()
            except BaseException as error:  # told to the main thread
                self._error = error
            self.seconds = time.monotonic() - self._began

    def check(self) -> None:
        """Raises what has gone wrong so far, once; TrainingError where the disk is full or not writable."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Returns once the checkpoint is there; raises as `check`."""
        self._thread.join()
        self.check()


def save_checkpoint(
    checkpoints: Path,
    state: TrainingState,
    *,
    policy: Saved,
    tokenizer: Tokenizer,
    critic: Saved | None,
    write_optimizers: Callable[[Path], None],
    keep: int,
) -> Saving:
    """Writes step_N, points `last` and `best`, and removes what is no longer to be kept. Every rank has to call it.

    It returns when all but the optimisers' states is written; the state and weights may change from then on.

    Args:
        checkpoints: folder of all of them.
        state: of the run.
        policy: what is trained.
        tokenizer: the policy's.
        critic: None where there is none.
        write_optimizers: writes the optimisers' states, as they are now, into a folder that all ranks write to.
        keep: newest checkpoints kept.

    Raises:
        TrainingError: the disk is full or not writable; the half-written folder is removed.
    """
    began = time.monotonic()
    final, best = checkpoints / f"step_{state.step}", state.best_step
    is_best = best == state.step
    with _written(final), ExitStack() as stack:
        temporary = stack.enter_context(whole_folder(final))
        policy.save_pretrained(temporary / "policy")
        tokenizer.save_pretrained(temporary / "policy")
        if critic is not None:
            critic.save_pretrained(temporary / "critic")
        if ranks.is_main():
            save_random_state(temporary)
            write_json(temporary / "state.json", {"sppo": __version__, **asdict(state)})
        shared = Path(ranks.of_main(str(temporary)))
        begun = stack.pop_all()

    def finish() -> None:
        with _written(final):
            with begun:
                (shared / "optimizers").mkdir(exist_ok=True)
                write_optimizers(shared / "optimizers")
                _write_checksums(shared)
            if ranks.is_main():
                _point(checkpoints / "last", final)
                if is_best:
                    _point(checkpoints / "best", final)
                _prune(checkpoints, keep, best)

    return Saving(finish, began)


@contextmanager
def _written(final: Path) -> Iterator[None]:
    """Raises TrainingError where what is inside can't be written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"Checkpoint {final} could not be written: {error}. Earlier checkpoints are whole; "
            "free some disk space and go on with --resume."
        ) from error


def find_checkpoint(folder: Path, name: str = "last") -> Path | None:
    """Returns the folder of "last", "best" or "step_N" in a run; None where there is no such checkpoint."""
    checkpoints = folder / "checkpoints"
    steps = _steps(checkpoints)
    if name == "last":
        # The newest folder itself, not the link: a process killed between rename and link leaves the link behind.
        return checkpoints / f"step_{steps[-1]}" if steps else None
    # Neither a name nor a link leads out of the folder.
    path = (checkpoints / name).resolve()
    is_ours = path.parent == checkpoints.resolve() and not path.name.startswith(".")
    return path if is_ours and (path / "state.json").is_file() else None


def set_aside_after(checkpoints: Path, step: int) -> list[str]:
    """Renames the checkpoints of later steps, which will be made anew, and points `best` at one that stays.

    Returns:
        Their new names.
    """
    later = [number for number in _steps(checkpoints) if number > step]
    names = []
    for number in later:
        names.append(next(name for name in _other_names(number) if not (checkpoints / name).exists()))
        os.replace(checkpoints / f"step_{number}", checkpoints / names[-1])
    if later and step in _steps(checkpoints):
        best = load_state(checkpoints / f"step_{step}").best_step
        for link, target in (("last", step), ("best", best)):
            if target in _steps(checkpoints):
                _point(checkpoints / link, checkpoints / f"step_{target}")
    return names


def _other_names(step: int) -> Iterator[str]:
    yield f"set_aside_step_{step}"
    yield from (f"set_aside_step_{step}_{number}" for number in itertools.count(2))


def count_checkpoints(folder: Path) -> int:
    """How many whole checkpoints a run has."""
    return len(_steps(folder / "checkpoints"))


def require_checkpoint(folder: Path, name: str) -> Path:
    """`find_checkpoint` that refuses.

    Raises:
        RunFolderError: there is none of that name; lists those that exist.
    """
    path = find_checkpoint(folder, name)
    if path is None:
        known = ", ".join(f"step_{step}" for step in _steps(folder / "checkpoints")) or "none"
        raise RunFolderError(f"{folder} has no checkpoint {name!r}. There are: {known}.")
    return path


def load_state(checkpoint: Path) -> TrainingState:
    """Reads state.json.

    Raises:
        RunFolderError: it was written by a version of sppo that remembered other things; names the version.
    """
    saved = read_json(checkpoint / "state.json") or {}
    made_by = saved.pop("sppo", None)
    if made_by is None or saved.keys() - {option.name for option in fields(TrainingState)}:
        made_by = made_by or "0.1.0"  # which didn't say so
        raise RunFolderError(
            f"{checkpoint} was written by sppo {made_by}, which remembered other things, so this version can't resume "
            f"it. It can be evaluated, calibrated and plotted. Go on with sppo {made_by}, or start a new run with "
            "--output NAME."
        )
    return TrainingState(**saved)


def require_whole(checkpoint: Path, *, sizes_alone: bool = False) -> None:
    """Reads a checkpoint's files, each rank its share of them, and holds them against their checksums.

    Args:
        checkpoint: a folder step_N.
        sizes_alone: look at the files' sizes, which takes no time, and at all of them on this rank.

    Raises:
        RunFolderError: a file is missing or damaged; names it, and the newest checkpoint before.
    """
    try:
        said = read_json(checkpoint / _CHECKSUMS)
    except RunFolderError:
        said = {_CHECKSUMS: {}}  # which is the damaged file
    if said is None:  # up to version 0.3.0 there were none
        said = {name: {} for name in ("state.json",) if not (checkpoint / name).is_file()}
    for name in sorted(said) if sizes_alone else ranks.share(sorted(said)):
        file, wanted = checkpoint / name, said[name]
        if file.is_file():
            if sizes_alone and file.stat().st_size == wanted.get("bytes"):
                continue
            if not sizes_alone and _checksum(file) == wanted:
                continue
        before = [step for step in _steps(checkpoint.parent) if step < int(checkpoint.name.removeprefix("step_"))]
        mend = f"Go on from the one before: --resume step_{before[-1]}." if before else "It is the only one."
        raise RunFolderError(f"{file} is {'damaged' if file.is_file() else 'missing'}. {mend}")


def read_frozen(checkpoint: Path) -> list[str]:
    """Returns the names of the policy's parameters that rest, of a checkpoint of any version."""
    return list((read_json(checkpoint / "state.json") or {}).get("frozen", []))


def read_old_optimizers(checkpoint: Path) -> dict[str, Any] | None:
    """Returns the state dict of each optimiser, as versions up to 0.3.0 wrote them; None of a newer checkpoint."""
    old = checkpoint / "optimizers.pt"
    return load_pickled(old) if old.is_file() else None


def _write_checksums(folder: Path) -> None:
    """Writes size and CRC-32 of each file, of which each rank reads its share once all are written."""
    ranks.wait()
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    sums = ranks.gather([_checksum(folder / name) for name in ranks.share(names)])
    write_json(folder / _CHECKSUMS, dict(zip(names, sums, strict=True)))


def _checksum(file: Path) -> dict[str, int]:
    size = found = 0
    with open(file, "rb") as handle:
        while part := handle.read(_READ_BYTES):
            size += len(part)
            found = zlib.crc32(part, found)
    return {"bytes": size, "crc32": found}


def _steps(checkpoints: Path) -> list[int]:
    if not checkpoints.is_dir():
        return []
    names = [path.name for path in checkpoints.iterdir() if path.is_dir() and not path.is_symlink()]
    return sorted(int(name[5:]) for name in names if name.startswith("step_") and name[5:].isdigit())


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, link)


def _prune(checkpoints: Path, keep: int, best_step: int | None) -> None:
    for step in _steps(checkpoints)[:-keep]:
        if step != best_step:
            shutil.rmtree(checkpoints / f"step_{step}")
    for leftover in checkpoints.glob(".step_*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
