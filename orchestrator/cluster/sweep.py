"""READ FIRST: a sweep from its job to its last fact.

    search asks -> proposal.json -> Tune starts a client -> desk -> gang -> result.json -> search is told -> observers

Tune decides how many clients run and talks to the searcher; Ray Train owns the workers; the facts on disk are the only memory.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from orchestrator.cluster.capacity import fits_on_one, gangs_wanted, num_gangs, worker_resources
from orchestrator.cluster.connection import NAMESPACE, connected, prepare_environment
from orchestrator.cluster.director import Director, Observer
from orchestrator.errors import OrchestratorError
from orchestrator.results.store import Home, Sweep
from orchestrator.search.budget import Reason
from orchestrator.search.proposer import Proposer
from orchestrator.spec.job import Job
from orchestrator.trial.order import Order

Ending = Reason | Literal["interrupted", "terminated"]
_TICK_S = 0.5
_TICKS_PER_COUNT = 10  # of the nodes: one may have joined


def run_sweep(
    job: Job,
    home: Home,
    sweep: Sweep,
    observers: Sequence[Observer],
    *,
    address: str | None = None,
    verbose: bool = False,
) -> Ending:
    """Run what is left of a sweep, in the foreground, on the calling (main) thread.

    Returns why it ended; everything that happened is in the sweep's folder.

    Raises:
        OrchestratorError: Ray cannot be reached, the job does not fit, or every gang was lost.
    """
    director = Director(job, sweep, Proposer(job), home.stages, observers)
    began = time.monotonic()
    for file in sweep.mend():
        _say(observers, f"set aside {file}, which was not whole")
    director.recall()
    if (end := director.ending()) is not None:
        _say(observers, end.text)
        return end.reason
    _say(observers, "starting Ray")
    prepare_environment(home.path, local=address is None)
    with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory(prefix="orchestrator-") as scratch:
        # Importing torch and Ray Train takes as long as starting Ray: side by side, and whole before threads import the rest.
        imported = pool.submit(importlib.import_module, "orchestrator.cluster.gang")
        with connected(address, verbose=verbose):
            imported.result()
            gc.freeze()  # what was imported stays: the collections that thousands of facts cause need not look at it
            return _Performance(director, Path(scratch), began, growing=address is not None, verbose=verbose).play()


def _nodes() -> list[dict[str, float]]:
    """What each living node has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class _Performance:
    """The moving parts of one sweep: desk, gangs, Tune, the clock and the signals."""

    def __init__(self, director: Director, scratch: Path, began: float, *, growing: bool, verbose: bool) -> None:
        self.director, self.scratch, self.began, self.verbose = director, scratch, began, verbose
        self.settings = director.job.resources
        self.workers, self.resources = self.settings.workers_per_gang, worker_resources(self.settings)
        director.slots = num_gangs(self.settings, _nodes(), director.remaining, growing=growing)
        director.desk = f"desk-{uuid.uuid4().hex[:8]}"
        self.end: Ending | None = None
        self.over = threading.Event()
        self.submitted: list[Any] = []
        self.gangs: list[threading.Thread] = []
        self.lost: list[BaseException] = []

    def play(self) -> Ending:
        """Start the gangs and Tune side by side; end when Tune has nothing more to run."""
        import ray

        from orchestrator.cluster.desk import Desk
        from orchestrator.cluster.ledger import Patience

        director, silence = self.director, self.director.job.gangs
        patience = Patience(silence.lost_after_s, silence.stalled_after_s)
        self.desk: Any = ray.remote(num_cpus=0, max_concurrency=1000)(Desk).options(name=director.desk).remote(patience)
        # Straight from here: a gang need not wait until Tune has started the client that will wait for the outcome.
        director.submit = self._submit
        director.watch = lambda number, rungs: ray.get(self.desk.watch.remote(number, rungs))
        director.judge = lambda number, goes_on: ray.get(self.desk.judge.remote(number, goes_on))
        _say(director.observers, f"starting {director.slots} gang{'s' if director.slots > 1 else ''} of {self.workers}")
        self._start_gangs(director.slots)
        clock = threading.Thread(target=self._watch, daemon=True)
        clock.start()
        try:
            with self._signals():
                self._tune()
        finally:
            self.over.set()
            ray.get(self.desk.close.remote())
            clock.join()
            for gang in self.gangs:
                gang.join(timeout=20 if self.end is None else 5)
        if self.end is not None:
            return self.end
        end = director.ending()
        if end is None:
            last = self.lost[-1] if self.lost else None
            raise OrchestratorError(f"every gang was lost; the last said: {last}") from last
        return end.reason

    def _submit(self, order: Order) -> None:
        """Without waiting for the desk, which does in order what this thread asks; what it had to say of the last is raised."""
        import ray

        ray.get(self.submitted)
        self.submitted = [self.desk.submit.remote(order.to_json())]

    def _tune(self) -> None:
        from ray import tune

        from orchestrator.cluster.scheduler import SweepScheduler
        from orchestrator.cluster.searcher import close_conversation, open_conversation
        from orchestrator.cluster.trainable import GangClient

        token = uuid.uuid4().hex
        on_head = tune.PlacementGroupFactory([{"node:__internal_head__": 0.0001}])
        try:
            tune.Tuner(
                tune.with_resources(GangClient, on_head),
                tune_config=tune.TuneConfig(
                    num_samples=-1,  # as many as the searcher has
                    search_alg=open_conversation(token, self.director),
                    scheduler=SweepScheduler(token),
                    reuse_actors=True,
                    max_concurrent_trials=None,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(self.scratch),
                    verbose=2 if self.verbose else 0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            ).fit()
        finally:
            close_conversation(token)

    def _start_gangs(self, num: int) -> None:
        for _ in range(num):
            thread = threading.Thread(target=self._gang, args=(f"g{len(self.gangs)}",), daemon=True)
            self.gangs.append(thread)
            thread.start()

    def _gang(self, name: str) -> None:
        """One thread: keep one gang until the desk closes, or until it is of no use to start it again."""
        import ray

        called: bool | None = True
        while called:
            error = self._one_run(name)
            if self.over.is_set():
                return
            if not ray.get(self.desk.left.remote(name, error is not None)):
                self.lost.append(error or OrchestratorError(f"{name} left"))
                break
            while (called := ray.get(self.desk.called_for.remote())) is None:
                pass
            if called:
                _say(self.director.observers, f"{name} is started anew")
        if len(self.lost) == len(self.gangs):
            self.leave(None)

    def _one_run(self, name: str) -> BaseException | None:
        """Returns what ended it, None where the desk sent it away."""
        from orchestrator.cluster.gang import run_gang

        director = self.director
        stages = {"root": str(director.stages), **director.job.storage.model_dump()}
        settings = {"desk": director.desk, "namespace": NAMESPACE, "stages": stages}
        settings["upkeep"] = director.job.gangs.model_dump()
        together = self.workers > 1 and fits_on_one(_nodes(), self.resources, self.workers)
        try:
            run_gang(name, self.workers, self.resources, self.scratch / name, settings, together=together)
        except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to; play() raises it
            return error
        return None

    def _count_gangs(self, orders: int) -> None:
        """Start more where nodes have joined and orders wait. A gang whose node is gone waits for another; the rest go on."""
        alive = len(self.gangs) - len(self.lost)
        wanted = gangs_wanted(self.settings, _nodes(), orders, len(self.lost))
        if wanted > alive and not self.over.is_set() and not self.director.stopping:
            _say(self.director.observers, f"starting {wanted - alive} more, as nodes have joined")
            self._start_gangs(wanted - alive)
        self.director.slots = max(1, len(self.gangs) - len(self.lost))

    def leave(self, end: Ending | None) -> None:
        """Give up what is under way; it can be resumed."""
        import ray

        if self.director.stopping:
            return
        self.end, self.director.stopping = end, True
        ray.get(self.desk.abandon.remote())

    def _watch(self) -> None:
        """One thread: the limits of the budget, and what the live display shows."""
        import ray

        started, since = 0, dict[int, float]()
        for tick in itertools.count(1):
            if self.over.wait(_TICK_S):
                return
            running = ray.get(self.desk.running.remote())
            for gang, why in running["lost"].items():
                _say(self.director.observers, f"what {gang} had is given to another: {why}")
            if running["gangs"] > started:
                started = running["gangs"]
                _say(self.director.observers, f"{started} of {len(self.gangs)} gangs started")
            if tick % _TICKS_PER_COUNT == 0:
                self._count_gangs(running["orders"])
            for observer in self.director.observers:
                observer.running(running["trials"])
            now = time.monotonic()
            since = {number: since.get(number, now) for number in running["trials"]}
            limit = self.director.limit(now - self.began, sum(now - start for start in since.values()))
            if limit is not None and not self.director.stopping:
                _say(self.director.observers, limit.text)
                self.leave(limit.reason)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C or SIGTERM once ends the sweep at the next report of each trial; a second Ctrl-C ends it now."""

        def handle(number: int, _: Any) -> None:
            if self.director.stopping:
                raise KeyboardInterrupt
            _say(self.director.observers, "stopping; what has ended is kept")
            end: Ending = "interrupted" if number == signal.SIGINT else "terminated"
            # Not from here: the handler may have interrupted a call of Ray's that holds its locks.
            threading.Thread(target=self.leave, args=(end,), daemon=True).start()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _say(observers: Sequence[Observer], text: str) -> None:
    for observer in observers:
        observer.phase(text)
