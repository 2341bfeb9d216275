"""The front as a picture, for a README or a chat."""

from __future__ import annotations

from pathlib import Path

from orchestrator.pareto.front import Front
from orchestrator.report.figures import with_unit


def draw_front(front: Front, title: str, path: Path) -> None:
    """Draw the first objective over each of the others as a PNG; alone it is drawn over the trials' numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    metrics = [objective.metric for objective in front.objectives]
    across: list[str | None] = [*metrics[1:]] or [None]
    figure = Figure(figsize=(5.2 * len(across), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    on_front = {point.number for point in front.points}
    for axes, x in zip(figure.subplots(1, len(across), squeeze=False)[0], across, strict=True):
        others = [result for result in front.results if result.number not in on_front]
        for results, look in (
            (others, {"color": "#B0B0B0", "s": 22, "label": "dominated"}),
            (front.points, {"color": "#0072B2", "s": 42, "label": "front", "zorder": 3}),
            (
                [r for r in front.results if r.number == 0],
                {"color": "#D55E00", "s": 130, "marker": "*", "label": "baseline", "zorder": 4},
            ),
            (
                [front.knee] if front.knee else [],
                {
                    "facecolors": "none",
                    "edgecolors": "#0072B2",
                    "s": 150,
                    "linewidths": 1.5,
                    "label": "knee",
                    "zorder": 5,
                },
            ),
        ):
            places = [r.number if x is None else r.measurements[x] for r in results]
            axes.scatter(places, [r.measurements[metrics[0]] for r in results], **look)
        axes.set(xlabel=x or "trial", ylabel=metrics[0])
        axes.grid(alpha=0.25)
        if x is None:
            continue
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: with_unit(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", labelsize=8)  # a narrow logarithmic axis has many
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png")
    partial.replace(path)
