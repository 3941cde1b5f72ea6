"""What is run: methods, cells, experiments and what counts as success. The other files say how."""

from __future__ import annotations

from typing import Any

from value_parts.designs import Cell, Criterion, Experiment, Method

TARGETS = (0.8, 0.9)
"""Held-out accuracies whose cost is measured. A run ends once it has reached the last one."""
EVALUATE_EVERY = 384
"""Responses between evaluations, so that cells of any batch size have curves of the same detail."""
HELD_OUT_PROMPTS = 256
"""Of an evaluation, one sample each: a standard error of .025 at 80%, which the fit over evaluations brings down."""
PASS_PROMPTS, PASS_K = 128, 8
"""Prompts and samples of pass@8 at a run's end."""
TUNING_CAP = 8192
"""Most responses of a run that tries settings."""
LARGEST_CAP = 16384
"""Most responses of any other run."""
CAP_FACTOR = 4
"""A cell's cap is so many times the median of ours on the tuning seeds."""
TUNING_SEEDS = (100, 101, 102, 103)
TUNING_RATES, TUNING_WARMUPS = (1.25e-4, 2.5e-4, 5e-4, 7e-4, 1e-3), (8,)
"""Learning rates that are tried, and steps of warm-up: without any, the first steps undo what the policy knows."""
SECONDS_PER_RESPONSE, SECONDS_PER_RUN = 0.0032, 1.0
"""Processor seconds with evaluations, measured on a core that other programs were busy on too, where they are more."""

CRITIC: dict[str, Any] = {
    "critic.epochs": 3,
    "critic.minibatch_size": 64,
    "critic.history": True,
    "critic.prefit.samples": 384,
}
"""A critic that keeps up, remembers, and has seen something before the first step; of all methods that have one."""


def untuned(batch: int) -> dict[str, Any]:
    """What a method is trained with until it has been tuned."""
    return {
        "optimizer.learning_rate": 5e-4 * (batch / 128) ** 0.5,
        "optimizer.learning_rate_warmup": max(4, 8 * 128 // batch),
    }


def _group(name: str, algorithm: str, samples: int, **more: Any) -> Method:
    return Method(name, {"algorithm.name": algorithm, **more.pop("options", {})}, samples, **more)


_SPPO = {"algorithm.name": "sppo", "critic.share": 0.5, **CRITIC}
_METHODS = (
    # Ours, and its choices held fixed.
    Method("sppo", {**_SPPO, "selection.name": "auto"}),
    Method("sppo_uniform", {**_SPPO, "selection.name": "uniform"}, tuned_as="sppo"),
    Method("sppo_sqrt", {**_SPPO, "selection.name": "sqrt"}, tuned_as="sppo"),
    Method("sppo_top", {**_SPPO, "selection.name": "top"}, tuned_as="sppo"),
    # Its critic a copy of the policy, twice as wide and twice as deep.
    Method("sppo_large_critic", {**_SPPO, "selection.name": "auto", "critic.config": None}, tuned_as="sppo"),
    # Group methods as they are.
    _group("grpo_2", "grpo", 2),
    _group("grpo_4", "grpo", 4),
    _group("grpo_8", "grpo", 8),
    _group("rloo_4", "rloo", 4),
    _group("dr_grpo_4", "dr_grpo", 4),
    # Groups thrown away are responses too, and so a step has up to four times the batch.
    _group("dapo_4", "dapo", 4),
    # Group methods with our critic's choice, and with counts of each prompt's past alone.
    _group("grpo_4_auto", "grpo", 4, options={**CRITIC, "selection.name": "auto"}),
    _group("rloo_4_auto", "rloo", 4, options={**CRITIC, "selection.name": "auto"}),
    _group("rloo_4_top", "rloo", 4, options={**CRITIC, "selection.name": "top"}, tuned_as="rloo_4_auto"),
    _group("grpo_4_history", "grpo", 4, options={"selection.name": "history"}, tuned_as="grpo_4"),
    # One sample a prompt.
    _group("spo", "spo", 1),
    _group("reinforce_pp", "reinforce_pp", 1),
    _group("astar_po", "astar_po", 1),
    _group("remax", "remax", 1, generated=2),
    _group("ppo", "ppo", 1),
)
METHODS = {method.name: method for method in _METHODS}
GROUPS = ("grpo_2", "grpo_4", "grpo_8", "rloo_4", "dr_grpo_4", "dapo_4")
"""Group methods without our critic."""
WITH_CHOICE = ("grpo_4_auto", "rloo_4_auto")
"""The same with it."""
FIXED = ("sppo_uniform", "sppo_sqrt", "sppo_top")
BEST_GROUPS = ("grpo_8", "rloo_4")
BEST_OPPONENTS = (*BEST_GROUPS, "grpo_4_auto")
"""For the star's arms: the best in the primary cell, two group methods without our choice and one with it."""


WARM_STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("demo", {}),
    "skills": ("skills", {"data.options": {"p_leave_out": 0.7}}),
    "skills_short": ("skills", {"data.options": {"p_leave_out": 0.7, "hopeless_length": 8}}),
}
"""The models that runs start from: a recipe, and what its fine-tuning is given beside its own options. On skills they
blank more of their states, and so solve less, than the recipe's; how long responses to hopeless prompts are, they learn
there."""
FAMILIES = ["largest", "count", "copy", "reverse", "sort"]
"""Of task skills: without sum and product, which take several times as long to learn as the others, whoever teaches."""


def _pool(prompts: int = 2000, **options: Any) -> dict[str, Any]:
    return {
        "data.options": {"prompts": prompts, "families": FAMILIES, **options},
        "evaluation.data.options": {"prompts": HELD_OUT_PROMPTS, "families": FAMILIES},
    }


_FLAT: dict[str, Any] = {"hopeless": 0.0, "trivial": 0.0}
_DEAD_50: dict[str, Any] = {"hopeless": 0.3, "trivial": 0.2}
_DEAD_80: dict[str, Any] = {"hopeless": 0.5, "trivial": 0.3}
"""Hopeless prompts draw the longest responses, by the task's default, as they do in practice."""
_CELLS = (
    Cell("primary", "80% dead, hopeless prompts long", options=_pool(**_DEAD_80)),
    # Dead share.
    Cell("flat", "no dead prompts", options=_pool(**_FLAT)),
    Cell("dead_50", "50% dead", options=_pool(**_DEAD_50)),
    Cell("dead_80_short", "80% dead, hopeless prompts short", "skills_short", options=_pool(**_DEAD_80)),
    Cell("wrong_golds", "half of the golds wrong", options=_pool(**_FLAT, wrong_golds=0.5)),
    # Pool.
    Cell("pool_500", "pool of 500", options=_pool(500, **_DEAD_80)),
    Cell("pool_20000", "pool of 20,000", options=_pool(20000, **_DEAD_80)),
    # Responses a step.
    Cell("batch_32", "32 a step", options=_pool(**_DEAD_80), batch=32),
    Cell("batch_64", "64 a step", options=_pool(**_DEAD_80), batch=64),
    Cell("batch_512", "512 a step", options=_pool(**_DEAD_80), batch=512),
    # The first demo's task; too short to get anywhere.
    Cell("chains", "chains of arithmetic", "demo", batch=128, cap=2048),
)
CELLS = {cell.name: cell for cell in _CELLS}
POOLS = ("primary", "flat", "dead_50", "dead_80_short", "wrong_golds", "pool_500", "pool_20000")
"""Cells that differ in what there is to choose from."""

_SINGLE = ("spo", "reinforce_pp", "astar_po")
EXPERIMENTS = {
    "primary": Experiment(
        methods={"primary": ("sppo", *FIXED, *GROUPS, *WITH_CHOICE, "grpo_4_history", *_SINGLE)},
        seeds=tuple(range(8)),
        criteria=(
            Criterion("best group method, responses", "primary", GROUPS, 3.0),
            Criterion("best group method, seconds", "primary", GROUPS, 2.5, "seconds"),
            Criterion("same method with our choice", "primary", WITH_CHOICE, 1.25),
            Criterion("auto against the best fixed choice", "primary", FIXED, 1 / 1.1),
        ),
    ),
    # Once more on new seeds, with the choice as it is since, and all methods tuned anew, negative tokens included.
    "second": Experiment(
        methods={"primary": ("sppo", "sppo_uniform", "sppo_top", *GROUPS, *WITH_CHOICE)},
        seeds=tuple(range(8, 16)),
        criteria=(
            Criterion("best group method, responses", "primary", GROUPS, 3.0),
            Criterion("best group method, seconds", "primary", GROUPS, 2.5, "seconds"),
            Criterion("same method with our choice", "primary", WITH_CHOICE, 1.25),
            Criterion("auto against the best fixed choice", "primary", ("sppo_uniform", "sppo_top"), 1 / 1.1),
        ),
    ),
    "star": Experiment(
        methods={
            **{name: ("sppo", *FIXED, *BEST_OPPONENTS) for name in POOLS if name != "primary"},
            **dict.fromkeys(("batch_32", "batch_64", "batch_512"), ("sppo", *BEST_OPPONENTS)),
        },
        seeds=(0, 1, 2),
        criteria=(
            Criterion("50% dead, responses", "dead_50", BEST_GROUPS, 1.2),
            Criterion("flat, responses to 80%", "flat", BEST_GROUPS, 1.2),
            Criterion("flat, seconds to 80%", "flat", BEST_GROUPS, 1.2, "seconds"),
            Criterion("flat, responses to 90%", "flat", BEST_GROUPS, 1.4, target=0.9),
            Criterion("flat, seconds to 90%", "flat", BEST_GROUPS, 1.4, "seconds", 0.9),
            Criterion("wrong golds, responses", "wrong_golds", BEST_GROUPS, 1.5),
            *(Criterion(f"auto against the best fixed choice, {name}", name, FIXED, 1 / 1.1) for name in POOLS[1:]),
        ),
    ),
    # A few runs on the demo's task, to see that all of this works.
    "smoke": Experiment(
        methods={"chains": ("sppo", "rloo_4", "grpo_8")},
        seeds=(0, 1),
        criteria=(Criterion("level with groups", "chains", ("rloo_4", "grpo_8"), 1.0),),
        tuned=False,
    ),
}
