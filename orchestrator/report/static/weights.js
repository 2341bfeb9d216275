// Sliders that say what matters, the trial that they lead to, and the command that takes it.

const HEAVIEST = 10;

function buildWeights() {
  const sliders = facts.objectives.map((objective, place) => {
    const id = `weight-${place}`;
    const slider = make("input", { type: "range", id, min: 0, max: HEAVIEST, step: 1, value: state.weights[place] });
    const output = make("output", { for: id }, state.weights[place]);
    slider.addEventListener("input", () => {
      state.weights[place] = Number(slider.value);
      output.textContent = slider.value;
      weighed();
    });
    return make("div", { class: "weight" }, make("label", { for: id }, objective.name), slider, output);
  });
  document.getElementById("weights").replaceChildren(...sliders);
  document.getElementById("choose").hidden = !facts.front.length;
}

const signed = (text) => (text.startsWith("-") ? text : `+${text}`);

// An objective of a trial, and how far that is from the baseline.
function described(column, index) {
  const value = column.values[index];
  const before = facts.baseline === null ? null : column.values[facts.baseline];
  if (!isKnown(before) || index === facts.baseline) return `${column.label} ${shown(value)}`;
  if (column.name.endsWith("accuracy")) return `${column.label} ${shown(value)} (${signed((100 * (value - before)).toFixed(1))} points)`;
  return before > 0 ? `${column.label} ${shown(value)} (× ${(value / before).toFixed(2)})` : `${column.label} ${shown(value)}`;
}

// Moves the suggestion to where the sliders stand; where all are at 0 it stays, and the page says why.
function suggest() {
  const found = suggestion();
  const line = document.getElementById("suggestion");
  if (found === null) {
    line.textContent = "One weight must be above 0.";
    return;
  }
  state.suggested = found;
  line.dataset.trial = trials.id[found];
  line.replaceChildren(
    make("b", {}, trials.id[found]),
    `${found === facts.baseline ? ", the baseline" : found === facts.knee ? ", the knee" : ""}: `,
    objectives.map((column) => described(column, found)).join(", "),
  );
  const weights = facts.objectives.map((objective, place) => [objective.name, state.weights[place]]).filter(([, weight]) => weight > 0);
  document.getElementById("pick-command").textContent =
    `orchestrator pick ${facts.sweep} --weights ${weights.map(([name, weight]) => `${name}=${weight}`).join(",")}`;
}

function buildFew() {
  const slider = document.getElementById("count");
  slider.max = Math.max(1, facts.representatives.length);
  slider.value = Math.max(1, state.count);
  slider.addEventListener("input", () => {
    state.count = Number(slider.value);
    drawFew();
    later(drawScatter);
  });
  drawFew();
}

function drawFew() {
  document.getElementById("count-shown").textContent = state.count;
  const items = facts.representatives.slice(0, state.count).map((index) => {
    const best = objectives.filter((_, place) => facts.extremes[place] === index).map((column) => `best ${column.label}`);
    const why = [...best, ...(index === facts.knee ? ["knee"] : [])].map((text) => make("span", { class: "badge" }, text));
    const values = objectives.map((column) => `${column.label} ${shown(column.values[index])}`).join(", ");
    return make("li", {}, make("b", {}, trials.id[index]), ...why, make("br"), values);
  });
  document.getElementById("few").replaceChildren(...items);
}
