"""What a gang and the desk tell each other while a trial runs, so that no step has to wait for a message."""

from __future__ import annotations

import os
import threading
from typing import Any

import ray
import ray.exceptions

from orchestrator.cluster.desk import Said
from orchestrator.cluster.ledger import Standing, Verdict

# That an actor did not answer. What it raised itself (RayTaskError) is a fault of ours, and stays one.
UNANSWERED = (ray.exceptions.RayActorError, ray.exceptions.RaySystemError)

_ANSWER_S, _ANSWER_WHILE_MEASURING_S = 0.8, 10.0


class Lifeline:
    """A thread of rank 0: it says that the gang lives and how far its trial is, and hears whether the trial is to go on.

    Where the desk no longer relies on the gang, its order is another's: the process ends, and Ray Train starts the group anew.
    """

    def __init__(self, desk: Any, gang: str, incarnation: str) -> None:
        self._desk, self._gang, self._incarnation = desk, gang, incarnation
        self._number, self._num_moves = -1, 0
        self._event: dict[str, Any] | None = None
        self._heard: Standing = (None, "go")
        self._over = False
        self.silence: Exception | None = None
        self.measuring = False

    def start(self) -> None:
        threading.Thread(target=self._talk, name="lifeline", daemon=True).start()

    def close(self) -> None:
        """Say nothing more, after what is being said."""
        self._over = True

    def begin(self, number: int) -> None:
        """From now on it is about this order."""
        self._number = number
        self.move()

    def move(self, event: dict[str, Any] | None = None) -> None:
        """The gang has done something, and its trial is so far (None: that is said in another way)."""
        self._event = event
        self._num_moves += 1

    @property
    def verdict(self) -> Verdict:
        """What is known of the order that it is about."""
        number, verdict = self._heard
        return verdict if number == self._number else "go"

    def _talk(self) -> None:
        while not self._over:
            wait_s = _ANSWER_WHILE_MEASURING_S if self.measuring else _ANSWER_S
            said = Said(self._num_moves, self._number, self._event)
            try:
                heard = ray.get(self._desk.beat.remote(self._gang, self._incarnation, said, self._heard, wait_s))
            except UNANSWERED as error:
                self.silence = error
                return
            if heard is not None:
                self._heard = heard
            elif not self._over:
                os._exit(1)  # whatever the other threads are doing: hanging, perhaps
