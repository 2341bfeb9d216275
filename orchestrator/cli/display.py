"""How a sweep looks while it runs: a live panel on a terminal, one line per change of state elsewhere. Always on stderr."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from orchestrator.pareto.front import Front, find_front, originals
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.job import Job


class SweepDisplay:
    """An observer of a sweep. Keeps the results it was told of, and how the front stands."""

    def __init__(self, job: Job, results: list[TrialResult], replicate_of: Mapping[int, int]) -> None:
        self._job, self._results, self._replicate_of = job, list(results), dict(replicate_of)
        self._began, self._first_end = time.monotonic(), 0.0
        self._ended_here = 0
        self._total = max([job.budget.trials, *(result.number + 1 for result in results)])
        self._phase, self._trials = "", dict[int, dict[str, Any]]()
        self._lock = threading.Lock()
        self.front = find_front(self._results, job.objectives, self._replicate_of)
        self._live: Any = None

    def __enter__(self) -> SweepDisplay:
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(get_renderable=self._panel, console=console, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.__exit__(*exc)

    def phase(self, text: str) -> None:
        self._phase = text
        self._line(f"{self._clock()} {text}")

    def proposed(self, proposal: Proposal) -> None:
        """Shown when it starts to run, not before; but promotions and replicates come on top of the budget's trials."""
        self._total = max(self._total, proposal.number + 1)
        self._replicate_of |= originals([proposal])

    def running(self, trials: dict[int, dict[str, Any]]) -> None:
        with self._lock:
            self._trials = trials

    def ended(self, result: TrialResult) -> None:
        with self._lock:
            self._results.append(result)
            self._ended_here += 1
            self._first_end = self._first_end or time.monotonic()
            self.front = find_front(self._results, self._job.objectives, self._replicate_of)
        self._line(f"{self._clock()} {self._outcome(result)}; {self._standing()}", bright=True)

    def _outcome(self, result: TrialResult) -> str:
        if result.state != "COMPLETE":
            failure = result.failure or {"class": "", "message": ""}
            message = (failure["message"].splitlines() or [""])[0][:120]
            return f"{result.id} {result.state}: {failure['class']}: {message}"
        values = ", ".join(f"{o.metric} {result.measurements[o.metric]:.4g}" for o in self._job.objectives)
        return f"{result.id} {values}" + ("" if result.feasible else " (breaks a constraint)")

    def _standing(self) -> str:
        done, total = len(self._results), self._total
        return f"{done}/{total} done, front {len(self.front.points)}, hypervolume {self.front.hypervolume:.4g}, {self._left()}"

    def _left(self) -> str:
        """Time left, from the pace since the first trial of this run ended."""
        remaining = self._total - len(self._results)
        if self._ended_here < 2 or remaining <= 0:
            return "last trials" if remaining <= 0 else "time left unknown"
        pace = (time.monotonic() - self._first_end) / (self._ended_here - 1)
        return f"about {_duration(pace * remaining)} left"

    def _clock(self) -> str:
        return f"[{_duration(time.monotonic() - self._began)}]"

    def _line(self, text: str, *, bright: bool = False) -> None:
        if self._live is None:
            print(text, file=sys.stderr, flush=True)
        elif bright:
            self._live.console.print(text, highlight=False, markup=False)

    def _panel(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            trials, done = dict(self._trials), len(self._results)
            standing = self._standing()
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(self._clock(), "dim"),
            ProgressBar(total=self._total, completed=done, width=30),
            Text(standing),
        )
        running = Table.grid(padding=(0, 2))
        for number, event in sorted(trials.items()):
            epoch = f"epoch {event['epoch'] + 1}/{event['epochs']}" if "epochs" in event else ""
            score = f"val accuracy {event['val_accuracy']:.3f}" if "val_accuracy" in event else ""
            running.add_row(Text(f"  t{number:04d}", "bold"), event["gang"], event["stage"], epoch, Text(score, "dim"))
        return Group(running if trials else Text(f"  {self._phase} ...", "dim"), bar)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def final_line(front: Front, seconds: float) -> str:
    """The last line of a run."""
    return f"{sum(front.counts.values())} trials in {_duration(seconds)}; {len(front.points)} on the front"
