"""Who works on what: the rules of the desk, without Ray, clocks or threads.

A gang's worker group has an incarnation, a new one each time Ray Train starts it. Its ranks ask for leases by serial number, so
that each of them gets the same order whenever it asks, and no rank has to tell another. An order is held by one incarnation.
Who has lost it, to a successor or by being silent, is told to leave, and what he says of it is not listened to.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_ATTEMPTS = 3

Verdict = Literal["go", "stop", "abandon"]
CLOSED = "closed"

Standing = tuple[int | None, Verdict]
"""The number of the order that a gang holds, and what it is to do with it."""

Order = dict[str, Any]


@dataclass(frozen=True)
class Patience:
    """How long a gang may be silent, in seconds: without a sign of life, and without a step though it gives signs of life."""

    lost_after_s: float = 120.0
    stalled_after_s: float | None = None


def why_lost(now: float, heard: float | None, moved: float | None, patience: Patience) -> str:
    """Why a gang that works on an order is no longer relied on, or "" where it is. Times are in seconds of one clock.

    Args:
        heard: when it last gave a sign of life, None where nobody listens yet.
        moved: when it was last known to have done a step, or anything else that it says.
    """
    if heard is not None and now - heard > patience.lost_after_s:
        return f"nothing was heard of it for {now - heard:.0f} s"
    if moved is not None and patience.stalled_after_s is not None and now - moved > patience.stalled_after_s:
        return f"it has done nothing for {now - moved:.0f} s"
    return ""


@dataclass
class GangBook:
    """What one gang has been given since its worker group started.

    Args:
        served: orders that it has ended since its run began, over all of the run's groups.
        num_moves: what it last said of how much it has done, and `moved`, when that last changed.
    """

    incarnation: str = ""
    leases: list[Order] = field(default_factory=list)
    current: Order | None = None
    served: int = 0
    retired: bool = False
    heard: float | None = None
    num_moves: int | None = None
    moved: float | None = None


class Ledger:
    """Orders that wait, the one each gang works on, and how the others ended."""

    def __init__(self, patience: Patience = Patience()) -> None:
        self.patience = patience
        self.waiting: deque[Order] = deque()
        self.gangs: dict[str, GangBook] = {}
        self.outcomes: dict[int, dict[str, Any]] = {}
        self.latest: dict[int, dict[str, Any]] = {}
        self.closed = False
        self._abandoning = False
        self._stopped: set[int] = set()
        self._attempts: dict[int, int] = {}
        self._rungs: dict[int, set[tuple[str, int]]] = {}
        self._gates: dict[int, dict[str, Any]] = {}
        self._unjudged: dict[int, dict[str, Any]] = {}

    def watch(self, number: int, rungs: list[tuple[str, int]]) -> None:
        """After which epochs (stage, epoch) of an order the driver is to judge it."""
        self._rungs[number] = {(stage, epoch) for stage, epoch in rungs}

    def submit(self, order: Order) -> None:
        """Queue an order, once."""
        known = {queued["number"] for queued in self.waiting} | {b.current["number"] for b in self.gangs.values() if b.current}
        if order["number"] in known or order["number"] in self.outcomes:
            return
        if self._abandoning:
            self.outcomes[order["number"]] = {"outcome": "abandoned"}
        else:
            self.waiting.append(order)

    @property
    def num_started(self) -> int:
        """Gangs whose worker group is there."""
        return sum(book.incarnation != "" for book in self.gangs.values())

    @property
    def num_orders(self) -> int:
        """Orders that wait or are worked on."""
        return len(self.waiting) + sum(book.current is not None for book in self.gangs.values())

    def arrive(self, gang: str, incarnation: str) -> None:
        """A worker group has started. What its predecessor left unfinished goes to the head of the queue, or is given up."""
        book = self.gangs.setdefault(gang, GangBook())
        if book.incarnation != incarnation:
            self._bury(gang, incarnation)

    def hear(self, gang: str, incarnation: str, now: float, num_moves: int | None = None) -> None:
        """A gang has given a sign of life.

        Args:
            num_moves: a number that changes with everything the gang does; None where it is not told.
        """
        book = self.gangs.get(gang)
        if book is None or book.incarnation != incarnation:
            return
        book.heard = now
        if num_moves is not None and num_moves != book.num_moves:
            book.num_moves, book.moved = num_moves, now

    def bury_silent(self, now: float) -> dict[str, str]:
        """Take the orders of gangs that have been silent for too long; returns why, by gang."""
        busy = {gang: book for gang, book in self.gangs.items() if book.current is not None}
        whys = {gang: why_lost(now, book.heard, book.moved, self.patience) for gang, book in busy.items()}
        lost = {gang: why for gang, why in whys.items() if why}
        for gang in lost:
            self._bury(gang, "")
        return lost

    def retire(self, gang: str, incarnation: str) -> None:
        """A gang wants its processes to be started anew: it gets no more orders until they are."""
        if self.gangs[gang].incarnation == incarnation:
            self.gangs[gang].retired = True

    def left(self, gang: str, *, failed: bool) -> bool:
        """A gang's run has ended. Returns whether it is worth another: unless it failed before it had ended a single order."""
        book = self.gangs.setdefault(gang, GangBook())
        worth = book.served > 0 or not failed
        self._bury(gang, "")
        self.gangs[gang].served = 0
        return worth

    def called_for(self) -> bool | None:
        """Whether a gang is to be started again: True when an order waits, False when none will, None while nobody knows."""
        if self.closed or self._abandoning:
            return False
        return True if self.waiting else None

    def _bury(self, gang: str, successor: str) -> None:
        book = self.gangs[gang]
        self.gangs[gang] = GangBook(incarnation=successor, served=book.served)
        if book.current is None:
            return
        number = book.current["number"]
        self.latest.pop(number, None)  # how far the lost attempt was
        self._unjudged.pop(number, None)
        if self._attempts[number] >= MAX_ATTEMPTS:
            message = f"its workers were lost {MAX_ATTEMPTS} times"
            self.outcomes[number] = {"outcome": "failed", "class": "WorkerLost", "message": message, "traceback": ""}
        elif self._abandoning:
            self.outcomes[number] = {"outcome": "abandoned"}
        else:
            self.waiting.appendleft(book.current)

    def lease(self, gang: str, incarnation: str, rank: int, serial: int) -> Order | str | None:
        """The order with that serial number for every rank; None while there is none, CLOSED when there will be none."""
        book = self.gangs[gang]
        if incarnation != book.incarnation:
            return CLOSED
        if serial < len(book.leases):
            return book.leases[serial]
        if self.closed or book.retired:
            return CLOSED
        if rank == 0 and self.waiting:
            order = self.waiting.popleft()
            number = order["number"]
            self._attempts[number] = self._attempts.get(number, 0) + 1
            book.current = {**order, "attempt": f"a{self._attempts[number]}"}
            book.leases.append(book.current)
            book.num_moves = book.moved = None  # how long it waited for an order does not count
            return book.current
        return None

    def report(self, gang: str, incarnation: str, number: int, event: dict[str, Any]) -> Verdict:
        """Note how far a trial is; returns whether it is to go on."""
        if not self._holds(gang, incarnation, number):
            return "abandon"
        self.note(gang, incarnation, number, event)
        if "gate" in event:
            self._gates[number] = {**self._gates.get(number, {}), **event["gate"]}
        if "val_accuracy" in event and (event["stage"], event["epoch"]) in self._rungs.get(number, ()):
            self._unjudged[number] = {**event, "gate": self._gates.get(number, {})}
        return self.verdict(number)

    def note(self, gang: str, incarnation: str, number: int, event: dict[str, Any]) -> None:
        """Note how far a trial is, for those who look on."""
        if self._holds(gang, incarnation, number):
            before = self.latest.get(number, {})
            same_stage = before if before.get("stage") == event.get("stage") else {}
            self.latest[number] = {**same_stage, **event, "gang": gang}

    def standing(self, gang: str, incarnation: str) -> Standing | None:
        """Which order a gang holds, and what it is to do; None when it has been replaced and is to leave."""
        if self.gangs[gang].incarnation != incarnation:
            return None
        number = self._held(gang)
        return number, "go" if number is None else self.verdict(number)

    def _holds(self, gang: str, incarnation: str, number: int) -> bool:
        book = self.gangs[gang]
        return book.incarnation == incarnation and self._held(gang) == number

    def _held(self, gang: str) -> int | None:
        current = self.gangs[gang].current
        return None if current is None else current["number"]

    def verdict(self, number: int) -> Verdict:
        """Whether a trial is to go on, as far as is known by now."""
        if self._abandoning:
            return "abandon"
        return "stop" if number in self._stopped else "go"

    def awaits_judgement(self, number: int) -> bool:
        """Whether the driver has yet to say if a trial goes on."""
        return number in self._unjudged and not self._abandoning

    def news(self, number: int) -> dict[str, Any] | None:
        """What a client of Tune is to pass on: an order's `outcome`, else a `report` that waits to be judged, else None."""
        if number in self.outcomes:
            return {"outcome": self.outcomes[number]}
        return {"report": self._unjudged[number]} if number in self._unjudged else None

    def finish(self, gang: str, incarnation: str, number: int, outcome: dict[str, Any]) -> None:
        """A gang is done with an order: "written" (its result is on disk), "failed" or "abandoned"."""
        if not self._holds(gang, incarnation, number):
            return
        self.outcomes[number] = outcome
        self.latest.pop(number, None)
        self._unjudged.pop(number, None)
        self.gangs[gang].current = None
        self.gangs[gang].served += 1

    def judge(self, number: int, *, goes_on: bool) -> None:
        """The driver's answer to a report; a trial that does not go on ends there, or at its next report."""
        self._unjudged.pop(number, None)
        if not goes_on:
            self.stop(number)

    def stop(self, number: int) -> None:
        """End one trial at its next report."""
        self._stopped.add(number)

    def abandon(self) -> None:
        """Give up everything that waits or runs: it can be run again later."""
        self._abandoning = True
        for order in self.waiting:
            self.outcomes[order["number"]] = {"outcome": "abandoned"}
        self.waiting.clear()

    def close(self) -> None:
        """No more orders; gangs leave when they next ask."""
        self.closed = True
