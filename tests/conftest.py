"""What all tests share: a home of their own, and one finished sweep for those that only look."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Quickstart made small: what is under test is the walk, not the accuracy.
SMALL = [
    "--set=recipe.training.epochs=2",
    "--set=recipe.teacher.training.epochs=2",
    "--set=recipe.model.width=8",
    "--set=recipe.teacher.model.width=8",
    "--set=recipe.pruning.epochs=1",
    "--set=recipe.quantization.epochs=1",
    "--set=search.num_startup=3",
]

Orchestrator = Callable[..., subprocess.CompletedProcess[str]]


def orchestrator(*args: str | Path, home: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a process of its own."""
    environment = {**os.environ, "ORCHESTRATOR_HOME": str(home), "COLUMNS": "200", **(env or {})}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command: Sequence[str] = [sys.executable, "-m", "orchestrator.cli.main", *map(str, args)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of one sweep, "small", of 6 trials on two gangs of one worker: the session's one local Ray."""
    home = tmp_path_factory.mktemp("home")
    done = orchestrator("run", "jobs/quickstart.yaml", "--name", "small", "--trials", "6", *SMALL, home=home)
    assert done.returncode == 0, done.stderr[-3000:]
    (home / "stderr.txt").write_text(done.stderr)
    (home / "stdout.txt").write_text(done.stdout)
    return home
