// The arithmetic of formula.py, and its drawing.

const ORDER = ["ratio", "advantage", "clip", "min", "kl", "beta", "mask", "tokens", "completions", "loss"];
const TITLES = {
  ratio: "ratio of new to old probability", advantage: "advantage of the completion", clip: "clipped ratio",
  min: "the smaller of the two products", kl: "estimate of the KL", beta: "price of the KL", mask: "mask",
  tokens: "mean over the tokens of a completion", completions: "mean over the completions", loss: "loss",
};
const OF_ALL = ["completions", "loss"];
const OF_ROW = ["advantage", "tokens"];

const LOOKS = `
.ng-steps { display: flex; flex-wrap: wrap; gap: 0.4rem 0.8rem; align-items: center; }
.ng-steps button, .ng-steps select { min-height: 1.9rem; padding: 0 0.7rem; font: inherit; color: inherit; background: transparent;
  border: 1px solid var(--ng-soft); border-radius: 4px; }
.ng-steps option { color: #111; background: #fff; }
.ng-steps label { margin: 0; }
.ng-head { position: sticky; top: 0; z-index: 2; margin: 0.5rem 0; padding: 0.3rem 0; background: var(--pst-color-background, Canvas); border-bottom: 1px solid var(--ng-soft); }
.ng-formula { font-family: KaTeX_Main, "Times New Roman", serif; font-size: 1.25rem; line-height: 2.05rem; }
.ng-formula i { font-family: KaTeX_Math, "Times New Roman", serif; }
.ng-formula sub { font-size: 0.7em; line-height: 1; }
.ng-term { display: inline-block; min-width: 1.5rem; margin: 0 1px; padding: 0 0.15rem; font: inherit; line-height: 1.75rem; color: inherit; cursor: pointer;
  background: color-mix(in srgb, var(--ng-line) 8%, transparent); border: 0; border-bottom: 2px solid var(--ng-line); border-radius: 3px; }
.ng-term[data-lit], .ng-code mark, .ng-formula [data-lit] { color: var(--ng-grip); background: var(--ng-line); border-radius: 3px; }
.ng-code mark { padding: 0 0.1rem; }
.ng-head .ng-readout { min-height: 4.2em; margin: 0.2rem 0; font-size: 0.93em; line-height: 1.4; }
.ng .ng-batch { width: auto; font-size: 0.8rem; }
.ng .ng-batch th, .ng .ng-batch td { padding: 1px 0.15rem; border: 0; background: transparent; color: inherit; }
.ng .ng-batch th { font-weight: 600; }
.ng .ng-batch .ng-prompt { padding-top: 0.3rem; text-align: left; }
.ng-cell { display: block; box-sizing: border-box; width: 100%; min-width: 3.7rem; min-height: 1.6rem; padding: 0 0.15rem; font: inherit; text-align: center; white-space: nowrap;
  color: inherit; background: transparent; border: 1px solid var(--ng-soft); border-radius: 4px; cursor: pointer; }
.ng-cell[data-pad] { border-style: dotted; color: var(--ng-soft); }
.ng-cell[data-cut] { border: 2px dashed currentColor; }
.ng-cell[data-lit], .ng-batch .ng-lit { background: color-mix(in srgb, var(--ng-line) 28%, transparent); }
.ng-cell[aria-pressed="true"] { box-shadow: 0 0 0 2px var(--ng-line); }
.ng-words { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.ng-code { margin: 0.5rem 0 0; padding: 0.4rem 0; font-size: 0.74rem; line-height: 1.45; border: 1px solid var(--ng-soft); border-radius: 4px; background: transparent; color: inherit; }
.ng-code code { display: block; padding: 0 0.5rem 0 2rem; text-indent: -1.5rem; font-size: inherit; white-space: pre-wrap; overflow-wrap: anywhere; color: inherit; background: transparent; border: 0; }
.ng-code code[data-lit] { background: color-mix(in srgb, var(--ng-line) 16%, transparent); box-shadow: inset 4px 0 var(--ng-line); }
.ng-behind { min-height: 5.6rem; }
.ng-note a { color: var(--ng-line); text-decoration: underline; }
@media (max-width: 600px) {
  .ng-steps { gap: 0.4rem; }
  .ng-steps select { width: auto; padding: 0 0.2rem; }
  .ng .ng-batch { font-size: 0.72rem; }
  .ng .ng-batch th, .ng .ng-batch td { padding: 1px; }
  .ng .ng-batch td + td:nth-last-child(-n + 3) { padding-left: 0.25rem; }
  .ng-cell { min-width: 3.3rem; padding: 0; }
  .ng-code { font-size: 0.7rem; }
}
@media (prefers-reduced-motion: no-preference) { .ng-term, .ng-cell, .ng-code code { transition: background-color 0.15s; } }
`;

// The log arrives as text; it is read once.
const read = new WeakMap();
const logOf = (model) => read.get(model) ?? read.set(model, JSON.parse(model.get("log"))).get(model);
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

// Every term of one update: a number for each token, for each completion, or one.
export function terms({ config, mask, rewards, old, ref, updates }, update) {
  const each = (f) => mask.map((row, i) => row.map((kept, t) => f(i, t, kept)));
  const now = updates[update];
  const advantage = rewards.flatMap((group) => {
    const [middle, tied] = [mean(group), Math.max(...group) === Math.min(...group)];
    const std = Math.sqrt(mean(group.map((r) => (r - middle) ** 2)));
    return group.map((r) => (tied ? 0 : (r - middle) / (std + config.std_eps)));
  });
  const ratio = each((i, t, kept) => (kept ? Math.exp(now[i][t] - old[i][t]) : 1));
  const clip = each((i, t) => Math.min(1 + config.clip_high, Math.max(1 - config.clip_low, ratio[i][t])));
  const min = each((i, t, kept) => (kept ? Math.min(ratio[i][t] * advantage[i], clip[i][t] * advantage[i]) : 0));
  const kl = each((i, t, kept) => (kept ? Math.expm1(ref[i][t] - now[i][t]) - (ref[i][t] - now[i][t]) : 0));
  const beta = each((i, t) => config.beta * kl[i][t]);
  const tokens = mask.map((row, i) => row.reduce((sum, kept, t) => sum + kept * (min[i][t] - beta[i][t]), 0) / Math.max(1, row.reduce((a, b) => a + b, 0)));
  return { ratio, advantage, clip, min, kl, beta, mask, tokens, completions: mean(tokens), loss: -mean(tokens) };
}

// The number of a term, for a completion and a token of it.
export function numberOf(log, update, term, row, token) {
  const value = terms(log, update)[term];
  return [value].flat()[row]?.[token] ?? (Array.isArray(value) ? value[row] : value);
}

// Whether the minimum is a constant here, so that no gradient is left.
const cut = ({ ratio, clip, advantage }, i, t) => ratio[i][t] * advantage[i] > clip[i][t] * advantage[i];
const signed = (x, digits = 3) => (x > 0 ? "+" : "") + fixed(x, digits);

// What is said of a term, with its number first.
export function readout(log, update, term, row, token) {
  const all = terms(log, update);
  const number = numberOf(log, update, term, row, token);
  const { config, mask, rewards, old, ref, updates } = log;
  const [A, rho, clipped] = [all.advantage[row], all.ratio[row][token], all.clip[row][token]];
  const group = rewards.find((_, p) => row < (p + 1) * rewards[0].length);
  const place = `Token ${token + 1}, "${log.tokens[row][token]}", of completion ${row + 1}`;
  if (!mask[row][token] && !OF_ROW.includes(term) && !OF_ALL.includes(term)) {
    return `${TITLES[term]}: none. Place ${token + 1} of completion ${row + 1} is padding. The mask is 0 there: it adds nothing to the sum, and nothing to its length.`;
  }
  const said = {
    ratio: () => `${fixed(number)} = exp(${fixed(updates[update][row][token])} - (${fixed(old[row][token])})). ${place}.${update ? "" : " Nothing has moved yet, so all are 1."}`,
    advantage: () => `${signed(number)}. Reward ${group[row % group.length]}, its group's mean ${fixed(mean(group), 2)}; in units of the group's std. The same for all tokens of completion ${row + 1}.${number ? "" : " A dead group: all its rewards are equal."}`,
    clip: () => `${fixed(number)}, times the advantage ${signed(number * A)}. The ratio ${fixed(rho)} is ${rho === clipped ? "within" : "beyond"} ${fixed(1 - config.clip_low, 1)} to ${fixed(1 + config.clip_high, 1)}. ${place}.`,
    min: () => `${signed(number)} = min(${signed(rho * A)}, ${signed(clipped * A)}). ${cut(all, row, token) ? "The clip acts: a constant, and no gradient" : A ? "The ratio itself: there is a gradient" : "0 in a dead group"}. ${place}.`,
    kl: () => `${fixed(number, 4)} = exp(d) - 1 - d with d = ${fixed(ref[row][token])} - (${fixed(updates[update][row][token])}), in nats. ${place}.`,
    beta: () => `${fixed(number, 4)} = ${config.beta} times ${fixed(all.kl[row][token], 4)}, taken off ${signed(all.min[row][token])}. ${place}.`,
    mask: () => `1. A token that was sampled${log.tokens[row][token] === "eos" ? "; the end of the sequence is one, too" : ""}. ${place}.`,
    tokens: () => `${signed(number, 4)}, the mean over the ${mask[row].reduce((a, b) => a + b, 0)} tokens of completion ${row + 1}; the padding is not counted.`,
    completions: () => `${signed(number, 5)}, the objective: the mean of ${mask.length} completions, each of which counts the same, however long.`,
    loss: () => `${signed(number, 5)}, minus the objective. The step logged ${signed(log.metrics.loss, 5)}, the mean of its ${updates.length} updates' losses.`,
  };
  return `${TITLES[term]}: ${said[term]()}`;
}

// The formula: names of terms between words; the second time a term stands there it is no further stop for the keyboard.
const FORMULA = [
  ["loss", "<i>L</i> = −"], ["completions", "<span>1/<i>B</i></span> Σ<sub>i</sub>"], ["tokens", "1/|<i>o</i><sub>i</sub>| Σ<sub>t</sub>"],
  ["mask", "<i>m</i><sub>it</sub>"], "{", ["min", "min"], "[", ["ratio", "<i>ρ</i><sub>it</sub>"], ["advantage", "<i>Â</i><sub>i</sub>"], ", ",
  ["clip", "clip(<i>ρ</i><sub>it</sub>)"], ["advantage"], "] −", ["beta", "<i>β</i>"], ["kl", "<i>D</i><sub>it</sub>"], "}",
];

function point(model, term) {
  put(model, "term", term);
}

function formula(model) {
  const seen = new Map();
  const parts = FORMULA.map((part) => {
    if (typeof part === "string") return make("span", { "aria-hidden": "true" }, ` ${part} `);
    const [term, text] = part;
    const again = seen.has(term);
    const node = again ? make("span", { class: "ng-term", "data-term": term, "aria-hidden": "true" })
      : make("button", { type: "button", class: "ng-term", "data-term": term });
    if (!again) seen.set(term, text);
    node.innerHTML = seen.get(term); // what is seen is a part of what is read out
    if (!again) node.append(make("span", { class: "ng-words" }, `: ${TITLES[term]}`));
    node.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && point(model, term));
    for (const event of ["click", "focus"]) node.addEventListener(event, () => point(model, term));
    return node;
  });
  const box = make("div", { class: "ng-formula", role: "group", "aria-label": "The formula, term by term" }, ...parts);
  const stops = () => [...box.querySelectorAll("button")];
  box.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = stops().indexOf(document.activeElement);
    if (!way || at < 0) return;
    event.preventDefault();
    stops()[(at + way + stops().length) % stops().length].focus();
  });
  const mark = () => parts.forEach((node) => {
    const lit = node.dataset?.term === model.get("term");
    node.toggleAttribute("data-lit", lit);
    if (node.tagName === "BUTTON") node.setAttribute("aria-pressed", lit);
  });
  return { box, mark };
}

const shown = { ratio: 2, clip: 2, min: 2, kl: 2, beta: 3 };

// What stands in a cell: the token, and its number where the term has one for each token.
function cellText(term, all, word, i, t) {
  if (!all.mask[i][t]) return "pad";
  return term in shown ? `${word} ${(term === "min" ? signed : fixed)(all[term][i][t], shown[term])}` : term === "mask" ? `${word} 1` : word;
}

function batch(model) {
  const log = logOf(model);
  const [G, T] = [log.rewards[0].length, log.mask[0].length];
  const cells = log.mask.map((row, i) => row.map((_, t) => {
    const button = make("button", { type: "button", class: "ng-cell" });
    for (const event of ["click", "focus"]) button.addEventListener(event, () => { model.set("row", i); put(model, "token", t); });
    return button;
  }));
  const sides = log.mask.map(() => [make("td"), make("td"), make("td")]);
  const rows = cells.flatMap((line, i) => [
    ...(i % G ? [] : [make("tr", {}, make("th", { class: "ng-prompt", colspan: T + 3, scope: "rowgroup" }, `answers to ${log.prompts[i / G]}`))]),
    make("tr", {}, ...line.map((button) => make("td", {}, button)), ...sides[i]),
  ]);
  const head = make("tr", {}, make("th", { scope: "col", colspan: T, style: "text-align: left" }, "tokens"),
    ...[["r", "reward"], ["Â", "advantage"], ["mean", "mean of its tokens"]].map(([name, title]) => make("th", { scope: "col", "aria-label": title }, name)));
  const table = make("table", { class: "ng-batch" }, make("thead", {}, head), make("tbody", {}, ...rows));
  table.addEventListener("keydown", (event) => {
    const [di, dt] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (di === undefined) return;
    event.preventDefault();
    cells[Math.min(cells.length - 1, Math.max(0, model.get("row") + di))][Math.min(T - 1, Math.max(0, model.get("token") + dt))].focus();
  });
  const mark = (all) => {
    const [term, row, token] = ["term", "row", "token"].map((name) => model.get(name));
    const lit = (i, t) => (OF_ALL.includes(term) ? log.mask[i][t] : OF_ROW.includes(term) ? i === row && log.mask[i][t] : i === row && t === token);
    cells.forEach((line, i) => line.forEach((button, t) => {
      button.textContent = cellText(term, all, log.tokens[i][t], i, t);
      button.toggleAttribute("data-pad", !log.mask[i][t]);
      button.toggleAttribute("data-cut", Boolean(log.mask[i][t]) && ["clip", "min"].includes(term) && cut(all, i, t));
      button.toggleAttribute("data-lit", Boolean(lit(i, t)));
      button.setAttribute("aria-pressed", i === row && t === token);
      button.tabIndex = i === row && t === token ? 0 : -1; // one stop for the tabulator key, arrows within
    }));
    sides.forEach(([reward, advantage, each], i) => {
      reward.textContent = String(log.rewards[Math.floor(i / G)][i % G]);
      advantage.textContent = signed(all.advantage[i], 2);
      each.textContent = signed(all.tokens[i], 2);
      const own = OF_ALL.includes(term) || i === row;
      advantage.classList.toggle("ng-lit", term === "advantage" && i === row);
      each.classList.toggle("ng-lit", own && (term === "tokens" || OF_ALL.includes(term)));
    });
  };
  return { table, mark };
}

// A line of code, with the part that is the term marked.
function line(text, word, lit) {
  const at = lit && word ? text.indexOf(word) : -1;
  const parts = at < 0 ? [text || " "] : [text.slice(0, at), make("mark", {}, word), text.slice(at + word.length)];
  return make("code", lit ? { "data-lit": "" } : {}, ...parts);
}

function code(model, host, behind) {
  const { lines, word, inner, statements } = model.get("terms")[model.get("term")];
  host.replaceChildren(...model.get("code").map((text, i) => line(text, word, lines.includes(i))));
  behind.replaceChildren(...(inner ? ["Behind it, in ", make("a", { href: inner.url }, make("code", {}, inner.name.split(".").at(-1))), ":",
    make("pre", { class: "ng-code" }, ...statements.map((text) => line(text, "", true)))] : ["No function is behind it: the price is one product."]));
}

// Back and on through the terms of one update, and then of the next.
function steps(model) {
  const updates = logOf(model).updates.length;
  const go = (way) => {
    const at = model.get("update") * ORDER.length + ORDER.indexOf(model.get("term")) + way;
    const next = Math.min(updates * ORDER.length - 1, Math.max(0, at));
    model.set("update", Math.floor(next / ORDER.length));
    put(model, "term", ORDER[next % ORDER.length]);
  };
  const [back, on] = [["Back", -1], ["Next", 1]].map(([name, way]) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => go(way));
    return button;
  });
  const where = make("span");
  const list = control(model, "update", "", {}, Array.from({ length: updates }, (_, i) => [i, `update ${i + 1}/${updates}`]));
  list.input.setAttribute("aria-label", "which update of the step");
  const mark = () => (where.textContent = `term ${ORDER.indexOf(model.get("term")) + 1}/${ORDER.length}`);
  return { bar: make("div", { class: "ng-steps" }, back, on, where, list.label), mark };
}

function render({ model, el }) {
  const [walk, top, below] = [steps(model), formula(model), batch(model)];
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  const [host, behind] = [make("pre", { class: "ng-code", tabindex: 0, "aria-label": "grpo_loss, the lines that compute" }), make("div", { class: "ng-note ng-behind" })];
  const note = make("p", { class: "ng-note" }, "Point at a term, or walk with Next; choose a token for its numbers. Dashed: the clip acts. The lines are those of grpo_loss, and of what it calls.");
  el.append(make("div", { class: "ng", role: "group", "aria-label": "GRPO's formula over a real update" },
    make("style", {}, STYLE + LOOKS), walk.bar, make("div", { class: "ng-head" }, top.box, words), below.table, host, behind, note));
  return redraw(model, ["term", "update", "row", "token"], () => {
    const all = terms(logOf(model), model.get("update"));
    for (const { mark } of [walk, top, below]) mark(all);
    words.textContent = readout(logOf(model), ...["update", "term", "row", "token"].map((name) => model.get(name)));
    code(model, host, behind);
  });
}

export default { render };
