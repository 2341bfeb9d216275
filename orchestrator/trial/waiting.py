"""Rank 0's work that the other ranks have no part in: they are told so five times a second, and idle in no collective."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from orchestrator.training.process import Process

T = TypeVar("T")


def while_others_wait(process: Process, work: Callable[[], T], tick_s: float) -> T:
    """Do rank 0's work on a thread, and tell the other ranks "busy" each `tick_s` seconds, or the error that it ends in."""
    if process.world_size == 1:
        return work()
    raised: list[Exception] = []
    done: list[T] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:  # noqa: BLE001 - raised below, on every rank
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(tick_s)
        if thread.is_alive():
            process.agreed("busy")
    if raised:
        process.agreed(_portable(raised[0]))
        raise raised[0]
    return done[0]


def _portable(error: Exception) -> OrchestratorError:
    """The error, or its text in one of ours, which all survive the way to another process."""
    return error if isinstance(error, OrchestratorError) else OrchestratorError(f"{type(error).__name__} on rank 0: {error}")
