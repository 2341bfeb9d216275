"""Classes that lose and predictions that flip, counted by hand; Wilson's interval against published ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, spearmanr

from orchestrator.measure.attribution import similarities
from orchestrator.measure.audit import ClassChange, Flip, class_changes, confident_flips, flips_by_class, wilson_interval


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_as_newcombe_has_them(count: int, total: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_intervals_are_scipys(counted: tuple[int, int]) -> None:
    low, high = wilson_interval(*counted)
    wanted = binomtest(*counted).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert 0.0 <= low <= counted[0] / counted[1] <= high <= 1.0
    assert low < high


@pytest.mark.parametrize(("count", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_nothing_to_count_has_no_interval(count: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"must count some of at least one; given {count} of {total}"):
        wilson_interval(count, total)


def logits_of(predictions: list[int], confidence: list[float]) -> np.ndarray:
    """Logits over three classes that are so sure of these predictions."""
    rows = np.full((len(predictions), 3), 0.0)
    for row, (predicted, sure) in enumerate(zip(predictions, confidence, strict=True)):
        rows[row] = (1 - sure) / 2
        rows[row, predicted] = sure
    return np.log(rows).astype(np.float32)


LABELS = np.array([0, 0, 0, 1, 2, 2, 2, 2])
DENSE = logits_of([0, 0, 1, 1, 2, 2, 2, 0], [0.9, 0.6, 0.5, 0.8, 0.7, 0.9, 0.4, 0.8])
COMPRESSED = logits_of([0, 1, 1, 1, 0, 2, 0, 1], [0.9, 0.5, 0.9, 0.8, 0.95, 0.9, 0.5, 0.7])


def test_classes_that_lost_most_come_first() -> None:
    """Class 2 keeps one of three, class 0 one of two, and class 1 what it had."""
    found = class_changes(COMPRESSED, DENSE, LABELS)
    assert [(one.label, one.num, one.lost, one.gained) for one in found] == [(2, 4, 2, 0), (0, 3, 1, 0), (1, 1, 0, 0)]
    assert [one.change for one in found] == pytest.approx([-2 / 4, -1 / 3, 0.0])
    assert found[0] == ClassChange(2, 4, 0.25, wilson_interval(1, 4), 0.75, wilson_interval(3, 4), 2, 0)
    back = class_changes(DENSE, COMPRESSED, LABELS)
    assert [(one.label, one.lost, one.gained) for one in back] == [(1, 0, 0), (0, 0, 1), (2, 0, 2)]


def test_the_surest_flips_come_first() -> None:
    """Images 1, 4, 6 and 7 flip; the file is as sure of 1 as of 6, so the earlier comes first."""
    flips = confident_flips(COMPRESSED, DENSE, LABELS, 12)
    assert [flip.place for flip in flips] == [4, 7, 1, 6]
    first = Flip(4, 2, 2, pytest.approx(0.7, abs=1e-6), 0, pytest.approx(0.95, abs=1e-6))
    assert flips[0] == first
    assert confident_flips(COMPRESSED, DENSE, LABELS, 1) == [first]
    assert confident_flips(DENSE, DENSE, LABELS, 12) == []


@given(st.integers(0, 1000), st.integers(1, 60))
def test_classes_and_flips_add_up(seed: int, num: int) -> None:
    generator = np.random.default_rng(seed)
    one, other = (generator.normal(size=(num, 4)).astype(np.float32) for _ in range(2))
    labels = generator.integers(0, 4, num)
    found = class_changes(one, other, labels)
    right, dense_right = (one.argmax(1) == labels).sum(), (other.argmax(1) == labels).sum()
    assert sum(each.gained - each.lost for each in found) == right - dense_right
    assert sum(each.accuracy * each.num for each in found) == pytest.approx(right)
    flips = confident_flips(one, other, labels, num)
    by_class = flips_by_class(one, other, labels)
    assert all(
        sum(flip.label == each.label for flip in flips) == pytest.approx(by_class[each.label] * each.num) for each in found
    )


def test_similarities_are_rank_correlations_image_by_image() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(4, 5, 6, generator=generator) for _ in range(2))
    other[2] = one[2] ** 3
    wanted = [spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic for a, b in zip(one, other, strict=True)]
    assert similarities(one, other) == pytest.approx(wanted)
    assert similarities(one, other)[2] == pytest.approx(1.0)
