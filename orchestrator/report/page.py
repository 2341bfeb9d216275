"""The report: one HTML file that needs no network and no server."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from orchestrator.pareto.front import Front, find_front, history, originals
from orchestrator.report.figures import scatter, volume
from orchestrator.results.files import replace
from orchestrator.results.store import Sweep
from orchestrator.spec.job import Job
from orchestrator.spec.load import resolved_text

_STYLE = """
:root{color-scheme:light}body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem;color:#222}
h1{margin-bottom:0}h2{margin-top:2rem}.lead{font-size:1.15rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}tr.knee{background:#e8f2f9;font-weight:600}
code,pre{background:#f4f4f4;padding:.1rem .3rem}pre{padding:.8rem;overflow-x:auto}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(26rem,1fr));gap:1rem}
.figures>div{min-width:0}
@media(max-width:30rem){.figures{grid-template-columns:1fr}}
"""


def write_report(sweep: Sweep, job: Job) -> Path:
    """Write `report.html` of a sweep from its facts."""
    results = sweep.results()
    replicate_of = originals(sweep.proposals())
    front = find_front(results, job.objectives, replicate_of)
    metrics = [objective.metric for objective in job.objectives]
    figures = [scatter(front, x, metrics[0]) for x in metrics[1:]] if front.points else []
    figures.append(volume(history(results, job.objectives, replicate_of)))
    drawn = [
        figure.to_html(
            full_html=False, include_plotlyjs="inline" if first else False, config={"displaylogo": False, "responsive": True}
        )
        for figure, first in zip(figures, [True] + [False] * len(figures), strict=False)
    ]
    parts = [
        f"<h1>{escape(sweep.name)}</h1><p class=lead>{escape(verdict(front))}</p>",
        f"<section><h2>Front</h2><div class=figures>{''.join(f'<div>{html}</div>' for html in drawn)}</div></section>",
        f"<section><h2>Models on the front</h2><div class=wide>{_front_table(front)}</div></section>",
        f"<section><h2>How it was measured</h2>{_measured(front, job)}</section>",
        f"<section><h2>Failures</h2>{_failures(sweep)}</section>",
        f"<section><h2>Go on</h2><pre>{escape(_commands(sweep, front))}</pre></section>",
        f"<section><h2>Job</h2><details><summary>as run</summary><pre>{escape(resolved_text(job))}</pre></details></section>",
    ]
    page = (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{escape(sweep.name)}: Pareto front</title><style>{_STYLE}</style>{''.join(parts)}</html>"
    )
    replace(sweep.report_file, page.encode())
    return sweep.report_file


def verdict(front: Front) -> str:
    """What a sweep came to, in a sentence."""
    counts = front.counts
    ended = sum(counts.values())
    text = f"{len(front.points)} of {ended} trials are on the front; {len(front.results)} are feasible"
    if counts["FAILED"]:
        text += f", {counts['FAILED']} failed"
    baseline = next((result for result in front.results if result.number == 0), None)
    if front.knee is not None and baseline is not None and front.knee.number != 0:
        changes = [
            _change(o.metric, baseline.measurements[o.metric], front.knee.measurements[o.metric]) for o in front.objectives
        ]
        text += f". The knee, {front.knee.id}, against the baseline: {', '.join(changes)}"
    return text + "."


def _change(metric: str, before: float, after: float) -> str:
    if metric.endswith("accuracy"):
        return f"{metric} {100 * (after - before):+.1f} points"
    return f"{metric} x {after / before:.2f}" if before else metric


def _front_table(front: Front) -> str:
    metrics = [objective.metric for objective in front.objectives]
    paths = list(dict.fromkeys(path for point in front.points for path in point.choice))
    head = _row("th", ["trial", *metrics, *paths])
    body = [
        _row(
            "td",
            [
                point.id,
                *(_shown(point.measurements[m]) for m in metrics),
                *(_shown(point.choice.get(p, "")) for p in paths),
            ],
            "knee" if front.knee is not None and point.number == front.knee.number else "",
        )
        for point in front.points
    ]
    return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"


def _row(cell: str, values: Iterable[str], kind: str = "") -> str:
    cells = "".join(f"<{cell}>{escape(value)}</{cell}>" for value in values)
    return f'<tr class="{kind}">{cells}</tr>' if kind else f"<tr>{cells}</tr>"


def _measured(front: Front, job: Job) -> str:
    if not front.points:
        return "<p>Nothing was.</p>"
    point = front.points[0].measurements
    reference = ", ".join(f"{o.metric} {r:.6g}" for o, r in zip(front.objectives, front.reference, strict=True))
    return (
        f"<p>Every figure comes from the exported file: accuracy on {point['num_eval_samples']} validation images, "
        f"latency of single images (median) on a pinned core, both in {escape(str(point['executor']))} on "
        f"{escape(str(point['device']))} with {job.recipe.measurement.threads} thread(s). Nothing is simulated. "
        "The validation split chose these models, so their accuracy is a little flattering; <code>pick</code> opens the test "
        f"split once. Hypervolume {front.hypervolume:.6g} against the reference {escape(reference)}.</p>"
    )


def _failures(sweep: Sweep) -> str:
    lines = [
        f"{result.id} {result.state}: {result.failure['class']}: {result.failure['message']}"
        for result in sweep.results()
        if result.failure
    ]
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else "<p>None.</p>"


def _commands(sweep: Sweep, front: Front) -> str:
    trial = front.knee.id if front.knee else "ID"
    return "\n".join(
        [
            f"orchestrator front {sweep.name}",
            f"orchestrator pick {sweep.name} --trial {trial} --register NAME",
            "orchestrator ui",
        ]
    )


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
