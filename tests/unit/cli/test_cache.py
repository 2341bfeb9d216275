"""`orchestrator cache`: what stages left, by kind, and how it is cleared."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.cache import command
from orchestrator.errors import UsageError
from orchestrator.results.store import Home
from orchestrator.spec.load import load_job, resolved_text
from orchestrator.trial.shelf import MANIFEST, Hold, seal
from tests.conftest import REPOSITORY

DAY = 86_400.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two teachers, of 2 kB and ten days, one lesson, of 500 bytes and an hour, and a checkpoint of a minute."""
    for key, stage, num_bytes, age in (
        ("a", "teacher", 2000, 10 * DAY),
        ("b", "teacher", 2000, 10.5 * DAY),
        ("c", "lessons", 500, 3600.0),
    ):
        folder = Home(tmp_path).stages / key
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(num_bytes))
        seal(folder, stage, 1.0)
        os.utime(folder / MANIFEST, (time.time() - age - 5,) * 2)
    partial = Home(tmp_path).stages / "d.partial"
    partial.mkdir()
    (partial / "checkpoint.safetensors").write_bytes(bytes(30))
    return tmp_path


def cache(home: Path, *args: str) -> Result:
    """The command in this process, to which nobody can answer."""
    return CliRunner().invoke(command, ["--home", str(home), *args])


def left(home: Path) -> list[str]:
    return sorted(path.name for path in Home(home).stages.iterdir() if path.is_dir())


def test_the_table_is_by_kind(home: Path) -> None:
    lines = cache(home).stdout.splitlines()
    assert [line.split() for line in lines[:-1]] == [
        ["stage", "entries", "size", "last", "used"],
        ["checkpoint", "1", "30", "B", "0", "s", "ago"],
        ["lessons", "1", "500", "B", "1", "h", "ago"],
        ["teacher", "2", "4", "kB", "10", "d", "ago"],
    ]
    assert lines[-1] == f"4 entries, 4.53 kB in {Home(home).stages} (no limit)"


def test_json_has_bytes_and_times_and_the_limit_of_the_newest_sweep(home: Path) -> None:
    for name, limit in (("old", "9.0"), ("new", "2.5")):
        job = load_job(REPOSITORY / "jobs/quickstart.yaml", [f"name={name}", f"storage.limit_gb={limit}"])
        Home(home).sweep(name).create(resolved_text(job))
    os.utime(Home(home).sweep("old").job_file, (0, 0))
    tree = json.loads(cache(home, "-o", "json").stdout)
    kinds = {row.pop("kind"): row for row in tree.pop("kinds")}
    assert tree == {"folder": str(Home(home).stages), "entries": 4, "bytes": 4530, "limit_bytes": 2_500_000_000}
    assert {kind: (row["entries"], row["bytes"]) for kind, row in kinds.items()} == {
        "checkpoint": (1, 30),
        "lessons": (1, 500),
        "teacher": (2, 4000),
    }
    assert time.time() - kinds["teacher"]["last_used"] == pytest.approx(10 * DAY, abs=60)
    assert "(limit 2.5 GB)" in cache(home).stdout


def test_a_home_without_stages_is_empty_and_stays_absent(tmp_path: Path) -> None:
    assert json.loads(cache(tmp_path / "home", "-o", "json").stdout)["kinds"] == []
    assert "0 entries, 0 B" in cache(tmp_path / "home").stdout
    assert cache(tmp_path / "home", "--clear").exit_code == 0
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("options", "stay"),
    [
        ([], []),
        (["--older-than", "7d"], ["c", "d.partial"]),
        (["--older-than", "252h"], ["a", "c", "d.partial"]),
        (["--kind", "teacher"], ["c", "d.partial"]),
        (["--kind", "checkpoint"], ["a", "b", "c"]),
        (["--kind", "lessons", "--older-than", "1d"], ["a", "b", "c", "d.partial"]),
    ],
)
def test_what_is_shown_is_what_is_cleared(options: list[str], stay: list[str], home: Path) -> None:
    shown = json.loads(cache(home, *options, "-o", "json").stdout)
    told = cache(home, "--clear", "--yes", *options, "-o", "json")
    assert told.exit_code == 0
    assert json.loads(told.stdout) == {"deleted": shown["entries"], "bytes": shown["bytes"], "in_use": 0}
    assert left(home) == stay


def test_what_is_in_use_stays(home: Path) -> None:
    reader = Hold.on(Home(home).stages / "a" / MANIFEST, alone=False)
    told = cache(home, "--clear", "--yes")
    assert (told.exit_code, told.stdout) == (0, "deleted 3 entries, 2.53 kB; 1 in use were left\n")
    assert left(home) == ["a"]
    del reader


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--clear"], "--yes must be given where nobody can be asked; 4 entries, 4.53 kB would be deleted"),
        (["--kind", "teachr"], "--kind must be one of checkpoint, lessons, teacher; given 'teachr'; did you mean 'teacher'?"),
        (["--older-than", "week"], "--older-than must be a number and one of s, m, h, d, w, as in 7d; given 'week'"),
        (["--older-than", "-1d"], "--older-than must be"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_goes(options: list[str], said: str, home: Path) -> None:
    error = cache(home, *options).exception
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert str(error).startswith(said)
    assert left(home) == ["a", "b", "c", "d.partial"]


@pytest.mark.parametrize(("answer", "code", "stay"), [("n\n", 0, 4), ("y\n", 0, 0), ("\x04", 130, 4)])
def test_somebody_at_a_terminal_is_asked(answer: str, code: int, stay: int, home: Path) -> None:
    """Who answers with Ctrl-D has interrupted it."""
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "orchestrator.cli.main", "cache", "--clear", "--home", str(home)]
    asked = subprocess.Popen(line, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY, text=True)
    assert asked.stderr is not None
    assert asked.stderr.read(7) == "delete "
    os.write(ours, answer.encode())
    stdout, stderr = asked.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert asked.returncode == code, stderr
    assert stdout == ("deleted 4 entries, 4.53 kB\n" if answer == "y\n" else "")
    assert len(left(home)) == stay
