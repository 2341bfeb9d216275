"""The bit ladder: a network that was trained for one trial is exported at other bit widths too, which trains nothing.

Calibration, export and measurement are all that such a form of it costs, for what comes before is in the stage store. Forms
enter the results as trials of their own, `derived_from` the one they came from. Which networks are worth it: those with a form
on the front. A pure policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from orchestrator.search.points import Key, domain_values, fits, point_key
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.space import Choice, SearchSpace, is_active, value_at

_QUANTIZATION = "quantization."
_METHOD, _BITS = "quantization.method", "quantization.weight_bits"
_UNTRAINED = ("none", "ptq")


def forms(choice: Choice, space: SearchSpace, recipe: Recipe) -> Iterator[Choice]:
    """The points that share a trial's network as it was before quantization, and train nothing after it.

    As they are, then by post-training quantization, widest weights first; the trial's own point is among them where it trains
    nothing either. All other holes of quantization stay as the trial has them; one that is not active in the trial has the
    recipe's own value, or where its domain is without that its last one. Nothing where neither method nor bits are searched.

    Args:
        choice: a point of the space.
        recipe: the job's.
    """
    tree = recipe.model_dump()
    if _BITS not in space.root:
        return
    methods = domain_values(space.root[_METHOD], 2) if _METHOD in space.root else [value_at(tree, _METHOD)]
    for method in [method for method in _UNTRAINED if method in methods]:
        held = {path: value for path, value in choice.items() if not path.startswith(_QUANTIZATION)}
        fixed = held | ({_METHOD: method} if _METHOD in space.root else {})
        widths = sorted(domain_values(space.root[_BITS], 2), reverse=True) if method == "ptq" else [None]
        for width in widths:
            form = Choice()
            for path, domain in space.items():
                if not is_active(domain, form, tree):
                    continue
                if path in fixed:
                    form[path] = fixed[path]
                elif path == _BITS and width is not None:
                    form[path] = width
                else:
                    own = choice.get(path, value_at(tree, path))
                    form[path] = own if domain.contains(own) else domain_values(domain, 2)[-1]
            yield form


def wanted(job: Job, front: Sequence[tuple[int, Choice]], proposed: Collection[Key]) -> tuple[int, Choice] | None:
    """The next form that is worth a trial: the trial that it comes from, and its point. None where there is none.

    Args:
        front: number and choice of the trials on the front, in the order in which they are to be looked at.
        proposed: points that were proposed already.
    """
    for number, choice in front:
        if not fits(choice, job.space, job.recipe):
            continue  # a point from elsewhere
        for form in forms(choice, job.space, job.recipe):
            if point_key(form, job.space) not in proposed:
                return number, form
    return None
