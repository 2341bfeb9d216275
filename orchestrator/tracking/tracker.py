"""The port through which results are shown, and the thread that keeps a slow server out of the sweep's way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from orchestrator.pareto.front import Front
from orchestrator.results.trial_result import TrialResult


class Tracker(Protocol):
    """Shows a sweep while it runs. Written by one process."""

    def open(self) -> None:
        """Connect, and find or make the sweep's run."""

    def trial_ended(self, result: TrialResult, front: Front) -> None:
        """Show a trial and how the front stands after it."""

    def close(self, front: Front, files: list[Path]) -> None:
        """Show the final front and attach files."""


class InBackground:
    """A tracker on a thread of its own: calls return at once and are carried out in order.

    The first error ends tracking, not the sweep; it is kept in `error`.
    """

    def __init__(self, make: Callable[[], Tracker]) -> None:
        self.error: Exception | None = None
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, args=(make,), daemon=True)

    def open(self) -> None:
        self._thread.start()

    def trial_ended(self, result: TrialResult, front: Front) -> None:
        self._calls.put(lambda tracker: tracker.trial_ended(result, front))

    def close(self, front: Front, files: list[Path]) -> None:
        """Wait until everything is shown."""
        self._calls.put(lambda tracker: tracker.close(front, files))
        self._calls.put(None)
        self._thread.join()

    def _work(self, make: Callable[[], Tracker]) -> None:
        tracker: Tracker | None = None
        try:
            tracker = make()
            tracker.open()
        except Exception as error:  # noqa: BLE001 - whatever a tracking server does must not reach the sweep
            self.error = error
        while (call := self._calls.get()) is not None:
            if tracker is None or self.error is not None:
                continue
            try:
                call(tracker)
            except Exception as error:  # noqa: BLE001 - as above
                self.error = error
