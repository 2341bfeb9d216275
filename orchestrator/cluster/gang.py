"""A gang: one long-lived Ray Train worker group that serves many trials.

Starting a worker group costs 15 to 40 seconds on two cores, a trial of a warm gang starts in hundredths. Whatever a trial
leaves behind (generators, thread counts, tensors) is put back before the next, so that its place in the row cannot matter.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import threading
import traceback
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from orchestrator.cluster.ledger import CLOSED, Verdict
from orchestrator.cluster.lifeline import UNANSWERED, Lifeline
from orchestrator.cluster.upkeep import answers, must_recycle, resident_bytes
from orchestrator.errors import OrchestratorError, TrialAbandoned, TrialStopped
from orchestrator.measure.quiet import Quiet
from orchestrator.results.store import Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import GangSettings
from orchestrator.training.process import Agreement, Process
from orchestrator.trial.host import gang_process, machine_quiet
from orchestrator.trial.order import Order
from orchestrator.trial.pipeline import run_trial
from orchestrator.trial.stages import StageStore
from orchestrator.trial.workshop import Workshop

_COLLECTIVE_TIMEOUT_S = 120
_MAX_RESTARTS = 8
_ALL_IMPORTED = 2  # the trial before which a process has imported all that it ever will

# What gloo says, in a plain RuntimeError, when another rank is gone or does not come. Its other complaints (tensors of
# different sizes) are faults of the program.
_LOST = re.compile(r"/gloo/.*(connection (closed|reset|refused|aborted)|broken pipe|time(d )?out|socket closed)", re.I | re.S)

_VERDICTS: tuple[Verdict, ...] = ("go", "stop", "abandon")  # as the numbers that ranks agree on


class GangHost:
    """A trial's host inside a gang: it talks to the desk, through rank 0 alone."""

    def __init__(self, desk: Any, gang: str, incarnation: str, process: Process, quiet: Quiet) -> None:
        self.desk, self.gang, self.incarnation, self.process, self._quiet = desk, gang, incarnation, process, quiet
        self.lifeline = Lifeline(desk, gang, incarnation)
        self._agreement = Agreement(process, timedelta(seconds=_COLLECTIVE_TIMEOUT_S))
        self.number = -1

    def begin(self, number: int) -> None:
        """The next trial: nothing that was said of the last one concerns it."""
        self.number = number
        self._agreement.forget()
        self.lifeline.begin(number)

    def progress(self, event: dict[str, Any]) -> None:
        """One rank asks, all obey: every rank leaves a trial at the same step."""
        self._obey(self.process.agreed(self._ask(event) if self.process.first else None))

    def progress_alone(self, event: dict[str, Any]) -> None:
        self._obey(self._ask(event))

    def step(self, event: dict[str, Any]) -> None:
        """Rank 0 says what it has heard so far, and all obey one step later."""
        mine: Verdict = "go"
        if self.process.first:
            self.lifeline.move(event)
            mine = self.lifeline.verdict if self.lifeline.silence is None else "abandon"
        self._obey(_VERDICTS[self._agreement.next(_VERDICTS.index(mine))])

    def finish(self, outcome: dict[str, Any]) -> None:
        ray.get(self.desk.finish.remote(self.gang, self.incarnation, self.number, outcome))

    def _ask(self, event: dict[str, Any]) -> Verdict:
        self.lifeline.move()
        try:
            verdict: Verdict = ray.get(self.desk.report.remote(self.gang, self.incarnation, self.number, event))
        except UNANSWERED as error:
            raise self._unanswered(error) from error
        return verdict

    def _obey(self, verdict: Verdict) -> None:
        if verdict == "stop":
            raise TrialStopped(f"trial {self.number} was stopped")
        if verdict == "abandon" and self.lifeline.silence is not None:
            raise self._unanswered(self.lifeline.silence) from self.lifeline.silence
        if verdict == "abandon":
            raise TrialAbandoned(f"trial {self.number} was given up")

    def _unanswered(self, error: Exception) -> TrialAbandoned:
        # The desk went with its driver, say, while this process had a moment more: of the trial that says nothing.
        return TrialAbandoned(f"trial {self.number} was given up, as nobody answers: {error}")

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        self.lifeline.measuring = True
        try:
            with self._quiet.measuring():
                yield
        finally:
            self.lifeline.measuring = False


def serve(settings: dict[str, Any]) -> None:
    """Runs on every worker of a gang: lease an order, run the trial, say so, again."""
    context = ray.train.get_context()
    gang, desk = settings["gang"], ray.get_actor(settings["desk"], namespace=settings["namespace"])
    quiet = machine_quiet()
    process = gang_process(context.get_world_rank(), context.get_world_size(), get_device(), quiet)
    incarnation = process.agreed(uuid.uuid4().hex)
    ray.get(desk.arrive.remote(gang, incarnation))
    workshop = Workshop(StageStore.of(settings["stages"]), process)
    host = GangHost(desk, gang, incarnation, process, quiet)
    if process.first:
        host.lifeline.start()
    importlib.import_module("torch._dynamo")  # the first optimizer of a process needs it; whole, before threads import more
    imports = threading.Thread(target=_warm_up, daemon=True)
    imports.start()
    gc.freeze()  # what was imported stays: the collections between trials need not look at it
    upkeep = _Upkeep(host, GangSettings.model_validate(settings["upkeep"]))
    serial = 0
    while (lease := ray.get(desk.lease.remote(gang, incarnation, process.rank, serial))) != CLOSED:
        if lease is None:
            continue
        serial += 1
        _reset(process)
        if serial == _ALL_IMPORTED:
            imports.join()
            gc.freeze()
        _serve_one(Order(**lease), host, workshop)
        upkeep.after_a_trial()
    host.lifeline.close()


class _Upkeep:
    """Looks after the processes of a gang between two trials."""

    def __init__(self, host: GangHost, settings: GangSettings) -> None:
        self._host, self._settings = host, settings
        self._served, self._first_bytes = 0, 0

    def after_a_trial(self) -> None:
        """Have the desk send all ranks away where it is time.

        Raises:
            OrchestratorError: the device no longer computes: nothing that this process still had to do would end well.
        """
        process = self._host.process
        if not answers(process.device):
            raise OrchestratorError(f"{process.device} no longer computes for this process: another takes its place")
        if not process.first:
            return
        self._served, now = self._served + 1, resident_bytes()
        self._first_bytes = self._first_bytes or now
        if must_recycle(self._served, self._first_bytes, now, settings=self._settings):
            ray.get(self._host.desk.retire.remote(self._host.gang, self._host.incarnation))


def _serve_one(order: Order, host: GangHost, workshop: Workshop) -> None:
    """Run one trial; rank 0 writes the result before it tells the desk.

    Whatever is raised here ends the process, and Ray Train starts the group again: the other ranks may be in the middle of a
    collective. Unless its failure was told, the ledger then leases the order once more.
    """
    host.begin(order.number)
    try:
        result = run_trial(order, host, workshop)
    except TrialAbandoned as error:
        if isinstance(error.__cause__, UNANSWERED):
            raise  # should the desk live on, it leases the order once more
        outcome: dict[str, Any] = {"outcome": "abandoned"}
    except Exception as error:
        if host.process.first and not lost_a_rank(error):
            host.finish(_failed(error))
        elif not host.process.first:
            # Rank 0 may be about to tell the same failure: this rank's end would end that one too.
            ray.get(host.desk.outcome.remote(order.number))
        raise
    else:
        outcome = _written(Sweep(Path(order.folder).parents[1]), result) if host.process.first else {}
    if host.process.first:
        host.finish(outcome)


def lost_a_rank(error: BaseException | None) -> bool:
    """Whether an error says that a collective lost another rank: of a trial it says nothing, so it can be run again."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _LOST.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def _written(sweep: Sweep, result: TrialResult) -> dict[str, Any]:
    """Write a result. Where that fails it would fail again (a number that JSON cannot hold): the trial has failed."""
    try:
        sweep.finish(result)
    except Exception as error:  # noqa: BLE001 - whatever it is, the gang can go on with the next trial
        return _failed(error)
    return {"outcome": "written"}


def _failed(error: Exception) -> dict[str, Any]:
    lines = "".join(traceback.format_exception(error))
    return {"outcome": "failed", "class": type(error).__name__, "message": str(error), "traceback": lines[-4000:]}


def _warm_up() -> None:
    """Import what the first trial will need late, while it trains."""
    import onnxruntime.quantization  # noqa: F401
    import onnxscript  # noqa: F401
    import torch_pruning  # noqa: F401


def _reset(process: Process) -> None:
    """Give the next trial the process that the first one had."""
    gc.collect()
    torch.clear_autocast_cache()
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    if process.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(process.device)


def run_gang(
    gang: str, workers: int, resources: dict[str, float], scratch: Path, settings: dict[str, Any], *, together: bool = False
) -> None:
    """Start a worker group and keep it until the desk sends it away. Blocks; called on a thread of the driver.

    Args:
        resources: of one worker, as Ray names them.
        together: all workers on one node, though they have to wait until there is room; otherwise on as few as can be.
        scratch: a local folder for what Ray Train writes; nothing of ours is kept there.
    """
    use_gpu = resources.get("GPU", 0) > 0
    TorchTrainer(
        serve,
        train_loop_config={**settings, "gang": gang},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            placement_strategy="STRICT_PACK" if together else "PACK",
        ),
        run_config=ray.train.RunConfig(
            name=f"{gang}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
            storage_path=str(scratch),
            failure_config=ray.train.FailureConfig(max_failures=_MAX_RESTARTS),
        ),
    ).fit()
