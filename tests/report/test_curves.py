"""curves.png is drawn from whatever a run folder holds."""

import json
from pathlib import Path

import pytest

from sppo.report import write_curves

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


def test_nothing_is_cut_off_at_the_edges(tmp_path: Path) -> None:
    lines = [{"step": step, **STEP, "eval/accuracy": 0.5, "eval/accuracy_stderr": 0.01} for step in range(1, 61)]
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
