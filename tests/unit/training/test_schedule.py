"""Learning rates as a function of progress."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.training.schedule import plateau_factor, plateau_patience, rate_factor

SCHEDULES = ["constant", "step", "cosine", "one_cycle", "plateau"]


@settings(deadline=None)
@given(schedule=st.sampled_from(SCHEDULES), progress=st.floats(0, 0.9999), warmup=st.floats(0, 0.5))
def test_the_factor_is_above_nothing_and_at_most_one(schedule: str, progress: float, warmup: float) -> None:
    assert 0 < rate_factor(schedule, progress, warmup) <= 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_the_peak_is_reached(schedule: str, warmup: float) -> None:
    assert max(rate_factor(schedule, step / 1000, warmup) for step in range(1000)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "plateau"])
@pytest.mark.parametrize("warmup", [0.05, 0.3, 0.5])
def test_the_end_of_the_warm_up_is_continuous(schedule: str, warmup: float) -> None:
    before, after = rate_factor(schedule, warmup - 1e-7, warmup), rate_factor(schedule, warmup + 1e-7, warmup)
    assert before == pytest.approx(1, abs=1e-5)
    assert after == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "plateau"])
def test_the_warm_up_is_a_straight_line_from_almost_nothing(schedule: str) -> None:
    assert rate_factor(schedule, 0.0, 0.2) == 1e-3
    assert [rate_factor(schedule, part * 0.2, 0.2) for part in (0.25, 0.5, 0.75)] == pytest.approx([0.25, 0.5, 0.75])


def test_one_cycle_rises_over_three_tenths_and_falls_smoothly() -> None:
    factors = [rate_factor("one_cycle", step / 1000, 0.0) for step in range(1000)]
    assert factors[0] == pytest.approx(1 / 25)
    assert factors.index(max(factors)) == 300
    assert max(abs(a - b) for a, b in pairwise(factors)) < 0.01
    assert all(a < b for a, b in pairwise(factors[:301]))
    assert all(a > b for a, b in pairwise(factors[300:]))


def test_one_cycle_ignores_the_warm_up() -> None:
    assert rate_factor("one_cycle", 0.1, 0.5) == rate_factor("one_cycle", 0.1, 0.0)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_smooth_schedules_end_near_nothing(schedule: str, warmup: float) -> None:
    assert 0 < rate_factor(schedule, 0.999, warmup) < 1e-4
    assert rate_factor(schedule, 1.0, warmup) == pytest.approx(0, abs=1e-12)


def test_cosine_is_half_at_half() -> None:
    assert rate_factor("cosine", 0.5, 0.0) == pytest.approx(0.5)
    assert rate_factor("cosine", 0.6, 0.2) == pytest.approx(0.5)


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 1.0), (0.49, 1.0), (0.5, 0.1), (0.74, 0.1), (0.75, 0.01), (0.99, 0.01)])
def test_step_falls_tenfold_at_half_and_at_three_quarters(progress: float, factor: float) -> None:
    assert rate_factor("step", progress, 0.0) == factor


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_constant_stays_and_plateau_waits_for_scores(schedule: str) -> None:
    assert {rate_factor(schedule, step / 10, 0.0) for step in range(10)} == {1.0}


@pytest.mark.parametrize(
    ("scores", "patience", "factor"),
    [
        ([], 2, 1.0),
        ([0.5, 0.4, 0.4], 2, 1.0),
        ([0.5, 0.4, 0.4, 0.4], 2, 0.1),
        ([0.5, 0.4, 0.4, 0.4, 0.3, 0.3], 2, 0.1),
        ([0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.3], 2, 0.01),
        ([0.5, 0.4, 0.4, 0.6, 0.5, 0.5], 2, 1.0),
        ([0.5, 0.4, 0.4, 0.4, 0.6, 0.5, 0.5], 2, 0.1),
        ([0.5, 0.5], 0, 0.1),
        ([0.5, math.nan, math.nan, math.nan], 2, 0.1),
    ],
)
def test_the_rate_falls_after_more_bad_epochs_than_patience_bears(scores: list[float], patience: int, factor: float) -> None:
    assert plateau_factor(scores, patience) == pytest.approx(factor)


@settings(deadline=None)
@given(scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), max_size=30), patience=st.integers(0, 4))
def test_a_plateau_is_torchs(scores: list[float], patience: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.1, patience=patience, threshold=0.0, eps=0.0
    )
    for score in scores:
        reference.step(score)
    assert plateau_factor(scores, patience) == pytest.approx(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(("epochs", "patience"), [(1, 2), (10, 2), (29, 2), (30, 3), (200, 20)])
def test_patience_is_a_tenth_of_the_epochs_and_two_at_least(epochs: int, patience: int) -> None:
    assert plateau_patience(epochs) == patience


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="'triangle'"):
        rate_factor("triangle", 0.5, 0.1)
