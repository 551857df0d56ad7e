// The arithmetic of preference.py, and its drawing.

const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));
const surprise = (x) => Math.max(-x, 0) + Math.log1p(Math.exp(-Math.abs(x))); // -log sigmoid(x)

export function pair(points, temperature, margin) {
  const best = points / temperature;
  const [chosen, other] = [sigmoid(best), sigmoid(-best)];
  const believed = sigmoid(margin);
  const [lossA, lossB] = [surprise(margin), surprise(-margin)];
  return {
    chosen, ceiling: Math.max(chosen, other), believed, loss_a: lossA, loss_b: lossB,
    loss: chosen * lossA + other * lossB, slope: believed - chosen, best,
  };
}

// Three digits after the point, as far as a number has room for them.
const amount = (x) => (Math.abs(x) < 1e5 ? fixed(x) : Number.isFinite(x) ? x.toExponential(2) : "beyond all numbers");

export function readout(points, temperature, margin) {
  if (!Number.isFinite(points)) return "The judge's points must be a number.";
  if (!(temperature > 0 && temperature < Infinity)) return "The temperature must be a number above 0.";
  if (!Number.isFinite(margin)) return "The margin must be a number.";
  const now = pair(points, temperature, margin);
  const percent = (x) => `${fixed(100 * x, 1)} %`;
  const push = Math.abs(now.slope) < 5e-4 ? "so training leaves it where it is"
    : `so training ${now.slope < 0 ? "raises" : "lowers"} it, toward ${amount(now.best)}`;
  const equal = points === 0 ? " The judge has no opinion: each label is a coin toss." : "";
  return `${percent(now.chosen)} of the labels prefer text a; nobody can get more than ${percent(now.ceiling)} of them right.${equal}
At the margin ${amount(margin)} the model says ${percent(now.believed)}. A label for a costs ${amount(now.loss_a)} nats, one for b ${amount(now.loss_b)}.
On average ${amount(now.loss)}, with slope ${amount(now.slope)}, ${push}.`;
}

function render({ model, el }) {
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  const panels = make("div", { class: "ng-panels" });
  const controls = make("div", { class: "ng-controls" },
    control(model, "points", "judge: points of a less those of b", { type: "number", step: 0.5 }).label,
    control(model, "temperature", "temperature of the judge's noise", { type: "number", min: 0, step: 0.1 }).label,
    control(model, "margin", "model: margin, score of a less that of b", { min: -8, max: 8, step: 0.1 }).label);
  const examples = buttons({
    "clear pair": [6, 1, 0], "close pair": [0.5, 1, 0], "equal texts": [0, 1, 2], "sure and wrong": [2, 1, -6],
    "much noise": [2, 4, 3], "hardly any": [2, 0.2, 3] },
  (example) => names.forEach((name, i) => put(model, name, example[i])));
  const names = ["points", "temperature", "margin"];
  el.append(make("div", { class: "ng", role: "group", "aria-label": "One pair of texts, its labels and its loss" },
    make("style", {}, STYLE), controls, examples, panels, words));
  return redraw(model, names, () => {
    const [points, temperature, margin] = names.map((name) => model.get(name));
    words.textContent = readout(points, temperature, margin);
    const known = Number.isFinite(points) && temperature > 0 && temperature < Infinity;
    const at = (m) => pair(points, temperature, m);
    const around = { x: [-8, 8], xTicks: [-8, -4, 0, 4, 8] };
    const left = axes("loss (nats); dashed: if the label is a", "margin of the model", 8, [0, 2, 4, 6, 8], around);
    const right = axes("share of labels that can be right", "points between the texts", 1, [0.5, 0.75, 1],
      { x: [0, 10], xTicks: [0, 2, 4, 6, 8, 10], bottom: 0.5 });
    curve(left, (m) => surprise(m) <= 8 ? surprise(m) : NaN, { stroke: "var(--ng-soft)", "stroke-dasharray": "5 4" });
    if (known) curve(left, (m) => at(m).loss, { stroke: "var(--ng-line)" });
    if (known && Math.abs(margin) <= 8) {
      const { loss, slope } = at(margin);
      const touch = (m) => (Math.abs(m - margin) <= 2.5 ? loss + slope * (m - margin) : NaN);
      curve(left, (m) => (touch(m) >= 0 && touch(m) <= 8 ? touch(m) : NaN), { stroke: "var(--ng-other)" });
      dot(left, margin, loss, "var(--ng-line)");
    }
    if (known) curve(right, (d) => pair(d, temperature, 0).ceiling, { stroke: "var(--ng-line)" });
    if (known && Math.abs(points) <= 10) dot(right, Math.abs(points), at(0).ceiling, "var(--ng-line)");
    panels.replaceChildren(left.root, right.root);
  });
}

export default { render };
