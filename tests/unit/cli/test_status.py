"""`status` and `list`: where sweeps stand, with the numbers that everybody else says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.results.files import exclusive
from orchestrator.results.store import Home
from orchestrator.results.trial_result import TrialResult
from tests.made_sweeps import complete, write_sweep

RESULTS = [
    complete(0, 0.95, 300_000, 0.5),
    complete(1, 0.9, 60_000, 0.2),
    complete(2, 0.85, 100_000, 0.3),  # dominated
    TrialResult(3, "FAILED", {}, failure={"class": "DivergedError", "message": "", "traceback": ""}, started=30.0, ended=50.0),
]


def test_a_finished_sweep(tmp_path: Path, ask) -> None:
    write_sweep(tmp_path, "night", RESULTS, "budget.trials=4")
    told = ask("status", "night", "-o", "json").json
    front = ask("front", "night", "-o", "json").json
    assert (told["trials"], told["hypervolume"]) == (front["trials"], front["hypervolume"])
    assert told["front_size"] == len(front["points"]) == 2
    assert told["knee"] == next(point["trial"] for point in front["points"] if point["knee"])
    assert (told["state"], told["under_way"], told["budget_trials"]) == ("finished", 0, 4)
    assert (told["seconds"], told["device_hours"]) == (50.0, pytest.approx(50 / 3600))
    last = told["last_ended"]
    assert (last["trial"], last["state"], last["feasible"], last["measurements"]) == ("t0003", "FAILED", False, {})
    said = ask("status", "night").out
    assert "3 complete, 1 failed" in said
    assert "last ended    t0003" in said
    assert "failed DivergedError" in said


def test_the_runs_last_line_and_account_say_the_same(tmp_path: Path, ask) -> None:
    write_sweep(tmp_path, "night", RESULTS, "budget.trials=4")
    run = ask("resume", "night", "-o", "json")
    told = ask("status", "night", "-o", "json").json
    assert f"{sum(told['trials'].values())} trials in " in run.err
    assert f"; {told['front_size']} on the front" in run.err
    assert (run.json["bought"]["device_hours"], run.json["bought"]["hypervolume"]) == (
        told["device_hours"],
        told["hypervolume"],
    )
    assert run.json["trials"] == told["trials"]


def test_what_has_not_ended_was_interrupted_or_runs(tmp_path: Path, ask) -> None:
    sweep = write_sweep(tmp_path, "night", RESULTS, "budget.trials=6", pending=2)
    told = ask("status", "night", "-o", "json").json
    assert (told["state"], told["under_way"]) == ("interrupted", 2)
    assert not sweep.lock_file.exists(), "looking leaves no trace"
    with exclusive(sweep.lock_file) as mine:
        assert mine
        running = ask("status", "night", "-o", "json").json
        assert running == {**told, "state": "running"}
        assert "2 under way" in ask("status", "night").out
    assert ask("status", "night", "-o", "json").json == told
    assert "2 not ended" in ask("status", "night").out


@pytest.mark.parametrize(
    ("overrides", "state", "reason"),
    [
        (["budget.trials=9"], "interrupted", "4 trials have ended; budget.trials is 9"),
        (["budget.trials=9", "budget.device_hours=0.01"], "interrupted", "0.0139 device-hours are spent"),
        (["budget.trials=4", "budget.seeds=2"], "interrupted", "4 trials have ended; budget.trials is 4"),
        (["budget.trials=9", "budget.plateau={trials: 1, gain: 0.5}"], "finished", "budget.plateau"),
    ],
)
def test_why_it_stands_where_it_does(overrides: list[str], state: str, reason: str, tmp_path: Path, ask) -> None:
    write_sweep(tmp_path, "night", RESULTS, *overrides)
    told = ask("status", "night", "-o", "json").json
    assert told["state"] == state
    assert reason in told["reason"]


def test_a_space_of_which_every_point_was_proposed_is_done(tmp_path: Path, ask) -> None:
    job = tmp_path / "few.yaml"
    job.write_text(
        "recipe: {data: {source: digits}}\n"
        "space: {pruning.ratio: {float: [0.0, 0.5], step: 0.25}}\n"
        "objectives: [{metric: accuracy}, {metric: size_bytes}]\nbudget: {trials: 9}\n"
    )
    results = [complete(n, 0.9 - n / 10, 100 - n, 0.1, choice={"pruning.ratio": 0.25 * n}) for n in range(3)]
    write_sweep(tmp_path, "two", results[:2], job=str(job))
    write_sweep(tmp_path, "all", results, job=str(job))
    assert ask("status", "two", "-o", "json").json["state"] == "interrupted"
    told = ask("status", "all", "-o", "json").json
    assert (told["state"], told["reason"]) == ("finished", "all 3 points of the space are proposed")


def test_a_sweep_in_which_nothing_has_ended(tmp_path: Path, ask) -> None:
    write_sweep(tmp_path, "new", [], pending=1)
    told = ask("status", "new", "-o", "json").json
    assert (told["front_size"], told["hypervolume"], told["knee"], told["last_ended"]) == (0, 0.0, None, None)
    said = ask("status", "new")
    assert (said.code, "no trial has ended, 1 not ended" in said.out) == (0, True)


def test_all_sweeps_the_last_active_first(tmp_path: Path, ask) -> None:
    assert ask("list").err.startswith("no sweep in")
    write_sweep(tmp_path, "older", RESULTS[:1], "budget.trials=1")
    write_sweep(tmp_path, "newer", RESULTS, "budget.trials=9")
    broken = write_sweep(tmp_path, "broken", RESULTS)
    broken.job_file.write_text("recipe: {what: 1}\n")
    os.utime(broken.job_file, (5.0, 5.0))
    (tmp_path / "sweeps" / "notes").mkdir()
    told = ask("list", "-o", "json").json
    assert told["home"] == str(tmp_path)
    assert [(line["sweep"], line["state"]) for line in told["sweeps"]] == [
        ("newer", "interrupted"),
        ("older", "finished"),
        ("broken", "unreadable"),
    ]
    status = ask("status", "newer", "-o", "json").json
    assert {key: value for key, value in told["sweeps"][0].items() if key != "last_activity"} == status
    rows = ask("list").out.splitlines()
    assert [row.split()[0] for row in rows] == ["sweep", "newer", "older", "broken"]
    assert rows[1].split()[2:4] == ["4/9", "2"]
    assert max(map(len, rows)) <= 80


def test_a_folder_of_any_name_is_one_line_of_the_list(tmp_path: Path, ask) -> None:
    write_sweep(tmp_path, "night", RESULTS, "budget.trials=4")
    Home(tmp_path).sweep("night").path.rename(tmp_path / "sweeps" / "a\x1b[31m\nb🙂")
    rows = ask("list").out.splitlines()
    assert len(rows) == 2
    assert rows[1].startswith("a\\x1b[31m\\nb🙂")


def test_status_needs_nothing_heavy(tmp_path: Path) -> None:
    """It is asked every second by some."""
    write_sweep(tmp_path, "night", RESULTS)
    told = subprocess.run([sys.executable, "-c", _ASKED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"
    assert "3 complete, 1 failed" in told.stdout


_ASKED = """
import sys
from orchestrator.cli.main import main
sys.argv = ["orchestrator", "status", "night", "--home", sys.argv[1]]
try:
    main()
except SystemExit:
    print([name for name in ("torch", "ray", "mlflow", "optuna", "plotly") if name in sys.modules])
"""
