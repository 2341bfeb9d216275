"""The model card and what a version is tagged with."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.delivery.card import Subject, image_shape, lineage, model_card, subject_of, working_commit
from orchestrator.delivery.pick import Wish, tags_of
from orchestrator.pareto.front import find_front
from orchestrator.results.trial_result import StageRecord, TrialResult
from orchestrator.spec.load import read_resolved
from orchestrator.spec.recipe import Recipe
from tests.made_sweeps import complete, give_file, linear_model, write_sweep

CHOICE = {"pruning.ratio": 0.25, "quantization.method": "qat"}
MODEL = linear_model(shape=(3, 5, 7))


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A trial of a sweep of two, pruned, quantized to 4 bits and distilled."""
    picked = complete(1, 0.9, 0, 0.2, choice=CHOICE, stages=[StageRecord("teacher", "abc123", 1.0, False, 0.0)])
    sweep = write_sweep(tmp_path, "night", [])
    recipe = {
        "pruning": {"ratio": 0.25},
        "quantization": {"method": "qat", "weight_bits": 4},
        "distillation": {"weight": 0.5},
    }
    give_file(sweep, picked, MODEL, recipe)
    for result in (complete(0, 0.8, 90_000, 0.1), picked):
        sweep.finish(result)
    sweep.record_test(1, {"accuracy": 0.875, "num_test_samples": 359, "trial": "t0001", "opened": 5.0})
    sweep.record_test(0, {"accuracy": 0.5})
    job = read_resolved(sweep.job_file)
    return subject_of(sweep, job, find_front(sweep.results(), job.objectives), picked)


def test_a_card_says_what_it_is_and_how_it_came_to_be(subject):
    card = model_card("digits", subject, Wish(knee=True).phrase(), lineage(subject, "d1", "c1"))
    for said in (
        "# digits\n",
        "`cifar_resnet20` for 10 classes: 0, 1, 2,",
        "Trial t0001 of sweep night.",
        "float32 (N, 3, 5, 7)",
        "The knee: the point of the front furthest below the plane through its extremes.",
        "The sweep has 2 complete; 2 are on the front.",
        "in onnxruntime 1 on cpu with 1 thread(s); accuracy over 360 validation images. Nothing is simulated.",
        "| accuracy | 0.9 |",
        "It was opened for 2 model(s) of this sweep: t0000, t0001. The best of several is a little flattering.",
        "| num_test_samples | 359 |",
        "trained for 10 epoch(s) by sgd",
        "distilled from `cifar_resnet20` (hinton, weight 0.5",
        "without the fraction 0.25 of the channels",
        "quantized (qat): weights 4 bits, activations 8 bits; first and last layer 8 bits",
        "Fewer than 8 bits make the file smaller, not faster",
        "| data | d1 |",
        "--set recipe.pruning.ratio=0.25",
        "orchestrator pick night --trial t0001",
    ):
        assert said in card
    assert "| opened |" not in card, "when it was is no result"


def test_a_card_of_a_plain_model_claims_nothing_more(subject):
    plain = replace(subject, recipe=Recipe(), test=None, opened=())
    card = model_card("x", plain, "it was named by hand", {})
    for said in ("- not distilled\n", "- not pruned\n", "- not quantized: 32-bit floats\n", "The test split was not opened"):
        assert said in card
    assert "Fewer than 8 bits" not in card


def test_hostile_names_stay_text_in_a_card(subject):
    hostile = replace(subject, classes=("<script>alert(1)</script>", "a|b\n# c", "`x`\x1b[31m", *map(str, range(30))))
    card = model_card("</h1><img src=x onerror=y>\n# other", hostile, "it was named by hand", {"job": "[a](javascript:b)"})
    assert "<script>" not in card
    assert "<img" not in card
    assert "\x1b" not in card
    assert "\n# c" not in card
    assert "\n# other" not in card
    assert "](javascript" not in card
    assert "and 13 more" in card
    assert max(map(len, model_card("x" * 10_000, subject, "y", {}).splitlines()[:1])) < 120


def test_where_a_model_comes_from(subject):
    space = json.dumps(subject.job.space.model_dump(mode="json", by_alias=True), sort_keys=True)
    assert lineage(subject, "d1", None) == {
        "sweep": "night",
        "trial": "t0001",
        "job": "night",
        "identity": subject.job.identity(),
        "space": hashlib.sha256(space.encode()).hexdigest(),
        "data": "d1",
        "teacher": "cifar_resnet20 abc123",
    }
    alone = replace(subject, result=TrialResult(1, "COMPLETE", {}))
    assert set(lineage(alone, None, "c1")) == {"sweep", "trial", "job", "identity", "space", "commit"}


def test_tags_say_what_the_next_one_is_compared_with(subject):
    tags = tags_of(subject, lineage(subject, "d1", "c1"))
    assert (tags["accuracy"], tags["latency_ms"], tags["size_bytes"]) == ("0.9", "0.2", str(len(MODEL.SerializeToString())))
    assert (tags["test.accuracy"], tags["test.opened"], tags["device"], tags["commit"]) == ("0.875", "2", "cpu", "c1")
    assert "test.accuracy" not in tags_of(replace(subject, test=None), {})


def test_the_commit_is_gits_own(tmp_path: Path):
    assert working_commit(tmp_path) is None
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        (tmp_path / "a").write_text("1")
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    assert working_commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert working_commit(tmp_path) == f"{head}-dirty"
    assert working_commit(tmp_path / "gone") is None


def test_the_shape_is_what_the_file_declares(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(MODEL.SerializeToString())
    assert image_shape(tmp_path / "m.onnx") == (3, 5, 7)


@pytest.mark.parametrize(
    ("wish", "phrase"),
    [
        (Wish(trial="t0001"), "it was named by hand"),
        (Wish(best="accuracy"), "the best of the front by accuracy"),
        (
            Wish(weights={"accuracy": 2.0, "macs": 0.5}, where="macs<1"),
            "the point that the weights accuracy=2, macs=0.5 lead to, among the trials with macs<1",
        ),
    ],
)
def test_a_wish_in_words(wish, phrase):
    assert wish.phrase() == phrase
