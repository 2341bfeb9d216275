"""`orchestrator front` on sweeps whose facts are written by hand: filters, marks, ties, replicates, and what goes wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.cli.tables import WIDTH, short_names
from orchestrator.results.store import Home
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.load import load_job, resolved_text
from tests.conftest import REPOSITORY

CHOICE = {
    "pruning.ratio": 0.25,
    "quantization.method": "qat",
    "quantization.weight_bits": 8,
    "training.learning_rate": 0.05,
    "distillation.weight": 0.5,
}


@dataclass(frozen=True)
class Told:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads(self.out)
        return tree

    @property
    def trials(self) -> list[str]:
        return [point["trial"] for point in self.json["points"]]

    def marked(self, key: str) -> list[str]:
        return [point["trial"] for point in self.json["points"] if point[key]]


Front = Callable[..., Told]


def complete(number: int, accuracy: float, size: int, latency: float, **more: Any) -> TrialResult:
    measured = {
        "accuracy": accuracy,
        "size_bytes": size,
        "latency_ms": latency,
        "latency_ms_low": latency * 0.98,
        "latency_ms_high": latency * 1.02,
        "macs": size * 10,
        "executor": "onnxruntime",
        "num_eval_samples": 360,
    }
    return TrialResult(number, "COMPLETE", CHOICE, **{"measurements": measured, **more})


RESULTS = [
    complete(0, 0.97, 80_000, 0.200),
    complete(1, 0.95, 30_000, 0.100),
    complete(2, 0.94, 30_000, 0.099),  # cannot be told apart from trial 1
    complete(3, 0.94, 31_000, 0.101),  # dominated by trial 1, as measured
    complete(4, 0.30, 90_000, 0.300),  # dominated beyond doubt
    complete(5, 0.99, 500_000, 0.050, constraints={"size_bytes": 100_000.0}),
    complete(6, 0.99, 450_000, 0.050, constraints={"size_bytes": 50_000.0}),
    complete(7, 0.90, 10_000, 0.090),
    TrialResult(8, "INFEASIBLE", CHOICE, gate={"size_bytes": 900_000.0}, constraints={"size_bytes": 500_000.0}),
    TrialResult(9, "INFEASIBLE", CHOICE, failure={"class": "UnbuildableError", "message": "", "traceback": ""}),
    TrialResult(10, "FAILED", CHOICE, failure={"class": "DivergedError", "message": "nan\x1b[2J\nand so on", "traceback": ""}),
    TrialResult(14, "STOPPED", CHOICE),
]
REPLICATES = [complete(11, 0.91, 30_000, 0.101), complete(12, 0.93, 30_000, 0.099), complete(13, 0.999, 1_000, 0.01)]


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep "night" of the given results; numbers in `replicate_of` are replicates."""

    def write(results: list[TrialResult], replicate_of: dict[int, int] | None = None, overrides: Sequence[str] = ()) -> Path:
        made = Home(tmp_path).sweep("night")
        made.create(resolved_text(load_job(str(REPOSITORY / "jobs/quickstart.yaml"), overrides)))
        for result in results:
            original = (replicate_of or {}).get(result.number)
            made.propose(Proposal(result.number, result.choice, {}, replicate_of=original))
            made.finish(result)
        return tmp_path

    return write


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Front:
    """Runs the command in this process, as `main` does."""

    def run(*args: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["orchestrator", "front", "night", "--home", str(tmp_path), *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Told(int(left.value.code or 0), said.out, said.err)

    return run


def test_the_front_says_what_ties_and_what_may_be_on_it(sweep, front):
    sweep(RESULTS)
    told = front("-o", "json")
    assert told.code == 0
    assert told.trials == ["t0000", "t0001", "t0002", "t0007"]
    assert told.json["ties"] == [["t0001", "t0002"]]
    assert told.json["possibly_on_front"] == ["t0003"]
    assert told.json["trials"] == {"complete": 8, "infeasible": 2, "stopped": 1, "failed": 1}
    chances = {point["trial"]: point["front_probability"] for point in told.json["points"]}
    assert chances["t0007"] == 1.0
    assert 0.5 < chances["t0001"] < 1.0
    assert len(told.marked("knee")) == 1


def test_the_table_marks_ties_and_fits_a_terminal(sweep, front):
    sweep(RESULTS)
    told = front()
    rows = {line.split()[0]: line for line in told.out.split("\n\n")[0].splitlines()}
    assert rows["t0001"].endswith("~ t0002")
    assert rows["t0002"].endswith("~ t0001")
    assert "*" in told.out
    assert max(len(line) for line in told.out.splitlines()) <= WIDTH
    assert "1 more possibly on the front, which --all shows" in told.err


def test_all_shows_the_dominated_and_the_infeasible_by_rank(sweep, front):
    sweep(RESULTS)
    told = front("--all", "-o", "json")
    order = ["t0000", "t0001", "t0002", "t0007", "t0003", "t0004", "t0006", "t0005", "t0008", "t0009", "t0010", "t0014"]
    assert told.trials == order
    points = told.json["points"]
    assert [point["rank"] for point in points] == [0, 0, 0, 0, 1, 2, 3, 4, None, None, None, None]
    assert [point["feasible"] for point in points] == [True] * 6 + [False] * 6
    assert [point["state"] for point in points[7:]] == ["COMPLETE", "INFEASIBLE", "INFEASIBLE", "FAILED", "STOPPED"]
    assert [point["failure"] for point in points[8:]] == [None, "UnbuildableError", "DivergedError: nan\x1b[2J", None]
    table = front("--all").out
    notes = {
        line.split()[0]: line for part in table.split("\n\n") for line in part.splitlines() if "note" in part.split("\n")[0]
    }
    assert notes["t0003"].endswith("possibly on the front")
    assert notes["t0005"].endswith("size_bytes is 100000 beyond its bound")
    assert "900000" in next(line for line in table.splitlines() if line.startswith("t0008"))
    assert notes["t0009"].endswith("cannot be built")
    assert notes["t0010"].endswith("failed: DivergedError: nan\\x1b[2J")
    assert notes["t0014"].endswith("stopped")
    assert max(len(line) for line in table.splitlines()) <= WIDTH


def test_where_is_the_front_of_those_that_pass(sweep, front):
    """Trials 0 and 1 dominate 3 and 4 without the limit; within it nothing does. The reference, and so the volume, stays."""
    sweep(RESULTS)
    assert front("--where", "size_bytes > 3e4 and accuracy < 0.95", "-o", "json").trials == ["t0003"]
    told = front("--where", "size_bytes<=30000 or accuracy>=0.97", "-o", "json")
    assert told.trials == ["t0000", "t0001", "t0002", "t0007"]
    assert told.json["where"] == "size_bytes<=30000 or accuracy>=0.97"
    assert told.json["hypervolume"] == front("-o", "json").json["hypervolume"]
    small = front("--where", "size_bytes<2e4", "-o", "json").json
    assert 0 < small["hypervolume"] < told.json["hypervolume"]
    assert small["objectives"] == told.json["objectives"]


def test_where_filters_the_infeasible_as_well(sweep, front):
    sweep(RESULTS)
    assert front("--all", "--where", "size_bytes >= 90000", "-o", "json").trials == ["t0004", "t0006", "t0005", "t0008"]


def test_nothing_that_passes_ends_with_4_and_the_nearest(sweep, front):
    sweep(RESULTS)
    told = front("--where", "accuracy >= 0.9 and size_bytes < 8000")
    assert told.code == 4
    assert told.out == ""
    assert "the nearest is t0007 with size_bytes 10000: size_bytes < 8000 is missed by 2000" in told.err
    told = front("--where", "size_bytes < 1", "-o", "json")
    assert (told.code, told.trials) == (4, [])


def test_a_sweep_without_a_feasible_trial_ends_with_4_whatever_is_asked(sweep, front):
    sweep([TrialResult(0, "FAILED", CHOICE)])
    for args in [(), ("--where", "size_bytes<1"), ("--representatives", "2"), ("--weights", "accuracy=1")]:
        told = front(*args, "-o", "json")
        assert (told.code, told.trials) == (4, [])
        assert "1 failed" in told.err
    told = front("--all", "--k", "2", "-o", "json")
    assert (told.code, told.trials) == (4, ["t0000"])


def test_without_a_feasible_trial_it_says_by_how_much_the_nearest_misses(sweep, front):
    """One that was measured is nearer than one that the gate turned away, of which less is known."""
    limits = ["constraints.size_bytes.max=400000", "constraints.accuracy.min=0.9"]
    far = complete(0, 0.89, 500_000, 0.05, constraints={"size_bytes": 100_000.0, "accuracy": 0.01})
    near = complete(1, 0.85, 404_000, 0.05, constraints={"size_bytes": 4_000.0, "accuracy": 0.05})
    gated = TrialResult(2, "INFEASIBLE", CHOICE, gate={"size_bytes": 401_000.0}, constraints={"size_bytes": 1_000.0})
    sweep([far, near, gated], overrides=limits)
    told = front()
    assert (told.code, told.out) == (4, "")
    assert "2 complete, 1 infeasible; the nearest is t0001: " in told.err
    assert "size_bytes <= 400000 is missed by 4000 and accuracy >= 0.9 is missed by 0.05" in told.err


def test_where_all_were_gated_the_nearest_of_those_is_named(sweep, front):
    gated = [
        TrialResult(n, "INFEASIBLE", CHOICE, gate={"size_bytes": size}, constraints={"size_bytes": size - 400_000})
        for n, size in enumerate((600_000.0, 440_000.0))
    ]
    sweep(gated, overrides=["constraints.size_bytes.max=400000", "constraints.accuracy.min=0.9"])
    told = front()
    assert told.code == 4
    assert "the nearest is t0001: size_bytes <= 400000 is missed by 40000 and accuracy >= 0.9 is unknown" in told.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--where", "size_byts<1"], "did you mean 'size_bytes'"),
        (["--where", "executor == 1"], "given 'executor'"),
        (["--where", "robust_accuracy > 0"], "must name metrics that were measured; given 'robust_accuracy'"),
        (["--where", ""], "must compare metrics with numbers"),
        (["--where", "__import__('os')"], "given \"__import__('os')\""),
        (["--sort", "latncy_ms"], "did you mean 'latency_ms'"),
        (["--weights", "acuracy=1"], "did you mean 'accuracy'"),
        (["--weights", "macs=1"], "must name objectives: accuracy, size_bytes, latency_ms; given macs"),
        (["--weights", "accuracy"], "must look like metric=number"),
        (["--weights", "accuracy=-1"], "0 or more"),
        (["--weights", "accuracy=inf"], "must be finite"),
        (["--weights", "accuracy=nan"], "must be finite"),
        (["--k", "0"], "0 is not in the range"),
    ],
)
def test_bad_usage_ends_with_2_and_says_what_was_given(sweep, front, args, message):
    sweep(RESULTS)
    told = front(*args)
    assert told.code == 2
    assert told.out == ""
    assert message in told.err
    assert "Traceback" not in told.err


def test_sorting_puts_the_best_first(sweep, front):
    sweep(RESULTS)
    assert front("--sort", "size_bytes", "-o", "json").trials == ["t0007", "t0001", "t0002", "t0000"]
    assert front("--sort", "macs", "-o", "json").trials == ["t0007", "t0001", "t0002", "t0000"]
    assert front("--sort", "accuracy", "-o", "json").trials == ["t0000", "t0001", "t0002", "t0007"]
    everything = front("--all", "--sort", "size_bytes", "-o", "json").trials
    assert everything[0] == "t0007"
    assert everything[-4:] == ["t0008", "t0009", "t0010", "t0014"]


def test_representatives_and_the_suggested_point_are_marked(sweep, front):
    sweep(RESULTS)
    told = front("--representatives", "2", "--weights", "size_bytes=1", "-o", "json")
    assert front("--k", "2", "-o", "json").marked("representative") == told.marked("representative")
    assert told.marked("representative") == ["t0000", "t0007"]
    assert told.marked("suggested") == ["t0007"]
    assert "t0007" in [line.split()[0] for line in front("--weights", "size_bytes=1").out.splitlines() if "suggested" in line]
    plain = front("-o", "json").json["points"][0]
    assert not {"representative", "suggested", "rank", "seeds"} & set(plain)


def test_replicates_refine_their_original_and_are_no_points(sweep, front):
    sweep(RESULTS + REPLICATES, {11: 1, 12: 1, 13: 7})
    told = front("-o", "json")
    assert told.trials == ["t0000", "t0001", "t0002", "t0007"]
    assert told.json["trials"]["complete"] == 11
    seeds = {point["trial"]: point["seeds"] for point in told.json["points"] if "seeds" in point}
    assert set(seeds) == {"t0001", "t0007"}
    assert seeds["t0001"]["num_seeds"] == 3
    assert seeds["t0001"]["mean"] == pytest.approx({"accuracy": 0.93, "size_bytes": 30_000.0, "latency_ms": 0.1})
    assert seeds["t0001"]["low"]["accuracy"] == pytest.approx(0.93 - 4.30265 * 0.02 / 3**0.5, abs=1e-6)
    assert seeds["t0001"]["high"]["size_bytes"] == 30_000.0
    assert 0.0 <= seeds["t0001"]["front_probability"] <= 1.0
    table = front().out
    assert "mean accuracy" in table
    assert "0.93 [0.8803, 0.9797]" in table
    assert max(len(line) for line in table.splitlines()) <= WIDTH


def test_paths_are_named_by_their_shortest_end_that_is_their_own():
    paths = ["pruning.ratio", "pruning.method", "quantization.method", "training.epochs", "teacher.training.epochs"]
    assert list(short_names(paths)) == [
        "ratio",
        "pruning.method",
        "quantization.method",
        "training.epochs",
        "teacher.training.epochs",
    ]
    assert list(short_names(paths).values()) == paths
