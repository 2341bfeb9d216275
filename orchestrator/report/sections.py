"""The parts of the page that are text, all of it escaped: the verdict, how things were measured, what failed, how to go on."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import metadata

from orchestrator.pareto.front import Front, ranks_with_infeasible
from orchestrator.pareto.noise import Z, standard_error
from orchestrator.report.findings import MAX_CURVES, Findings, number
from orchestrator.report.wording import one_line, short_names, shown
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.objective import Constraint

_EXACT = frozenset({"size_bytes", "macs", "num_parameters", "sparsity"})


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
    return f"{metric} × {after / before:.2f}" if before else metric


def circumstances(findings: Findings) -> str:
    """When, with what, and for how much."""
    job, hours = findings.job, findings.device_hours
    said = [
        f"{len(findings.results)} trials ended, {job.budget.trials} asked for",
        f"{shown(hours[-1] if hours else 0.0)} device-hours",
        f"search {job.search.sampler}, seed {job.seed}",
        f"job {job.identity()[:12]}",
        f"pareto-orchestrator {metadata.version('pareto-orchestrator')}",
    ]
    if findings.results and (last := findings.ended[-1].ended):
        said.insert(0, f"last trial ended {datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M} UTC")
    return escape(" · ".join(said))


def nearest_misses(findings: Findings) -> list[str]:
    """Where no trial is feasible: for each constraint the trial that comes closest, and then the one closest to all of them."""
    if findings.front.points:
        return []
    told = []
    for name, bound in findings.job.constraints.items():
        tried = [result for result in findings.front.infeasible if name in result.constraints]
        if not tried:
            told.append(f"{name} must be {_phrase(bound)}: no trial was measured by it")
            continue
        best = min(tried, key=lambda result: result.constraints[name])
        by = best.constraints[name]
        how = f"misses it by {shown(by)}, and no other by less" if by > 0 else "keeps to it, but not to the others"
        told.append(f"{name} must be {_phrase(bound)}: {best.id} {how}")
    ranks = ranks_with_infeasible(findings.front)
    measured = [result for result in findings.front.infeasible if result.number in ranks]
    if len(findings.job.constraints) > 1 and measured:
        closest = min(measured, key=lambda result: (ranks[result.number], result.number))
        gaps = [f"{name} by {shown(by)}" for name, by in closest.constraints.items() if by > 0]
        told.append(f"of the trials that were trained {closest.id} is closest to all of them: it misses {' and '.join(gaps)}")
    return told or ["no trial was measured"]


def _phrase(bound: Constraint) -> str:
    ends = (("at least", bound.min), ("at most", bound.max))
    return " and ".join(f"{word} {shown(limit)}" for word, limit in ends if limit is not None)


def missed(findings: Findings) -> str:
    """A notice where the front is empty."""
    lines = nearest_misses(findings)
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section class="notice" id="missed"><h2>No trial is complete and feasible</h2><ul>{items}</ul></section>'


def failures(findings: Findings) -> str:
    """Trials without a model by state and class, with the first line of an error."""
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for result in findings.results:
        if result.failure:
            groups.setdefault((result.state, result.failure.get("class", "")), []).append(result)
    if not groups:
        return "<p>None.</p>"
    rows = []
    for (state, kind), members in sorted(groups.items(), key=lambda group: (group[0][0], -len(group[1]))):
        message = (members[0].failure or {}).get("message", "")
        rows.append([one_line(kind, 80), state, str(len(members)), _names(members), one_line(message, 300)])
    return _table(["class", "state", "trials", "which", "first line of the first"], rows, "failed")


def _names(members: Sequence[TrialResult], limit: int = 6) -> str:
    names = ", ".join(result.id for result in members[:limit])
    return names if len(members) <= limit else f"{names} and {len(members) - limit} more"


def importance(findings: Findings) -> str:
    """Which holes decided whether a trial is among the best tenth, an objective at a time."""
    from orchestrator.search.importance import MIN_TRIALS, importances

    labels = short_names([path for path, _ in findings.job.space.items()])
    parts = []
    for objective in findings.front.objectives:
        count, shares = importances(findings.job, findings.trials, objective)
        bars = "".join(
            f'<tr><th scope="row" title="{escape(path)}">{escape(labels[path])}</th><td>{share:.0%}</td>'
            f'<td class="bar"><span style="width:{100 * share:.1f}%"></span></td></tr>'
            for path, share in shares.items()
        )
        none = f"shown from {MIN_TRIALS} trials on" if count < MIN_TRIALS else "no setting stands out"
        found = f'<table class="bars">{bars}</table>' if shares else f"<p>{none}</p>"
        parts.append(f"<figure><figcaption>{escape(objective.metric)}, n = {count}</figcaption>{found}</figure>")
    return "".join(parts)


def measured(findings: Findings) -> str:
    """How things were measured, how sure they are, and what is simulated."""
    front, settings = findings.front, findings.job.recipe.measurement
    points = front.points or front.infeasible
    if not any(point.measurements for point in points):
        return "<p>Nothing was measured.</p>"
    seen = [result.measurements for result in findings.trials if result.measurements]
    executors = list(dict.fromkeys(str(each.get("executor", "unknown")) for each in seen))
    devices = list(dict.fromkeys(str(each.get("device", "unknown")) for each in seen))
    samples = list(dict.fromkeys(str(each.get("num_eval_samples", "unknown")) for each in seen))
    simulated = [name for name in [*executors, *devices] if "simulat" in name.lower()]
    reference = ", ".join(f"{o.metric} {shown(float(r))}" for o, r in zip(front.objectives, front.reference, strict=True))
    ties = findings.certainty.ties
    facts = {
        "What": "the exported file, in the runtime that would serve it; never the training graph",
        "Executor": ", ".join(one_line(name, 80) for name in executors),
        "Device": ", ".join(one_line(name, 80) for name in devices),
        "Latency": f"median of {settings.rounds} single calls, {settings.threads} thread(s) on pinned cores, "
        "while no other work of the sweep ran on the machine",
        "Accuracy": f"on {', '.join(samples)} validation examples",
        "Noise": _noise(findings, [point for point in points if point.measurements]),
        "Ties": f"{len(ties)} group(s) of points of the front that the measurement cannot tell apart" if ties else "none",
        "Seeds": f"{findings.job.seed}; {sum(map(len, front.replicates.values()))} trainings of a trial with another seed",
        "Simulated": ", ".join(one_line(name, 80) for name in simulated) or "nothing: every figure is of a file that ran",
        "Known early": "figures of trials that ended at the gate are those of the untrained file",
        "Hypervolume": f"{front.hypervolume:.6g} against the reference {reference}",
        "Split": "validation chose these models, so their accuracy is a little flattering; pick opens the test split, once",
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<dl>{rows}</dl>"


def _noise(findings: Findings, points: Sequence[TrialResult]) -> str:
    """The median half-width of an objective's 95 % interval over the front."""
    said = []
    for objective in findings.front.objectives:
        known = [point.measurements for point in points if number(point.measurements.get(objective.metric)) is not None]
        width = Z * statistics.median(standard_error(objective.metric, each) for each in known) if known else 0.0
        none = "exact" if objective.metric in _EXACT else "not known"
        said.append(f"{objective.metric} {f'± {shown(float(width))}' if width else none}")
    return f"{', '.join(said)} (95 %, median over the front)"


def commands(findings: Findings) -> dict[str, str]:
    """What to type next, by what it does."""
    name, knee = findings.name, findings.front.knee
    found = {
        "Show the front in a terminal": f"orchestrator front {name} --all",
        "Choose the knee, open the test split for it, register it": f"orchestrator pick {name} --knee --register NAME",
        "Browse every run in MLflow": "orchestrator ui",
        "Write this page again": f"orchestrator report {name}",
        "Search once more, with the job below saved as job.yaml": "orchestrator run job.yaml --name again",
    }
    return found if knee is not None else {what: line for what, line in found.items() if " pick " not in line}


def go_on(findings: Findings) -> str:
    """The commands, each with a button that copies it."""
    return "".join(
        f"<p>{escape(what)}</p>{copied(line, f'command-{place}')}"
        for place, (what, line) in enumerate(commands(findings).items())
    )


def copied(line: str, name: str) -> str:
    """A command and its button."""
    return (
        f'<div class="command"><code id="{name}" tabindex="0">{escape(line)}</code>'
        f'<button type="button" class="copy" data-copies="{name}" aria-label="copy: {escape(line)}">Copy</button></div>'
    )


def seeds(findings: Findings) -> str:
    """Trials that were trained with several seeds; nothing where there are none."""
    rows = []
    for trial, found in findings.certainty.seeds.items():
        means = [
            f"{shown(found.mean[o.metric])} [{shown(found.low[o.metric])}, {shown(found.high[o.metric])}]"
            for o in findings.front.objectives
        ]
        rows.append([trial, str(found.num_seeds), *means, f"{found.front_probability:.2f}"])
    if not rows:
        return ""
    heads = [f"mean {o.metric} [95 %]" for o in findings.front.objectives]
    table = _table(["trial", "seeds", *heads, "p(front)"], rows, "seeds")
    return f'<section><h2>Trained again with other seeds</h2><div class="wide" tabindex="0">{table}</div></section>'


def curves_note(findings: Findings) -> str:
    """How many curves are drawn."""
    count = len(findings.front.points)
    part = f"{MAX_CURVES} of {count} points, spread over the front" if count > MAX_CURVES else "every point of the front"
    return f"{part}; epochs of its stages one after the other, the teacher's left out"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
