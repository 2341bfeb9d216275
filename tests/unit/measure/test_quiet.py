"""The lock of one machine, held by several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import OrchestratorError
from orchestrator.measure.quiet import Quiet

LONG_S = 20.0

HOLD = """
import sys
from pathlib import Path
from orchestrator.measure.quiet import Quiet
quiet = Quiet(Path(sys.argv[1]))
with getattr(quiet, sys.argv[2])():
    print("in", flush=True)
    sys.stdin.readline()
print("out", flush=True)
"""

# Work without a pause, until told to end; then say when there was work.
BUSY = """
import json, select, sys, time
from pathlib import Path
from orchestrator.measure.quiet import Quiet
quiet = Quiet(Path(sys.argv[1]))
spans = []
print("in", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    with quiet.working():
        start = time.monotonic()
        time.sleep(0.002)
        spans.append((start, time.monotonic()))
print(json.dumps(spans), flush=True)
"""


class Other:
    """Another process with the lock."""

    def __init__(self, script: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def others() -> Iterator[list[Other]]:
    started: list[Other] = []
    yield started
    for other in started:
        other.end()


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Quiet]:
    lock = Quiet(tmp_path / "lock")
    yield lock
    lock._turnstile.close()  # it has no close of its own, and an open file is a warning
    lock._room.close()


class Attempt(threading.Thread):
    """Entering the lock in a thread of this process, that it may be seen to wait."""

    def __init__(self, quiet: Quiet, kind: str) -> None:
        super().__init__(daemon=True)
        self.quiet, self.kind, self.entered, self.leave = quiet, kind, threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with getattr(self.quiet, self.kind)():
            self.entered.set()
            self.leave.wait()


@pytest.mark.parametrize(
    ("theirs", "mine", "waits"),
    [
        ("working", "measuring", True),
        ("measuring", "working", True),
        ("measuring", "measuring", True),
        ("working", "working", False),
    ],
)
def test_measuring_has_the_machine_alone_and_work_shares_it(
    tmp_path: Path, others: list[Other], quiet: Quiet, theirs: str, mine: str, waits: bool
) -> None:
    others.append(Other(HOLD, str(tmp_path / "lock"), theirs))
    assert others[0].line() == "in"
    attempt = Attempt(quiet, mine)
    assert attempt.entered.wait(0.2 if waits else LONG_S) != waits
    others[0].go_on()
    assert others[0].line() == "out"
    assert attempt.entered.wait(LONG_S)
    attempt.leave.set()
    attempt.join(LONG_S)
    assert not attempt.is_alive()


@pytest.mark.parametrize("theirs", ["working", "measuring"])
def test_a_killed_process_lets_go(tmp_path: Path, others: list[Other], quiet: Quiet, theirs: str) -> None:
    others.append(Other(HOLD, str(tmp_path / "lock"), theirs))
    assert others[0].line() == "in"
    attempt = Attempt(quiet, "measuring")
    assert not attempt.entered.wait(0.1)
    others[0].end()
    assert attempt.entered.wait(LONG_S)
    attempt.leave.set()
    attempt.join(LONG_S)


def test_one_who_waits_to_measure_is_let_in_before_new_work(tmp_path: Path, others: list[Other], quiet: Quiet) -> None:
    others.append(Other(HOLD, str(tmp_path / "lock"), "working"))
    assert others[0].line() == "in"
    measuring = Attempt(quiet, "measuring")
    assert not measuring.entered.wait(0.2)
    others.append(Other(HOLD, str(tmp_path / "lock"), "working"))
    begun = threading.Event()
    threading.Thread(target=lambda: others[1].line() == "in" and begun.set(), daemon=True).start()
    assert not begun.wait(1.0)
    assert not measuring.entered.is_set()
    others[0].go_on()
    assert measuring.entered.wait(LONG_S)
    assert not begun.wait(0.1)
    measuring.leave.set()
    assert begun.wait(LONG_S)


def test_measuring_overlaps_no_work_and_is_not_starved_by_a_stream_of_it(
    tmp_path: Path, others: list[Other], quiet: Quiet
) -> None:
    others += [Other(BUSY, str(tmp_path / "lock")) for _ in range(3)]
    assert [other.line() for other in others] == ["in"] * 3
    measured = []
    for _ in range(10):
        asked = time.monotonic()
        with quiet.measuring():
            start = time.monotonic()
            time.sleep(0.005)
            measured.append((start, time.monotonic()))
        assert start - asked < LONG_S / 2
        time.sleep(0.01)
    for other in others:
        other.go_on()
    work = [span for other in others for span in json.loads(other.line())]
    assert len(work) > 10
    for start, end in measured:
        assert all(until <= start or end <= since for since, until in work)


def test_the_machine_is_free_again_after_an_error(tmp_path: Path, others: list[Other], quiet: Quiet) -> None:
    for kind in ("working", "measuring"):
        with pytest.raises(KeyError), getattr(quiet, kind)():
            raise KeyError
    others.append(Other(HOLD, str(tmp_path / "lock"), "measuring"))
    assert others[0].line() == "in"


def test_the_folder_is_made_for_its_owner_alone(tmp_path: Path, quiet: Quiet) -> None:
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o1777, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "lock"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(OrchestratorError, match=f"nobody else may write to it; it belongs .* mode {mode:04o}"):
        Quiet(folder)
    assert list(folder.iterdir()) == []


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").mkdir(mode=0o700)
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(OrchestratorError, match=f"must belong to user {me + 1}, .* it belongs to user {me}, with mode 0700"):
        Quiet(tmp_path / "lock")


@pytest.mark.parametrize("laid", ["folder", "turnstile.lock", "room.lock", "file"])
def test_what_another_laid_there_is_not_followed(tmp_path: Path, laid: str) -> None:
    folder, target = tmp_path / "lock", tmp_path / "target"
    if laid == "folder":
        target.mkdir()
        folder.symlink_to(target)
    elif laid == "file":
        folder.touch()
    else:
        folder.mkdir(mode=0o700)
        (folder / laid).symlink_to(target)
    with pytest.raises(OrchestratorError, match="must be a folder of one's own"):
        Quiet(folder)
    assert not (target / "room.lock").exists()
    assert target.exists() == (laid == "folder")


def test_the_locks_are_their_owners_alone(tmp_path: Path, quiet: Quiet) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "lock").iterdir()}
    assert modes == {"turnstile.lock": 0o600, "room.lock": 0o600}


def test_permission_to_work_is_cheap(quiet: Quiet) -> None:
    started = time.perf_counter()
    for _ in range(1000):
        with quiet.working():
            pass
    assert time.perf_counter() - started < 1.0
