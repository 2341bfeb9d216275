"""Show a sweep in MLflow in processes that are killed: the first at its first commit to the database, the next at its second.

    python -m tests.unit.tracking.killed_projection HOME

And so on. For each commit HOME is copied to HOME-<commit>. There one process is killed by SIGKILL just before that commit of
something written, and another one then does the whole work. Ends when a first process comes through; prints how many did not.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from typing import Any

from orchestrator.pareto.front import find_front
from orchestrator.results.store import Home
from orchestrator.spec.load import read_resolved
from orchestrator.tracking.connection import connect
from orchestrator.tracking.mlflow_tracker import MlflowTracker


def show(home: Home) -> None:
    """The whole work: what the facts have, then the front."""
    sweep = home.sweep("killed")
    job = read_resolved(sweep.job_file)
    tracker = MlflowTracker(job, home, sweep)
    tracker.open()
    tracker.close(find_front(sweep.results(), job.objectives), [sweep.job_file])


def killed_at(commit: int) -> None:
    """Have this process killed just before a commit of something written, counted from 1."""
    from sqlalchemy import Engine, event

    commits = itertools.count(1)
    written = set()

    def note(connection: Any, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            written.add(connection)

    def count(connection: Any) -> None:
        if connection in written and next(commits) == commit:
            os.kill(os.getpid(), signal.SIGKILL)
        written.discard(connection)

    event.listen(Engine, "before_cursor_execute", note)
    event.listen(Engine, "commit", count)


def apart(home: Home, kill_at: int = 0) -> int:
    """The work in a child process; its exit status, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        if kill_at:
            killed_at(kill_at)
        show(home)
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    home = Home(sys.argv[1])
    connect(home, None)  # the database is made once, and mlflow is imported before any process is forked
    for commit in itertools.count(1):
        copy = Home(f"{home.path}-{commit}")
        shutil.copytree(home.path, copy.path)
        status, again = apart(copy, commit), apart(copy)
        if again != 0 or status not in (0, -signal.SIGKILL):
            sys.exit(f"commit {commit}: {status}, {again}")
        if status == 0:
            print(commit - 1)
            return


if __name__ == "__main__":
    main()
