"""The interval of a median against SciPy's binomial and by simulation; timing by the clock and by CUDA events."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy.stats import binom

from orchestrator.measure import latency
from orchestrator.measure.latency import Latency, call_latency_ms, cuda_latency_ms, median_ranks


def confidence(count: int, low: int, high: int) -> float:
    """That the median of a distribution lies between these order statistics: `low` to `high - 1` values are below it."""
    return float(binom.cdf(high - 1, count, 0.5) - binom.cdf(low - 1, count, 0.5))


@pytest.mark.parametrize("count", [*range(6, 120), 1000, 1001, 25_000])
def test_ranks_are_the_narrowest_that_reach_the_confidence(count: int) -> None:
    low, high = median_ranks(count)
    assert 1 <= low <= high <= count
    assert low + high == count + 1
    assert confidence(count, low, high) >= 0.95
    if high - low > 2:
        assert confidence(count, low + 1, high - 1) < 0.95


@pytest.mark.parametrize(
    ("count", "ranks"), [(6, (1, 6)), (9, (2, 8)), (20, (6, 15)), (31, (10, 22)), (70, (27, 44)), (100, (40, 61))]
)
def test_ranks_are_those_of_printed_tables(count: int, ranks: tuple[int, int]) -> None:
    assert median_ranks(count) == ranks


@pytest.mark.parametrize("count", range(1, 6))
def test_few_values_give_their_extremes(count: int) -> None:
    assert median_ranks(count) == (1, count)
    assert confidence(5, 1, 5) == pytest.approx(0.9375)


@pytest.mark.parametrize("count", [5, 20, 101])
@pytest.mark.parametrize("draw", [np.random.Generator.standard_exponential, np.random.Generator.standard_cauchy])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int, draw: Callable[..., np.ndarray]) -> None:
    """2000 samples of skewed and of heavy-tailed values: the share of hits is off by less than three of its deviations."""
    values = np.sort(draw(np.random.default_rng(0), (2000, count)), axis=1)
    median = np.log(2) if draw is np.random.Generator.standard_exponential else 0.0
    low, high = median_ranks(count)
    hits = ((values[:, low - 1] <= median) & (median <= values[:, high - 1])).mean()
    wanted = confidence(count, low, high)
    assert hits == pytest.approx(wanted, abs=3 * (wanted * (1 - wanted) / 2000) ** 0.5)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A clock in nanoseconds that only moves when it is told to."""
    now = [0]
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: now[0])
    return now


def test_every_figure_of_known_times(clock: list[int]) -> None:
    """After the warm-up 100 calls last 1 to 100 ms, in an order of their own; the interval is from the 40th to the 61st."""
    order = np.random.default_rng(0).permutation(100) + 1
    lengths = itertools.chain([10**3] * 5, order.tolist(), itertools.repeat(10**6))

    def call() -> None:
        clock[0] += next(lengths) * 10**6

    assert call_latency_ms(call, 100) == Latency(50.5, pytest.approx(95.05), 40.0, 61.0)


def test_short_calls_are_timed_for_a_quarter_of_a_second(clock: list[int]) -> None:
    calls: list[int] = []

    def call() -> None:
        clock[0] += 10**6
        calls.append(1)

    assert call_latency_ms(call, 5) == Latency(1.0, 1.0, 1.0, 1.0)
    assert len(calls) == 50 + 250


class FakeEvent:
    """What CUDA events do, by a clock that moves while the device works: times are read after both have been reached."""

    def __init__(self, clock: list[int], log: list[str], enable_timing: bool) -> None:
        assert enable_timing
        self.clock, self.log, self.at, self.reached = clock, log, 0, False

    def record(self) -> None:
        self.at, self.reached = self.clock[0], False
        self.log.append("record")

    def synchronize(self) -> None:
        self.reached = True
        self.log.append("wait")

    def elapsed_time(self, end: FakeEvent) -> float:
        assert end.reached
        return (end.at - self.at) / 1e6


def test_each_call_stands_between_events_and_is_waited_for(clock: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: FakeEvent(clock, log, enable_timing))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("idle"))

    def call() -> None:
        log.append("call")
        clock[0] += 20 * 10**6

    assert cuda_latency_ms(call, 30) == Latency(20.0, 20.0, 20.0, 20.0)
    assert log == ["idle", *["record", "call", "record", "wait"] * (5 + 30)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: events are timed by it")
def test_events_time_the_work_of_a_device() -> None:
    """Eight times as many products of matrices take about eight times as long, and the clock agrees."""
    matrix = torch.randn(2048, 2048, device="cuda")

    def products(count: int) -> Callable[[], None]:
        def call() -> None:
            for _ in range(count):
                torch.mm(matrix, matrix)

        return call

    def waited() -> None:
        products(64)()
        torch.cuda.synchronize()

    few, many = cuda_latency_ms(products(8), 50), cuda_latency_ms(products(64), 50)
    assert 0 < few.low_ms <= few.median_ms <= few.high_ms
    assert 5 < many.median_ms / few.median_ms < 12
    assert many.median_ms == pytest.approx(call_latency_ms(waited, 50).median_ms, rel=0.25)
