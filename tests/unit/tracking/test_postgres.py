"""A sweep in an MLflow that keeps its tables in PostgreSQL: Debian's own, started here, with a password."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestrator.delivery.sync import sync
from orchestrator.results.store import Home
from orchestrator.tracking.connection import connect
from tests.unit.tracking.shown import free_port, made, mlflow_server, on_server

pytestmark = pytest.mark.slow

SECRET = "hunter2-and-more"


def binaries() -> Path:
    """The folder of the newest PostgreSQL of Debian's packages."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    assert found, "PostgreSQL must be installed: apt-get install postgresql"
    return found[-1].parent


def as_nobody_in_particular() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: there it runs as its own user, elsewhere as whoever runs the tests."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URI of an empty database, its password included."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    owner = as_nobody_in_particular()
    data, log, password = folder / "data", folder / "log.txt", folder / "password"
    password.write_text(SECRET)
    log.touch()
    if owner:
        for path in (folder, log, password):
            shutil.chown(path, owner["user"], owner["group"])
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(folder)}

    def run(command: Sequence[str | Path]) -> None:
        done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, **owner)
        assert done.returncode == 0, done.stderr

    safe = ["--auth=scram-sha-256", f"--pwfile={password}", "--username=orchestrator", "--encoding=UTF8", "--no-sync"]
    run([binaries() / "initdb", f"--pgdata={data}", *safe])
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", "", "-c", "fsync=off"]
    with log.open("wb") as said:
        process = subprocess.Popen(
            [str(binaries() / "postgres"), "-D", str(data), *options],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=said,
            **owner,
        )
    try:
        uri = f"postgresql://orchestrator:{SECRET}@127.0.0.1:{port}/postgres"
        _wait(uri, process, log)
        yield uri
    finally:
        process.terminate()  # which waits for clients
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            psycopg.connect(uri).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


def rows(uri: str) -> dict[str, int]:
    """How many rows each table has, and that none holds the password."""
    with contextlib.closing(psycopg.connect(uri)) as database, database.cursor() as cursor:
        cursor.execute("select table_name from information_schema.tables where table_schema = 'public'")
        counts = {}
        for (table,) in cursor.fetchall():
            cursor.execute(f'select t::text from "{table}" t')
            found = [text for (text,) in cursor.fetchall()]
            assert not any(SECRET in text for text in found), table
            counts[table] = len(found)
    return counts


def test_a_server_on_postgresql_shows_what_the_embedded_database_does(postgres: str, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    sweep, job = made(home)
    sync(home, sweep, job)
    embedded = on_server(connect(home, None), job)
    with mlflow_server(postgres, tmp_path / "files", tmp_path / "log.txt") as url:
        done = sync(home, sweep, job, url)
        assert (done.runs, done.models) == (24, len(embedded["models"]))
        assert on_server(connect(home, url), job) == embedded
        before = rows(postgres)
        assert before["runs"] == 25
        sync(home, sweep, job, url)
        assert rows(postgres) == before


def test_a_database_can_be_opened_without_a_server_and_keeps_files_in_the_home_folder(postgres: str, tmp_path: Path) -> None:
    """After the server, or alone: sweeps of another experiment."""
    home = Home(tmp_path / "home")
    sweep, job = made(home, trials=4, epochs=1)
    job = job.model_copy(update={"tracking": job.tracking.model_copy(update={"experiment": "../direct <b>"})})
    done = sync(home, sweep, job, postgres)
    assert SECRET not in repr(done)
    shown = on_server(connect(home, postgres), job)
    assert shown["counts"][0] == 5
    assert shown["runs"]["sweep"]["files"] == ["job.yaml", "report.html", "space.yaml", "trials.parquet"]
    (folder,) = home.artifacts.iterdir()
    assert len(list(folder.rglob("report.html"))) == 1
    assert not any(SECRET.encode() in path.read_bytes() for path in home.path.rglob("*") if path.is_file())
    before = rows(postgres)
    sync(home, sweep, job, postgres)
    assert rows(postgres) == before
