"""Latency of single calls on a core of its own, while nothing else of ours runs on the machine."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

_WARM_UP_ROUNDS, _WARM_UP_S, _LEAST_S = 5, 0.05, 0.25
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Latency:
    """Of one call, in milliseconds: the median, the 95th percentile, and the ends of a 95 % interval of the median.

    The interval takes no distribution for granted, but calls that do not depend on each other: it says how well these calls
    fix the median, not what another machine or another clock rate would give.
    """

    median_ms: float
    p95_ms: float
    low_ms: float
    high_ms: float


def call_latency_ms(call: Callable[[], object], rounds: int, seconds: float | None = None) -> Latency:
    """The latency, after a warm-up, of `rounds` calls or of `seconds` of them, a quarter of one unless told otherwise.

    The more of the two: a call of some microseconds would otherwise be judged by a moment in which the clock rate moved.
    """
    return _measured(lambda: _clocked_ms(call), rounds, seconds)


def cuda_latency_ms(call: Callable[[], object], rounds: int) -> Latency:
    """The same for a call that gives work to the current CUDA device, timed there by events.

    Every call is waited for before the next begins, as for a single request: what it costs to give out the work shows as far as
    the device has to wait for it.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def timed_ms() -> float:
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    torch.cuda.synchronize()  # work that others gave out before is not ours
    return _measured(timed_ms, rounds)


def median_ranks(count: int) -> tuple[int, int]:
    """The ranks (from 1) of the order statistics that enclose the median of a distribution with 95 % confidence.

    Le Boudec 2010, "Performance Evaluation of Computer and Communication Systems", section 2.2: of `count` independent values
    the number below the median is binomial with one half, whatever their distribution. The ranks are symmetric, and the
    narrowest that reach the confidence. Up to 5 values cannot: theirs are the first and the last, with 94 % for 5.
    """
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    below = np.cumsum(np.exp(logs[-1] - logs - logs[::-1] - count * np.log(2.0)))
    low = max(1, int(np.searchsorted(below, (1 - _CONFIDENCE) / 2, side="right")))
    return low, count + 1 - low


def _measured(timed_ms: Callable[[], float], rounds: int, seconds: float | None = None) -> Latency:
    _repeated(timed_ms, _WARM_UP_ROUNDS, _WARM_UP_S)
    times = np.sort(_repeated(timed_ms, rounds, _LEAST_S if seconds is None else seconds))
    low, high = median_ranks(len(times))
    return Latency(float(np.median(times)), float(np.percentile(times, 95)), float(times[low - 1]), float(times[high - 1]))


def _repeated(timed_ms: Callable[[], float], rounds: int, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while len(times) < rounds or time.perf_counter_ns() < end:
        times.append(timed_ms())
    return times


def _clocked_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


@functools.cache
def processor_model() -> str:
    """What this machine's processor is called, or its architecture where the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


@contextlib.contextmanager
def pinned(cores: int) -> Iterator[None]:
    """Keep every thread of this process on the last `cores` cores that it may use; where the system cannot, do nothing.

    `sched_setaffinity` moves one thread only, so all of them are moved, and put back after.
    """
    tasks = Path("/proc/self/task")
    if not hasattr(os, "sched_setaffinity") or not tasks.is_dir():
        yield
        return
    before = {int(task.name): os.sched_getaffinity(int(task.name)) for task in tasks.iterdir()}
    chosen = sorted(os.sched_getaffinity(0))[-cores:]
    try:
        for thread in before:
            _move(thread, set(chosen))
        yield
    finally:
        for thread, allowed in before.items():
            _move(thread, allowed)


def _move(thread: int, cores: set[int]) -> None:
    with contextlib.suppress(ProcessLookupError):  # a thread may end while we look
        os.sched_setaffinity(thread, cores)
