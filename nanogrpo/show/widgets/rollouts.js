// The arithmetic of rollouts.py, and its drawing.

const EPS = 1e-4; // of group_advantages

// What is written into a cell: from where, and the size at which its color is full.
const VIEWS = {
  log_ratios: { title: "log-ratio after the step", full: 0.5, digits: 2, of: (row, t) => row.log_ratios[t] },
  logprobs: { title: "log-prob when it was sampled", full: 2, digits: 2, of: (row, t) => row.logprobs[t] },
  advantage: { title: "advantage of the completion", full: 2, digits: 2, of: (row) => row.advantage },
};

const LOOKS = `
.ng { --ng-share: 45%; }
html[data-theme="dark"] .ng, html[theme="dark"] .ng, body[data-jp-theme-light="false"] .ng { --ng-share: 32%; }
.ng-scroll { overflow-x: auto; margin-top: 0.6rem; }
.ng .ng-rollout th, .ng .ng-rollout td { padding: 0.1rem 0.15rem; border: 0; background: transparent; color: inherit; }
.ng .ng-rollout td + td:nth-last-child(-n + 2), .ng .ng-rollout th + th:nth-last-child(-n + 2) { padding-left: 0.5rem; }
.ng .ng-rollout th { font-weight: 600; }
.ng-token { display: block; min-width: 2.9rem; min-height: 2.6rem; padding: 0.1rem 0.2rem; font: inherit; line-height: 1.15; text-align: center;
  color: inherit; background: transparent; border: 1px solid var(--ng-soft); border-radius: 4px; cursor: pointer; }
.ng-token b { display: block; font-size: 1.05em; }
.ng-token[data-clipped] { border: 3px dashed currentColor; }
.ng-token[aria-pressed="true"] { box-shadow: 0 0 0 3px var(--ng-line); }
.ng-note a { color: var(--ng-line); text-decoration: underline; }
`;

// The log arrives as text; it is read once.
const read = new WeakMap();
const stepsOf = (model) => read.get(model) ?? read.set(model, JSON.parse(model.get("steps"))).get(model);

const short = (x) => String(Number(x.toPrecision(3)));
const signed = (x, digits) => (Number.isFinite(x) ? (x > 0 ? "+" : "") + fixed(x, digits) : "none");

// Mean, standard deviation and advantages of a group; equal rewards give exact zeros.
export function groupOf(rewards) {
  const mean = rewards.reduce((a, b) => a + b, 0) / rewards.length;
  const std = Math.sqrt(rewards.reduce((sum, r) => sum + (r - mean) ** 2, 0) / rewards.length);
  const tied = Math.max(...rewards) === Math.min(...rewards);
  return { mean, std, advantages: rewards.map((r) => (tied ? 0 : (r - mean) / (std + EPS))) };
}

export function tokenOf(logprob, logRatio, advantage, low = 0.2, high = 0.2) {
  const ratio = Math.exp(logRatio);
  const bounded = Math.min(1 + high, Math.max(1 - low, ratio));
  return {
    before: Math.exp(logprob),
    after: Math.exp(logprob + logRatio),
    ratio,
    objective: Math.min(ratio * advantage, bounded * advantage),
    clipped: advantage > 0 ? ratio > 1 + high : advantage < 0 && ratio < 1 - low,
  };
}

export function complaint(steps, at = 0, group = 0) {
  if (!steps.length) return "The log has no step, so there is nothing to show.";
  if (!steps[at]?.groups[group]?.completions.length) return `The log has no prompt ${group + 1} at its record ${at + 1}.`;
  return "";
}

export function readout(steps, config, at, group, chosen, place) {
  const trouble = complaint(steps, at, group);
  if (trouble) return trouble;
  const { step, reward, groups } = steps[at];
  const { prompt, completions } = groups[group];
  const row = completions[chosen];
  const { mean, std, advantages } = groupOf(completions.map((one) => one.reward));
  const said = [`Step ${step}, prompt "${prompt}". The mean reward of the whole batch was ${fixed(reward)}.`];
  said.push(advantages.every((a) => a === 0)
    ? `All ${completions.length} rewards of this group are ${short(row.reward)}, so every advantage is exactly 0: the group adds nothing to the gradient.`
    : `Rewards of the group: mean ${fixed(mean)}, standard deviation ${fixed(std)}. Completion ${chosen + 1} has reward ${short(row.reward)}, so its advantage is ${signed(row.advantage, 3)}.`);
  if (!Number.isFinite(row.logprobs[place]) || !Number.isFinite(row.log_ratios[place])) {
    said.push("The log has no log-prob or no log-ratio for this token.");
    return said.join("\n");
  }
  const now = tokenOf(row.logprobs[place], row.log_ratios[place], row.advantage, config.clip_low, config.clip_high);
  said.push(`Its token ${place + 1}, "${row.tokens[place]}", was sampled with probability ${fixed(now.before)} (log-prob ${signed(row.logprobs[place], 3)}). After the step it has ${fixed(now.after)}: log-ratio ${signed(row.log_ratios[place], 3)}, ratio ${fixed(now.ratio)}.`);
  said.push(verdict(row, place, now.ratio, config));
  return said.join("\n");
}

function verdict(row, place, ratio, { clip_low: low, clip_high: high }) {
  if (row.advantage === 0) return "Advantage 0: no push of its own, whatever the ratio. The ratio moved because the same weights serve the other prompts.";
  const [push, bound] = row.advantage > 0 ? ["up", `above ${fixed(1 + high, 2)}`] : ["down", `below ${fixed(1 - low, 2)}`];
  if (row.clipped[place]) return `Clipped: the advantage pushes it ${push} and the ratio is ${bound} already. A further update on these samples would find no gradient here.`;
  const against = (row.advantage > 0) !== ratio > 1 && ratio !== 1;
  return `Not clipped: a further update would push it ${push} again.${against ? " In this step it went the other way: other completions share its weights." : ""}`;
}

// A cell of the heat map: the token, and below it a number, on a color by its sign and size.
function cell(row, t, view, choose) {
  const { of, full, digits } = VIEWS[view];
  const value = of(row, t);
  const share = Number.isFinite(value) ? Math.min(1, Math.abs(value) / full) : 0;
  const color = value < 0 ? "var(--ng-other)" : "var(--ng-line)";
  const button = make("button", { type: "button", class: "ng-token", tabindex: -1, ...(row.clipped[t] ? { "data-clipped": "" } : {}),
    style: `background: color-mix(in srgb, ${color} calc(${share.toFixed(3)} * var(--ng-share)), transparent)` },
  make("b", {}, row.tokens[t].replace("<eos>", "eos")), ` ${signed(value, digits)}`);
  for (const event of ["click", "focus"]) button.addEventListener(event, choose);
  return button;
}

function heatMap(model, { prompt, completions }) {
  const width = Math.max(...completions.map((row) => row.tokens.length));
  const cells = completions.map((row, i) => row.tokens.map((_, t) => cell(row, t, model.get("view"), () => pick(model, i, t))));
  const head = make("tr", {}, make("th", { scope: "col" }, "#"), make("th", { scope: "col", colspan: width, style: "text-align: left" }, `tokens, with ${VIEWS[model.get("view")].title}`),
    ...["reward", "advantage"].map((name) => make("th", { scope: "col" }, name)));
  const rows = completions.map((row, i) => make("tr", {}, make("th", { scope: "row" }, String(i + 1)),
    ...Array.from({ length: width }, (_, t) => make("td", {}, ...(cells[i][t] ? [cells[i][t]] : []))),
    make("td", {}, short(row.reward)), make("td", {}, signed(row.advantage, 2))));
  const table = make("table", { class: "ng-rollout" }, make("caption", {}, `${completions.length} answers to "${prompt}"`), make("thead", {}, head), make("tbody", {}, ...rows));
  table.addEventListener("keydown", (event) => {
    const [i, t] = chosen(model);
    const [di, dt] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -t], End: [0, width] }[event.key] ?? [];
    if (di === undefined) return;
    event.preventDefault();
    const line = cells[Math.min(cells.length - 1, Math.max(0, i + di))];
    line[Math.min(line.length - 1, Math.max(0, t + dt))]?.focus();
  });
  const mark = () => {
    const [i, t] = chosen(model);
    cells.forEach((line, a) => line.forEach((button, b) => {
      const here = a === i && b === t;
      button.setAttribute("aria-pressed", here);
      button.tabIndex = here ? 0 : -1; // one stop for the tabulator key, arrows within
    }));
  };
  return { table, mark };
}

function pick(model, row, token) {
  model.set("row", row);
  put(model, "token", token);
}

// The token that is read out; another step may have fewer completions or shorter ones.
function chosen(model) {
  const rows = stepsOf(model)[model.get("at")]?.groups[model.get("group")]?.completions ?? [];
  const row = Math.min(model.get("row"), rows.length - 1);
  return [row, Math.min(model.get("token"), (rows[row]?.tokens.length ?? 0) - 1)];
}

function progress(steps, at) {
  const last = steps.at(-1).step;
  const plot = axes("mean reward of the batch", "training step", 1, [0, 0.5, 1], { x: [0, last], xTicks: [0, last / 2, last], height: 150 });
  const d = steps.map(({ step, reward }, i) => `${i ? "L" : "M"}${plot.at(step, reward).map((v) => v.toFixed(2)).join(" ")}`).join("");
  plot.root.append(make("path", { d, fill: "none", stroke: "var(--ng-line)", "stroke-width": 2.2 }));
  dot(plot, steps[at].step, steps[at].reward, "var(--ng-other)");
  return plot.root;
}

function stepSlider(model) {
  const steps = stepsOf(model);
  const shown = make("strong");
  const { input, follow } = field({ type: "range", min: 0, max: Math.max(0, steps.length - 1), step: 1 }, (value) => put(model, "at", value));
  const update = () => {
    const step = String(steps[model.get("at")]?.step ?? "none");
    follow(model.get("at"));
    shown.textContent = step;
    input.setAttribute("aria-valuetext", `step ${step}`);
  };
  model.on("change:at", update);
  update();
  return make("label", {}, "training step = ", shown, input);
}

function links(model) {
  const places = Object.entries(model.get("sources")).flatMap(([what, { name, url }]) => [" · ", make("a", { href: url, title: name }, what)]);
  return make("p", { class: "ng-note" }, ...(places.length ? ["The lines that compute it: ", ...places.slice(1)] : []));
}

function render({ model, el }) {
  const prompts = Math.max(0, ...stepsOf(model).map(({ groups }) => groups.length));
  const controls = make("div", { class: "ng-controls" }, stepSlider(model),
    control(model, "group", "prompt of the batch", {}, Array.from({ length: prompts }, (_, i) => [i, `${i + 1} of ${prompts}`])).label,
    control(model, "view", "numbers and colors", {}, Object.entries(VIEWS).map(([name, { title }]) => [name, title])).label);
  const [map, panels] = [make("div", { class: "ng-scroll" }), make("div", { class: "ng-panels" })];
  const note = make("p", { class: "ng-note" });
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  el.append(make("div", { class: "ng", role: "group", "aria-label": "A run of GRPO, token by token" },
    make("style", {}, STYLE + LOOKS), controls, map, note, words, panels, links(model)));
  let mark = () => {};
  const tell = () => {
    mark();
    words.textContent = readout(stepsOf(model), model.get("config"), model.get("at"), model.get("group"), ...chosen(model));
  };
  const ends = [redraw(model, ["at", "group", "view"], () => {
    const [steps, at, group] = [stepsOf(model), model.get("at"), model.get("group")];
    const sane = !complaint(steps, at, group);
    note.textContent = `Blue: above 0, orange: below; full color from ${VIEWS[model.get("view")].full} on. Dashed frame: clipped. Arrow keys go from token to token.`;
    const drawn = sane ? heatMap(model, steps[at].groups[group]) : null;
    mark = drawn?.mark ?? (() => {});
    map.replaceChildren(...(sane ? [drawn.table] : []));
    panels.replaceChildren(...(sane ? [progress(steps, at)] : []));
    tell();
  }), redraw(model, ["row", "token"], tell)];
  return () => ends.forEach((end) => end());
}

export default { render };
