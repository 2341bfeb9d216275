"""A readers-writer lock over the machine: work shares it, a latency measurement has it alone.

Both files are locked by the kernel, which lets go when a process dies. The turnstile keeps a stream of workers from starving
the one that measures: it closes it first, so that no new piece of work begins.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from orchestrator.errors import OrchestratorError


class Quiet:
    """The lock of one machine.

    Args:
        folder: local to the machine; created when missing.

    Raises:
        OrchestratorError: the folder is another user's or others may write to it, or it or a lock in it is a link: its name in
            the temporary directory can be foreseen, so that others could lay something there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _hold_to_its_owner(folder, os.fstat(place))
                with contextlib.ExitStack() as opened:
                    self._turnstile = opened.enter_context(_lock_file("turnstile.lock", place))
                    self._room = opened.enter_context(_lock_file("room.lock", place))
                    opened.pop_all()  # both are there, and stay open
            finally:
                os.close(place)
        except OSError as error:
            raise OrchestratorError(f"{folder} must be a folder of one's own with lock files in it: {error}") from error

    def __del__(self) -> None:
        for lock in (vars(self).get("_turnstile"), vars(self).get("_room")):
            if lock is not None:
                lock.close()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Do a piece of work (a training step, an export) that would disturb a measurement. Costs microseconds."""
        fcntl.flock(self._turnstile, fcntl.LOCK_SH)
        fcntl.flock(self._room, fcntl.LOCK_SH)
        fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """The same on another thread of this process, with locks of its own: the kernel lets go when the first unlocks."""
        other = Quiet(self._folder)
        with other._turnstile, other._room, other.working():
            yield

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Wait until all work under way has ended, and keep more from starting."""
        fcntl.flock(self._turnstile, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)


def _hold_to_its_owner(folder: Path, status: os.stat_result) -> None:
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise OrchestratorError(
            f"{folder} must belong to user {os.getuid()}, and nobody else may write to it; "
            f"it belongs to user {status.st_uid}, with mode {mode:04o}"
        )


def _lock_file(name: str, folder: int) -> FileIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    return FileIO(os.open(name, flags, 0o600, dir_fd=folder), "r+")
