"""Latency of single calls on a core of its own, while nothing else of ours runs on the machine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

_WARM_UP_S, _LEAST_S = 0.05, 0.25


def call_latency_ms(call: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median and 95th percentile in milliseconds, after a warm-up, of `rounds` calls or a quarter of a second of them.

    The more of the two: a call of some microseconds would otherwise be judged by a moment in which the clock rate moved.
    """
    _timed(call, 5, _WARM_UP_S)
    times = np.array(_timed(call, rounds, _LEAST_S))
    return float(np.median(times) / 1e6), float(np.percentile(times, 95) / 1e6)


def _timed(call: Callable[[], object], rounds: int, seconds: float) -> list[int]:
    times: list[int] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while len(times) < rounds or time.perf_counter_ns() < end:
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return times


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
