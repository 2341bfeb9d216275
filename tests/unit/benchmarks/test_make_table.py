"""What is written of points that were run, and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.table.make_table import in_order, kind_of, name_of, rows, write
from benchmarks.table.table import EPOCHS, all_points, read_table, table_job
from orchestrator.results.files import as_json, replace
from orchestrator.spec.space import Choice

CHOICE: Choice = {
    "training.learning_rate": 0.1,
    "distillation.temperature": 4.0,
    "pruning.ratio": 0.4,
    "quantization.method": "qat",
    "quantization.weight_bits": 4,
    "quantization.learning_rate": 0.01,
    EPOCHS: 3,
}


def stage(name: str, key: str, seconds: float, *, cached: bool) -> dict[str, Any]:
    return {"name": name, "key": key, "seconds": seconds, "cached": cached, "started": 0.0}


def outcome(choice: Choice, key: str, latency: float, *, cached: bool = False, slow: float = 1.0) -> dict[str, Any]:
    """A point whose student came from the store, and whose last phase did too where its first run was killed."""
    return {
        "choice": choice,
        "state": "COMPLETE",
        "failure": None,
        "measurements": {"accuracy": 0.9, "size_bytes": 5000, "macs": 1000, "latency_ms": latency, "executor": "a word"},
        "stages": [
            stage("preflight", "", 0.1, cached=False),
            stage("student", "dense", 0.01 if cached else 2.0, cached=cached),
            stage("quantized", key, 0.02 if cached else 3.5 * slow, cached=cached),
            stage("export", "", 0.2, cached=False),
            stage("measure", "", 0.3, cached=False),
        ],
        "curve": [
            {"stage": "student", "epoch": 0, "loss": 1.0, "val_accuracy": 0.8},
            *({"stage": "quantized", "epoch": e, "loss": 1.0, "val_accuracy": 0.8 + e / 100} for e in range(3)),
        ],
        "ends_s": {} if cached else {"student": [1.9], "quantized": [1.5 * slow, 2.5 * slow, 3.4 * slow]},
    }


def written(folder: Path, outcomes: list[dict[str, Any]]) -> Path:
    for tree in outcomes:
        replace(folder / "points" / f"{name_of(tree['choice'])}.json", as_json(tree))
    write(rows([tree["choice"] for tree in outcomes], folder), folder / "table.parquet")
    return folder / "table.parquet"


def test_a_row_is_read_as_it_was_written(tmp_path: Path) -> None:
    other: Choice = {**CHOICE, "quantization.learning_rate": 0.1}
    table = read_table(written(tmp_path, [outcome(CHOICE, "a", 0.03), outcome(other, "b", 0.05, slow=2.0)]))
    point = table.at(CHOICE)
    assert point.choice == CHOICE
    assert (point.before, point.after) == (0.1, pytest.approx(0.5))
    assert [(s.name, s.key, s.seconds) for s in point.stages] == [("student", "dense", 2.0), ("quantized", "a", 3.5)]
    assert point.last.accuracies == pytest.approx((0.8, 0.81, 0.82))
    assert point.last.ends == (1.5, 2.5, 3.4)
    # Both have the same ratio and bits: their latencies are one, measured twice.
    assert point.measurements == {"accuracy": 0.9, "size_bytes": 5000.0, "macs": 1000.0, "latency_ms": 0.04}


def test_a_stage_costs_what_it_took_whoever_computed_it(tmp_path: Path) -> None:
    plain: Choice = {**{path: CHOICE[path] for path in list(CHOICE)[:3]}, "quantization.method": "none"}
    tree = outcome(plain, "a", 0.03)
    tree["stages"] = [stage("student", "dense", 0.01, cached=True)]
    table = read_table(written(tmp_path, [outcome(CHOICE, "a", 0.03), tree]))
    assert table.at(plain).stages[0].seconds == 2.0


def test_a_stage_whose_seconds_were_lost_gets_the_median_of_its_like(tmp_path: Path) -> None:
    rates = (0.001, 0.01, 0.1)
    choices: list[Choice] = [{**CHOICE, "quantization.learning_rate": rate} for rate in rates]
    trees = [
        outcome(choices[0], "a", 0.03),
        outcome(choices[1], "b", 0.03, slow=3.0),
        outcome(choices[2], "c", 0.03, cached=True),
    ]
    last = read_table(written(tmp_path, trees)).at(choices[2]).last
    assert (last.seconds, last.ends) == (7.0, (3.0, 5.0, pytest.approx(6.8)))


def test_parents_are_computed_first_and_long_points_before_short_ones() -> None:
    kinds = [kind_of(point) for point in in_order(all_points(table_job()))]
    assert list(dict.fromkeys(kinds)) == [("none", 0), ("ptq", 0), ("qat", 27), ("qat", 9), ("qat", 3)]
