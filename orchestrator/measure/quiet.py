"""A readers-writer lock over the machine: work shares it, a latency measurement has it alone.

Both files are locked by the kernel, which lets go when a process dies. The turnstile keeps a stream of workers from starving
the one that measures: it closes it first, so that no new piece of work begins.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


class Quiet:
    """The lock of one machine.

    Args:
        folder: local to the machine; created when missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._turnstile = (folder / "turnstile.lock").open("a")
        self._room = (folder / "room.lock").open("a")

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
    def measuring(self) -> Iterator[None]:
        """Wait until all work under way has ended, and keep more from starting."""
        fcntl.flock(self._turnstile, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)
