"""From facts to what a run in MLflow shows. Pure: no client, no server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.pareto.front import Front, find_front
from orchestrator.results.trial_result import Proposal, TrialResult, trial_id
from orchestrator.spec.objective import Objective
from orchestrator.tracking import limits

TAG = "orchestrator"
STANDING = (f"{TAG}.pareto", f"{TAG}.rank", f"{TAG}.knee")


def points_of(result: TrialResult) -> dict[tuple[str, int], float]:
    """Every finite number of a trial by key and step; MLflow would store an infinity as a large number.

    Measurements and stages' seconds are at step 0, what was seen in an epoch is at that epoch, under `stage/name`.
    """
    found: dict[tuple[str, int], Any] = {(key, 0): value for key, value in result.measurements.items()}
    for point in result.curve:
        seen = {key: value for key, value in point.items() if key not in ("stage", "epoch")}
        found |= {(f"{point['stage']}/{key}", int(point["epoch"])): value for key, value in seen.items()}
    found |= {(f"seconds/{stage.name}", 0): stage.seconds for stage in result.stages}
    names = {name: limits.key(name) for name, _ in found}
    numbers = {(names[name], step): limits.number(value) for (name, step), value in found.items()}
    return {place: value for place, value in numbers.items() if value is not None}


def parameters_of(result: TrialResult, unasked: Mapping[str, Any]) -> dict[str, str]:
    """The same keys for every trial of a sweep: what was chosen, and in the holes that did not exist the recipe's own value."""
    filled = {path: result.choice.get(path, value) for path, value in unasked.items()}
    return {limits.key(path): limits.text(value) for path, value in filled.items()}


def tags_of(result: TrialResult, proposal: Proposal | None) -> dict[str, str]:
    """How a trial ended, by what it was measured, and of which one it is a replicate, a continuation or another form."""
    own: dict[str, Any] = {
        "role": "trial",
        "trial": result.id,
        "state": result.state,
        "attempt": result.attempt,
        "feasible": str(result.feasible).lower(),
        "failure": (result.failure or {}).get("class", ""),
        **origin_of(proposal),
        **{key: result.measurements[key] for key in ("executor", "device") if key in result.measurements},
    }
    return {f"{TAG}.{key}": limits.text(value) for key, value in own.items()}


def origin_of(proposal: Proposal | None) -> dict[str, str]:
    """Where a proposal comes from, when it is no point of its own."""
    origins = ("continues", "replicate_of", "derived_from")
    found = {name: getattr(proposal, name, None) for name in origins}
    return {name: trial_id(number) for name, number in found.items() if number is not None}


def standing_of(front: Front, number: int) -> dict[str, str]:
    """Tags that say where a trial stands; of one that is not feasible and complete, that it is not on the front."""
    rank = front.rank(number)
    if rank is None:
        return {STANDING[0]: "false"}
    knee = front.knee is not None and front.knee.number == number
    return dict(zip(STANDING, (str(rank == 0).lower(), str(rank), str(knee).lower()), strict=True))


def fronts_by_step(
    ends: Sequence[TrialResult], objectives: Sequence[Objective], replicate_of: Mapping[int, int]
) -> Iterator[dict[str, float]]:
    """The front after the first end, after the second, and so on: as `find_front` has it for all of them, up to rounding.

    Only the front so far and the worst trial by each objective go on to the next step: the former make the hypervolume, the
    latter the reference where the job names none.
    """
    kept: dict[int, TrialResult] = {}
    for end in ends:
        front = find_front([*kept.values(), end], objectives, replicate_of)
        yield front_points(front)
        worst = [max(front.results, key=lambda r: o.cost(float(r.measurements[o.metric]))) for o in objectives if front.results]
        kept = {result.number: result for result in [*front.points, *worst]}


def front_points(front: Front) -> dict[str, float]:
    """What the sweep's own curve shows of a front."""
    return {"front/hypervolume": front.hypervolume, "front/size": float(len(front.points))}


def milliseconds(seconds: float) -> int:
    """A time as MLflow has it."""
    return int(seconds * 1000)
