// The arithmetic of difficulty.py, and its drawing.

const SCALINGS = {
  leave_one_out: "leave-one-out (RLOO)",
  none: "group mean only (Dr. GRPO)",
  group: "group mean, group std (GRPO)",
  group_bessel: "the same, std with G - 1 (TRL)",
  batch: "group mean, batch std",
};

export function weight(p, G, scaling, batchP) {
  if (scaling === "leave_one_out") return 1;
  if (scaling === "none") return (G - 1) / G;
  if (scaling === "batch") {
    const spread = Math.sqrt(batchP * (1 - batchP));
    return spread ? (G - 1) / G / spread : 0;
  }
  let [sum, ways] = [0, 1];
  for (let k = 1; k < G; k++) {
    ways *= (G - k + 1) / k; // G choose k
    sum += (ways * p ** (k - 1) * (1 - p) ** (G - k - 1) * Math.sqrt(k * (G - k))) / G;
  }
  return sum * (scaling === "group_bessel" ? Math.sqrt((G - 1) / G) : 1);
}

export function deadProbability(p, G) {
  return p ** G + (1 - p) ** G;
}

export function readout(p, G, scaling, batchP) {
  const probability = (x) => Number.isFinite(x) && x >= 0 && x <= 1;
  if (!probability(p) || !probability(batchP)) return "p must be a number from 0 to 1.";
  if (!Number.isInteger(G) || G < 2) return "G must be a whole number of at least 2.";
  const head = `p = ${p.toFixed(2)}, G = ${G}: `;
  if (p === 0 || p === 1) return `${head}every answer is ${p ? "right" : "wrong"}, so every group is dead. Nothing is learned.`;
  if (scaling === "batch" && (batchP === 0 || batchP === 1)) return `${head}all rewards of the batch are equal. Nothing is learned.`;
  const w = weight(p, G, scaling, batchP).toFixed(3);
  return `${head}weight w = ${w}. A group is dead with probability ${(100 * deadProbability(p, G)).toFixed(1)} %.`;
}

function render({ model, el }) {
  const root = make("div", { class: "ng", role: "group", "aria-label": "Weight of a prompt by its difficulty" });
  const share = control(model, "batch_p", "share of right answers in the batch", { min: 0, max: 1, step: 0.01 });
  const controls = make("div", { class: "ng-controls" },
    control(model, "scaling", "Scaling", {}, SCALINGS).label,
    control(model, "p", "p, probability of a right answer", { min: 0, max: 1, step: 0.01 }).label,
    control(model, "group_size", "G, answers in a group", { min: 2, max: 64, step: 1 }).label,
    share.label);
  const panels = make("div", { class: "ng-panels" });
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  root.append(make("style", {}, STYLE), controls, panels, words);

  function draw() {
    const [p, G, scaling, batchP] = ["p", "group_size", "scaling", "batch_p"].map((name) => model.get(name));
    share.label.style.display = scaling === "batch" ? "" : "none";
    words.textContent = readout(p, G, scaling, batchP);
    const ends = [weight(0, G, scaling, batchP), weight(0.5, G, scaling, batchP)];
    const top = [2, 4, 8, 16].find((y) => Math.max(...ends) <= y) ?? 16;
    const left = axes("weight w of the gradient of p", "p", top, [0, top / 4, top / 2, (3 * top) / 4, top]);
    const right = axes("probability of a dead group", "p", 1, [0, 0.25, 0.5, 0.75, 1]);
    if (scaling.startsWith("group")) {
      const limit = (x) => { const w = 1 / Math.sqrt(x * (1 - x)); return w <= top ? w : NaN; };
      curve(left, limit, { stroke: "var(--ng-soft)", "stroke-dasharray": "5 4", "stroke-width": 1.6 });
      left.root.append(make("text", { x: left.at(0.5, 0)[0], y: left.at(0, 0)[1] - 10, "text-anchor": "middle" }, "dashed: the limit for many answers"));
    }
    curve(left, (x) => Math.min(top, weight(x, G, scaling, batchP)), { stroke: "var(--ng-line)" });
    curve(right, (x) => deadProbability(x, G), { stroke: "var(--ng-other)" });
    if (p >= 0 && p <= 1) {
      dot(left, p, Math.min(top, weight(p, G, scaling, batchP)), "var(--ng-line)");
      dot(right, p, deadProbability(p, G), "var(--ng-other)");
    }
    panels.replaceChildren(left.root, right.root);
  }

  const names = ["p", "group_size", "scaling", "batch_p"];
  for (const name of names) model.on(`change:${name}`, draw);
  draw();
  el.append(root);
  return () => names.forEach((name) => model.off(`change:${name}`, draw));
}

export default { render };
