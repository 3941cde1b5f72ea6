"""curves.png is drawn from whatever a run folder holds."""

import json
from pathlib import Path

import pytest

from sppo.report import write_curves
from sppo.report.plots import draw_curves

STEP = {
    "reward/mean": 0.5, "critic/value_mean": 0.4, "critic/bce": 0.6, "critic/brier": 0.2, "critic/ece": 0.1,
    "critic/pearson": 0.3, "policy/clipfrac": 0.0, "policy/approx_kl": 0.0, "policy/entropy": 1.0,
    "policy/grad_norm": 2.0, "response/length_mean": 20.0, "response/clipped_share": 0.0,
}  # fmt: skip
SUMMARY = {
    "accuracy_before": 0.4,
    "accuracy_after": 0.6,
    "critic": {"pearson": 0.5, "spearman": None},
    "calibration": [
        {"low": 0.0, "high": 0.5, "mean_value": 0.2, "solve_rate": 0.0, "count": 9},
        {"low": 0.5, "high": 1.0, "mean_value": None, "solve_rate": None, "count": 0},
    ],
}


BINS = [
    {
        "low": (n - 1) / 10,
        "high": n / 10,
        "mean_value": n / 10 - 0.03,
        "solve_rate": n / 10 - 0.03,
        "count": 10 ** (n % 6),
    }
    for n in range(1, 11)
]


@pytest.mark.parametrize("chose", [False, True])
def test_nothing_is_cut_off_at_the_edges(tmp_path: Path, chose: bool) -> None:
    more = CHOICE if chose else {}
    lines = [
        {"step": step, **STEP, **more, "eval/accuracy": 0.5, "eval/accuracy_stderr": 0.01} for step in range(1, 61)
    ]
    scores = {"pearson": -0.202, "spearman": -0.172, "brier": 0.016, "ece": 0.012}
    summary = {**SUMMARY, "critic": scores, "calibration": BINS, "calibration_in_training": BINS}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    from matplotlib.image import imread

    picture = imread(write_curves(tmp_path))[..., :3]
    for margin in (picture[:5], picture[-5:], picture[:, :5], picture[:, -5:]):
        assert margin.min() == 1.0


@pytest.mark.parametrize(
    ("lines", "summary"),
    [
        ([], None),
        ([{"step": 0, "eval/accuracy": 0.4, "eval/accuracy_stderr": None}], None),
        ([{"step": 0, "eval/accuracy": 0.4, "eval/accuracy_stderr": 0.1}, {"step": 1, **STEP}], SUMMARY),
        ([{"step": step, **STEP, "critic/pearson": None, "critic/bce": float("nan")} for step in (1, 2)], {}),
    ],
)
def test_any_run_has_a_picture(lines, summary, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if summary is not None:
        (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    path = write_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))


def panels(folder: Path, lines: list[dict]) -> dict[str, list[str]]:
    """The panels by title, with the labels of their lines."""
    import matplotlib.pyplot as plt

    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    figure = draw_curves(folder)
    found = {axis.get_title(loc="left") or axis.get_title(): axis for axis in figure.axes}
    plt.close(figure)
    return {title: axis.get_legend_handles_labels()[1] for title, axis in found.items() if title}


CHOICE = {
    "selection/control_share": 0.1, "selection/control_reward": 0.2, "selection/chosen_reward": 0.5,
    "selection/candidates": 4.0, "selection/dead_share": 0.6,
    "selection/gain": 4.2, "critic/bias": -0.1,
}  # fmt: skip


def test_a_run_that_chose_prompts_tells_their_reward_from_that_of_the_others(tmp_path: Path) -> None:
    uniform = {**CHOICE, "selection/control_share": 1.0}
    lines = [{"step": step, **STEP, **(CHOICE if step not in (1, 5) else uniform)} for step in range(1, 9)]
    found = panels(tmp_path, [{"step": 0, "eval/accuracy": 0.1}, *lines])
    assert len(found) == 8
    assert found["Reward (mean of 10 steps) and held-out accuracy"] == [
        "chosen prompts", "prompts nobody chose", "held-out accuracy"
    ]  # fmt: skip
    # Two stretches of steps chose, named once.
    assert found["Choice of prompts"] == [
        "dead (left axis)", "gain", "candidates", "prompts chosen"
    ]  # fmt: skip
    assert found["Calibration of V now (mean of 10 steps)"] == ["bias, V - R", "Brier score"]
    # Beliefs that add to V of the text are held against it.
    fused = panels(tmp_path, [{**line, "critic/brier_text": 0.3} for line in lines])
    assert fused["Calibration of V now (mean of 10 steps)"][-1] == "the same of V of the text"


def test_the_gain_stands_against_what_auto_goes_by(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    lines = [{"step": step, **STEP, **CHOICE} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "summary.json").write_text(
        '{"selection": {"auto_from": {"chooses": 2.0, "hardest": 4.0}}}', encoding="utf-8"
    )
    figure = draw_curves(tmp_path)
    plt.close(figure)
    (axis,) = (axis for axis in figure.axes if axis.texts and axis.texts[0].get_text().startswith("auto"))
    assert [(text.get_text(), text.get_position()[1]) for text in axis.texts] == [
        ("auto: chooses", 2.0),
        ("auto: hardest", 4.0),
    ]


def test_a_run_that_could_choose_and_did_not_has_one_reward(tmp_path: Path) -> None:
    found = panels(tmp_path, [{"step": 1, **STEP, **CHOICE, "selection/control_share": 1.0}])
    assert found["Reward and held-out accuracy"] == ["training reward"]
    assert found["Choice of prompts"] == [
        "dead (left axis)", "gain", "candidates"
    ]  # fmt: skip


def test_a_run_without_a_choice_has_the_six_panels(tmp_path: Path) -> None:
    found = panels(tmp_path, [{"step": step, **STEP} for step in (1, 2)])
    assert list(found) == [
        "Reward and held-out accuracy", "What the critic expected, and what came", "Critic", "Policy",
        "Response length, in tokens", "Calibration of V",
    ]  # fmt: skip
    assert found["Reward and held-out accuracy"] == ["training reward"]
