// Every measured trial over any two columns, with the front's staircase, the constraints' lines and the trials that have a name.

const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]; // Okabe and Ito's
const GREY = "#999999";
const BUTTONS = ["toImage", "select2d", "lasso2d", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]; // none that sends
const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: [BUTTONS] };
const SMALLEST = 6, LARGEST = 22; // pixels across

function lookOf(extra) {
  const ink = colourOf("ink");
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: ink },
    margin: { l: 56, r: 16, t: 34, b: 46 },
    hoverlabel: { bgcolor: colourOf("panel"), bordercolor: colourOf("line"), font: { color: ink, size: 12 }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colourOf("quiet"), activecolor: colourOf("front") },
    ...extra,
  };
}

function axisOf(column, title = column.label) {
  const axis = {
    title: { text: plain(title), standoff: 8 },
    gridcolor: colourOf("line"), linecolor: colourOf("line"), zeroline: false, automargin: true,
  };
  if (!column.log) return axis;
  return { ...axis, type: "log", ...ticksOf(column) };
}

// Ticks at 1, 2 and 5, at every digit where there is less than a power of ten, at 1 alone where there are many.
function ticksOf(column) {
  const [low, high] = ends(column).map(Math.log10);
  const digits = high - low > 3 ? [1] : high - low > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  const ticks = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) ticks.push(...digits.map((digit) => digit * 10 ** power));
  return { tickvals: ticks, ticktext: ticks.map(withUnit) };
}

function hoverOf(index) {
  const lines = [`<b>${plain(trials.id[index])}</b>`];
  if (index === facts.baseline) lines[0] += " baseline";
  if (index === facts.knee) lines[0] += " knee";
  for (const column of objectives) lines.push(`${plain(column.label)}: ${plain(shown(column.values[index]))}`);
  for (const column of facts.columns) {
    if (column.kind === "chosen" && isKnown(column.values[index])) lines.push(`${plain(column.label)}: ${plain(shown(column.values[index]))}`);
  }
  if (trials.note[index]) lines.push(`<i>${plain(cut(trials.note[index], 80))}</i>`);
  return lines.join("<br>");
}
const hovers = everyTrial.map(hoverOf);

function sizesOf(indices, otherwise) {
  const column = columns.get(state.size);
  if (!column) return otherwise;
  return indices.map((index) => {
    const at = fractionsOf(column)[index];
    return at === null ? SMALLEST : SMALLEST + (LARGEST - SMALLEST) * Math.sqrt(at);
  });
}

// Colours of some trials: by the selected column, or one for all.
function coloursOf(indices, otherwise, withScale) {
  const column = columns.get(state.colour);
  if (!column) return { color: otherwise };
  if (hasWords(column)) {
    const words = wordsOf(column);
    const colours = indices.map((index) => PALETTE[words.indexOf(String(column.values[index]))] ?? GREY);
    return { color: colours };
  }
  const [cmin, cmax] = ends(column).map((end) => (column.log ? Math.log10(end) : end));
  const bar = { title: { text: plain(column.label), side: "right" }, thickness: 12, outlinewidth: 0 };
  if (column.log) {
    const { tickvals, ticktext } = ticksOf(column);
    Object.assign(bar, { tickvals: tickvals.map(Math.log10), ticktext });
  }
  const values = indices.map((index) => column.values[index]);
  const color = values.map((value) => (!isKnown(value) ? NaN : column.log ? Math.log10(value) : value));
  return { color, colorscale: "Cividis", cmin, cmax, showscale: withScale, colorbar: bar };
}

function groupOf(name, indices, marker, extra = {}) {
  const x = columns.get(state.x), y = columns.get(state.y);
  return {
    type: "scatter", mode: "markers", name, marker, customdata: indices, hoverinfo: "text",
    x: indices.map((index) => x.values[index]),
    y: indices.map((index) => y.values[index]),
    text: indices.map((index) => hovers[index]),
    selectedpoints: isNarrowed() ? indices.flatMap((index, place) => (isKept(index) ? [place] : [])) : null,
    unselected: { marker: { opacity: 0.12 } },
    ...extra,
  };
}

function tracesOf() {
  const x = columns.get(state.x), y = columns.get(state.y);
  const placed = everyTrial.filter((index) => isKnown(x.values[index]) && isKnown(y.values[index]));
  const feasible = placed.filter((index) => trials.feasible[index]);
  const front = feasible.filter((index) => onFront.has(index));
  const dominated = feasible.filter((index) => !onFront.has(index));
  const infeasible = placed.filter((index) => !trials.feasible[index]);
  const here = (indices) => indices.filter((index) => index !== null && placed.includes(index));
  const ring = (name, indices, symbol, colour, size, width = 2) =>
    groupOf(name, here(indices), { symbol, size, color: colourOf(colour), line: { width, color: colourOf(colour) } }, {
      hoverinfo: "skip", selectedpoints: null,
    });
  const traces = [
    groupOf("infeasible", infeasible, { symbol: "triangle-up-open", size: sizesOf(infeasible, 9), color: colourOf("infeasible") }),
    groupOf("dominated", dominated, { symbol: "circle", size: sizesOf(dominated, 7), ...coloursOf(dominated, colourOf("other"), !front.length) }),
    ...stairsOf(feasible, x, y),
    groupOf("front", front, {
      symbol: "diamond", size: sizesOf(front, 11), line: { width: 1, color: colourOf("ground") }, ...coloursOf(front, colourOf("front"), true),
    }),
    ring("stands for all", facts.representatives.slice(0, state.count), "hexagon-open", "few", 19, 1.5),
    ring("knee", [facts.knee], "circle-open", "front", 24, 2.5),
    ring("suggested", [state.suggested], "square-open", "suggested", 30, 2.5),
    ring("baseline", [facts.baseline], "star", "baseline", 16, 0),
  ];
  return traces.filter((trace) => trace.x.length);
}

function stairsOf(feasible, x, y) {
  if (x === y || ![x.maximized, y.maximized].every((known) => known === true || known === false)) return [];
  const corners = staircase(feasible, x, y);
  return [{
    type: "scatter", mode: "lines", name: "best of these two", hoverinfo: "skip",
    x: corners.map((index) => x.values[index]),
    y: corners.map((index) => y.values[index]),
    line: { shape: x.maximized ? "vh" : "hv", color: colourOf("front"), width: 1.5, dash: "dot" },
  }];
}

// A line for each bound on what is drawn.
function boundsOf() {
  const lines = [], words = [];
  const colour = colourOf("infeasible");
  for (const bound of facts.constraints) {
    for (const [side, end] of [["x", state.x], ["y", state.y]]) {
      for (const kind of ["min", "max"]) {
        if (bound.name !== end || !isKnown(bound[kind])) continue;
        const value = bound[kind], log = columns.get(end).log;
        if (log && value <= 0) continue;
        const across = side === "x" ? { x0: value, x1: value, y0: 0, y1: 1, yref: "paper" } : { y0: value, y1: value, x0: 0, x1: 1, xref: "paper" };
        lines.push({ type: "line", ...across, line: { color: colour, width: 1.5, dash: "dash" } });
        const at = log ? Math.log10(value) : value; // annotations count in powers of ten where shapes do not
        const place = side === "x" ? { x: at, y: 1, yref: "paper", yanchor: "bottom" } : { y: at, x: 1, xref: "paper", xanchor: "right", yanchor: "bottom" };
        words.push({ ...place, text: `${kind} ${withUnit(value)}`, showarrow: false, font: { color: colour, size: 11 } });
      }
    }
  }
  return { shapes: lines, annotations: words };
}

function drawScatter() {
  if (!window.Plotly) return; // it is still being read; `beginFigures` draws what is chosen by then
  const x = columns.get(state.x), y = columns.get(state.y);
  const narrow = window.innerWidth < 544;
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const layout = lookOf({
    xaxis: axisOf(x), yaxis: axisOf(y), ...boundsOf(),
    dragmode: touch ? false : "select",
    hovermode: "closest",
    showlegend: true,
    legend: {
      orientation: "h", x: 0, y: narrow ? -0.22 : -0.12, itemsizing: "constant",
      ...(narrow ? { font: { size: 11 }, entrywidth: 0.48, entrywidthmode: "fraction" } : { font: { size: 12 } }),
    },
    uirevision: `${state.x} ${state.y}`,
    selections: [], // what a box held is told by what is faint; its outline would outlive it
    selectionrevision: (state.drawings += 1),
  });
  const place = document.getElementById("scatter");
  window.Plotly.react(place, tracesOf(), layout, CONFIG);
  drawSwatches();
  if (place.dataset.listens) return;
  place.dataset.listens = "yes";
  place.on("plotly_selected", (event) => {
    // Plotly tells of its own redrawing too, without a box or a lasso.
    if (event?.range || event?.lassoPoints) keepDrawn(new Set(event.points.map((point) => point.customdata)));
  });
  place.on("plotly_deselect", () => keepDrawn(null));
}

function keepDrawn(found) {
  state.drawn = found;
  narrowed();
}

function drawSwatches() {
  const column = columns.get(state.colour);
  const words = column && hasWords(column) ? wordsOf(column) : [];
  const items = words.map((word, place) => {
    const swatch = make("i");
    swatch.style.background = PALETTE[place] ?? GREY;
    return make("li", { title: word }, swatch, cut(word, 40));
  });
  document.getElementById("swatches").replaceChildren(...items);
}
