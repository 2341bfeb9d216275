"""Audits of trials that were run for it: against what the trials themselves measured, and with parts of them gone."""

from __future__ import annotations

import copy
import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.cli.main import main
from orchestrator.data.decode import Examples
from orchestrator.delivery.audit import Audit, audit, metrics_of
from orchestrator.delivery.audit_parts import Judged, Subject, compare
from orchestrator.delivery.revisit import dense_student, revisit, shipped_graph
from orchestrator.errors import UsageError
from orchestrator.measure import latency
from orchestrator.report.audit_page import Pictures, audit_page
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.load import resolved_text
from orchestrator.spec.recipe import AttackSettings, Recipe
from orchestrator.tracking.connection import connect
from orchestrator.trial.host import LocalHost, gang_process, machine_quiet
from orchestrator.trial.order import Order
from orchestrator.trial.pipeline import run_trial
from orchestrator.trial.stages import StageStore
from orchestrator.trial.workshop import Workshop

with warnings.catch_warnings():
    # torch.fx.experimental.optimization imports it, and it uses what torch has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch.utils.mkldnn

# More images than there are, so that audit and trial look at the same ones.
ALL = {"rounds": 5, "attack": {"steps": 3, "num_images": 1000}, "num_explained": 1000}
RECIPE: dict[str, Any] = {
    "data": {"source": "digits", "max_train": 384, "max_val": 90},
    "model": {"name": "cifar_resnet8", "width": 8},
    "training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.1},
    "measurement": ALL,
}
SMALLER = {
    "pruning": {"ratio": 0.5, "epochs": 0},
    "quantization": {"method": "ptq", "weight_bits": 4, "allocation": "sensitivity", "num_calibration": 32},
}
JOB = Job.model_validate(
    {
        "name": "few",
        "recipe": RECIPE,
        "space": {"pruning.ratio": {"float": [0.0, 0.8]}},
        "objectives": [{"metric": "accuracy"}, {"metric": "size_bytes"}],
    }
)
FAILED = TrialResult(2, "FAILED", {}, failure={"class": "DivergedError", "message": "no", "traceback": ""})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A sweep of three trials: the dense baseline, one with half the channels and 4 bits, and one that failed."""
    home = Home(tmp_path_factory.mktemp("home"))
    sweep = home.sweep("few")
    sweep.create(resolved_text(JOB))
    quiet = machine_quiet()
    process = gang_process(0, 1, torch.device("cpu"), quiet)
    host, workshop = LocalHost(process, quiet, lambda event: None), Workshop(StageStore(home.stages), process)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_LEAST_S", 0.0)  # how steady it is does not matter here
        patch.setattr(latency, "_WARM_UP_S", 0.0)
        for number, changed in enumerate(({}, SMALLER)):
            recipe = Recipe.model_validate({**RECIPE, **changed}).model_dump(mode="json")
            choice = {"pruning.ratio": recipe["pruning"]["ratio"]}
            folder, stages = str(sweep.trial_folder(number)), str(home.stages)
            result = run_trial(Order(number, choice, recipe, {}, 0, folder, stages), host, workshop)
            assert result.state == "COMPLETE", result.failure
            sweep.propose(Proposal(number, choice, recipe))
            sweep.finish(result)
    sweep.finish(FAILED)
    return home


def ended(home: Home, number: int) -> tuple[Sweep, TrialResult]:
    sweep = home.sweep("few")
    result = sweep.result(number)
    assert result is not None
    return sweep, result


def audited(home: Home, number: int, say: Callable[[str], None] = lambda line: None) -> Audit:
    sweep, result = ended(home, number)
    return audit(home, sweep, JOB, result, say)


@pytest.fixture(scope="module")
def found(home: Home) -> Audit:
    return audited(home, 1)


@pytest.fixture
def copied(home: Home, tmp_path: Path) -> Home:
    """A home of its own, to take things away from."""
    return Home(shutil.copytree(home.path, tmp_path / "home"))


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("made", "seconds")}


def test_it_finds_what_the_trial_measured(home: Home, found: Audit) -> None:
    """The same images, seeds and definitions, by another way: networks that were rebuilt from what was stored."""
    measured = ended(home, 1)[1].measurements
    for name in ("accuracy", "worst_class_accuracy", "calibration_error", "flip_rate"):
        assert found.metrics[f"audit/{name}"] == pytest.approx(measured[name]), name
    assert found.metrics["audit/robust_accuracy"] == pytest.approx(measured["robust_accuracy"], abs=1.5 / 90)
    assert found.metrics["audit/explanation_similarity"] == pytest.approx(measured["explanation_similarity"], abs=1e-3)
    assert found.record["compressed"]["graph_agreement"] == pytest.approx(measured["agreement"])
    assert found.metrics["audit/dense_accuracy"] == pytest.approx(ended(home, 0)[1].measurements["accuracy"])
    assert found.record["notes"] == []


def test_its_parts_add_up(found: Audit) -> None:
    record = found.record
    num, accuracy = record["num_images"], record["accuracy"]
    change = sum(row["gained"] - row["lost"] for row in record["classes"]) / num
    assert change == pytest.approx(accuracy["compressed"]["accuracy"] - accuracy["dense"]["accuracy"])
    assert [row["change"] for row in record["classes"]] == sorted(row["change"] for row in record["classes"])
    assert sum(part["num"] for part in record["calibration"]["dense"]["bins"]) == num
    flips = record["flips"]
    assert 0 < flips["num"] == round(flips["rate"] * num)
    assert len(flips["examples"]) == min(12, flips["num"])
    assert all(one["dense"]["class"] != one["compressed"]["class"] for one in flips["examples"])
    rows = record["corruptions"]["rows"]
    assert {(row["corruption"], row["severity"]) for row in rows} == {
        (kind, severity) for kind in ("gaussian_noise", "gaussian_blur", "contrast") for severity in range(1, 6)
    }
    for name in ("compressed", "dense"):
        assert record["corruptions"]["mean"][name] == pytest.approx(np.mean([row[name] for row in rows]))
        assert record["corruptions"]["clean"][name] == pytest.approx(accuracy[name]["accuracy"])
        assert record["attack"][name]["accuracy"] <= record["attack"][name]["clean_accuracy"]
    assert record["attributions"]["lowest"] <= record["attributions"]["mean"] <= 1.0


def test_what_is_written_is_what_was_found_and_a_second_audit_finds_the_same(home: Home, found: Audit) -> None:
    lines: list[str] = []
    first = json.loads(found.record_file.read_text())
    again = audited(home, 1, lines.append)
    assert again.record_file == found.record_file == home.sweep("few").trial_folder(1) / "audit.json"
    second = json.loads(again.record_file.read_text())
    assert without_times(first) == without_times(second)
    assert metrics_of(first) == found.metrics
    assert [line.split()[0] for line in lines] == [
        "opening", "classifying", "attacking", "attacking", "corrupting", "explaining",
    ]  # fmt: skip
    assert not list(home.path.rglob("test.json"))


def test_the_page_stands_alone(found: Audit) -> None:
    page = found.page_file.read_text()
    assert not re.search(r"<script|<link|https?:|@import|url\(", page)
    images = re.findall(r"<img [^>]*>", page)
    flips, maps = len(found.record["flips"]["examples"]), len(found.record["attributions"]["examples"])
    assert len(images) == flips + 3 * maps
    assert all(re.search(r'src="data:image/png;base64,[^"]+" alt="[^"]+"', image) for image in images)
    assert page.count('role="img" aria-label=') == page.count("<svg") - 2  # those of the legend are hidden
    for title in (
        "Classes",
        "Flipped predictions",
        "Confidence",
        "Corrupted pictures",
        "Under attack",
        "What predictions rest on",
    ):
        assert f"<h2>{title}</h2>" in page
    assert "prefers-color-scheme: dark" in page


def test_where_the_dense_network_is_gone_the_baseline_stands_in(copied: Home, found: Audit) -> None:
    """The baseline is dense here, and of the same seed: the same network, now judged as a file."""
    sweep, result = ended(copied, 1)
    key = next(stage.key for stage in result.stages if stage.name == "student")
    shutil.rmtree(copied.stages / key)
    again = audited(copied, 1)
    assert again.record["dense"]["what"] == "the exported file of t0000"
    assert "compared with the baseline's file, t0000" in again.record["notes"][0]
    assert again.metrics == pytest.approx(found.metrics, abs=1e-3)
    assert "compared with the baseline" in again.page_file.read_text()
    (sweep.trial_folder(0) / "model.onnx").unlink()
    with pytest.raises(UsageError, match="dense network of t0001, which is not in the stage store any more, or with"):
        audited(copied, 1)


def test_where_the_weights_are_gone_only_what_needs_them_is_left_out(copied: Home, found: Audit) -> None:
    (copied.sweep("few").trial_folder(1) / "model.safetensors").unlink()
    again = audited(copied, 1).record
    assert again["attributions"] is None
    assert again["attack"]["compressed"]["found_on"].startswith("the other model's graph")
    assert again["attack"]["dense"] == found.record["attack"]["dense"]
    for part in ("accuracy", "classes", "flips", "calibration", "corruptions"):
        assert again[part] == found.record[part]
    assert [note.split(" ", 1)[0] for note in again["notes"]] == ["t0001", "A"]


def dense_subject(home: Home) -> tuple[Subject, Judged]:
    """The validation split, and the dense network as a graph."""
    sweep, result = ended(home, 0)
    work = revisit(home, JOB, sweep, result)
    network = dense_student(work, result)
    assert network is not None

    def logits(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(work.material.normalizer(torch.from_numpy(np.array(pixels)))).numpy()

    material = work.material
    subject = Subject(material.splits.val, material.classes, material.normalizer, AttackSettings(steps=1), 20, 0)
    return subject, Judged("itself", "torch", logits, network)


def test_a_dense_model_against_itself_changes_nothing(home: Home) -> None:
    subject, itself = dense_subject(home)
    parts, pictures = compare(subject, itself, itself)
    assert parts["flips"]["num"] == len(parts["flips"]["examples"]) == len(pictures.flips) == 0
    assert parts["attributions"]["mean"] == parts["attributions"]["lowest"] == pytest.approx(1.0)
    assert all(row["change"] == row["lost"] == row["gained"] == 0 for row in parts["classes"])
    for part in ("accuracy", "calibration", "attack"):
        assert parts[part]["compressed"] == parts[part]["dense"]
    assert parts["corruptions"]["mean"]["compressed"] == parts["corruptions"]["mean"]["dense"]


def test_what_is_no_picture_is_audited_without_pictures(home: Home) -> None:
    """Two linear models of four numbers."""
    subject, _ = dense_subject(home)
    generator = np.random.default_rng(0)
    examples = Examples(generator.integers(0, 256, (50, 4), dtype=np.uint8), generator.integers(0, 3, 50))
    one, other = (Judged("linear", "numpy", partial(np.dot, b=generator.normal(size=(4, 3)))) for _ in range(2))
    parts, pictures = compare(replace(subject, examples=examples), one, other)
    assert (parts["attack"], parts["corruptions"], parts["attributions"]) == (None, None, None)
    assert pictures == Pictures([], [])
    assert "no pictures" in parts["notes"][0]
    assert parts["flips"]["num"] > 0
    assert set(metrics_of(parts)) == {
        f"audit/{prefix}{name}"
        for prefix in ("", "dense_")
        for name in ("accuracy", "worst_class_accuracy", "calibration_error")
    } | {"audit/flip_rate", "audit/worst_class_change"}


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "x" * 10_000, "a\x1b[31m\nb", '🐈 & "cat"'])
def test_whatever_a_class_is_called_stays_text(found: Audit, name: str) -> None:
    record = copy.deepcopy(found.record)
    record["classes"][0]["class"] = record["flips"]["examples"][0]["class"] = name
    record["flips"]["by_class"][0]["class"] = record["attributions"]["examples"][0]["explained"] = name
    num = len(record["flips"]["examples"])
    blank = np.zeros((1, 2, 2), np.uint8)
    page = audit_page(record, Pictures([blank] * num, [(blank, blank[0], blank[0])] * 6))
    assert "<script" not in page
    assert "\x1b" not in page
    assert "x" * 100 not in page
    assert len(page) < 300_000


def test_the_graph_behind_the_file_comes_back_from_its_folder(home: Home) -> None:
    """Quantizers, bits by layer and narrower layers: all from the shapes and the names of what was kept."""
    sweep, result = ended(home, 1)
    work = revisit(home, JOB, sweep, result)
    graph = shipped_graph(work)
    assert graph is not None
    kept = work.recipe.quantization.weight_bits
    bits = graph.state_dict()["weight_bits"].tolist()
    assert bits[0] == bits[-1] == 8
    assert min(bits) <= kept
    widths = [module.out_channels for module in graph.modules() if isinstance(module, torch.nn.Conv2d)]
    assert max(widths) == 16


def test_a_trial_that_did_not_complete_is_refused(home: Home) -> None:
    with pytest.raises(UsageError, match=r"t0002 of 'few' is FAILED"):
        audited(home, 2)


def test_an_unknown_trial_has_near_ones(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["orchestrator", "audit", "few", "--trial", "t001", "--home", str(home.path)])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert "'t001'; did you mean 't000" in said.err


@pytest.mark.slow
def test_the_command_says_it_and_puts_it_on_the_trials_run(
    copied: Home, found: Audit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice: as JSON, and as a table. The figures are one point all the same."""
    said = []
    for output in ("json", "table"):
        line = ["orchestrator", "audit", "few", "--trial", "t0001", "--home", str(copied.path), "-o", output]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        said.append(capsys.readouterr())
    first = json.loads(found.record_file.read_text())
    assert without_times(json.loads(said[0].out)) == without_times(first)
    assert said[0].err.splitlines()[-1] == "writing the audit to MLflow"
    lines = said[1].out.splitlines()
    assert lines[0].split() == ["90", "images", "dense", "file", "change"]
    assert f"{found.metrics['audit/flip_rate']:.4g}" in next(line for line in lines if line.startswith("flip_rate"))
    assert lines[-1] == str(copied.sweep("few").trial_folder(1) / "audit.html")
    client = connect(copied, None)
    (experiment,) = (one for one in client.search_experiments() if one.name == "orchestrator")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`orchestrator.trial` = 't0001'")
    assert {key: value for key, value in run.data.metrics.items() if key.startswith("audit/")} == pytest.approx(found.metrics)
    assert len(client.get_metric_history(run.info.run_id, "audit/flip_rate")) == 1
    assert {"audit.html", "audit.json"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
