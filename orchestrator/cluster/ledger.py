"""Who works on what: the rules of the desk, without Ray, time or threads.

A gang's worker group has an incarnation, a new one each time Ray Train starts it. Its ranks ask for leases by serial number, so
that each of them gets the same order whenever it asks, and no rank has to tell another.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_ATTEMPTS = 3

Verdict = Literal["go", "stop", "abandon"]
CLOSED = "closed"

Order = dict[str, Any]


@dataclass
class GangBook:
    """What one gang has been given since its worker group started."""

    incarnation: str = ""
    leases: list[Order] = field(default_factory=list)
    current: Order | None = None
    restarts: int = -1


class Ledger:
    """Orders that wait, the one each gang works on, and how the others ended."""

    def __init__(self) -> None:
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

    def arrive(self, gang: str, incarnation: str) -> None:
        """A worker group has started. What its predecessor left unfinished goes to the head of the queue, or is given up."""
        book = self.gangs.setdefault(gang, GangBook())
        if book.incarnation == incarnation:
            return
        left, restarts = book.current, book.restarts + 1
        self.gangs[gang] = GangBook(incarnation=incarnation, restarts=restarts)
        if left is None:
            return
        number = left["number"]
        self.latest.pop(number, None)  # how far the lost attempt was
        self._unjudged.pop(number, None)
        if self._attempts[number] >= MAX_ATTEMPTS:
            message = f"its workers were lost {MAX_ATTEMPTS} times"
            self.outcomes[number] = {"outcome": "failed", "class": "WorkerLost", "message": message, "traceback": ""}
        elif self._abandoning:
            self.outcomes[number] = {"outcome": "abandoned"}
        else:
            self.waiting.appendleft(left)

    def lease(self, gang: str, incarnation: str, rank: int, serial: int) -> Order | str | None:
        """The order with that serial number for every rank; None while there is none, CLOSED when there will be none."""
        book = self.gangs[gang]
        if incarnation != book.incarnation:
            return CLOSED
        if serial < len(book.leases):
            return book.leases[serial]
        if self.closed:
            return CLOSED
        if rank == 0 and self.waiting:
            order = self.waiting.popleft()
            number = order["number"]
            self._attempts[number] = self._attempts.get(number, 0) + 1
            book.current = {**order, "attempt": f"a{self._attempts[number]}"}
            book.leases.append(book.current)
            return book.current
        return None

    def report(self, gang: str, number: int, event: dict[str, Any]) -> Verdict:
        """Note how far a trial is; returns whether it is to go on."""
        before = self.latest.get(number, {})
        same_stage = before if before.get("stage") == event.get("stage") else {}
        self.latest[number] = {**same_stage, **event, "gang": gang}
        if "gate" in event:
            self._gates[number] = {**self._gates.get(number, {}), **event["gate"]}
        if "val_accuracy" in event and (event["stage"], event["epoch"]) in self._rungs.get(number, ()):
            self._unjudged[number] = {**event, "gate": self._gates.get(number, {})}
        return self.verdict(number)

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

    def finish(self, gang: str, number: int, outcome: dict[str, Any]) -> None:
        """A gang is done with an order: "written" (its result is on disk), "failed" or "abandoned"."""
        self.outcomes[number] = outcome
        self.latest.pop(number, None)
        self._unjudged.pop(number, None)
        book = self.gangs[gang]
        if book.current is not None and book.current["number"] == number:
            book.current = None

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
