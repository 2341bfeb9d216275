"""`compare` on sweeps whose facts are written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.results.trial_result import TrialResult
from tests.made_sweeps import complete, write_sweep

ONE = [complete(0, 0.95, 300_000, 0.5), complete(1, 0.9, 60_000, 0.2), complete(2, 0.85, 100_000, 0.3)]
OTHER = [complete(0, 0.95, 300_000, 0.5), complete(1, 0.92, 60_000, 0.2)]


def test_two_sweeps_side_by_side(tmp_path: Path, ask) -> None:
    write_sweep(tmp_path, "night", ONE)
    write_sweep(tmp_path, "day", OTHER, "recipe.training.epochs=9")
    told = ask("compare", "night", "day", "-o", "json").json
    night, day = told["sweeps"]
    assert (night["sweep"], night["trials"], night["front_size"], night["owned"]) == ("night", 3, 2, 1)
    assert (day["sweep"], day["trials"], day["front_size"], day["owned"]) == ("day", 2, 2, 2)
    assert (night["coverage"], day["coverage"]) == (0.5, 1.0)
    assert night["hypervolume"] == ask("front", "night", "-o", "json").json["hypervolume"], "one reference, that of both jobs"
    assert day["hypervolume"] > night["hypervolume"]
    assert night["device_hours"] == pytest.approx(30 / 3600)
    assert told["differences"] == ["recipe.training.epochs: 5 -> 9"]
    assert [(point["sweep"], point["trial"]) for point in told["joint_front"]] == [
        ("night", "t0000"),
        ("day", "t0000"),
        ("day", "t0001"),
    ]
    said = ask("compare", "night", "day")
    assert said.code == 0
    assert "recipe.training.epochs: 5 -> 9" in said.out
    assert "1 of 3" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_other_objectives_end_with_2(tmp_path: Path, ask) -> None:
    write_sweep(tmp_path, "night", ONE)
    write_sweep(tmp_path, "day", OTHER, "objectives=[{metric: accuracy}, {metric: macs}]")
    told = ask("compare", "night", "day")
    assert (told.code, told.out) == (2, "")
    assert "size_bytes: minimize -> none" in told.err


def test_where_neither_has_a_front_it_ends_with_4(tmp_path: Path, ask) -> None:
    write_sweep(tmp_path, "night", [TrialResult(0, "FAILED", {})])
    write_sweep(tmp_path, "day", [])
    told = ask("compare", "night", "day", "-o", "json")
    assert (told.code, told.json["joint_front"]) == (4, [])


def test_names_that_are_long_do_not_break_the_table(tmp_path: Path, ask) -> None:
    write_sweep(tmp_path, "n" * 64, ONE)
    write_sweep(tmp_path, "d" * 64, OTHER)
    said = ask("compare", "n" * 64, "d" * 64).out
    assert "d" * 59 + "…" in said
    assert max(map(len, said.splitlines())) <= 80
