"""MLflow's own pages on a sweep that was synced, in a real browser: filter, a trial's curve, the report among the artefacts."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from orchestrator.delivery.sync import sync
from orchestrator.pareto.front import find_front
from orchestrator.results.store import Home
from orchestrator.tracking.connection import connect
from tests.unit.tracking.shown import free_port, made, serving

pytestmark = pytest.mark.ui

_PATIENCE_MS = 60_000  # MLflow's pages are large, and the machine may be small


@dataclass(frozen=True)
class Served:
    """A sweep in MLflow's pages."""

    url: str
    experiment: str
    runs: dict[str, str]
    front: set[str]

    def page_of(self, run: str, place: str) -> str:
        return f"{self.url}/#/experiments/{self.experiment}/runs/{self.runs[run]}/{place}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """What `orchestrator ui` serves of a made sweep of 40 trials."""
    folder = tmp_path_factory.mktemp("served")
    home = Home(folder / "home")
    sweep, job = made(home, trials=40, epochs=10)
    sync(home, sweep, job)
    client = connect(home, None)
    experiment = client.get_experiment_by_name(job.tracking.experiment).experiment_id
    found = client.search_runs([experiment], max_results=1000)
    runs = {run.data.tags.get("orchestrator.trial", "sweep"): run.info.run_id for run in found}
    front = {point.id for point in find_front(sweep.results(), job.objectives).points}
    port = free_port()
    command = [sys.executable, "-m", "orchestrator.cli.main", "ui", "--port", str(port), "--home", str(home.path)]
    with serving(command, f"http://127.0.0.1:{port}", folder / "log.txt") as url:
        yield Served(url, experiment, runs, front)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    path = shutil.which("chromium")
    assert path is not None, "chromium must be installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 2400})
        page.set_default_timeout(_PATIENCE_MS)
        yield page
        browser.close()


def keep(page: Page, name: str) -> None:
    """A picture for people, where one is asked for by `ORCHESTRATOR_PICTURES`."""
    if folder := os.environ.get("ORCHESTRATOR_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def matching(page: Page, count: int) -> Locator:
    """MLflow's "10 matching runs"."""
    return page.locator("strong").filter(has_text=re.compile(rf"^{count}$"))


def trials_shown(page: Page) -> set[str]:
    links = page.locator('a[href*="/runs/"]').all_inner_texts()
    return {found[1] for text in links if (found := re.fullmatch(r"\s*made-(t\d{4})\s*", text))}


def test_the_filter_for_the_front_shows_exactly_its_runs(served: Served, page: Page) -> None:
    page.goto(f"{served.url}/#/experiments/{served.experiment}/runs")
    expect(matching(page, len(served.runs))).to_be_visible(timeout=_PATIENCE_MS)
    box = page.locator('[data-testid="search-box"]')
    box.click()
    box.fill("""tags."orchestrator.pareto" = 'true'""")
    box.press("Enter")
    expect(matching(page, len(served.front) + 1)).to_be_visible(timeout=_PATIENCE_MS)  # MLflow adds the sweep's own run
    page.get_by_role("row").filter(has=page.get_by_role("link", name="made", exact=True)).get_by_role("button").first.click()
    expect(page.locator('a[href*="/runs/"]').filter(has_text="made-t")).to_have_count(len(served.front), timeout=_PATIENCE_MS)
    keep(page, "front")
    assert trials_shown(page) == served.front
    assert 2 < len(served.front) < 40


def test_a_trials_page_draws_its_validation_accuracy(served: Served, page: Page) -> None:
    page.goto(served.page_of("t0000", "model-metrics"))
    page.get_by_role("searchbox", name="Search metric charts").fill("student/val_accuracy")
    expect(page.get_by_text("made-t0000 (student/val_accuracy)")).to_be_visible(timeout=_PATIENCE_MS)
    expect(page.get_by_text("made-t0000 (student/loss)")).to_have_count(0, timeout=_PATIENCE_MS)
    lines = page.locator(".js-plotly-plot path.js-line")
    expect(lines.first).to_be_attached(timeout=_PATIENCE_MS)
    keep(page, "chart")


def test_the_report_runs_inside_the_sandbox_of_the_artefact_view(served: Served, page: Page) -> None:
    page.goto(served.page_of("sweep", "artifacts/report.html"))
    frame = page.locator("iframe[sandbox]")
    expect(frame).to_be_visible(timeout=_PATIENCE_MS)
    assert "allow-same-origin" not in (frame.get_attribute("sandbox") or "")
    rows = page.frame_locator("iframe[sandbox]").locator("#table tbody tr")  # which only the page's script makes
    expect(rows.first).to_be_visible(timeout=_PATIENCE_MS)
    assert rows.count() >= len(served.front)
    keep(page, "report")
