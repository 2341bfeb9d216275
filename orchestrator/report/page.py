"""The report: one HTML file that needs no network and no server. What is drawn is drawn by plotly.js and by `static/`."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from orchestrator.report import sections
from orchestrator.report.findings import Findings, drawn
from orchestrator.results.files import replace
from orchestrator.results.store import Sweep
from orchestrator.spec.job import Job
from orchestrator.spec.load import resolved_text

_STATIC = Path(__file__).with_name("static")
_SCRIPTS = ("facts.js", "choice.js", "scatter.js", "parallel.js", "table.js", "weights.js", "charts.js", "page.js")
_HARMLESS = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def write_report(sweep: Sweep, job: Job) -> Path:
    """Write `report.html` of a sweep from its facts, whole or not at all, and return where it is."""
    replace(sweep.report_file, page(Findings.of(sweep, job)).encode("utf-8", "replace"))
    return sweep.report_file


def page(findings: Findings) -> str:
    """The whole page."""
    return Template(_part("page.html")).substitute(
        name=escape(findings.name),
        style=_part("page.css"),
        verdict=escape(sections.verdict(findings.front)),
        circumstances=sections.circumstances(findings),
        missed=sections.missed(findings),
        pick=sections.copied(f"orchestrator pick {findings.name} --knee", "pick-command"),
        seeds=sections.seeds(findings),
        importance=sections.importance(findings),
        curves_note=escape(sections.curves_note(findings)),
        failures=sections.failures(findings),
        measured=sections.measured(findings),
        commands=sections.go_on(findings),
        job=escape(resolved_text(findings.job)),
        facts=embedded(drawn(findings)),
        plotly=_plotly(),
        script=_script(),
    )


def embedded(tree: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element, or begins another."""
    return json.dumps(tree, allow_nan=False, separators=(",", ":")).translate(_HARMLESS)


def _script() -> str:
    """The page's own JavaScript in a scope of its own."""
    return f'(() => {{\n"use strict";\n{"".join(_part(name) for name in _SCRIPTS)}}})();'


def _part(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
