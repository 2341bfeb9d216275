"""How many gangs there is room for, and how many there should be. Decided here, from plain numbers; `sweep` acts on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.errors import UsageError
from orchestrator.spec.job import ResourceSettings

Nodes = Sequence[Mapping[str, float]]
"""What each node of a cluster has, used or not, as Ray names it."""

_EPSILON = 1e-9


def worker_resources(settings: ResourceSettings) -> dict[str, float]:
    """What one worker asks of Ray."""
    resources = {"CPU": float(settings.threads_per_worker)}
    if settings.gpus_per_worker > 0:
        resources["GPU"] = settings.gpus_per_worker
    return resources


def workers_on(node: Mapping[str, float], worker: Mapping[str, float]) -> int:
    """How many workers a node has room for. One that asks for a part of a GPU gets it from one GPU."""
    return min(_times(name, node.get(name, 0.0), amount) for name, amount in worker.items())


def _times(name: str, has: float, amount: float) -> int:
    if name != "GPU" or amount >= 1.0:
        return int(has / amount + _EPSILON)
    whole = int(has + _EPSILON)
    return whole * int(1.0 / amount + _EPSILON) + int((has - whole) / amount + _EPSILON)


def fits_on_one(nodes: Nodes, worker: Mapping[str, float], workers: int) -> bool:
    """Whether some node has room for a whole gang. Then no gang spans nodes: its collectives would be slower."""
    return any(workers_on(node, worker) >= workers for node in nodes)


def num_that_fit(nodes: Nodes, worker: Mapping[str, float], workers: int) -> int:
    """Gangs that there is room for: each whole on a node, or where none has room for a whole one, over several."""
    room = [workers_on(node, worker) for node in nodes]
    if fits_on_one(nodes, worker, workers):
        return sum(num // workers for num in room)
    return sum(room) // workers


def gangs_wanted(settings: ResourceSettings, nodes: Nodes, trials: int, given_up: int = 0) -> int:
    """How many gangs there should be, those that wait for room among them: Ray's autoscaler sees what they ask for.

    Args:
        trials: under way or still to be run: there are never more gangs.
        given_up: gangs that failed before they had ended a trial. They are not followed by others.
    """
    auto = settings.gangs == "auto"
    wanted = num_that_fit(nodes, worker_resources(settings), settings.workers_per_gang) if auto else settings.gangs
    return max(0, min(int(wanted) - given_up, trials))


def num_gangs(settings: ResourceSettings, nodes: Nodes, trials: int, *, growing: bool = False) -> int:
    """The number of gangs to start with.

    Args:
        growing: nodes may join; then as many as the job says are started, and those that do not fit wait.

    Raises:
        UsageError: not one gang fits, or fewer than the job asks for.
    """
    worker = worker_resources(settings)
    wanted = 1 if settings.gangs == "auto" else settings.gangs
    may_wait = growing and settings.gangs != "auto"
    if num_that_fit(nodes, worker, settings.workers_per_gang) < wanted and not may_wait:
        workers = settings.workers_per_gang
        need = ", ".join(f"{amount * workers:g} {name}" for name, amount in worker.items())
        shape = f" ({workers} workers)" if workers > 1 else ""
        have = "; ".join(", ".join(f"{node.get(name, 0.0):g} {name}" for name in worker) for node in nodes)
        raise UsageError(
            f"resources must fit: {wanted} gang(s) of {need} each{shape}; the cluster has {len(nodes)} node(s) with "
            f"{have or 'nothing'}. Lower resources.gangs, workers_per_gang or threads_per_worker"
        )
    return gangs_wanted(settings, nodes, trials)
