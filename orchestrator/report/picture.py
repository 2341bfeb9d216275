"""The front as a picture, for a README or a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.pareto.front import Front
from orchestrator.report.wording import LOGARITHMIC, with_unit
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.objective import Constraint, Objective

# Okabe and Ito's colours, and a shape for each: told apart by every eye, and on grey paper.
_LOOKS: dict[str, dict[str, Any]] = {
    "infeasible": {"facecolors": "none", "edgecolors": "#CC79A7", "marker": "^", "s": 28},
    "dominated": {"color": "#B0B0B0", "marker": "o", "s": 20},
    "front": {"color": "#0072B2", "marker": "D", "s": 34, "zorder": 3},
    "baseline": {"color": "#D55E00", "marker": "*", "s": 130, "zorder": 4},
    "knee": {"facecolors": "none", "edgecolors": "#0072B2", "marker": "o", "s": 150, "linewidths": 1.5, "zorder": 5},
}


def draw_front(front: Front, title: str, path: Path, constraints: Mapping[str, Constraint] | None = None) -> None:
    """Draw the first objective over each of the others as a PNG; alone it is drawn over the trials' numbers.

    Args:
        constraints: bounds that are drawn as lines, by metric.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first, *others = front.objectives
    across: list[Objective | None] = [*others] or [None]
    figure = Figure(figsize=(5.2 * len(across), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, x in zip(figure.subplots(1, len(across), squeeze=False)[0], across, strict=True):
        for name, results in _groups(front).items():
            drawn = [(place, value) for r in results if None not in (place := _place(r, x), value := _place(r, first))]
            if drawn:
                axes.scatter([place for place, _ in drawn], [value for _, value in drawn], label=name, **_LOOKS[name])
        axes.set(xlabel=x.metric if x else "trial", ylabel=first.metric)
        axes.grid(alpha=0.25)
        _draw_stairs(axes, front.results, x, first)
        _draw_bounds(axes, constraints or {}, x, first)
        if x is not None and x.metric in LOGARITHMIC:
            _scale_by_powers(axes)
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png")
    partial.replace(path)


def _groups(front: Front) -> dict[str, Sequence[TrialResult]]:
    on_front = {point.number for point in front.points}
    return {
        "infeasible": front.infeasible,
        "dominated": [result for result in front.results if result.number not in on_front],
        "front": front.points,
        "baseline": [result for result in front.results if result.number == 0],
        "knee": [front.knee] if front.knee else [],
    }


def _place(result: TrialResult, objective: Objective | None) -> float | None:
    """Where a trial stands on an axis; None where it was not measured by it."""
    if objective is None:
        return float(result.number)
    value = result.measurements.get(objective.metric, result.gate.get(objective.metric))
    return None if value is None else float(value)


def _draw_stairs(axes: Any, results: Sequence[TrialResult], x: Objective | None, y: Objective) -> None:
    """The border of what these two objectives have been shown to allow."""
    if x is None or not results:
        return
    pairs = sorted((x.cost(r.measurements[x.metric]), y.cost(r.measurements[y.metric])) for r in results)
    corners: list[tuple[float, float]] = []
    for across, up in pairs:
        if not corners or up < corners[-1][1]:
            corners.append((across, up))
    signs = (-1.0 if x.maximized else 1.0), (-1.0 if y.maximized else 1.0)
    steps = [(signs[0] * across, signs[1] * up) for across, up in corners]
    look = {"where": "post", "color": "#0072B2", "linewidth": 1.0, "linestyle": ":"}
    axes.step([step[0] for step in steps], [step[1] for step in steps], **look)


def _draw_bounds(axes: Any, constraints: Mapping[str, Constraint], x: Objective | None, y: Objective) -> None:
    for objective, line in ((x, axes.axvline), (y, axes.axhline)):
        bound = constraints.get(objective.metric) if objective else None
        for limit in (bound.min, bound.max) if bound else ():
            if limit is not None:
                line(limit, color="#CC79A7", linewidth=1.0, linestyle="--")


def _scale_by_powers(axes: Any) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: with_unit(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)  # a narrow logarithmic axis has many
