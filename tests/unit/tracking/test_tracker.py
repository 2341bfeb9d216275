"""The thread between a sweep and its tracker: order, batches, and errors that stay there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from orchestrator.pareto.front import Front, find_front
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.objective import Objective
from orchestrator.tracking.tracker import End, InBackground

FRONT = find_front([], [Objective(metric="accuracy")])


class Recorder:
    """A tracker that keeps what it is told, and is slow or broken when asked to be."""

    def __init__(self, *, breaks_at: int = -1) -> None:
        self.told: list[list[int]] = []
        self.closed: list[Path] | None = None
        self.ticks, self.ticked = 0, threading.Event()
        self.busy, self.goes_on = threading.Event(), threading.Event()
        self.thread = ""
        self._breaks_at = breaks_at

    def open(self) -> None:
        self.thread = threading.current_thread().name

    def trials_ended(self, ends: Sequence[End]) -> None:
        self.told.append([result.number for result, _ in ends])
        if self._breaks_at in self.told[-1]:
            raise ConnectionError("the server is gone")
        if not self.busy.is_set():
            self.busy.set()
            self.goes_on.wait(10)

    def tick(self) -> None:
        self.ticks += 1
        self.ticked.set()

    def close(self, front: Front, files: list[Path]) -> None:
        self.closed = files


def test_what_comes_while_the_tracker_is_busy_is_handed_over_in_one_piece_and_in_order() -> None:
    recorder = Recorder()
    tracker = InBackground(lambda: recorder)
    tracker.open()
    tracker.trial_ended(TrialResult(3, "COMPLETE", {}), FRONT)
    assert recorder.busy.wait(10)
    for number in (1, 0, 2):
        tracker.trial_ended(TrialResult(number, "COMPLETE", {}), FRONT)
    recorder.goes_on.set()
    tracker.close(FRONT, [Path("report.html")])
    assert recorder.told == [[3], [1, 0, 2]]
    assert recorder.closed == [Path("report.html")]
    assert tracker.error is None
    assert recorder.thread != threading.current_thread().name


def test_a_sweep_without_ends_is_closed_all_the_same() -> None:
    recorder = Recorder()
    tracker = InBackground(lambda: recorder)
    tracker.open()
    tracker.close(FRONT, [])
    assert recorder.closed == []


def test_the_first_error_ends_tracking_and_not_the_sweep() -> None:
    recorder = Recorder(breaks_at=0)
    tracker = InBackground(lambda: recorder)
    tracker.open()
    for number in range(3):
        tracker.trial_ended(TrialResult(number, "COMPLETE", {}), FRONT)
    tracker.close(FRONT, [])
    assert str(tracker.error) == "the server is gone"
    assert len(recorder.told) == 1
    assert recorder.closed is None


def test_an_idle_tracker_is_told_that_time_goes_by() -> None:
    recorder = Recorder()
    tracker = InBackground(lambda: recorder, tick_s=0.01)
    tracker.open()
    assert recorder.ticked.wait(10)
    tracker.close(FRONT, [])
    assert recorder.told == []
    assert recorder.ticks >= 1
    assert tracker.error is None
