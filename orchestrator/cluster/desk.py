"""The desk: one Ray actor through which Tune's clients, the gangs and the driver talk. Its rules are in `ledger`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from orchestrator.cluster.ledger import Ledger, Order, Verdict

_LONG_POLL_S = 0.8
# How long a trial waits at a rung to be judged: for a turn of Tune's loop, and at first for the start of Tune's client. Other
# ranks wait in a collective meanwhile, so it has to be less than the timeout of that.
_JUDGEMENT_S = 60.0


class Desk:
    """An asynchronous actor: a question that has no answer yet waits for at most `_LONG_POLL_S`, then gets None."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._changed = asyncio.Condition()

    async def submit(self, order: Order) -> None:
        self._ledger.submit(order)
        await self._announce()

    async def arrive(self, gang: str, incarnation: str) -> None:
        self._ledger.arrive(gang, incarnation)
        await self._announce()

    async def lease(self, gang: str, incarnation: str, rank: int, serial: int) -> Order | str | None:
        answer: Order | str | None = await self._answer(lambda: self._ledger.lease(gang, incarnation, rank, serial))
        return answer

    async def watch(self, number: int, rungs: list[tuple[str, int]]) -> None:
        self._ledger.watch(number, rungs)

    async def report(self, gang: str, number: int, event: dict[str, Any]) -> Verdict:
        """Note how far a trial is. At a rung the answer waits until the driver has judged it."""
        verdict = self._ledger.report(gang, number, event)
        if not self._ledger.awaits_judgement(number):
            return verdict
        await self._announce()
        await self._answer(lambda: None if self._ledger.awaits_judgement(number) else True, _JUDGEMENT_S)
        return self._ledger.verdict(number)

    async def finish(self, gang: str, number: int, outcome: dict[str, Any]) -> None:
        self._ledger.finish(gang, number, outcome)
        await self._announce()

    async def outcome(self, number: int) -> dict[str, Any] | None:
        """How an order ended, or None when nothing has been heard for a while."""
        answer: dict[str, Any] | None = await self._answer(lambda: self._ledger.outcomes.get(number))
        return answer

    async def news(self, number: int) -> dict[str, Any] | None:
        """An order's outcome or a report to be judged, or None when nothing has been heard for a while."""
        answer: dict[str, Any] | None = await self._answer(lambda: self._ledger.news(number))
        return answer

    async def judge(self, number: int, goes_on: bool) -> None:
        self._ledger.judge(number, goes_on=goes_on)
        await self._announce()

    async def abandon(self) -> None:
        self._ledger.abandon()
        await self._announce()

    async def close(self) -> None:
        self._ledger.close()
        await self._announce()

    async def running(self) -> dict[str, Any]:
        """What the live display shows: the trials under way, and the gangs that have started."""
        return {"trials": dict(self._ledger.latest), "gangs": len(self._ledger.gangs)}

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _answer(self, question: Callable[[], Any], wait_s: float = _LONG_POLL_S) -> Any:
        deadline = time.monotonic() + wait_s
        async with self._changed:
            while (answer := question()) is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    return None
        return answer
