// The arithmetic of runs.py, and its drawing.

const LOOKS = `
.ng { --ng-0: #0072b2; --ng-1: #b34700; --ng-2: #00704e; --ng-3: #9c3f88; --ng-4: #4d5761; --ng-5: #7a5c00; }
html[data-theme="dark"] .ng, html[theme="dark"] .ng, body[data-jp-theme-light="false"] .ng {
  --ng-0: #56b4e9; --ng-1: #f0a35e; --ng-2: #3fc79a; --ng-3: #e29bd0; --ng-4: #c3ccd4; --ng-5: #e6c84f; }
.ng-runs { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin-top: 0.6rem; }
.ng-runs label { display: inline-flex; align-items: center; gap: 0.4rem; min-height: 1.6rem; }
.ng-runs input { width: 1.1rem; height: 1.1rem; margin: 0; accent-color: var(--ng-line); }
.ng-runs svg { width: 1.9rem; height: 0.6rem; }
.ng .ng-wide svg { flex: 1 1 100%; max-width: 33rem; cursor: crosshair; touch-action: pan-y; }
.ng-note a { color: var(--ng-line); text-decoration: underline; }
`;

const COLORS = 6;
const DASHES = ["", "7 4", "2 3"];

// Mean of each value and the window - 1 before it; NaN where one of them is missing.
export function smooth(values, window) {
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i + 1 - window), i + 1);
    return part.reduce((sum, v) => sum + (v ?? NaN), 0) / part.length;
  });
}

// The t that holds a share `level` of Student's distribution between -t and t. With t = sqrt(df) tan(angle) the
// share is a finite sum (Abramowitz and Stegun 26.7.3 and 4), which grows with the angle: halve until it fits.
export function tQuantile(level, df) {
  const odd = df % 2;
  const share = (angle) => {
    const [s, c] = [Math.sin(angle), Math.cos(angle)];
    let [sum, term] = [0, odd ? c : 1];
    for (let k = odd; k <= df - 2; k += 2) {
      sum += term;
      term *= ((k + 1) / (k + 2)) * c * c;
    }
    return odd ? (2 / Math.PI) * (angle + s * sum) : s * sum;
  };
  let [low, high] = [0, Math.PI / 2];
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (share(middle) < level) low = middle;
    else high = middle;
  }
  return Math.sqrt(df) * Math.tan((low + high) / 2);
}

// Mean with its t-interval; one value has no interval.
export function interval(values, level) {
  const n = values.length;
  const mean = values.reduce((a, b) => a + b, 0) / n;
  if (n < 2) return [mean, NaN, NaN];
  const half = tQuantile(level, n - 1) * Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (n - 1) / n);
  return [mean, mean - half, mean + half];
}

// [step, seeds, mean, low, high] at each step that a seed has a value at.
export function curveOf(logs, run, metric, window, level) {
  const found = new Map();
  for (const columns of Object.values(logs[run])) {
    smooth(columns[metric], window).forEach((value, i) => {
      if (Number.isFinite(value)) found.set(columns.step[i], [...(found.get(columns.step[i]) ?? []), value]);
    });
  }
  return [...found].sort(([a], [b]) => a - b).map(([step, values]) => [step, values.length, ...interval(values, level || 0.95)]);
}

export function csvOf(logs, runs) {
  const metrics = Object.keys(Object.values(logs[runs[0]] ?? {})[0] ?? {});
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = runs.flatMap((run) => Object.entries(logs[run]).flatMap(([seed, columns]) =>
    columns.step.map((_, i) => [quoted(run), seed, ...metrics.map((name) => columns[name][i] ?? "nan")].join(","))));
  return [["run", "seed", ...metrics].join(","), ...lines, ""].join("\n");
}

export function complaint({ logs, chosen, metric, window }) {
  const metrics = Object.keys(Object.values(Object.values(logs)[0] ?? {})[0] ?? {}).filter((name) => name !== "step");
  const unknown = chosen.find((run) => !(run in logs));
  if (!metrics.length) return "There is no log to show.";
  if (!chosen.length) return "No run is chosen: tick one above.";
  if (unknown !== undefined) return `The logs have no run ${unknown}; they have ${Object.keys(logs).join(", ")}.`;
  if (!metrics.includes(metric)) return `The logs have no metric ${metric}; they have ${metrics.join(", ")}.`;
  if (!Number.isInteger(window) || window < 1) return `The running mean is over ${window} points; it must be a whole number of at least 1.`;
  return "";
}

// The logs arrive as text; they are read once.
const read = new WeakMap();
const logsOf = (model) => read.get(model) ?? read.set(model, JSON.parse(model.get("logs"))).get(model);

const stepsOf = ({ logs, chosen }) => [...new Set(chosen.flatMap((run) => Object.values(logs[run] ?? {}).flatMap((log) => log.step)))].sort((a, b) => a - b);
const nearest = (steps, at) => steps.reduce((best, step) => (Math.abs(step - at) < Math.abs(best - at) ? step : best), steps[0]);
const text = (x) => String(Number(x.toPrecision(4)));

export function readout(values) {
  const trouble = complaint(values);
  if (trouble) return trouble;
  const { logs, chosen, metric, window, level, each, at, labels, block } = values;
  const step = nearest(stepsOf(values), at);
  const over = window > 1 ? `, mean of the last ${window} points` : "";
  const lines = [`At step ${step}, ${labels[metric] ?? metric}${over}:`];
  for (const run of chosen) {
    const row = curveOf(logs, run, metric, window, level).find(([x]) => x === step);
    const seeds = each && row ? Object.entries(logs[run]).map(([seed, log]) => [seed, smooth(log[metric], window)[log.step.indexOf(step)]]) : [];
    const all = seeds.filter(([, v]) => Number.isFinite(v)).map(([seed, v]) => `seed ${seed}: ${text(v)}`).join(", ");
    lines.push(`${run}: ${spread(row, level, Object.keys(logs[run]).length)}${all && ` (${all})`}`);
  }
  if (block > 1) lines.push(`A point is the mean of ${block} steps.`);
  return lines.join("\n");
}

function spread(row, level, seeds) {
  if (!row) return "no value here, where the log or the running mean has a gap.";
  const [, n, mean, low, high] = row;
  if (n === 1) return `${text(mean)}, of one seed${seeds > 1 ? ` of ${seeds}` : ""}, so there is no interval.`;
  const ends = level ? `, ${Math.round(100 * level)} % interval ${text(low)} to ${text(high)}` : "";
  return `mean ${text(mean)} over ${n} seeds${n < seeds ? ` of ${seeds}` : ""}${ends}.`;
}

// Round numbers that enclose low and high.
export function ticks(low, high) {
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const raw = (high - low) / 4;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const gap = unit * [1, 2, 2.5, 5, 10].find((m) => raw <= m * unit * (1 + 1e-9));
  const [from, to] = [Math.floor(low / gap + 1e-9), Math.ceil(high / gap - 1e-9)];
  return Array.from({ length: to - from + 1 }, (_, i) => Number(((from + i) * gap).toPrecision(6)));
}

// Pieces of a path between gaps.
const path = (plot, points) => points.map(([x, y], i) => (Number.isFinite(y)
  ? `${i && Number.isFinite(points[i - 1][1]) ? "L" : "M"}${plot.at(x, y).map((v) => v.toFixed(1)).join(" ")}` : "")).join("");

// A line for each run through all its steps, so that a missing value leaves a gap.
function drawing(values) {
  const { logs, chosen, metric, window, level, each, labels, at } = values;
  const steps = stepsOf(values);
  const curves = chosen.map((run) => {
    const rows = new Map(curveOf(logs, run, metric, window, level).map((row) => [row[0], row]));
    const own = stepsOf({ logs, chosen: [run] });
    return { run, rows: own.map((step) => rows.get(step) ?? [step, 0, NaN, NaN, NaN]),
      seeds: each ? Object.values(logs[run]).map((log) => smooth(log[metric], window).map((v, i) => [log.step[i], v])) : [] };
  });
  const shown = curves.flatMap(({ rows, seeds }) => [...rows.flatMap((row) => (level ? row.slice(2) : [row[2]])), ...seeds.flat().map(([, v]) => v)]).filter(Number.isFinite);
  const range = shown.length ? shown.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]) : [0, 1];
  const size = Math.max(...range.map(Math.abs)) || 1;
  const power = size < 0.05 || size >= 1e4 ? 3 * Math.floor(Math.log10(size) / 3) : 0; // so that the ticks are short
  const scaled = (y) => y / 10 ** power;
  const yTicks = ticks(...range.map(scaled));
  const xTicks = ticks(steps[0], steps.at(-1));
  const inside = xTicks.filter((x) => x >= steps[0] && x <= steps.at(-1));
  const plot = axes(`${labels[metric] ?? metric}${power ? `, × 1e${power}` : ""}`, "training step", yTicks.at(-1), yTicks,
    { x: steps.length > 1 ? [steps[0], steps.at(-1)] : [xTicks[0], xTicks.at(-1)], xTicks: inside, bottom: yTicks[0], height: 240 });
  for (const { run, rows, seeds } of curves) {
    const stroke = `var(--ng-${Object.keys(logs).indexOf(run) % COLORS})`;
    const solid = rows.filter((row) => Number.isFinite(row[3]));
    const edge = [...solid.map((row) => [row[0], scaled(row[4])]), ...solid.toReversed().map((row) => [row[0], scaled(row[3])])];
    if (level && solid.length) plot.root.append(make("path", { d: `${path(plot, edge)}Z`, fill: stroke, "fill-opacity": 0.2 }));
    for (const points of seeds) plot.root.append(make("path", { d: path(plot, points.map(([x, y]) => [x, scaled(y)])), fill: "none", stroke, "stroke-opacity": 0.6, "stroke-width": 0.8 }));
    plot.root.append(make("path", { d: path(plot, rows.map((row) => [row[0], scaled(row[2])])), fill: "none", stroke, "stroke-width": 2.2, "stroke-dasharray": dash(logs, run) }));
  }
  const here = nearest(steps, at);
  const [[x, y1], [, y2]] = [plot.at(here, yTicks[0]), plot.at(here, yTicks.at(-1))];
  plot.root.append(make("line", { x1: x, x2: x, y1, y2, stroke: "currentColor", "stroke-opacity": 0.6, "stroke-dasharray": "3 3" }));
  for (const { run, rows } of curves) {
    const value = scaled(rows.find(([step]) => step === here)?.[2]);
    if (Number.isFinite(value)) dot(plot, here, value, `var(--ng-${Object.keys(logs).indexOf(run) % COLORS})`);
  }
  return { root: plot.root, steps, ends: [plot.at(plot.x[0], 0)[0], plot.at(plot.x[1], 0)[0]], x: plot.x };
}

const dash = (logs, run) => DASHES[Math.floor(Object.keys(logs).indexOf(run) / COLORS) % DASHES.length];

function tick(label, get, set) {
  const input = make("input", { type: "checkbox" });
  input.addEventListener("input", () => set(input.checked));
  return { label: make("label", {}, input, ...label), follow: () => (input.checked = get()) };
}

function runPicker(model) {
  const logs = logsOf(model);
  const runs = Object.keys(logs);
  const ticked = runs.map((run, i) => {
    const line = make("line", { x1: 0, x2: 30, y1: 5, y2: 5, stroke: `var(--ng-${i % COLORS})`, "stroke-width": 3, "stroke-dasharray": dash(logs, run) });
    return tick([make("svg", { viewBox: "0 0 30 10", "aria-hidden": "true" }, line), run], () => model.get("chosen").includes(run), (on) =>
      put(model, "chosen", runs.filter((one) => (one === run ? on : model.get("chosen").includes(one)))));
  });
  const update = () => ticked.forEach(({ follow }) => follow());
  model.on("change:chosen", update);
  update();
  return make("div", { class: "ng-runs", role: "group", "aria-label": "Runs" }, ...ticked.map(({ label }) => label));
}

// Steps are read by a slider, and under the pointer.
function stepReader(model, host, words, place) {
  const shown = make("strong");
  const move = (at, live) => (words.setAttribute("aria-live", live), put(model, "at", at));
  const { input } = field({ type: "range", min: 0, step: 1 }, (i) => move(place()?.steps[i], "polite"));
  host.addEventListener("pointermove", ({ clientX }) => {
    const plot = place();
    if (!plot) return;
    const box = plot.root.getBoundingClientRect();
    const share = (((clientX - box.left) / box.width) * 340 - plot.ends[0]) / (plot.ends[1] - plot.ends[0]);
    move(nearest(plot.steps, plot.x[0] + share * (plot.x[1] - plot.x[0])), "off");
  });
  const follow = () => {
    const steps = place()?.steps ?? [];
    const here = nearest(steps, model.get("at")) ?? "none";
    input.disabled = !steps.length;
    input.max = Math.max(0, steps.length - 1);
    input.value = Math.max(0, steps.indexOf(here));
    input.setAttribute("aria-valuetext", `step ${here}`);
    shown.textContent = here;
  };
  return { label: make("label", {}, "read at step = ", shown, input), follow };
}

function download(model) {
  const button = make("button", { type: "button" }, "Download the points as CSV");
  button.addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([csvOf(logsOf(model), model.get("chosen"))], { type: "text/csv" }));
    make("a", { href: url, download: "runs.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  return button;
}

function render({ model, el }) {
  const names = ["chosen", "metric", "window", "level", "each", "at"];
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  const host = make("div", { class: "ng-panels ng-wide" });
  let plot = null;
  const reader = stepReader(model, host, words, () => plot);
  const every = tick(["every seed"], () => model.get("each"), (on) => put(model, "each", on));
  const controls = make("div", { class: "ng-controls" },
    control(model, "metric", "metric", {}, Object.entries(model.get("labels"))).label,
    control(model, "level", "interval over seeds", {}, [[0.95, "95 %"], [0.9, "90 %"], [0.99, "99 %"], [0, "none"]]).label,
    control(model, "window", "running mean, points", { min: 1, max: 40, step: 1 }).label, reader.label);
  const save = download(model);
  const folder = model.get("folder");
  const note = make("p", { class: "ng-note" }, "Lines: mean over seeds. Bands: Student's t-interval at each step.", ...(folder ? [" The whole logs are ", make("a", { href: folder }, "in the repository"), "."] : []));
  el.append(make("div", { class: "ng", role: "group", "aria-label": "Runs of a study" }, make("style", {}, STYLE + LOOKS),
    controls, runPicker(model), make("div", { class: "ng-runs" }, every.label, make("div", { class: "ng-buttons", style: "margin: 0" }, save)), host, words, note));
  return redraw(model, names, () => {
    const values = { ...Object.fromEntries([...names, "labels", "block"].map((name) => [name, model.get(name)])), logs: logsOf(model) };
    const sane = !complaint(values);
    plot = sane ? drawing(values) : null;
    host.replaceChildren(...(plot ? [plot.root] : []));
    words.textContent = readout(values);
    save.disabled = !values.chosen.length;
    every.follow();
    reader.follow();
  });
}

export default { render };
