"""Simulated time: gangs run the table's points, a searcher proposes and stops them, and every second is counted.

A trial is preflight, its stages in order, export and measuring, each for as long as the table says. With sharing, a stage that
some trial has made costs nothing, and one that is being made is waited for, as in the product's stage store. A stopped stage
leaves a checkpoint under its key, and whoever runs it again goes on from there. Cost is gangs x time: waiting counts.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.table.table import Point, Stage, Table
from orchestrator.results.trial_result import StageRecord, State, TrialResult
from orchestrator.spec.space import Choice


class Searcher(Protocol):
    """Who proposes points, and decides which go on."""

    def ask(self, number: int) -> Choice | None:
        """The point of trial `number`, or None when there is nothing more to ask for."""

    def begins(self, number: int, gate: dict[str, float]) -> None:
        """Take in what is known of a trial's network before it is trained."""

    def stops(self, number: int, epoch: int, accuracy: float) -> bool:
        """Whether a trial ends here; `epoch` of its last phase counts from 1."""

    def ended(self, result: TrialResult) -> None:
        """Take in how a trial ended."""


@dataclass(frozen=True)
class End:
    """One trial of a simulated sweep.

    Args:
        cost: gangs x seconds since the sweep began.
        costs: the objectives of a complete trial, to be minimised; of a stopped one what it would have had, had it shipped the
            network of that moment; None where it failed.
        epochs: of its last phase that were trained here.
    """

    number: int
    choice: Choice
    state: State
    cost: float
    costs: tuple[float, ...] | None
    epochs: int


@dataclass(frozen=True)
class _Wait:
    key: str


class Simulation:
    """One sweep in simulated time.

    Args:
        gangs: trials side by side.
        sharing: whether stages are shared between trials; without it each trial makes all of its own but the teacher, which
            anybody would train once.
        answers: whether a point that was measured before is answered from its result and not run again.
    """

    def __init__(
        self, table: Table, searcher: Searcher, gangs: int = 2, *, sharing: bool = True, answers: bool = False
    ) -> None:
        self.table, self.searcher, self.gangs, self.sharing, self.answers = table, searcher, gangs, sharing, answers
        self.now = 0.0
        self.ends: list[End] = []
        self._made: set[str] = set()
        self._under_way: set[str] = set()
        self._reached: dict[str, int] = {}
        self._waiting: dict[str, list[Iterator[float | _Wait]]] = {}
        self._queue: list[tuple[float, int, Iterator[float | _Wait] | None]] = []
        self._order = itertools.count()
        self._numbers = itertools.count()

    def run(self, trials: int, cost: float = float("inf")) -> list[End]:
        """Simulate until so many trials were proposed, or no trial begins any more because so much was spent."""
        for _ in range(self.gangs):
            self._push(0.0, None)
        while self._queue:
            self.now, _, trial = heapq.heappop(self._queue)
            trial = trial or self._begin(trials, cost)
            if trial is None:
                continue  # this gang has nothing more to do
            step = next(trial, None)
            if step is None:
                self._push(self.now, None)
            elif isinstance(step, _Wait):
                self._waiting.setdefault(step.key, []).append(trial)
            else:
                self._push(self.now + step, trial)
        return self.ends

    def _push(self, when: float, trial: Iterator[float | _Wait] | None) -> None:
        heapq.heappush(self._queue, (when, next(self._order), trial))

    def _begin(self, trials: int, cost: float) -> Iterator[float | _Wait] | None:
        if self.now * self.gangs >= cost:
            return None
        number = next(self._numbers)
        choice = self.searcher.ask(number) if number < trials else None
        return None if choice is None else self._trial(number, choice)

    def _trial(self, number: int, choice: Choice) -> Iterator[float | _Wait]:
        """A trial, as the seconds until its next event."""
        point, started = self.table.at(choice), self.now
        records = [StageRecord("preflight", "", point.before, False, started)]
        if self.answers and any(end.state == "COMPLETE" and end.choice == choice for end in self.ends):
            self._end(number, point, "COMPLETE", records, len(point.last.accuracies), 0)
            return
        yield point.before
        self.searcher.begins(number, dict(point.known))
        trained = 0
        for stage in point.stages:
            key = stage.key if self.sharing or stage.name == "teacher" else f"{stage.key} {number}"
            while key in self._under_way:
                yield _Wait(key)
            made, began = key in self._made, self.now
            if made:
                records.append(StageRecord(stage.name, stage.key, 0.0, True, began))
                continue
            self._under_way.add(key)
            if stage is point.last:
                reached, trained = yield from self._judged(number, stage)
            else:
                reached = len(stage.accuracies)
                yield stage.seconds
            records.append(StageRecord(stage.name, stage.key, self.now - began, False, began))
            self._release(key)
            if reached < len(stage.accuracies):
                self._end(number, point, "STOPPED", records, reached, trained)
                return
            self._made.add(key)
        yield point.after
        records.append(StageRecord("export", "", point.after, False, self.now - point.after))
        self._end(number, point, point.state, records, len(point.last.accuracies), trained)

    def _judged(self, number: int, stage: Stage) -> Generator[float, None, tuple[int, int]]:
        """The last phase, epoch by epoch, from its checkpoint; returns how far it is now, and how many epochs that took."""
        begin = self._reached.get(stage.key, 0)
        at = stage.ends[begin - 1] if begin else 0.0
        num = len(stage.accuracies)
        for epoch in range(begin + 1, num + 1):
            yield stage.ends[epoch - 1] - at
            at = stage.ends[epoch - 1]
            if epoch < num and self.searcher.stops(number, epoch, stage.accuracies[epoch - 1]):
                self._reached[stage.key] = epoch
                return epoch, epoch - begin
        yield stage.seconds - at
        return num, num - begin

    def _release(self, key: str) -> None:
        self._under_way.discard(key)
        for trial in self._waiting.pop(key, []):
            self._push(self.now, trial)

    def _end(self, number: int, point: Point, state: State, records: list[StageRecord], reached: int, trained: int) -> None:
        result = result_of(number, point, state, records, self.now, reached)
        costs = None
        if point.state == "COMPLETE":
            accuracy = point.measurements["accuracy"] if state == "COMPLETE" else point.last.accuracies[reached - 1]
            measured = {**point.measurements, "accuracy": accuracy}
            costs = tuple(o.cost(measured[o.metric]) for o in self.table.job.objectives)
        self.ends.append(End(number, point.choice, result.state, self.now * self.gangs, costs, trained))
        self.searcher.ended(result)


def result_of(number: int, point: Point, state: State, records: list[StageRecord], ended: float, reached: int) -> TrialResult:
    """The fact that the product would have written."""
    last = point.last
    curve = [{"stage": last.name, "epoch": e, "val_accuracy": a} for e, a in enumerate(last.accuracies[:reached])]
    return TrialResult(
        number,
        state,
        dict(point.choice),
        measurements=dict(point.measurements) if state == "COMPLETE" else {},
        gate=dict(point.known),
        curve=curve,
        stages=records,
        started=records[0].started,
        ended=ended,
    )


def regrets(table: Table, ends: Sequence[End], *, stopped: bool = False) -> list[tuple[float, float]]:
    """(cost, 1 - hypervolume / the best there is) after each trial that changed it, from (0, 1).

    Args:
        stopped: whether networks of stopped trials count, as they were when they were stopped.
    """
    states = ("COMPLETE", "STOPPED") if stopped else ("COMPLETE",)
    counted = [end for end in ends if end.costs is not None and end.state in states]
    found = [(0.0, 1.0)]
    for end, volume in zip(counted, table.volumes([end.costs or () for end in counted]), strict=True):
        if 1.0 - volume < found[-1][1]:
            found.append((end.cost, max(0.0, 1.0 - volume)))
    return found


def regret_at(steps: Sequence[tuple[float, float]], cost: float) -> float:
    """The regret that had been reached for a cost."""
    return [regret for spent, regret in steps if spent <= cost][-1]


def cost_of(steps: Sequence[tuple[float, float]], regret: float) -> float:
    """What it cost to come down to a regret; infinite where it never did."""
    return next((spent for spent, left in steps if left <= regret), float(np.inf))
