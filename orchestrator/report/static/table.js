// The table: a row a trial, sorted by a button in each head.

const heads = [
  { name: "id", label: "trial", values: trials.id, rising: true },
  ...objectives.map((column) => ({ ...column, rising: !column.maximized })),
  { name: "chance", label: "p(front)", values: trials.chance, rising: false },
  ...facts.columns.filter((column) => column.kind === "chosen").map((column) => ({ ...column, rising: true })),
  { name: "state", label: "state", values: trials.state, rising: true },
  { name: "note", label: "note", values: trials.note, rising: true },
];
if (objectives.length) state.sort = { name: objectives[0].name, rising: !objectives[0].maximized };
else state.sort = { name: "id", rising: true };

function rowsShown() {
  if (state.rows === "front") return facts.front;
  return state.rows === "feasible" ? everyTrial.filter((index) => trials.feasible[index]) : everyTrial;
}

// Known values by the sign of the order, then those that are not known; equals by their number.
function sorted(indices) {
  const { values } = heads.find((head) => head.name === state.sort.name);
  const sign = state.sort.rising ? 1 : -1;
  const compare = (one, other) => {
    const a = values[one], b = values[other];
    if (isKnown(a) !== isKnown(b)) return isKnown(a) ? -1 : 1;
    if (!isKnown(a) || a === b) return one - other;
    const mixed = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return sign * mixed || one - other;
  };
  return [...indices].sort(compare);
}

function badgesOf(index) {
  const found = [];
  if (index === facts.baseline) found.push("baseline");
  if (index === facts.knee) found.push("knee");
  if (onFront.has(index) && state.rows !== "front") found.push("front");
  return found.map((text) => make("span", { class: "badge" }, text));
}

function cellOf(head, index) {
  const value = head.values[index];
  if (head.name === "id") return make("th", { scope: "row" }, value, ...badgesOf(index));
  if (head.name === "chance") return make("td", {}, isKnown(value) ? value.toFixed(2) : "–");
  if (head.name === "note") return make("td", { class: "words", title: value }, cut(value, 90));
  if (isText(value)) return make("td", { class: "words", title: value }, cut(String(value), 40));
  return make("td", {}, shown(value));
}

function headOf(head) {
  const button = make("button", { type: "button" }, head.label);
  button.addEventListener("click", () => {
    const again = state.sort.name === head.name;
    state.sort = { name: head.name, rising: again ? !state.sort.rising : head.rising };
    drawTable();
    document.querySelector(`#table th[data-column="${CSS.escape(head.name)}"] button`).focus();
    say(`sorted by ${head.label}, ${state.sort.rising ? "rising" : "falling"}`);
  });
  const sort = state.sort.name !== head.name ? "none" : state.sort.rising ? "ascending" : "descending";
  return make("th", { scope: "col", "aria-sort": sort, "data-column": head.name, title: head.name }, button);
}

function drawTable() {
  const used = heads.filter((head) => head.name !== "note" || rowsShown().some((index) => trials.note[index]));
  const body = make("tbody");
  for (const index of sorted(rowsShown())) {
    const row = make("tr", { "data-trial": trials.id[index] }, ...used.map((head) => cellOf(head, index)));
    body.append(row);
  }
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...used.map(headOf))), body);
  document.getElementById("table").replaceChildren(table);
  shadeTable();
}

const placeOf = new Map(trials.id.map((id, index) => [id, index]));

function shadeTable() {
  for (const row of document.querySelectorAll("#table tbody tr")) {
    const index = placeOf.get(row.dataset.trial);
    row.classList.toggle("dim", !isKept(index));
    row.classList.toggle("suggested", index === state.suggested);
  }
}
