"""The figures of the report, as plotly figures."""

from __future__ import annotations

import math
from typing import Any

from orchestrator.pareto.front import Front
from orchestrator.results.trial_result import TrialResult

_FRONT, _OTHER, _BASELINE = "#0072B2", "#B0B0B0", "#D55E00"  # Okabe and Ito's colours: told apart by every eye
LOGARITHMIC = frozenset(
    {"size_bytes", "latency_ms", "latency_ms_p95", "latency_ms_low", "latency_ms_high", "macs", "num_parameters"}
)
_LAYOUT = {
    "template": "plotly_white",
    "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
    "legend": {"orientation": "h", "y": -0.2},
}


def scatter(front: Front, x: str, y: str) -> Any:
    """Two objectives of every feasible trial: the front in colour, the rest grey, baseline and knee marked."""
    import plotly.graph_objects as go

    on_front = {point.number for point in front.points}
    figure = go.Figure()
    groups = {
        "dominated": [result for result in front.results if result.number not in on_front],
        "front": list(front.points),
        "baseline": [result for result in front.results if result.number == 0],
        "knee": [front.knee] if front.knee else [],
    }
    looks: dict[str, dict[str, Any]] = {
        "dominated": {"color": _OTHER, "size": 7},
        "front": {"color": _FRONT, "size": 10},
        "baseline": {"color": _BASELINE, "size": 14, "symbol": "star"},
        "knee": {"color": "rgba(0,0,0,0)", "size": 18, "line": {"color": _FRONT, "width": 2}},
    }
    for name, results in groups.items():
        figure.add_scatter(
            x=[result.measurements[x] for result in results],
            y=[result.measurements[y] for result in results],
            text=[_hover(result, front) for result in results],
            hovertemplate="%{text}<extra></extra>",
            mode="markers",
            name=name,
            marker=looks[name],
        )
    figure.update_layout(**_LAYOUT, xaxis={"title": x, **_axis(x, front)}, yaxis={"title": y}, height=420)
    return figure


def _axis(metric: str, front: Front) -> dict[str, Any]:
    """A logarithmic axis with ticks at 1, 2 and 5 for costs that span powers of ten, a linear one for the rest."""
    values = [result.measurements[metric] for result in front.results]
    if metric not in LOGARITHMIC or min(values) <= 0:
        return {}
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [digit * 10.0**power for power in decades for digit in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [with_unit(tick) for tick in ticks]}


def with_unit(value: float) -> str:
    """A round number as people write it: 20k, 0.05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def volume(volumes: list[float]) -> Any:
    """The front's hypervolume after each ended trial."""
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=list(range(1, len(volumes) + 1)), y=volumes, line={"shape": "hv", "color": _FRONT}))
    figure.update_layout(**_LAYOUT, xaxis={"title": "trials ended"}, yaxis={"title": "hypervolume"}, height=300)
    return figure


def _hover(result: TrialResult, front: Front) -> str:
    from html import escape

    measured = [f"{objective.metric}: {result.measurements[objective.metric]:.6g}" for objective in front.objectives]
    chosen = [
        f"{path}: {value:.4g}" if isinstance(value, float) else f"{path}: {value}" for path, value in result.choice.items()
    ]
    return "<br>".join(escape(line) for line in [result.id, *measured, *chosen])
