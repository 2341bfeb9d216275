"""The networks of a trial that has ended, as its folder and the stage store still have them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orchestrator.compression.fake_quantize import set_calibrated
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.models.build import reshape_to
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import Recipe
from orchestrator.trial.host import LocalHost, gang_process, machine_quiet
from orchestrator.trial.order import Order
from orchestrator.trial.quantizing import remembered_bits, with_quantizers
from orchestrator.trial.stages import StageStore
from orchestrator.trial.work import Work
from orchestrator.trial.workshop import Workshop

_WEIGHTS = "model.safetensors"
_QUANTIZED, _PLAIN = ".parametrizations.weight.original", ".weight"  # what torch calls a weight that has a quantizer, or none


class _GoneError(OrchestratorError):
    """A stage is not in the store any more."""


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a trial's folder was made by.

    Raises:
        UsageError: it is gone.
    """
    path = folder / "recipe.json"
    if not path.is_file():
        raise UsageError(f"a trial's recipe must be at {path}; it is gone")
    return Recipe.model_validate(json.loads(path.read_text())["recipe"])


def revisit(home: Home, job: Job, sweep: Sweep, result: TrialResult) -> Work:
    """An ended trial on this machine's processor, with its data split as it was then. Nothing is trained."""
    folder, quiet = sweep.trial_folder(result.number), machine_quiet()
    recipe, process = recipe_of(folder), gang_process(0, 1, torch.device("cpu"), quiet)
    store = StageStore.of({"root": str(home.stages), **job.storage.model_dump()})
    workshop = Workshop(store, process)
    order = Order(
        number=result.number,
        choice=result.choice,
        recipe=recipe.model_dump(mode="json"),
        constraints={},
        sweep_seed=result.seed,
        folder=str(folder),
        stages=str(home.stages),
        threads=job.resources.threads_per_worker,
    )
    material = workshop.material(recipe.data, recipe.training.channels_last)
    return Work(order, recipe, LocalHost(process, quiet, lambda event: None), workshop, material)


def dense_student(work: Work, result: TrialResult) -> nn.Module | None:
    """The network before it was compressed, or None where the store has it no more.

    It is found by the key in the record: a key that is computed anew would hang on the source as it is today.
    """
    keys = [stage.key for stage in result.stages if stage.name == "student"]
    state = _stored(work, keys[0]) if keys else None
    return None if state is None else reshape_to(_fresh(work), state).eval()


def shipped_graph(work: Work) -> nn.Module | None:
    """The graph that a trial's file was written from, with its quantizers; None where its weights were not kept."""
    path = Path(work.order.folder) / _WEIGHTS
    if not path.is_file():
        return None
    state, quantization, fresh = load_file(path), work.recipe.quantization, _fresh(work)
    if quantization.method == "none":
        return reshape_to(fresh, state).eval()
    names = fresh.state_dict()
    kept = {name.replace(_QUANTIZED, _PLAIN): value for name, value in state.items()}
    network = reshape_to(fresh, {**names, **{name: value for name, value in kept.items() if name in names}})
    graph = with_quantizers(network, quantization, remembered_bits(network, state, quantization.weight_bits))
    graph.load_state_dict(state)
    set_calibrated(graph)
    return graph.eval()


def _fresh(work: Work) -> nn.Module:
    """The trial's network with weights that are to be replaced: the file that it started from is not needed."""
    return work.fresh(work.recipe.model.model_copy(update={"weights": None}))


def _stored(work: Work, key: str) -> dict[str, Tensor] | None:
    """A stage's weights, from this store or the shared one."""

    def gone(folder: Path) -> None:
        raise _GoneError(key)

    try:
        folder, _ = work.workshop.store.obtain(key, work.process, gone, stage="student")
    except _GoneError:
        return None
    return load_file(folder / _WEIGHTS)
