// What happens when: the first drawing, and what each choice of the reader draws anew.

const waiting = new Set();

// Draws at the next frame, once however often it was asked for.
function later(drawing) {
  if (!waiting.size) requestAnimationFrame(() => {
    const due = [...waiting];
    waiting.clear();
    for (const each of due) each();
  });
  waiting.add(drawing);
}

function narrowed() {
  const kept = everyTrial.filter((index) => paths.has(index) && isKept(index)).length;
  document.getElementById("kept").textContent = isNarrowed() ? `${kept} of ${paths.size} measured trials are kept` : "";
  document.getElementById("all").hidden = !isNarrowed();
  for (const drawing of [drawScatter, shadeParallel, shadeTable]) later(drawing);
}

function keepAll() {
  state.ranges.clear();
  state.drawn = null;
  narrowed();
}

function weighed() {
  suggest();
  for (const drawing of [drawScatter, shadeParallel, shadeTable, drawCurves]) later(drawing);
}

function fill(id, choices, chosen, drawing) {
  const select = document.getElementById(id);
  select.replaceChildren(...choices.map(([value, label]) => make("option", { value }, cut(label, 60))));
  select.value = chosen;
  select.addEventListener("change", () => {
    state[id] = select.value;
    later(drawing);
  });
}

function buildSelectors() {
  const axesOf = facts.columns.filter(isNumeric).map((column) => [column.name, column.label]);
  const every = facts.columns.filter((column) => column.values.some(isKnown)).map((column) => [column.name, column.label]);
  fill("x", axesOf, state.x, drawScatter);
  fill("y", axesOf, state.y, drawScatter);
  fill("colour", [["", "by standing"], ...every], "", drawScatter);
  fill("size", [["", "all alike"], ...axesOf], "", drawScatter);
  const names = seenNames();
  if (!names.includes(state.seen)) state.seen = names[0] ?? "";
  fill("seen", names.map((name) => [name, name]), state.seen, drawCurves);
  document.getElementById("curves").hidden = !names.length;
  const rows = document.getElementById("rows");
  rows.value = state.rows;
  rows.addEventListener("change", () => {
    state.rows = rows.value;
    drawTable();
  });
}

// To the clipboard where that is allowed; in a sandbox it may not be, and then the text is at least selected.
async function copy(button) {
  const source = document.getElementById(button.dataset.copies);
  let done = false;
  try {
    await navigator.clipboard.writeText(source.textContent);
    done = true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(source);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    done = document.execCommand("copy");
  }
  button.textContent = done ? "Copied" : "Selected";
  say(done ? `copied: ${source.textContent}` : "the command is selected: press Ctrl+C");
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

function drawFigures() {
  drawScatter();
  drawVolumes();
  if (seenNames().length) drawCurves();
}

function listenToPage() {
  document.getElementById("all").addEventListener("click", keepAll);
  for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", () => copy(button));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => later(drawFigures));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return; // a phone's bars come and go
    width = window.innerWidth;
    later(drawScatter);
    later(drawParallel);
  });
}

// Table, sliders and axes are there before plotly.js, which is five megabytes, has been read; then the scatter, then the rest.
function begin() {
  buildWeights();
  buildFew();
  suggest();
  buildSelectors();
  drawTable();
  drawParallel();
  listenToPage();
}

function beginFigures() {
  drawScatter();
  document.documentElement.dataset.ready = Math.round(performance.now()); // milliseconds since the page was asked for
  setTimeout(() => {
    drawVolumes();
    if (seenNames().length) drawCurves();
    document.documentElement.dataset.drawn = Math.round(performance.now());
  }, 0);
}

begin();
document.addEventListener("DOMContentLoaded", beginFigures);
