"""A sweep for one objective has a front as well: the best trials, and those that equal them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from orchestrator.pareto.front import Front, find_front, history
from orchestrator.report.picture import draw_front
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.objective import Objective

ACCURACIES = (0.8, 0.95, 0.9, 0.95, 0.95)


def front_of(*objectives: Objective) -> Front:
    return find_front([result(number, accuracy) for number, accuracy in enumerate(ACCURACIES)], objectives)


def result(number: int, accuracy: float) -> TrialResult:
    return TrialResult(number, "COMPLETE", {}, {"accuracy": accuracy, "size_bytes": 1000.0 + number}, ended=float(number))


def test_the_front_is_the_best_trial_and_its_equals_and_the_first_of_them_is_the_knee():
    front = front_of(Objective(metric="accuracy", reference=0.5))
    assert [point.number for point in front.points] == [1, 3, 4]
    assert front.ranks == (2, 0, 1, 0, 0)
    assert front.knee is not None
    assert front.knee.number == 1
    assert front.hypervolume == pytest.approx(0.45)


def test_the_volume_grows_with_the_best_so_far():
    results = [result(number, accuracy) for number, accuracy in enumerate(ACCURACIES)]
    assert history(results, [Objective(metric="accuracy", reference=0.5)]) == pytest.approx([0.3, 0.45, 0.45, 0.45, 0.45])


def test_its_picture_has_one_panel_as_that_of_two_objectives_has(tmp_path: Path):
    sizes = []
    for objectives in ([Objective(metric="accuracy")], [Objective(metric="accuracy"), Objective(metric="size_bytes")]):
        draw_front(front_of(*objectives), "a sweep", tmp_path / "front.png")
        with Image.open(tmp_path / "front.png") as picture:
            sizes.append(picture.size)
    assert sizes == [(780, 630)] * 2
