"""What a recipe costs on this machine, seen by running it with every phase cut down to an epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import TrialError
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.space import with_value
from orchestrator.trial.host import LocalHost, local_process, machine_quiet
from orchestrator.trial.order import Order
from orchestrator.trial.pipeline import run_trial
from orchestrator.trial.stages import StageStore
from orchestrator.trial.workshop import Workshop

_PHASES = {
    "teacher": "recipe.teacher.training.epochs",
    "student": "recipe.training.epochs",
    "pruned": "recipe.pruning.epochs",
    "quantized": "recipe.quantization.epochs",
}


def probe(job: Job, recipes: Sequence[Recipe]) -> tuple[float, float]:
    """Run each recipe in this process with one epoch a phase, in a folder that is thrown away.

    Returns:
        (once, each): seconds of the teacher, and of the mean trial without it, with each phase's seconds multiplied by its
        epochs. What a phase does besides its epochs (calibration, scores) is multiplied too: the figures are high.

    Raises:
        TrialError: none of the recipes runs; with what the first one said.
    """
    quiet, device = machine_quiet(), "cuda" if job.resources.gpus_per_worker > 0 else "cpu"
    measured: list[tuple[float, float]] = []
    said = ""
    with tempfile.TemporaryDirectory() as scratch, local_process(quiet, device) as process:
        root = Path(scratch)
        host, workshop = LocalHost(process, quiet, lambda event: None), Workshop(StageStore(root / "stages"), process)
        for number, recipe in enumerate(recipes):
            order = Order(
                number=number,
                choice={},
                recipe=_short(recipe).model_dump(mode="json"),
                constraints={},
                sweep_seed=job.seed,
                folder=str(root / str(number)),
                stages=str(root / "stages"),
                threads=job.resources.threads_per_worker,
                device=device,
            )
            result = run_trial(order, host, workshop)
            if result.state == "COMPLETE":
                measured.append(_at_length(result, recipe))
            else:
                said = said or (result.failure or {}).get("message", result.state)
    if not measured:
        raise TrialError(f"a recipe must run to be timed; the first said: {said}")
    return max(once for once, _ in measured), sum(each for _, each in measured) / len(measured)


def _short(recipe: Recipe) -> Recipe:
    """The recipe with at most one epoch in each phase."""
    tree = {"recipe": recipe.model_dump()}
    for path in _PHASES.values():
        tree = with_value(tree, path, min(1, _epochs(recipe, path)))
    return Recipe.model_validate(tree["recipe"])


def _at_length(result: TrialResult, recipe: Recipe) -> tuple[float, float]:
    """Seconds of the teacher, and of the rest, as if every phase had had all its epochs."""
    once, each = 0.0, result.ended - result.started
    for stage in result.stages:
        path = _PHASES.get(stage.name)
        factor = 1 if path is None else max(1, _epochs(recipe, path))
        if stage.name == "teacher":
            once, each = factor * stage.seconds, each - stage.seconds
        else:
            each += (factor - 1) * stage.seconds
    return once, each


def _epochs(recipe: Recipe, path: str) -> int:
    node: object = recipe
    for name in path.split(".")[1:]:
        node = getattr(node, name)
    assert isinstance(node, int)
    return node
