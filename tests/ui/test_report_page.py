"""The report page in a real browser: what readers do by mouse, keyboard and phone, and names that try to be more than text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from benchmarks.made_sweep import HOSTILE, made_job, make_sweep
from orchestrator.pareto.front import find_front, weighted_point
from orchestrator.report.page import write_report
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.load import read_resolved, resolved_text

pytestmark = pytest.mark.ui

METRICS = ("accuracy", "size_bytes", "latency_ms")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    path = shutil.which("chromium")
    assert path is not None, "chromium must be installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of 200 made-up trials with its page."""
    return with_page(make_sweep(tmp_path_factory.mktemp("home"), trials=200, epochs=5))


def with_page(sweep: Sweep) -> Sweep:
    write_report(sweep, read_resolved(sweep.job_file))
    return sweep


@dataclass
class Opened:
    """A page in the browser, and what it did that nobody asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def rows(self, condition: str = "") -> list[str]:
        """Trials in the table, from the top."""
        rows = self.page.locator(f"#table tbody tr{condition}")
        found: list[str] = rows.evaluate_all("rows => rows.map(row => row.dataset.trial)")
        return found

    def column(self, name: str) -> list[str]:
        """The cells of a column, from the top."""
        heads = self.page.locator("#table thead th").evaluate_all("heads => heads.map(head => head.dataset.column)")
        cells = self.page.locator(f"#table tbody tr > :nth-child({heads.index(name) + 1})")
        return [text.strip() for text in cells.all_inner_texts()]

    def traces(self) -> dict[str, Any]:
        """What the scatter holds, by the name of each group."""
        return {trace["name"]: trace for trace in self.page.evaluate("() => document.getElementById('scatter').data")}

    def faint(self, name: str) -> int:
        """How many points of a group are drawn faint."""
        place = list(self.traces()).index(name)
        script = (
            "(traces, place) => [...traces[place].querySelectorAll('.point')].filter(p => Number(p.style.opacity) < 0.2).length"
        )
        found: int = self.page.locator("#scatter .scatterlayer .trace").evaluate_all(script, place)
        return found

    def weigh(self, weights: dict[str, int]) -> str:
        """Move the sliders, and return the trial that they lead to."""
        for place, metric in enumerate(METRICS):
            self.page.locator(f"#weight-{place}").fill(str(weights.get(metric, 0)))
        return str(self.page.locator("#suggestion").get_attribute("data-trial"))


Open = Callable[..., Opened]


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Open]:
    """Opens the page of a sweep from disk, and holds it to making no request, no complaint and no dialog."""
    contexts: list[BrowserContext] = []
    pages: list[Opened] = []

    def visit(sweep: Sweep, **how: Any) -> Opened:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
        context.set_default_timeout(10_000)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: found.complaints.append(dialog.message))
        found.page.on("console", lambda said: found.complaints.append(said.text) if said.type == "error" else None)
        found.page.on("request", lambda request: found.requests.append(request.url))
        pages.append(found)
        found.page.goto(sweep.report_file.as_uri())
        found.page.locator("html[data-drawn]").wait_for(state="attached")
        return found

    yield visit
    for found in pages:
        assert found.complaints == []
        assert [url for url in found.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    for context in contexts:
        context.close()


def front_of(sweep: Sweep) -> tuple[Job, Any]:
    job = read_resolved(sweep.job_file)
    return job, find_front(sweep.results(), job.objectives)


def test_every_measured_trial_is_drawn_once_in_its_group(sweep, opened):
    page = opened(sweep)
    _, front = front_of(sweep)
    size = {name: len(trace["x"]) for name, trace in page.traces().items()}
    known = [trial for trial in front.infeasible if "accuracy" in trial.measurements]
    assert size["front"] == len(front.points)
    assert size["dominated"] == len(front.results) - len(front.points)
    assert size["infeasible"] == len(known)
    assert size["knee"] == size["suggested"] == size["baseline"] == 1
    assert page.page.locator("#scatter .scatterlayer .point").count() == sum(size.values()) - size["best of these two"]
    assert page.page.locator("#parallel path").count() == len(front.results) + len(known)
    assert page.page.locator("#scatter .shapelayer path").count() == 2, "a line for each bound"
    titles = page.page.locator(".modebar-btn").evaluate_all("buttons => buttons.map(button => button.dataset.title)")
    assert len(titles) == 8
    assert not any("loud" in title for title in titles), "nothing is sent anywhere"


def test_the_staircase_is_the_front_of_the_two_that_are_shown(sweep, opened):
    page = opened(sweep)
    page.page.get_by_label("across").select_option("latency_ms")
    _, front = front_of(sweep)
    pairs = {(r.measurements["latency_ms"], r.measurements["accuracy"]) for r in front.results}
    best = sorted((x, y) for x, y in pairs if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in pairs))
    expect(page.page.locator("#scatter .xtitle")).to_have_text("latency_ms")
    stairs = page.traces()["best of these two"]
    assert list(zip(stairs["x"], stairs["y"], strict=True)) == best


def test_hovering_names_the_trial_and_its_choices(sweep, opened):
    page = opened(sweep)
    place = list(page.traces()).index("baseline")
    box = page.page.locator("#scatter .scatterlayer .trace").nth(place).locator(".point").bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = page.page.locator("#scatter .hoverlayer .hovertext")
    expect(label).to_contain_text("t0000 baseline")
    expect(label).to_contain_text("width: 16")


def test_a_brush_on_an_axis_dims_lines_points_and_rows_and_can_be_taken_back(sweep, opened):
    page = opened(sweep)
    page.page.locator("#parallel").scroll_into_view_if_needed()
    box = page.page.locator('#parallel .axis[data-axis="pruning.ratio"] .reach').bounding_box()
    middle = box["x"] + box["width"] / 2
    page.page.mouse.move(middle, box["y"] + 1)
    page.page.mouse.down()
    page.page.mouse.move(middle, box["y"] + box["height"] / 4)
    page.page.mouse.move(middle, box["y"] + box["height"] / 2)
    page.page.mouse.up()
    expect(page.page.locator("#kept")).to_contain_text("are kept")
    ratio = {result.id: result.choice["pruning.ratio"] for result in sweep.results()}
    dim, kept = page.rows(".dim"), page.rows(":not(.dim)")
    assert dim
    assert kept
    assert max(ratio[trial] for trial in dim) < min(ratio[trial] for trial in kept)
    lines = page.page.locator("#parallel path:not(.dim)")
    assert min(ratio[trial] for trial in lines.evaluate_all("lines => lines.map(line => line.dataset.trial)")) > 0.3
    assert page.faint("front") == len(dim)
    page.page.get_by_role("button", name="Keep all").click()
    expect(page.page.locator("#table tr.dim")).to_have_count(0)
    expect(page.page.locator("#parallel path.dim")).to_have_count(0)
    assert page.faint("front") == 0


def test_an_axis_is_brushed_by_keyboard(sweep, opened):
    page = opened(sweep)
    axis = page.page.locator('#parallel .axis[data-axis="accuracy"]')
    axis.focus()
    for _ in range(15):
        page.page.keyboard.press("ArrowUp")
    expect(axis).to_have_attribute("aria-label", re.compile(r"accuracy: kept 0\.\d+ to 0\.\d+"))
    expect(page.page.locator("#kept")).to_contain_text("are kept")
    page.page.keyboard.press("Escape")
    expect(axis).to_have_attribute("aria-label", "accuracy: all kept")


def test_a_box_in_the_scatter_keeps_what_it_holds_everywhere(sweep, opened):
    page = opened(sweep)
    area = page.page.locator("#scatter .nsewdrag").bounding_box()
    page.page.mouse.move(area["x"] + 2, area["y"] + 2)
    page.page.mouse.down()
    page.page.mouse.move(area["x"] + area["width"] / 4, area["y"] + area["height"] / 4)
    page.page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] - 2)
    page.page.mouse.up()
    expect(page.page.locator("#kept")).to_contain_text("are kept")
    size = {result.id: result.measurements.get("size_bytes") for result in sweep.results()}
    dim, kept = page.rows(".dim"), page.rows(":not(.dim)")
    assert dim
    assert kept
    assert max(size[trial] for trial in kept) < min(size[trial] for trial in dim), "the left half holds the smaller files"
    assert page.faint("front") == len(dim)


def test_sliders_lead_to_the_point_and_the_command_that_python_gives(sweep, opened):
    page = opened(sweep)
    _, front = front_of(sweep)
    weights = {"accuracy": 10, "latency_ms": 1}
    assert page.weigh(weights) == weighted_point(front, weights).id
    expect(page.page.locator("#pick-command")).to_have_text("orchestrator pick made --weights accuracy=10,latency_ms=1")
    expect(page.page.locator("#table tr.suggested")).to_have_attribute("data-trial", weighted_point(front, weights).id)
    before = page.page.locator("#pick-command").inner_text()
    slider = page.page.get_by_label("size_bytes", exact=True)
    slider.focus()
    page.page.keyboard.press("ArrowRight")
    assert page.page.locator("#pick-command").inner_text() == before.replace("accuracy=10,", "accuracy=10,size_bytes=1,")
    page.weigh({})
    expect(page.page.locator("#suggestion")).to_have_text("One weight must be above 0.")


def test_a_thousand_trials_lead_to_the_same_points_as_in_python(opened, tmp_path):
    sweep = with_page(make_sweep(tmp_path, trials=1000, epochs=2))
    page = opened(sweep)
    _, front = front_of(sweep)
    found = {}
    for weights in [
        (1, 1, 1),
        (10, 1, 1),
        (1, 10, 1),
        (1, 1, 10),
        (5, 3, 0),
        (0, 2, 7),
        (3, 0, 1),
        (1, 0, 0),
        (0, 1, 0),
        (9, 8, 7),
    ]:
        told = dict(zip(METRICS, weights, strict=True))
        found[weights] = page.weigh(told), weighted_point(front, told).id
    assert [ours for ours, _ in found.values()] == [theirs for _, theirs in found.values()]
    assert len({theirs for _, theirs in found.values()}) > 3, "the weights make a difference"
    page.page.locator("#rows").select_option("all")
    assert len(page.rows()) == 1000


def test_the_table_is_sorted_by_its_heads_with_mouse_and_keyboard(sweep, opened):
    page = opened(sweep)
    _, front = front_of(sweep)
    accuracy = page.page.locator('#table th[data-column="accuracy"]')
    size = page.page.locator('#table th[data-column="size_bytes"]')
    expect(accuracy).to_have_attribute("aria-sort", "descending")
    assert page.rows()[0] == front.points[0].id
    size.get_by_role("button").click()
    expect(size).to_have_attribute("aria-sort", "ascending")
    expect(accuracy).to_have_attribute("aria-sort", "none")
    sizes = [int(text.replace(",", "")) for text in page.column("size_bytes")]
    assert sizes == sorted(point.measurements["size_bytes"] for point in front.points)
    page.page.keyboard.press("Enter")
    expect(size).to_have_attribute("aria-sort", "descending")
    assert [int(text.replace(",", "")) for text in page.column("size_bytes")] == sizes[::-1]
    page.page.locator("#rows").select_option("all")
    cells = page.column("size_bytes")
    assert len(cells) == 200
    assert cells.index("–") > len(front.points)
    assert set(cells[cells.index("–") :]) == {"–"}, "what was not measured comes last"


def test_the_pick_command_is_copied(sweep, opened):
    page = opened(sweep, permissions=["clipboard-read", "clipboard-write"])
    page.weigh({"size_bytes": 2})
    page.page.locator('button[data-copies="pick-command"]').click()
    expect(page.page.locator("#status")).to_have_text("copied: orchestrator pick made --weights size_bytes=2")
    assert page.page.evaluate("navigator.clipboard.readText()") == "orchestrator pick made --weights size_bytes=2"


def test_it_works_inside_mlflows_sandbox(sweep, opened, chromium):
    """MLflow shows an HTML artefact from a blob in a frame that may run scripts and nothing else."""
    page = chromium.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.evaluate(
        """html => {
            const frame = document.createElement('iframe');
            frame.setAttribute('sandbox', 'allow-scripts');
            frame.style.cssText = 'width:1200px;height:800px';
            frame.src = URL.createObjectURL(new Blob([html], {type: 'text/html'}));
            document.body.append(frame);
        }""",
        sweep.report_file.read_text(),
    )
    inside = page.frame_locator("iframe")
    inside.locator("html[data-drawn]").wait_for(state="attached")
    assert inside.locator("#scatter .scatterlayer .point").count() > 100
    inside.locator("#weight-1").fill("9")
    inside.locator('button[data-copies="pick-command"]').click()
    expect(inside.locator('button[data-copies="pick-command"]')).to_have_text(re.compile("Copied|Selected"))
    expect(inside.locator("#status")).to_contain_text(re.compile("copied|selected"))
    assert complaints == []
    page.close()


def test_light_and_dark_follow_the_system_while_the_page_is_open(sweep, opened):
    page = opened(sweep, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "document.getElementById('scatter').layout.font.color"
    light = page.page.evaluate(ground), page.page.evaluate(ink)
    page.page.emulate_media(color_scheme="dark")
    page.page.wait_for_function(f"before => {ink} !== before", arg=light[1])
    dark = page.page.evaluate(ground), page.page.evaluate(ink)
    assert light == ("rgb(255, 255, 255)", "#1b1f24")
    assert dark == ("rgb(15, 20, 25)", "#e6edf3")


@pytest.mark.parametrize("width", [360, 768])
def test_a_phone_scrolls_the_page_in_one_direction_only(sweep, opened, width):
    page = opened(sweep, viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True)
    for rows in ("front", "all"):
        page.page.locator("#rows").select_option(rows)
        assert page.page.evaluate("document.documentElement.scrollWidth") == width
    box = page.page.locator("#scatter .main-svg").first.bounding_box()
    assert box["width"] <= width


def test_hostile_names_stay_text(sweep, opened):
    page = opened(sweep)
    page.page.locator("#rows").select_option("all")
    page.page.get_by_label("colour").select_option("model.weights")
    page.page.locator("#job summary").click()
    values = page.page.locator('#table td[title^="<script>"]')
    assert values.first.inner_text().startswith("<script>document.documentElement.dataset")
    expect(page.page.locator("#swatches li")).to_have_count(len(HOSTILE) + 1)
    assert page.page.evaluate("document.scripts.length") == 3, "the facts, plotly's and ours"
    assert page.page.locator("img, iframe, object, embed, link, form, main b:not(#suggestion b):not(#few b)").count() == 0
    assert page.page.evaluate("document.documentElement.dataset.broken") is None
    hostile = next(r for r in sweep.results() if r.measurements and r.choice["model.weights"] == HOSTILE[0])
    expect(page.page.locator("#failures")).to_contain_text("<script>document.documentElement.dataset")
    traces = page.traces()
    texts = [text for trace in traces.values() for text in trace.get("text", [])]
    shown = [text for text in texts if hostile.id in text]
    assert shown
    assert all("<script" not in text and "&lt;script&gt;" in text for text in shown)


def test_each_control_has_a_name_and_takes_the_keyboard(sweep, opened):
    page = opened(sweep)
    unnamed = page.page.evaluate(
        """() => [...document.querySelectorAll('select, input, button')].filter(control =>
            !control.labels?.length && !control.textContent.trim() && !control.getAttribute('aria-label')
            && !control.closest('.modebar')).map(control => control.outerHTML)"""
    )
    assert unnamed == []
    page.page.locator("#x").focus()
    seen = set()
    for _ in range(80):
        page.page.keyboard.press("Tab")
        seen.add(
            page.page.evaluate(
                "document.activeElement.id || document.activeElement.dataset.axis || document.activeElement.tagName"
            )
        )
    assert seen >= {
        "y",
        "colour",
        "size",
        "weight-0",
        "weight-2",
        "count",
        "accuracy",
        "pruning.ratio",
        "rows",
        "table",
        "seen",
    }


def test_the_selectors_redraw_what_they_name(sweep, opened):
    page = opened(sweep)
    page.page.get_by_label("up", exact=True).select_option("flip_rate")
    page.page.get_by_label("colour").select_option("training.learning_rate")
    page.page.get_by_label("size", exact=True).select_option("macs")
    expect(page.page.locator("#scatter .ytitle")).to_have_text("flip_rate")
    front = page.traces()["front"]
    assert len(set(front["marker"]["size"])) > 3
    assert front["marker"]["showscale"] is True
    before = len(page.traces()["stands for all"]["x"])
    page.page.locator("#count").fill("8")
    expect(page.page.locator("#few li")).to_have_count(8)
    page.page.wait_for_function("document.getElementById('scatter').data.find(t => t.name === 'stands for all').x.length === 8")
    assert before == 5
    page.page.get_by_label("seen").select_option("loss")
    expect(page.page.locator("#lines .ytitle")).to_have_text("loss")


def test_a_sweep_without_a_feasible_trial_says_by_how_much_each_constraint_is_missed(opened, tmp_path):
    sweep = Home(tmp_path).sweep("none")
    sweep.create(resolved_text(made_job(2, 1).model_copy(update={"name": "none"})))
    choice = {"pruning.ratio": 0.5}
    for number, (accuracy, size) in enumerate([(0.45, 350_000), (0.7, 500_000)]):
        told = {"accuracy": accuracy, "size_bytes": size, "latency_ms": 0.5, "executor": "onnxruntime", "device": "cpu"}
        amounts = {"size_bytes": size - 300_000.0, "accuracy": 0.5 - accuracy}
        sweep.propose(Proposal(number, choice, {}))
        sweep.finish(TrialResult(number, "COMPLETE", choice, told, constraints=amounts, ended=1.0 + number))
    page = opened(with_page(sweep))
    notice = page.page.locator("#missed")
    expect(notice).to_contain_text("size_bytes must be at most 300,000: t0000 misses it by 50,000, and no other by less")
    expect(notice).to_contain_text("accuracy must be at least 0.5: t0001 keeps to it, but not to the others")
    assert len(page.traces()["infeasible"]["x"]) == 2
    expect(page.page.locator("#choose")).to_be_hidden()
    assert page.rows() == ["t0001", "t0000"]


def test_a_sweep_that_has_only_begun_has_a_page(opened, tmp_path):
    sweep = Home(tmp_path).sweep("begun")
    sweep.create(resolved_text(made_job(2, 1)))
    page = opened(with_page(sweep))
    expect(page.page.locator("#verdict")).to_contain_text("0 of 0 trials are on the front")
    assert page.rows() == []
