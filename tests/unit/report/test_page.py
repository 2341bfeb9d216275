"""The page as text: what it holds, that nothing in it can become more than text, and what a sweep that found nothing says."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.made_sweep import HOSTILE, made_job, made_result, make_sweep
from orchestrator.cli.main import main
from orchestrator.pareto.front import Front, find_front
from orchestrator.report.findings import Findings, drawn
from orchestrator.report.page import embedded, write_report
from orchestrator.report.picture import draw_front
from orchestrator.report.sections import nearest_misses, verdict
from orchestrator.report.wording import one_line, short_names, shown, with_unit
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.load import read_resolved, resolved_text
from orchestrator.spec.objective import Constraint

CHOICE = {"pruning.ratio": 0.5, "model.width": 16}


def trial(number: int, accuracy: float, size: int, latency: float = 0.5, **more) -> TrialResult:
    told = {"accuracy": accuracy, "size_bytes": size, "latency_ms": latency, "num_eval_samples": 100, "executor": "onnxruntime"}
    amounts = {"size_bytes": size - 300_000.0, "accuracy": 0.5 - accuracy}
    facts = {"measurements": told, "constraints": amounts, "started": 3600.0 * number, "ended": 3600.0 * (number + 1)}
    return TrialResult(number, "COMPLETE", CHOICE, **{**facts, **more})


def sweep_of(home: Path, *results: TrialResult, replicate_of: dict[int, int] | None = None) -> Sweep:
    sweep = Home(home).sweep("night")
    sweep.create(resolved_text(made_job(len(results) or 1, 1)))
    for result in results:
        sweep.propose(Proposal(result.number, result.choice, {}, replicate_of=(replicate_of or {}).get(result.number)))
        sweep.finish(result)
    return sweep


def findings_of(home: Path, *results: TrialResult, **more) -> Findings:
    sweep = sweep_of(home, *results, **more)
    return Findings.of(sweep, read_resolved(sweep.job_file))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, str]:
    """Sixty made-up trials, hostile names among them, and their page."""
    sweep = make_sweep(tmp_path_factory.mktemp("home"), trials=60, epochs=3)
    return sweep, write_report(sweep, read_resolved(sweep.job_file)).read_text()


class Elements(HTMLParser):
    """Counts elements, and keeps the content of scripts by their id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str | None, str] = {}
        self.outside: list[str] = []
        self._inside: str | None = None
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._script = tag == "script"
        self._inside = dict(attrs).get("id")
        self.outside += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data


def test_the_page_is_one_file_of_three_scripts_that_names_nothing_outside(made):
    _, text = made
    found = Elements(text)
    assert found.tags.count("script") == 3
    assert not {"img", "iframe", "link", "object", "form", "a"} & set(found.tags)
    assert found.outside == []
    assert len(text.encode()) < 8_000_000


def test_what_the_page_draws_is_what_the_facts_say(made):
    sweep, text = made
    told = json.loads(Elements(text).scripts["facts"])
    findings = Findings.of(sweep, read_resolved(sweep.job_file))
    assert told == json.loads(json.dumps(drawn(findings)))
    assert [told["trials"]["id"][index] for index in told["front"]] == [point.id for point in findings.front.points]
    assert told["trials"]["id"][told["knee"]] == findings.front.knee.id
    columns = {column["name"]: column for column in told["columns"]}
    assert columns["accuracy"]["values"] == [
        {**result.gate, **result.measurements}.get("accuracy") for result in findings.results
    ]
    assert [columns[name]["log"] for name in ("accuracy", "size_bytes", "latency_ms")] == [False, True, True]
    assert columns["pruning.ratio"]["label"] == "ratio"
    assert {len(column["values"]) for column in columns.values()} == {60}


def test_hostile_names_stand_in_the_page_as_text(made):
    _, text = made
    told = json.loads(Elements(text).scripts["facts"])
    values = {value for column in told["columns"] if column["name"] == "model.weights" for value in column["values"]}
    assert {HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3]} <= values
    assert max(len(value) for value in values if value) <= 201
    assert text.count("<script>document") == 0
    assert "&lt;script&gt;document" in text, "the failure's first line"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_json_comes_back_and_cannot_end_its_element(tree):
    text = embedded(tree)
    assert json.loads(text) == tree
    assert not set("<>&") & set(text)


def test_costs_add_up_in_the_order_in_which_trials_ended(tmp_path):
    findings = findings_of(
        tmp_path,
        trial(0, 0.9, 200_000, started=0.0, ended=1800.0),
        trial(1, 0.8, 100_000, started=0.0, ended=900.0),
        trial(2, 0.7, 250_000, started=900.0, ended=4500.0),
    )
    assert findings.device_hours == pytest.approx([0.25, 0.75, 1.75])
    volumes = drawn(findings)["volume"]["values"]
    assert volumes == sorted(volumes)
    assert volumes[-1] == pytest.approx(findings.front.hypervolume)


def test_a_replicate_has_no_row_of_its_own_but_its_cost_counts(tmp_path):
    findings = findings_of(tmp_path, trial(0, 0.9, 200_000), trial(1, 0.8, 200_000), replicate_of={1: 0})
    told = drawn(findings)
    assert told["trials"]["id"] == ["t0000"]
    assert told["trials"]["note"] == ["trained with 2 seeds"]
    assert len(told["volume"]["hours"]) == 2


def test_extremes_are_the_best_by_each_objective_and_come_first_among_those_that_stand_for_all(tmp_path):
    told = drawn(
        findings_of(
            tmp_path,
            trial(0, 0.90, 200_000, 0.50),
            trial(1, 0.80, 100_000, 0.60),
            trial(2, 0.70, 150_000, 0.10),
            trial(3, 0.85, 160_000, 0.30),
        )
    )
    assert told["extremes"] == [0, 1, 2]
    assert told["representatives"] == [0, 1, 2, 3]
    assert told["baseline"] == 0


def test_curves_leave_the_teacher_out_and_keep_what_was_seen(tmp_path):
    curve = [
        {"stage": "teacher", "epoch": 0, "val_accuracy": 0.5},
        {"stage": "student", "epoch": 0, "loss": 1.23456789, "val_accuracy": 0.6},
        {"stage": "quantized", "epoch": 0, "val_accuracy": 0.7},
    ]
    told = drawn(findings_of(tmp_path, trial(0, 0.9, 200_000, curve=curve)))
    assert told["curves"] == [
        {
            "trial": 0,
            "stages": ["student", "quantized"],
            "epochs": [0, 0],
            "seen": {"loss": [1.2346, None], "val_accuracy": [0.6, 0.7]},
        }
    ]


def test_where_nothing_is_feasible_each_constraint_is_told_apart(tmp_path):
    gated = TrialResult(2, "INFEASIBLE", CHOICE, gate={"size_bytes": 310_000.0}, constraints={"size_bytes": 10_000.0})
    findings = findings_of(tmp_path, trial(0, 0.45, 350_000), trial(1, 0.7, 500_000), gated)
    assert nearest_misses(findings) == [
        "size_bytes must be at most 300,000: t0002 misses it by 10,000, and no other by less",
        "accuracy must be at least 0.5: t0001 keeps to it, but not to the others",
        "of the trials that were trained t0001 is closest to all of them: it misses size_bytes by 200,000",
    ]


def test_a_page_is_written_of_nothing_and_of_failures_alone(tmp_path):
    for name, results in {
        "nothing": [],
        "failures": [TrialResult(0, "FAILED", CHOICE, failure={"class": "E", "message": "", "traceback": ""})],
    }.items():
        sweep = sweep_of(tmp_path / name, *results)
        text = write_report(sweep, read_resolved(sweep.job_file)).read_text()
        assert "no trial was measured by it" in text
        assert "Nothing was measured." in text


def test_the_verdict_compares_the_knee_with_the_baseline():
    job = made_job(1, 1)
    results = [trial(0, 0.9, 200_000), trial(1, 0.85, 50_000), trial(2, 0.6, 45_000)]
    front: Front = find_front(results, job.objectives)
    assert front.knee.number == 1
    assert verdict(front) == (
        "3 of 3 trials are on the front; 3 are feasible. The knee, t0001, against the baseline: "
        "accuracy -5.0 points, size_bytes × 0.25, latency_ms × 1.00."
    )


def test_names_and_numbers_are_one_line_that_turns_nothing_around():
    assert one_line("first\nsecond", 80) == "first"
    assert one_line("\n\n  \nthird", 80) == "third"
    assert one_line("a\x1b[31m\u202eb 🚀", 80) == "a\ufffd[31m\ufffdb 🚀"
    assert one_line("x" * 90, 80) == "x" * 80 + "…"
    assert [shown(value) for value in (12345, 0.123456, 123456.7, True, "a", 1e20)] == [
        "12,345",
        "0.1235",
        "123,457",
        "True",
        "a",
        "1e+20",
    ]
    assert [with_unit(value) for value in (20_000, 0.05, 1.5e6, 2e9)] == ["20k", "0.05", "1.5M", "2G"]
    assert short_names(["a.bits", "b.bits", "b.rate"]) == {"a.bits": "a.bits", "b.bits": "b.bits", "b.rate": "rate"}


def test_the_picture_of_infeasible_trials_is_drawn_with_their_bounds(tmp_path):
    front = find_front([trial(0, 0.4, 400_000), trial(1, 0.7, 500_000)], made_job(1, 1).objectives)
    draw_front(front, "none", tmp_path / "none.png", {"size_bytes": Constraint(max=300_000.0)})
    with Image.open(tmp_path / "none.png") as picture:
        assert picture.size == (1560, 630)
        assert len(picture.convert("RGB").getcolors(100_000)) > 50


@pytest.mark.parametrize("args", [[], ["--png", "front.png"]])
def test_report_writes_what_there_is_and_leaves_with_4_where_nothing_is_feasible(args, tmp_path, monkeypatch, capsys):
    sweep_of(tmp_path, trial(0, 0.45, 350_000))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["orchestrator", "report", "night", "--home", str(tmp_path), *args])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert left.value.code == 4
    assert Path(said.out.strip()).exists()
    assert "no trial that is complete and feasible" in said.err


def test_the_help_has_an_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["orchestrator", "report", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "orchestrator report quickstart --png front.png" in " ".join(capsys.readouterr().out.split())


def test_a_made_up_sweep_has_every_state_and_is_the_same_each_time(made):
    sweep, _ = made
    results = sweep.results()
    assert {result.state for result in results} == {"COMPLETE", "INFEASIBLE", "STOPPED", "FAILED"}
    assert [made_result(result.number, result.choice, 0, 3) for result in results] == results
    assert {len(result.curve) * 12 for result in results if result.state == "COMPLETE"} == {36}
