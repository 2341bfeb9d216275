"""What a sweep's facts come to, as the page draws it: plain lists and numbers, one entry a trial in every column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from orchestrator.pareto.certainty import Certainty
from orchestrator.pareto.front import Front, certainty_of, costs_of, find_front, history, originals
from orchestrator.pareto.selection import RHO, TIE, representatives
from orchestrator.report.wording import LOGARITHMIC, one_line, short_names, shown
from orchestrator.results.store import Sweep
from orchestrator.results.trial_result import Proposal, TrialResult, trial_id
from orchestrator.search.budget import num_devices
from orchestrator.spec.job import Job
from orchestrator.spec.names import MAXIMIZED

MAX_CURVES = 100  # of a front that is larger, as many points as stand for all
MAX_REPRESENTATIVES = 20
_NO_AXIS = frozenset({"num_eval_samples"})
_LONGEST = 200  # characters of a value: more of it would be no easier to tell apart


@dataclass(frozen=True)
class Findings:
    """A sweep as far as it has come.

    Args:
        results: all ends by number, replicates included.
        trials: those that are points of their own, by number: what the page has a row for.
    """

    name: str
    job: Job
    proposals: Mapping[int, Proposal]
    results: tuple[TrialResult, ...]
    trials: tuple[TrialResult, ...]
    front: Front
    certainty: Certainty

    @classmethod
    def of(cls, sweep: Sweep, job: Job) -> Findings:
        """Read the facts of a sweep."""
        proposals, results = sweep.proposals(), sweep.results()
        replicate_of = originals(proposals)
        front = find_front(results, job.objectives, replicate_of)
        return cls(
            name=sweep.name,
            job=job,
            proposals={proposal.number: proposal for proposal in proposals},
            results=tuple(results),
            trials=tuple(result for result in results if result.number not in replicate_of),
            front=front,
            certainty=certainty_of(front),
        )

    @property
    def baseline(self) -> TrialResult | None:
        """Trial 0, where it is feasible and complete."""
        return next((result for result in self.front.results if result.number == 0), None)

    @property
    def device_hours(self) -> list[float]:
        """What was spent when each trial had ended, in the order in which they did."""
        spent = accumulate(max(0.0, result.ended - result.started) for result in self.ended)
        return [num_devices(self.job.resources) * seconds / 3600 for seconds in spent]

    @property
    def ended(self) -> list[TrialResult]:
        return sorted(self.results, key=lambda result: (result.ended, result.number))


def drawn(findings: Findings) -> dict[str, Any]:
    """All that the page's own JavaScript reads; trials are named by their place in `trials`."""
    front, job = findings.front, findings.job
    place = {result.number: index for index, result in enumerate(findings.trials)}
    ranks = dict(zip((result.number for result in front.results), front.ranks, strict=True))
    spread = _spread(front)
    return {
        "sweep": findings.name,
        "rho": RHO,
        "tie": TIE,
        "objectives": [{"name": o.metric, "maximized": o.maximized} for o in front.objectives],
        "constraints": [{"name": name, "min": bound.min, "max": bound.max} for name, bound in job.constraints.items()],
        "trials": {
            "id": [result.id for result in findings.trials],
            "state": [result.state for result in findings.trials],
            "feasible": [result.feasible for result in findings.trials],
            "rank": [ranks.get(result.number) for result in findings.trials],
            "chance": [findings.certainty.probability.get(result.id) for result in findings.trials],
            "note": ["; ".join(_notes(result, findings)) for result in findings.trials],
        },
        "columns": [*_measured(findings), *_chosen(findings)],
        "front": [place[point.number] for point in front.points],
        "knee": place[front.knee.number] if front.knee else None,
        "baseline": place[0] if findings.baseline else None,
        "representatives": [place[point.number] for point in spread[:MAX_REPRESENTATIVES]],
        "extremes": [place[point.number] for point in _extremes(front, spread)],
        "volume": {"hours": findings.device_hours, "values": _volumes(findings)},
        "curves": [{"trial": place[point.number], **_curve(point)} for point in spread[:MAX_CURVES] if point.curve],
    }


def _spread(front: Front) -> list[TrialResult]:
    """The front, extremes first, then always the point that is furthest from those before it."""
    order = representatives(costs_of(front.points, front.objectives), max(MAX_CURVES, MAX_REPRESENTATIVES))
    return [front.points[index] for index in order]


def _extremes(front: Front, spread: Sequence[TrialResult]) -> list[TrialResult]:
    """The best by each objective, in their order; among equals the one that is taken first for all."""
    return [
        min(spread, key=lambda point: objective.cost(float(point.measurements[objective.metric])))
        for objective in (front.objectives if spread else ())
    ]


def _volumes(findings: Findings) -> list[float]:
    replicate_of = originals(list(findings.proposals.values()))
    return history(list(findings.results), findings.job.objectives, replicate_of)


def _measured(findings: Findings) -> list[dict[str, Any]]:
    """A column a number that was measured, objectives first, or that was known of an untrained file; then the trial's own."""
    known = [{**result.gate, **result.measurements} for result in findings.trials]
    maximized = {objective.metric: objective.maximized for objective in findings.job.objectives}
    names = [*maximized, *findings.job.constraints, *(name for values in known for name in values)]
    columns = [
        {
            "name": name,
            "label": name,
            "kind": "objective" if name in maximized else "measured",
            "maximized": maximized.get(name, name in MAXIMIZED),
            "log": name in LOGARITHMIC and min(values) > 0,
            "values": column,
        }
        for name in dict.fromkeys(names)
        if name not in _NO_AXIS
        and (column := [number(values.get(name)) for values in known])
        and (values := [value for value in column if value is not None])
    ]
    numbers = [result.number for result in findings.trials]
    same = {"kind": "number", "maximized": None, "log": False}
    return [*columns, {"name": "trial", "label": "trial number", "values": numbers, **same}]


def _chosen(findings: Findings) -> list[dict[str, Any]]:
    """A column a hole of the space that was filled."""
    paths = [path for path, _ in findings.job.space.items()]
    labels = short_names(paths)
    return [
        {
            "name": path,
            "label": labels[path],
            "kind": "chosen",
            "maximized": None,
            "log": domain.log,
            "values": [_choice(result.choice.get(path)) for result in findings.trials],
        }
        for path, domain in findings.job.space.items()
        if any(path in result.choice for result in findings.trials)
    ]


def _choice(value: Any) -> Any:
    return one_line(value, _LONGEST) if isinstance(value, str) else value if isinstance(value, bool) else number(value)


def _curve(result: TrialResult) -> dict[str, Any]:
    """What was seen in each epoch of a trial, its teacher's left out: that one belongs to all."""
    points = [point for point in result.curve if point["stage"] != "teacher"]
    names = dict.fromkeys(name for point in points for name in point if name not in ("stage", "epoch"))
    return {
        "stages": [one_line(str(point["stage"]), 40) for point in points],
        "epochs": [point["epoch"] for point in points],
        "seen": {one_line(name, 60): [_rounded(point.get(name)) for point in points] for name in names},
    }


def _rounded(value: Any) -> float | None:
    """Five digits: more cannot be seen, and there are many."""
    found = number(value)
    return None if found is None else float(f"{found:.5g}")


def _notes(result: TrialResult, findings: Findings) -> list[str]:
    """What a trial's row says in words."""
    certainty, other = findings.certainty, findings.certainty.tied_with(result.id)
    proposal = findings.proposals.get(result.number)
    origins = {"goes on from": proposal.continues, "another form of": proposal.derived_from} if proposal else {}
    broken = [f"{name} is {shown(float(by))} beyond its bound" for name, by in result.constraints.items() if by > 0]
    seeds = certainty.seeds.get(result.id)
    failure = result.failure or {}
    said = {
        f"cannot be told apart from {other}": other is not None,
        "possibly on the front": result.id in certainty.possible,
        f"trained with {seeds.num_seeds if seeds else 1} seeds": seeds is not None,
        one_line(f"{failure.get('class')}: {failure.get('message')}", _LONGEST): bool(failure) and not broken,
        "stopped early": result.state == "STOPPED",
    }
    whence = [f"{words} {trial_id(origin)}" for words, origin in origins.items() if origin is not None]
    return [*(text for text, holds in said.items() if holds), *broken, *whence]


def number(value: Any) -> float | int | None:
    """A finite number as it is; None for what is none, truth values included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
