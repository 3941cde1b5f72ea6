"""benchmarks/gpu.py: its tiny mode, the arithmetic of its shares, and what becomes of a part that fails."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
gpu, bench, plan, sizes, trl = (
    importlib.import_module(name)
    for name in ("gpu", "gpu_parts.bench", "gpu_parts.plan", "gpu_parts.sizes", "gpu_parts.trl")
)

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
        ],
    ),
]
OPTIONAL = {"sampling_vllm", "trl"}
"""Parts of what need not be installed."""


@pytest.fixture(scope="module", params=DEVICES)
def found(request, tmp_path_factory) -> tuple[str, dict[str, dict[str, Any]]]:
    """The device, and what each part has found on it."""
    file = tmp_path_factory.mktemp("gpu") / "gpu.json"
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if request.param == "cpu" else {}
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--seconds", "600", "--json", str(file)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **hidden}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:] + run.stdout[-1000:]
    return request.param, {part["part"]: part for part in json.loads(file.read_text())["results"]}


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """(path, number) of every number in a result."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from numbers(inner, f"{name}[{place}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)


def test_every_part_reports_numbers_that_make_sense(found):
    device, parts = found
    assert list(parts) == list(gpu.PARTS)
    missing = {name for name, part in parts.items() if "left_out" in part}
    assert missing <= OPTIONAL
    for name, part in parts.items():
        told = {key: value for key, value in part.items() if key != "metrics"}
        for path, number in numbers(told, name):
            # Bytes of tiny models are 0.000 GB, an adapter has no critic here, and the shortest kernels take no time.
            may_be_nothing = any(word in path for word in ("_gb", "critic_share", "saved_by", "kernels"))
            assert math.isfinite(number), f"{path} is {number}"
            assert number > 0 or may_be_nothing, f"{path} is {number}"
    measured = [parts[name] for name in ("step_small", "step_same", "lora_7b")]
    for part in measured:
        assert all(phase["mfu"] > 0 for phase in part["phases"].values())
        assert (part["peak_gb"] is not None) == (device == "cuda"), "memory is a GPU's"
        # A skipped optimiser step would be faster than one that is taken.
        assert math.isfinite(part["metrics"]["policy/grad_norm"])
    for part in measured[:2]:
        assert list(part["phases"]) == ["values", "estimate", "critic", "policy"]
        assert 0 < part["critic_share"] < 1
        assert math.isfinite(part["metrics"]["critic/grad_norm"])
    assert list(measured[2]["phases"]) == ["estimate", "policy"], "an adapter is measured without a critic"


def test_parts_measure_what_they_say(found):
    _, parts = found
    tiny = sizes.TINY
    assert [(case["rows"], case["prompt"]) for case in parts["sampling"]["cases"]] == list(tiny.sampled)
    whole = parts["sppo_grpo"]
    assert whole["sppo"]["prompts"] == whole["grpo"]["prompts"] == tiny.asked
    assert whole["grpo_over_sppo"]["responses"] == tiny.group
    # Of two layers, rank 2 times rows and columns: queries, output, two of 64 and 32, three of 64 and 64.
    assert parts["lora_7b"]["policy_trained"] == 2 * 2 * (128 + 128 + 2 * 96 + 3 * 128)
    assert parts["step_same"]["critic_trained"] > parts["step_small"]["critic_trained"]
    planned = [(row["part"], row["phase"]) for row in parts["plan"]["runs"]]
    three = ["estimate", "critic's update", "policy's update"]
    assert planned[:6] == [(part, phase) for part in ("step_small", "step_same") for phase in three]
    assert planned[6:] == [("lora_7b", "estimate"), ("lora_7b", "policy's update")]
    assert 0 < len(parts["profile"]["kernels"]) <= 15
    trained = parts["step_small"]["policy_trained"] + parts["step_small"]["critic_trained"]
    # Two float32 moments a weight, and AdamW's own count of steps.
    assert 8 * trained <= 1e9 * parts["offload"]["moments_gb"] < 8.1 * trained


def test_the_arithmetic_by_hand():
    small = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
             "intermediate_size": 8, "vocab_size": 10}  # fmt: skip
    assert sizes.block_weights(small) == 48 + 96
    assert sizes.head_weights(small) == 40
    assert sizes.cache_bytes(small) == 2 * 2 * 2
    assert sizes.forward_operations(small, 1, 6, 5) == 2 * 144 * 6 + 2 * 40 * 5 + 2 * 4 * 36
    assert sizes.forward_operations(small, 3, 6, 5) == 3 * sizes.forward_operations(small, 1, 6, 5)


@pytest.mark.parametrize("name", ["policy", "small", "large"])
def test_the_published_sizes_multiply_as_many_weights_as_counted(name):
    chosen = getattr(sizes.FULL, name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes.settings(chosen)))
    matrices = {key: weight.numel() for key, weight in model.named_parameters() if weight.ndim == 2}
    assert matrices.pop("lm_head.weight") == matrices.pop("model.embed_tokens.weight") == sizes.head_weights(chosen)
    assert sum(matrices.values()) == sizes.block_weights(chosen)


def test_the_plan_is_asked_for_the_device_that_is_measured():
    scale = sizes.FULL
    on_gpu = bench.Bench(scale, torch.device("cuda"))
    config = on_gpu.config(
        scale.policy, algorithm="sppo", prompts=8, prompt=512, response=8192, updates=2, critic=scale.small
    )
    phases = {phase.name: phase.bytes for phase in plan.planned(on_gpu, config).phases()}
    # 1.78 and .49 billion parameters: weights and moments of both alone are 12 bytes each, the policy's gradients 4.
    assert 27e9 < phases["estimate"] < phases["policy's update"]
    assert 34e9 < phases["policy's update"] < 60e9


def test_trl_gets_micro_batches_that_divide_an_optimiser_step():
    assert trl.rows_at_once(bench.Bench(sizes.FULL, torch.device("cpu"))) == 64
    assert trl.rows_at_once(bench.Bench(sizes.TINY, torch.device("cpu"))) == 4


# What becomes of parts


def failing(_: Any) -> dict[str, Any]:
    raise RuntimeError("no kernel image")


def test_a_part_that_fails_is_reported_and_the_others_go_on(capsys):
    tiny = bench.Bench(sizes.TINY, torch.device("cpu"))
    parts = {"broken": gpu.Part(failing, 0), "ceilings": gpu.PARTS["ceilings"]}
    broken, whole = gpu.run_parts(parts, tiny, seconds=60)
    assert broken["failed"] == "RuntimeError: no kernel image"
    assert broken["where"][-1].endswith(" failing")
    assert "Traceback" in capsys.readouterr().err
    assert whole["teraflops"] > 0
    assert gpu.report([broken, whole]) == 1
    assert gpu.report([whole]) == 0
    json.dumps([broken, whole])


def test_what_a_failed_part_held_is_given_back(capsys):
    seen = []

    def out_of_memory(_: Any) -> dict[str, Any]:
        held = torch.zeros(3)
        seen.append(weakref.ref(held))
        raise torch.OutOfMemoryError("out of memory")

    (broken,) = gpu.run_parts({"large": gpu.Part(out_of_memory, 0)}, bench.Bench(sizes.TINY, torch.device("cpu")), 60)
    assert broken["failed"].endswith("OutOfMemoryError: out of memory")
    assert seen[0]() is None


def test_a_run_gives_back_its_models():
    tiny = bench.Bench(sizes.TINY, torch.device("cpu"))
    config = tiny.config(sizes.TINY.policy, algorithm="sppo", prompts=2, prompt=4, response=4, critic=sizes.TINY.small)
    with tiny.run(config, sizes.TINY.policy) as parts:
        models = [weakref.ref(parts.policy.model), weakref.ref(parts.critic.source.model)]
    del parts
    tiny.fresh()
    assert [model() for model in models] == [None, None]


def test_a_part_for_which_no_time_is_left_is_not_begun():
    tiny = bench.Bench(sizes.TINY, torch.device("cpu"))
    (late,) = gpu.run_parts({"late": gpu.Part(failing, 30)}, tiny, seconds=20)
    assert late == {"part": "late", "left_out": "takes about 30 s, and 20 s are left"}


def test_everything_fits_in_six_minutes():
    always = {name: part.seconds for name, part in gpu.PARTS.items() if name not in OPTIONAL}
    assert sum(always.values()) <= 300
    assert sum(always.values()) + gpu.PARTS["sampling_vllm"].seconds <= 360
    assert sum(always.values()) + gpu.PARTS["trl"].seconds <= 360


def test_runs_leave_nothing_behind(found):
    device, parts = found
    if device == "cpu":
        pytest.skip("memory is a GPU's")
    assert all(part["left_behind_gb"] < 0.1 for part in parts.values() if "took_seconds" in part)
