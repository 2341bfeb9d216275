"""A sweep's facts, shown in MLflow: what is missing there is written, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.pareto.front import find_front, originals
from orchestrator.report.page import write_report
from orchestrator.results.files import exclusive
from orchestrator.results.store import Home, Sweep
from orchestrator.results.table import write_table
from orchestrator.spec.job import Job, without_password
from orchestrator.tracking.connection import answering, tracking_uri
from orchestrator.tracking.mlflow_tracker import MlflowTracker

Progress = Callable[[str, int, int], object]
"""Is told what is written, and how many of how many are done."""


@dataclass(frozen=True)
class Synced:
    """What a sync wrote: runs of trials, models of the front, and runs whose place relative to the front had changed.

    Args:
        tracking_uri: where to, without a password.
    """

    sweep: str
    tracking_uri: str
    trials: int
    runs: int
    moved: int
    models: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sync(home: Home, sweep: Sweep, job: Job, uri: str | None = None, progress: Progress = lambda *_: None) -> Synced:
    """Make MLflow show a sweep as its facts have it. What is there already is left alone, so that a second sync writes nothing.

    Page and table are written anew where there are none, or where a fact is younger than they are.

    Args:
        uri: of an MLflow server or database, instead of the job's. It may hold a password: it is kept nowhere.

    Raises:
        UsageError: the sweep is being run; the process that runs it writes to MLflow, and nobody else may.
        UnreachableError: the server does not answer, or refuses.
    """
    address = tracking_uri(home, uri or job.tracking.uri)
    with exclusive(sweep.lock_file, wait=False) as mine:
        if not mine:
            raise UsageError(f"sweep {sweep.name!r} must not be running: what runs it keeps MLflow up to date")
        files = _derived(sweep, job)
        results = sweep.results()
        front = find_front(results, job.objectives, originals(sweep.proposals()))
        tracker = MlflowTracker(job, home, sweep, uri)
        with answering(address):
            tracker.connect()
            runs = tracker.catch_up(lambda done, total: progress("trials", done, total))
            moved = tracker.show_standing(front)
            models = tracker.show_models(front, lambda done, total: progress("models", done, total))
            tracker.close(front, files)
    return Synced(sweep.name, without_password(address), len(results), runs, moved, models)


def _derived(sweep: Sweep, job: Job) -> list[Path]:
    """The page and the table of a sweep, written anew where they are older than what they tell."""
    facts = [sweep.job_file, *(sweep.path / "trials").glob("t*/*.json")]
    newest = max(fact.stat().st_mtime_ns for fact in facts)
    files = [sweep.report_file, sweep.table_file]
    if any(not file.exists() or file.stat().st_mtime_ns < newest for file in files):
        write_table(sweep.results(), sweep.table_file)
        write_report(sweep, job)
    return files
