"""The desk: one Ray actor through which Tune's clients, the gangs and the driver talk. Its rules are in `ledger`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from orchestrator.cluster.ledger import Ledger, Order, Patience, Standing, Verdict

_LONG_POLL_S = 0.8
# How long a trial waits at a rung to be judged: for a turn of Tune's loop, and at first for the start of Tune's client. Other
# ranks wait in a collective meanwhile, so it has to be less than the timeout of that.
_JUDGEMENT_S = 60.0


_PATIENCE = Patience()


class Said(NamedTuple):
    """What comes with a gang's sign of life.

    Args:
        num_moves: changes with all that the gang does.
        event: how far the trial of that `number` is, where that is not known yet.
    """

    num_moves: int
    number: int
    event: dict[str, Any] | None


class Desk:
    """An asynchronous actor: a question that has no answer yet waits for at most `_LONG_POLL_S`, then gets None."""

    def __init__(self, patience: Patience = _PATIENCE) -> None:
        self._ledger = Ledger(patience)
        self._changed = asyncio.Condition()

    async def submit(self, order: Order) -> None:
        self._ledger.submit(order)
        await self._announce()

    async def arrive(self, gang: str, incarnation: str) -> None:
        self._ledger.arrive(gang, incarnation)
        await self._announce()

    async def lease(self, gang: str, incarnation: str, rank: int, serial: int) -> Order | str | None:
        if rank == 0:
            self._ledger.hear(gang, incarnation, time.monotonic())
        answer: Order | str | None = await self._answer(lambda: self._ledger.lease(gang, incarnation, rank, serial))
        return answer

    async def beat(self, gang: str, incarnation: str, said: Said, knows: Standing, wait_s: float) -> Standing | None:
        """A gang's sign of life. Returns its standing: at once when it is not what the gang `knows`, or else after a while."""
        self._ledger.hear(gang, incarnation, time.monotonic(), said.num_moves)
        if said.event is not None:
            self._ledger.note(gang, incarnation, said.number, said.event)
        await self._answer(lambda: self._ledger.standing(gang, incarnation) != knows or None, wait_s)
        return self._ledger.standing(gang, incarnation)

    async def watch(self, number: int, rungs: list[tuple[str, int]]) -> None:
        self._ledger.watch(number, rungs)

    async def report(self, gang: str, incarnation: str, number: int, event: dict[str, Any]) -> Verdict:
        """Note how far a trial is. At a rung the answer waits until the driver has judged it."""
        verdict = self._ledger.report(gang, incarnation, number, event)
        if not self._ledger.awaits_judgement(number):
            return verdict
        await self._announce()
        await self._answer(lambda: None if self._ledger.awaits_judgement(number) else True, _JUDGEMENT_S)
        return self._ledger.verdict(number)

    async def finish(self, gang: str, incarnation: str, number: int, outcome: dict[str, Any]) -> None:
        self._ledger.finish(gang, incarnation, number, outcome)
        await self._announce()

    async def retire(self, gang: str, incarnation: str) -> None:
        self._ledger.retire(gang, incarnation)

    async def left(self, gang: str, failed: bool) -> bool:
        worth_another = self._ledger.left(gang, failed=failed)
        await self._announce()
        return worth_another

    async def called_for(self) -> bool | None:
        """Whether an order waits for a gang that would have to be started; None when that was not known for a while."""
        answer: bool | None = await self._answer(self._ledger.called_for)
        return answer

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
        """What the driver looks at: trials under way, gangs that have started or have just been given up, orders."""
        lost = self._ledger.bury_silent(time.monotonic())
        if lost:
            await self._announce()
        trials, gangs, orders = dict(self._ledger.latest), self._ledger.num_started, self._ledger.num_orders
        return {"trials": trials, "gangs": gangs, "lost": lost, "orders": orders}

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
