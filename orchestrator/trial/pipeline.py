"""READ FIRST: one recipe end to end.

    preflight and gate -> teacher -> student -> prune -> quantize -> export -> measure

Every rank of a gang runs this function with the same order. Networks are made together; the file is written and measured by
rank 0 alone, while the others go back to wait for the next order. Whatever happens, the trial ends as a TrialResult.
"""

from __future__ import annotations

import math
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from orchestrator.errors import GatedError, TrialAbandoned, TrialError, TrialStopped, UnbuildableError
from orchestrator.results.files import as_json, replace
from orchestrator.results.trial_result import State, TrialResult
from orchestrator.spec.objective import Constraint
from orchestrator.spec.recipe import Recipe
from orchestrator.training.process import keep_memory
from orchestrator.trial.host import TrialHost
from orchestrator.trial.networks import prune, quantize, train_student, train_teacher
from orchestrator.trial.order import Order
from orchestrator.trial.preflight import gate_cut, preflight
from orchestrator.trial.ship import export, measure, weights_of
from orchestrator.trial.work import Network, Work
from orchestrator.trial.workshop import Workshop


def run_trial(order: Order, host: TrialHost, workshop: Workshop) -> TrialResult:
    """Run one recipe and return how it ended; rank 0's result is the trial's.

    Errors of the recipe (it cannot be built, it breaks a bound, it diverged) are raised on all ranks alike and become results
    here. Any other exception does too when no other rank waits for this one; while they train together it is raised.
    """
    started = time.time()
    work: Work | None = None
    try:
        recipe = Recipe.model_validate(order.recipe)
        torch.set_num_threads(order.threads)
        keep_memory()
        host.progress({"stage": "data"})
        work = Work(order, recipe, host, workshop, workshop.material(recipe.data, recipe.training.channels_last))
        measurements = _walk(work)
        return _result(order, host, work, "COMPLETE", started, measurements=measurements)
    except TrialAbandoned:
        raise
    except TrialStopped:
        return _result(order, host, work, "STOPPED", started)
    except (UnbuildableError, GatedError) as error:
        return _result(order, host, work, "INFEASIBLE", started, failure=_failure(error))
    except TrialError as error:
        return _result(order, host, work, "FAILED", started, failure=_failure(error))
    except Exception as error:
        if host.process.world_size > 1 and not (work and work.alone):
            raise
        return _result(order, host, work, "FAILED", started, failure=_failure(error))


def _walk(work: Work) -> dict[str, Any]:
    """The stages in order; returns the measurements on rank 0 and nothing elsewhere."""
    preflight(work)
    teacher = train_teacher(work)
    student = train_student(work, teacher)
    pruned = prune(work, student, teacher)
    if work.recipe.quantization.method == "qat":
        gate_cut(work, pruned.model)
    quantized = quantize(work, pruned, teacher)
    if not work.process.first:
        return {}
    return _ship(work, quantized, student)


def _ship(work: Work, network: Network, dense: Network) -> dict[str, Any]:
    """Write `model.onnx`, `model.safetensors` and `recipe.json` into the attempt's folder, measure, and move them in place."""
    folder = Path(work.order.folder)
    attempt = folder / work.order.attempt
    attempt.mkdir(parents=True, exist_ok=True)
    work.alone = True
    started, clock = time.time(), time.perf_counter()
    work.host.progress_alone({"stage": "export"})
    counts = export(work, network, attempt)
    save_file(weights_of(network), attempt / "model.safetensors")
    replace(attempt / "recipe.json", as_json({"recipe": work.order.recipe, "classes": work.material.classes}))
    work.timed("export", clock, started)
    started, clock = time.time(), time.perf_counter()
    work.host.progress_alone({"stage": "measure"})
    measurements = counts | measure(work, network, dense, attempt / "model.onnx")
    for metric, value in measurements.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise TrialError(f"{metric} must be finite; it was {value}")
    work.timed("measure", clock, started)
    for path in sorted(attempt.iterdir()):
        path.replace(folder / path.name)
    attempt.rmdir()
    return measurements


def _result(
    order: Order,
    host: TrialHost,
    work: Work | None,
    state: State,
    started: float,
    *,
    measurements: dict[str, Any] | None = None,
    failure: dict[str, str] | None = None,
) -> TrialResult:
    measured = measurements or {}
    bounds = {metric: Constraint.model_validate(bound) for metric, bound in order.constraints.items()}
    return TrialResult(
        number=order.number,
        state=state,
        choice=order.choice,
        measurements=measured,
        gate=work.gate if work else {},
        constraints=(work.amounts if work else {})
        | {metric: bound.amount(measured[metric]) for metric, bound in bounds.items() if metric in measured},
        curve=work.curve if work else [],
        stages=work.stages if work else [],
        failure=failure,
        attempt=order.attempt,
        gang=host.gang,
        seed=order.sweep_seed,
        started=started,
        ended=time.time(),
    )


def _failure(error: Exception) -> dict[str, str]:
    lines = traceback.format_exception(error)
    return {"class": type(error).__name__, "message": str(error), "traceback": "".join(lines)[-4000:]}
