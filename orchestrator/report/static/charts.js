// How the search went, and how the models of the front learned.

function drawVolumes() {
  const { hours, values } = facts.volume;
  const ended = values.map((_, place) => place + 1);
  for (const [id, x, title] of [["volume-trials", ended, "trials ended"], ["volume-hours", hours, "device-hours"]]) {
    const trace = {
      type: "scatter", mode: values.length > 1 ? "lines" : "markers", x, y: values,
      line: { shape: "hv", color: colourOf("front"), width: 2 }, hovertemplate: `%{x} ${title}: %{y:.5g}<extra></extra>`,
    };
    const layout = lookOf({
      xaxis: { title: { text: title }, gridcolor: colourOf("line"), zeroline: false, rangemode: "tozero" },
      yaxis: { gridcolor: colourOf("line"), zeroline: false, automargin: true, exponentformat: "power" },
      margin: { l: 56, r: 12, t: 12, b: 44 },
    });
    window.Plotly.react(document.getElementById(id), [trace], layout, { ...CONFIG, displayModeBar: false });
  }
}

const seenNames = () => [...new Set(facts.curves.flatMap((curve) => Object.keys(curve.seen)))];

// Lines of some trials as one trace, with a gap between each and the next: a hundred traces would take ten times as long.
function linesOf(curves, name, look) {
  const x = [], y = [], text = [];
  for (const curve of curves) {
    curve.seen[state.seen].forEach((value, place) => {
      x.push(place + 1);
      y.push(value);
      text.push(`<b>${plain(trials.id[curve.trial])}</b><br>${plain(curve.stages[place])}, epoch ${curve.epochs[place]}<br>${plain(shown(value))}`);
    });
    x.push(null);
    y.push(null);
    text.push("");
  }
  return { type: "scatter", mode: "lines", hoverinfo: "text", connectgaps: false, name, x, y, text, ...look };
}

function drawCurves() {
  if (!window.Plotly) return;
  const known = facts.curves.filter((curve) => curve.seen[state.seen]);
  const only = (trial) => known.filter((curve) => curve.trial === trial);
  const others = known.filter((curve) => curve.trial !== facts.knee && curve.trial !== state.suggested);
  const traces = [
    linesOf(others, "front", { line: { color: colourOf("other"), width: 1 }, opacity: 0.6 }),
    linesOf(only(facts.knee), "knee", { line: { color: colourOf("front"), width: 3, dash: "dash" } }),
    linesOf(only(state.suggested), "suggested", { line: { color: colourOf("suggested"), width: 3 } }),
  ].filter((trace) => trace.x.length);
  const layout = lookOf({
    xaxis: { title: { text: "epochs, over all stages" }, gridcolor: colourOf("line"), zeroline: false },
    yaxis: { title: { text: plain(state.seen) }, gridcolor: colourOf("line"), zeroline: false, automargin: true },
    hovermode: "closest",
    showlegend: true,
    legend: { orientation: "h", x: 0, y: -0.2 },
  });
  window.Plotly.react(document.getElementById("lines"), traces, layout, { ...CONFIG, displayModeBar: false });
}
