// One line a measured trial across objectives and settings. A part of an axis that is brushed keeps the trials that cross it.

const TALL = 320, TOP = 46, BOTTOM = 40, MISSING = 22, NARROWEST = 96; // pixels
const STEP = 0.05; // of an axis, by which an arrow key moves an end
const SVG = "http://www.w3.org/2000/svg";
const paths = new Map(); // the line of a trial

const axes = [...objectives, ...facts.columns.filter((column) => column.kind === "chosen")];

function draw(tag, attributes, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}

const heightOf = (at) => (at === null ? TALL - BOTTOM + MISSING : TOP + (1 - at) * (TALL - TOP - BOTTOM));

function drawParallel() {
  const place = document.getElementById("parallel");
  const width = Math.max(place.clientWidth, axes.length * NARROWEST);
  const gap = width / Math.max(1, axes.length);
  const svg = draw("svg", { width, height: TALL, viewBox: `0 0 ${width} ${TALL}`, role: "group", "aria-label": "parallel coordinates" });
  const lines = draw("g", {});
  paths.clear();
  const measured = everyTrial.filter((index) => objectives.length && objectives.every((column) => isKnown(column.values[index])));
  const rankOf = (index) => (onFront.has(index) ? 1 : 0);
  for (const index of measured.sort((one, other) => rankOf(one) - rankOf(other))) {
    const corners = axes.map((column, at) => `${((at + 0.5) * gap).toFixed(1)} ${heightOf(fractionsOf(column)[index]).toFixed(1)}`);
    const line = draw("path", { d: `M${corners.join("L")}`, "data-trial": trials.id[index] });
    paths.set(index, line);
    lines.append(line);
  }
  svg.append(lines, ...axes.map((column, at) => drawAxis(column, (at + 0.5) * gap, at)));
  place.replaceChildren(svg);
  shadeParallel();
}

function drawAxis(column, x, at) {
  const group = draw("g", { class: "axis", tabindex: 0, role: "group", "data-axis": column.name });
  const bottom = TALL - BOTTOM;
  group.append(draw("line", { x1: x, x2: x, y1: TOP, y2: bottom }));
  const name = draw("text", { x, y: at % 2 ? 14 : 30, "text-anchor": "middle" }, cut(column.label, 26));
  name.append(draw("title", {}, column.name));
  group.append(name, ...ticksOn(column, x, at === axes.length - 1));
  if (fractionsOf(column).includes(null)) group.append(draw("text", { x, y: heightOf(null) + 14, class: "tick", "text-anchor": "middle" }, "none"));
  const kept = draw("rect", { class: "kept", x: x - 8, width: 16, y: TOP, height: 0, visibility: "hidden" });
  const reach = draw("rect", { class: "reach", x: x - 18, width: 36, y: TOP - 6, height: bottom - TOP + 12 });
  group.append(kept, reach);
  listen(group, reach, column.name);
  return group;
}

// Beside the axis, at the last one on its left, where there is room.
function ticksOn(column, x, left) {
  const marks = hasWords(column)
    ? wordsOf(column).map((word, place, words) => [words.length > 1 ? place / (words.length - 1) : 0.5, cut(word, 12)])
    : ends(column).map((value, place) => [place, column.log || Math.abs(value) >= 1e4 ? withUnit(value) : shown(value)]);
  const crowded = Math.ceil(marks.length / 14);
  return marks
    .filter((_, place) => place % crowded === 0)
    .map(([at, text]) => draw("text", { class: "tick", x: left ? x - 5 : x + 5, y: heightOf(at) + 4, "text-anchor": left ? "end" : "start" }, text));
}

function listen(group, reach, name) {
  let start = null;
  const at = (event) => {
    const box = reach.getBoundingClientRect();
    return Math.min(1, Math.max(0, 1 - (event.clientY - box.top - 6) / (TALL - TOP - BOTTOM)));
  };
  reach.addEventListener("pointerdown", (event) => {
    start = at(event);
    reach.setPointerCapture(event.pointerId);
  });
  reach.addEventListener("pointermove", (event) => {
    if (start === null) return;
    const now = at(event);
    if (Math.abs(now - start) > 0.01) brush(name, [Math.min(start, now), Math.max(start, now)]);
  });
  reach.addEventListener("pointerup", (event) => {
    if (start !== null && Math.abs(at(event) - start) <= 0.01) brush(name, null);
    start = null;
  });
  reach.addEventListener("pointercancel", () => { start = null; });
  group.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return brush(name, null);
    const step = { ArrowUp: STEP, ArrowDown: -STEP }[event.key];
    if (!step) return undefined;
    event.preventDefault();
    const [low, high] = state.ranges.get(name) ?? [0, 1];
    const moved = event.shiftKey ? [low, Math.min(1, Math.max(low, high + step))] : [Math.max(0, Math.min(high, low + step)), high];
    return brush(name, moved[0] <= 0 && moved[1] >= 1 ? null : moved);
  });
}

function brush(name, range) {
  if (range === null) state.ranges.delete(name);
  else state.ranges.set(name, range);
  narrowed();
}

function shadeParallel() {
  for (const [index, line] of paths) {
    const kind = !trials.feasible[index] ? "infeasible" : onFront.has(index) ? "front" : "";
    line.setAttribute("class", [kind, index === state.suggested ? "suggested" : "", isKept(index) ? "" : "dim"].join(" ").trim());
  }
  for (const group of document.querySelectorAll("#parallel .axis")) {
    const column = columns.get(group.dataset.axis);
    const range = state.ranges.get(column.name);
    const kept = group.querySelector(".kept");
    kept.setAttribute("visibility", range ? "visible" : "hidden");
    if (range) {
      kept.setAttribute("y", heightOf(range[1]));
      kept.setAttribute("height", heightOf(range[0]) - heightOf(range[1]));
    }
    group.setAttribute("aria-label", `${column.label}: ${range ? spoken(column, range) : "all kept"}`);
  }
}

function spoken(column, range) {
  const inside = everyTrial.filter((index) => {
    const at = fractionsOf(column)[index];
    return at !== null && at >= range[0] && at <= range[1];
  });
  if (!inside.length) return "nothing kept";
  if (hasWords(column)) return `kept ${[...new Set(inside.map((index) => cut(String(column.values[index]), 40)))].join(", ")}`;
  const values = inside.map((index) => column.values[index]);
  return `kept ${shown(Math.min(...values))} to ${shown(Math.max(...values))}`;
}
