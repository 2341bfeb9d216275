"""How many gangs fit."""

from __future__ import annotations

from orchestrator.errors import UsageError
from orchestrator.spec.job import ResourceSettings


def worker_resources(settings: ResourceSettings) -> dict[str, float]:
    """What one worker asks of Ray."""
    resources = {"CPU": float(settings.threads_per_worker)}
    if settings.gpus_per_worker > 0:
        resources["GPU"] = settings.gpus_per_worker
    return resources


def num_gangs(settings: ResourceSettings, available: dict[str, float], trials: int) -> int:
    """The number of gangs to start: as the job says, or as many as fit, and never more than there are trials.

    Args:
        available: Ray's resources of the whole cluster.

    Raises:
        UsageError: not one gang fits, or fewer than the job asks for.
    """
    needs = {name: amount * settings.workers_per_gang for name, amount in worker_resources(settings).items()}
    fits = min(int(available.get(name, 0.0) / amount + 1e-9) for name, amount in needs.items())
    wanted = fits if settings.gangs == "auto" else settings.gangs
    if fits < max(1, wanted if isinstance(wanted, int) else 1):
        need = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
        have = ", ".join(f"{available.get(name, 0.0):g} {name}" for name in needs)
        raise UsageError(
            f"resources must fit: {settings.gangs if settings.gangs != 'auto' else 1} gang(s) of {need} each; the cluster has "
            f"{have}. Lower resources.gangs, workers_per_gang or threads_per_worker"
        )
    return min(int(wanted), trials)
