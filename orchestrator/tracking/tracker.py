"""The port through which results are shown, and the thread that keeps a slow server out of the sweep's way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from orchestrator.pareto.front import Front
from orchestrator.results.trial_result import TrialResult

End = tuple[TrialResult, Front]
"""A trial's result, and how the front stands after it."""


class Tracker(Protocol):
    """Shows a sweep while it runs. Written by one process."""

    def open(self) -> None:
        """Connect, find or make the sweep's run, and show what the facts have and the server has not."""

    def trials_ended(self, ends: Sequence[End]) -> None:
        """Show trials, in the order in which they ended; those that were shown before stay as they are."""

    def tick(self) -> None:
        """Show what changes with time; called every few seconds while a sweep runs, whether or not trials end."""

    def close(self, front: Front, files: list[Path]) -> None:
        """Show the final front and attach files."""


class InBackground:
    """A tracker on a thread of its own: calls return at once and are carried out in order.

    What comes in while the tracker is busy is handed to it in one piece, so that a server that falls behind has less to do. The
    first error ends tracking, not the sweep; it is kept in `error`.

    Args:
        tick_s: seconds after which an idle tracker may show what changes with time.
    """

    def __init__(self, make: Callable[[], Tracker], tick_s: float = 5.0) -> None:
        self._tick_s = tick_s
        self.error: Exception | None = None
        self._ends: queue.SimpleQueue[End | None] = queue.SimpleQueue()
        self._last: tuple[Front, list[Path]] | None = None
        self._thread = threading.Thread(target=self._work, args=(make,), daemon=True)

    def open(self) -> None:
        self._thread.start()

    def trial_ended(self, result: TrialResult, front: Front) -> None:
        self._ends.put((result, front))

    def close(self, front: Front, files: list[Path]) -> None:
        """Wait until everything is shown."""
        self._last = front, files
        self._ends.put(None)
        self._thread.join()

    def _work(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = make()
            tracker.open()
            more = True
            while more:
                ends, more = self._waiting()
                if ends:
                    tracker.trials_ended(ends)
                tracker.tick()
            if self._last is not None:
                tracker.close(*self._last)
        except Exception as error:  # noqa: BLE001 - whatever a tracking server does must not reach the sweep
            self.error = error

    def _waiting(self) -> tuple[list[End], bool]:
        """All ends that are there, and whether more may come; waits a little for the first of them."""
        ends: list[End] = []
        try:
            end = self._ends.get(timeout=self._tick_s)
            while end is not None:
                ends.append(end)
                end = self._ends.get_nowait()
        except queue.Empty:
            return ends, True
        return ends, False
