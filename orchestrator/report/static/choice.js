// Which point weights lead to, and which points stand for all: the arithmetic of the product's own pareto/selection.py.

// Costs (rows of objectives) between the best, 0, and the worst, 1, of each; 0 throughout where an objective does not vary.
function scaled(costs) {
  const places = costs[0].map((_, place) => place);
  const ideal = places.map((place) => Math.min(...costs.map((row) => row[place])));
  const spread = places.map((place) => Math.max(...costs.map((row) => row[place])) - ideal[place]);
  return costs.map((row) => row.map((cost, place) => (cost - ideal[place]) / (spread[place] > 0 ? spread[place] : 1)));
}

// The row closest to the ideal in the augmented weighted Chebyshev metric; the first of equals. Weights: >= 0, one above 0.
function weightedIndex(costs, weights) {
  const largest = Math.max(...weights);
  const relative = weights.map((weight) => weight / largest);
  const total = relative.reduce((sum, weight) => sum + weight, 0);
  const scores = scaled(costs).map(
    (row) =>
      Math.max(...row.map((z, place) => (relative[place] / total) * z)) + facts.rho * row.reduce((sum, z) => sum + z, 0),
  );
  const least = Math.min(...scores);
  return scores.findIndex((score) => score <= least + facts.tie);
}

const costsOf = (index) =>
  facts.objectives.map(({ name, maximized }) => (maximized ? -1 : 1) * columns.get(name).values[index]);

// The trial that the sliders lead to, or null where there is no front or no weight.
function suggestion() {
  if (!facts.front.length || !state.weights.some((weight) => weight > 0)) return null;
  return facts.front[weightedIndex(facts.front.map(costsOf), state.weights)];
}

// The corners of the staircase over two columns, from left to right: trials that none of `indices` beats in both.
function staircase(indices, x, y) {
  const across = x.maximized ? -1 : 1;
  const up = y.maximized ? -1 : 1;
  const ordered = indices
    .map((index) => [across * x.values[index], up * y.values[index], index])
    .sort((one, other) => one[0] - other[0] || one[1] - other[1]);
  const corners = [];
  let best = Infinity;
  for (const [, cost, index] of ordered) {
    if (cost < best) {
      corners.push(index);
      best = cost;
    }
  }
  return x.maximized ? corners.reverse() : corners;
}
