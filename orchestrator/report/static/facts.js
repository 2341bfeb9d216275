// The facts of the sweep, what the reader has chosen, and how names and numbers are shown. Text enters the page as text only.

const facts = JSON.parse(document.getElementById("facts").textContent);
const trials = facts.trials;
const everyTrial = trials.id.map((_, index) => index);
const columns = new Map(facts.columns.map((column) => [column.name, column]));
const objectives = facts.objectives.map((objective) => columns.get(objective.name)).filter(Boolean);
const onFront = new Set(facts.front);

const state = {
  x: (objectives[1] ?? columns.get("trial")).name,
  y: (objectives[0] ?? columns.get("trial")).name,
  colour: "",
  size: "",
  count: Math.min(5, facts.representatives.length),
  weights: facts.objectives.map(() => 1),
  suggested: null,
  ranges: new Map(), // an axis by name, and the part of it that is kept, [low, high] within [0, 1]
  drawn: null, // what a box or a lasso holds
  drawings: 0,
  rows: facts.front.length ? "front" : "all",
  sort: null,
  seen: "val_accuracy",
};

const isText = (value) => typeof value === "string" || typeof value === "boolean";
const isKnown = (value) => value !== null && value !== undefined;
const hasWords = (column) => column.values.some(isText);
const isNumeric = (column) => !hasWords(column) && column.values.some(isKnown);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

const cut = (text, limit) => (text.length > limit ? `${text.slice(0, limit)}…` : text);

function shown(value) {
  if (!isKnown(value)) return "–";
  if (typeof value !== "number") return cut(String(value), 40);
  if (Number.isInteger(value) || Math.abs(value) >= 1e4) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

function withUnit(value) {
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))}${letter}`;
  }
  return String(Number(value.toPrecision(3)));
}

// Plotly reads a few tags in its texts; a name that looks like one is to be read as it stands.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function ends(column) {
  const known = column.values.filter(isKnown);
  return [Math.min(...known), Math.max(...known)];
}

const wordsOf = (column) => [...new Set(column.values.filter(isKnown).map(String))];

// Where each trial stands on an axis, within [0, 1]; null where it has no place there. Computed once.
const fractions = new Map();
function fractionsOf(column) {
  if (!fractions.has(column.name)) fractions.set(column.name, hasWords(column) ? placesOfWords(column) : placesOfNumbers(column));
  return fractions.get(column.name);
}

function placesOfWords(column) {
  const words = wordsOf(column);
  const places = new Map(words.map((word, place) => [word, words.length > 1 ? place / (words.length - 1) : 0.5]));
  return column.values.map((value) => (isKnown(value) ? places.get(String(value)) : null));
}

function placesOfNumbers(column) {
  const scale = (value) => (column.log ? Math.log(value) : value);
  const [low, high] = ends(column).map(scale);
  return column.values.map((value) => (!isKnown(value) ? null : high > low ? (scale(value) - low) / (high - low) : 0.5));
}

// Whether every brush, box and lasso keeps a trial.
function isKept(index) {
  if (state.drawn !== null && !state.drawn.has(index)) return false;
  for (const [name, [low, high]] of state.ranges) {
    const at = fractionsOf(columns.get(name))[index];
    if (at === null || at < low || at > high) return false;
  }
  return true;
}

const isNarrowed = () => state.drawn !== null || state.ranges.size > 0;

function say(text) {
  document.getElementById("status").textContent = text;
}
