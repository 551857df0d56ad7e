// The arithmetic of kl.py, and its drawing.

const uniform = [0.25, 0.25, 0.25, 0.25];
const PRESETS = {
  equal: [uniform, uniform],
  "a little apart": [[0.28, 0.26, 0.24, 0.22], uniform],
  "policy sharper": [[0.7, 0.15, 0.1, 0.05], uniform],
  "a token nearly dropped": [[0.4, 0.35, 0.249, 0.001], uniform],
  "a token dropped": [[0.4, 0.35, 0.25, 0], uniform],
  "a token that the reference never takes": [uniform, [0.4, 0.35, 0.25, 0]],
};

const sum = (values) => values.reduce((a, b) => a + b, 0);
const times = (p, x) => (p > 0 ? p * x : 0); // what is never sampled adds nothing

// One probability set, the others in proportion, so that all still sum to 1. A value that is none is set alone.
export function setOne(probabilities, i, value) {
  if (!(value >= 0 && value <= 1)) return probabilities.map((p, j) => (i === j ? value : p));
  const others = probabilities.map((p, j) => (j !== i && p > 0 ? p : 0));
  const rest = sum(others);
  return others.map((p, j) => (i === j ? value : (1 - value) * (rest > 0 ? p / rest : 1 / (others.length - 1))));
}

// Estimates of each token (NaN where the policy never samples it), their means, both KLs, and the expected
// gradient of each estimate as a loss, for the logits of the policy (NaN where it is infinite).
export function divergences(policy, reference) {
  const delta = policy.map((p, i) => (p > 0 ? Math.log(reference[i]) - Math.log(p) : NaN));
  const mean = (k) => sum(policy.map((p, i) => times(p, k[i])));
  const kl = (a, b) => sum(a.map((p, i) => times(p, Math.log(p) - Math.log(b[i]))));
  const estimates = {
    k1: delta.map((d) => -d),
    k2: delta.map((d) => (d * d) / 2),
    k3: delta.map((d) => Math.expm1(d) - d),
  };
  // By the log-prob of the token; then d log p(x) / d logit i is 1 - p(i) if x is i, else -p(i).
  const slopes = { k1: delta.map(() => 1), k2: delta.map((d) => -d), k3: delta.map((d) => -Math.expm1(d)) };
  const gradient = (c) => policy.map((p, i) => (Number.isFinite(mean(c)) ? times(p, c[i] - mean(c)) : NaN));
  const each = (f, table) => Object.fromEntries(Object.entries(table).map(([name, x]) => [name, f(x)]));
  return {
    estimates,
    means: each(mean, estimates),
    reverse: kl(policy, reference),
    forward: kl(reference, policy),
    gradients: each(gradient, slopes),
  };
}

export function complaint(policy, reference) {
  for (const [name, p] of Object.entries({ policy, reference })) {
    const bad = p.findIndex((x) => !(x >= 0 && x <= 1));
    if (bad >= 0) return `The ${name}'s probability of token ${bad + 1} is ${Number.isNaN(p[bad]) ? "not a number" : p[bad]}; it must be from 0 to 1.`;
    if (!(Math.abs(sum(p) - 1) < 1e-6)) return `The ${name}'s probabilities sum to ${fixed(sum(p))}; they must sum to 1.`;
  }
  return "";
}

const say = (x, digits) => (Number.isFinite(x) ? fixed(x, digits) : x === Infinity ? "infinite" : "undefined");

export function readout(policy, reference) {
  const trouble = complaint(policy, reference);
  if (trouble) return trouble;
  const { means, reverse, forward, gradients } = divergences(policy, reference);
  const list = (values) => values.map((x) => say(x)).join(", ");
  const lines = [
    `Exact: KL(policy || reference) = ${say(reverse, 4)}, KL(reference || policy) = ${say(forward, 4)}.`,
    `Means under the policy: k1 ${say(means.k1, 4)}, k2 ${say(means.k2, 4)}, k3 ${say(means.k3, 4)}.`,
    ...Object.entries(gradients).map(([name, g]) => `Expected gradient of ${name} as a loss: ${list(g)}.`),
  ];
  const tokens = (test) => policy.map((p, i) => (test(p, reference[i]) ? i + 1 : 0)).filter(Boolean).join(", ");
  const outside = tokens((p, q) => p > 0 && q === 0);
  const unseen = tokens((p, q) => p === 0 && q > 0);
  if (outside) lines.push(`The reference never takes token ${outside}, the policy does: every estimate is infinite there.`);
  if (unseen) lines.push(`The policy never samples token ${unseen}, so no estimate knows of it: KL(reference || policy) is infinite, and the mean of k3 is too small by the reference's probability of it.`);
  if (policy.every((p, i) => p === reference[i])) lines.push("The two are equal: every estimate is 0 on every token.");
  return lines.join("\n");
}

function table({ estimates, means }) {
  const row = (tag, cells) => make("tr", {}, ...cells.map((text, i) => make(i ? tag : "th", i && tag === "td" ? {} : { scope: i ? "col" : "row" }, text)));
  const names = Object.keys(estimates);
  const of = (i) => names.map((k) => (Number.isNaN(estimates[k][i]) ? "never" : say(estimates[k][i])));
  return make("table", {}, make("caption", {}, "Estimates of a sampled token"),
    make("thead", {}, row("th", ["token", ...names])),
    make("tbody", {}, ...uniform.map((_, i) => row("td", [String(i + 1), ...of(i)])), row("td", ["mean", ...names.map((k) => say(means[k]))])));
}

function render({ model, el }) {
  const editor = (name, title, color) => barEditor(model, name, { title, symbol: title[0], color, extent: [0, 1], decimals: 2,
    write: (i, value) => put(model, name, setOne(model.get(name), i, value)) });
  const [policy, reference] = [editor("policy", "policy", "var(--ng-line)"), editor("reference", "reference", "var(--ng-soft)")];
  const presets = buttons(PRESETS, ([p, q]) => (put(model, "policy", [...p]), put(model, "reference", [...q])));
  const panels = make("div", { class: "ng-panels" });
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  const note = make("p", { class: "ng-note" }, "One probability moves, the others follow in proportion. Gradients are for the logits of the policy, averaged over its samples; a step of the optimizer goes against them.");
  el.append(make("div", { class: "ng", role: "group", "aria-label": "Two distributions and the estimates of their KL divergence" },
    make("style", {}, STYLE), presets, make("div", { class: "ng-panels" }, policy.column, reference.column), panels, note, words));
  return redraw(model, ["policy", "reference"], () => {
    const [p, q] = [model.get("policy"), model.get("reference")];
    words.textContent = readout(p, q);
    const frame = { x: [0.4, 4.6], xTicks: [1, 2, 3, 4] };
    policy.draw(frame);
    reference.draw(frame);
    if (complaint(p, q)) return present(panels, []);
    const all = divergences(p, q);
    const largest = Math.max(0.05, ...Object.values(all.gradients).flat().filter(Number.isFinite).map(Math.abs));
    const top = nice(largest);
    const titles = {
      k1: "zero",
      k2: all.reverse < Infinity ? "that of KL(policy || reference)" : "undefined",
      k3: all.forward < Infinity ? "that of KL(reference || policy)" : "of no KL, a token is unseen",
    };
    const plots = Object.entries(titles).map(([k, what]) => {
      const plot = axes(`gradient of ${k}: ${what}`, "", top, [-top, 0, top], { ...frame, bottom: -top, height: 130 });
      bars(plot, all.gradients[k], "var(--ng-other)");
      return plot.root;
    });
    present(panels, [make("div", { class: "ng-column" }, table(all)), ...plots]);
  });
}

export default { render };
