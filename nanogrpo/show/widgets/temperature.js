// The arithmetic of temperature.py, and its drawing.

const SHOWN = 12; // tokens with a bar of their own

export function pick(logits, tau, uniform) {
  const top = Math.max(...logits);
  const first = logits.indexOf(top);
  const weights = logits.map((z, i) => (tau ? Math.exp((z - top) / tau) : Number(i === first)));
  const total = weights.reduce((a, b) => a + b);
  const probabilities = weights.map((w) => w / total);
  const entropy = probabilities.reduce((sum, p) => sum - (p > 0 ? p * Math.log(p) : 0), 0);
  let sum = 0;
  const cdf = probabilities.map((p) => (sum += p));
  return { probabilities, entropy, chosen: tau ? cdf.findIndex((c) => c >= uniform * sum) : first };
}

export function readout(context, labels, logits, tau, uniform) {
  if (!(tau >= 0 && tau < Infinity)) return "The temperature must be a finite number, 0 (greedy) or above.";
  if (!(uniform > 0 && uniform <= 1)) return "u must be above 0 and at most 1.";
  const { probabilities, entropy, chosen } = pick(logits, tau, uniform);
  const best = logits.indexOf(Math.max(...logits));
  const named = (i) => `${labels[i]}, which has ${fixed(probabilities[i])}`;
  return `After ${context}, at temperature ${fixed(tau, 2)}: most probable is ${named(best)}.
Entropy ${fixed(entropy)} nats, that of ${fixed(Math.exp(entropy), 1)} equally probable tokens.
${tau ? `u = ${fixed(uniform)} chooses` : "Greedy, whatever u: it chooses"} ${named(chosen)}.`;
}

function render({ model, el }) {
  const [labels, contexts] = [model.get("labels"), model.get("contexts")];
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  const panels = make("div", { class: "ng-panels" });
  const controls = make("div", { class: "ng-controls" },
    control(model, "context", "after the text", {}, Object.keys(contexts).map((text) => [text, text])).label,
    control(model, "temperature", "temperature", { min: 0, max: 2, step: 0.05 }).label,
    control(model, "uniform", "u, the uniform number", { min: 0.01, max: 1, step: 0.01 }).label);
  const draw = buttons({ "draw another u": 0 }, () => put(model, "uniform", 1 - Math.random()));
  el.append(make("div", { class: "ng", role: "group", "aria-label": "The next token at a temperature" },
    make("style", {}, STYLE), controls, draw, panels, words));
  return redraw(model, ["context", "temperature", "uniform"], () => {
    const [context, tau, uniform] = ["context", "temperature", "uniform"].map((name) => model.get(name));
    const logits = contexts[context];
    words.textContent = readout(context, labels, logits, tau, uniform);
    const now = pick(logits, tau, uniform);
    const order = logits.map((_, i) => i).sort((a, b) => logits[b] - logits[a]);
    const rest = order.splice(SHOWN);
    const places = order.map((i) => [labels[i], now.probabilities[i], i === now.chosen]);
    if (rest.length) // apart, so that its name does not touch the last token's
      places.push(["", NaN], ["rest", rest.reduce((sum, i) => sum + now.probabilities[i], 0), rest.includes(now.chosen)]);
    const left = axes("next token (orange: chosen)", "", 1, [0, 0.5, 1], { x: [0.4, places.length + 0.6], xTicks: [] });
    for (const chosen of [false, true])
      bars(left, places.map(([, p, is]) => (is === chosen ? p : NaN)), chosen ? "var(--ng-other)" : "var(--ng-line)");
    places.forEach(([label], i) => {
      const [x, y] = left.at(i + 1, 0);
      left.root.append(make("text", { x, y: y + 16, "text-anchor": "middle" }, label));
    });
    const most = nice(Math.log(labels.length));
    const right = axes("entropy (nats)", "temperature", most, [0, most / 2, most], { x: [0, 2], xTicks: [0, 1, 2] });
    curve(right, (x) => pick(logits, x, 1).entropy, { stroke: "var(--ng-line)" });
    dot(right, tau, now.entropy, "var(--ng-line)");
    panels.replaceChildren(left.root, right.root);
  });
}

export default { render };
