// Drawing that all widgets share: labeled controls, and axes in SVG that follow the colors of the page.

const STYLE = `
.ng { color: inherit; font: inherit; font-size: 0.95rem; max-width: 46rem;
  --ng-line: #0072b2; --ng-other: #b34700; --ng-soft: #5f6b76; --ng-grip: #fff; }
html[data-theme="dark"] .ng, html[theme="dark"] .ng, body[data-jp-theme-light="false"] .ng {
  --ng-line: #56b4e9; --ng-other: #f0a35e; --ng-soft: #a8b3bd; --ng-grip: #14181e; }
.ng-controls { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 0.6rem 1.4rem; }
.ng-controls + .ng-controls { margin-top: 0.6rem; }
.ng-controls label { display: block; }
.ng-controls input, .ng-controls select { width: 100%; font: inherit; box-sizing: border-box; }
.ng-controls select { padding: 0.2rem; color: inherit; background: transparent; border: 1px solid currentColor; }
.ng-controls option { color: #111; background: #fff; }
.ng-panels { display: flex; flex-wrap: wrap; gap: 0.5rem 1rem; margin-top: 0.8rem; }
.ng-panels svg { flex: 1 1 17rem; min-width: 0; max-width: 30rem; height: auto; }
.ng-panels text { fill: currentColor; font-size: 12px; }
.ng-column { flex: 1 1 17rem; min-width: 0; max-width: 30rem; }
.ng-column svg { display: block; width: 100%; }
.ng-cells { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.2rem, 1fr)); gap: 0.3rem 0.5rem; margin-top: 0.6rem; }
.ng-cells input, .ng-controls input[type="number"] { width: 100%; box-sizing: border-box; font: inherit; padding: 0.15rem 0.3rem;
  color: inherit; background: transparent; border: 1px solid var(--ng-soft); border-radius: 3px; }
.ng-buttons { display: flex; flex-wrap: wrap; gap: 0.4rem; margin-top: 0.6rem; }
.ng-buttons button { font: inherit; padding: 0.15rem 0.6rem; color: inherit; background: transparent; border: 1px solid var(--ng-soft); border-radius: 3px; }
.ng table { display: table; margin: 0.3rem 0; border-collapse: collapse; color: inherit; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
.ng th, .ng td { padding: 0.1rem 0.7rem; text-align: right; }
.ng caption { caption-side: top; padding: 0; color: inherit; white-space: nowrap; text-align: left; }
.ng :focus-visible { outline: 2px solid var(--ng-line); outline-offset: 2px; }
.ng-note { margin: 0.4rem 0; font-size: 0.9em; }
.ng-readout { display: block; margin: 0.4rem 0; min-height: 3em; white-space: pre-line; overflow-y: auto; }
.ng-stale { opacity: 0.35; }
`;

function make(tag, attributes = {}, ...children) {
  const inSvg = ["svg", "g", "path", "line", "circle", "rect", "text"].includes(tag);
  const element = inSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A number as text, without the sign of a zero.
const fixed = (x, digits = 3) => x.toFixed(digits).replace(/^-(0(?:\.0*)?)$/, "$1");

// The smallest round number that is not below x > 0: where an axis ends.
function nice(x) {
  const unit = 10 ** Math.floor(Math.log10(x));
  return unit * ([1, 1.5, 2, 3, 4, 5, 6, 8].find((step) => x <= step * unit * (1 + 1e-9)) ?? 10);
}

// JSON has no NaN, so a kernel is not told of it; the read-out is.
function put(model, name, value) {
  model.set(name, value);
  if (![value].flat().some(Number.isNaN)) model.save_changes();
}

// While a number is typed the read-out keeps its height, and scrolls if it must: nothing moves under the reader's eyes.
function hold(input, typing) {
  const words = input.closest(".ng")?.querySelector(".ng-readout");
  if (!words) return;
  const height = `${words.getBoundingClientRect().height}px`;
  Object.assign(words.style, { minHeight: height, height: typing ? height : "" });
}

// What is drawn; for an input that has no drawing the last one stays, dimmed.
function present(host, parts) {
  host.classList.toggle("ng-stale", !parts.length);
  if (parts.length) host.replaceChildren(...parts);
}

// An input of a number. An empty or half-typed one counts as NaN, and is left alone while the reader types.
function field(attributes, write) {
  const input = make("input", { type: "number", ...attributes });
  const read = () => (input.value === "" ? NaN : Number(input.value));
  const follow = (value) => { // what is typed stays as it is typed, other numbers are shown with five digits
    const [is, shown] = [read(), value].map((x) => x.toPrecision(5));
    if (is !== shown) input.value = Number.isNaN(value) ? "" : Number(shown);
  };
  input.addEventListener("input", () => write(read()));
  if (input.type === "number") for (const event of ["focus", "blur"]) input.addEventListener(event, () => hold(input, event === "focus"));
  return { input, follow };
}

// A list to choose from, with its label. Pairs keep their order where the values are whole numbers.
function choice(title, options, write) {
  const entries = (Array.isArray(options) ? options : Object.entries(options)).map(([value, text]) => make("option", { value }, text));
  const input = make("select", {}, ...entries);
  input.addEventListener("input", () => write(input.value));
  return { label: make("label", {}, title, input), input, follow: (value) => (input.value = value) };
}

// A slider, a number field (type: "number") or a list with its label; all write to the model, and follow it.
function control(model, name, title, attributes, options = null) {
  if (options !== null) {
    const number = typeof model.get(name) === "number";
    const list = choice(title, options, (value) => put(model, name, number ? Number(value) : value));
    model.on(`change:${name}`, () => list.follow(model.get(name)));
    list.follow(model.get(name));
    return list;
  }
  const { input, follow } = field({ type: "range", ...attributes }, (value) => put(model, name, value));
  const shown = make("strong");
  const slider = input.type === "range";
  const label = make("label", {}, title, ...(slider ? [" = ", shown] : []), input);
  const update = () => {
    const value = model.get(name);
    follow(value);
    shown.textContent = Number.isInteger(Number(attributes.step)) ? value : Number(value).toFixed(2);
  };
  model.on(`change:${name}`, update);
  update();
  return { label, input };
}

// A button for each example.
function buttons(examples, use) {
  return make("div", { class: "ng-buttons", role: "group", "aria-label": "Examples" }, ...Object.entries(examples).map(([name, example]) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => use(example));
    return button;
  }));
}

// A number field for each entry of a list of the model.
function cells(model, name, title, symbol, write) {
  const box = make("div", { class: "ng-cells", role: "group", "aria-label": title });
  let fields = [];
  const update = () => {
    const values = model.get(name);
    if (fields.length !== values.length) {
      fields = values.map((_, i) => field({ step: "any" }, (value) => write(i, value)));
      box.replaceChildren(...fields.map(({ input }, i) => make("label", {}, `${symbol}${i + 1}`, input)));
    }
    fields.forEach(({ follow }, i) => follow(values[i]));
  };
  model.on(`change:${name}`, update);
  update();
  return box;
}

// A tick without the rounding of floats (0.1 + 0.2) and without the sign of a zero, short enough for its place.
const tickText = (x) => (Math.abs(x) < 1e4 ? String(Number(x.toPrecision(6)) || 0) : x.toExponential().replace("+", ""));

// An empty plot, y from `bottom` to `top`; `at` maps data to the drawing, `heightOf` a place on the screen to y.
function axes(title, xTitle, top, yTicks, options = {}) {
  const { x: [x0, x1] = [0, 1], xTicks = [0, 0.25, 0.5, 0.75, 1], bottom = 0, height = 230 } = options;
  const [width, left, right, above, below] = [340, 44, 16, 30, xTitle ? 40 : 22];
  const at = (x, y) => [
    left + ((x - x0) / (x1 - x0)) * (width - left - right),
    height - below - ((y - bottom) / (top - bottom)) * (height - above - below),
  ];
  const root = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const line = (from, to, opacity) => root.append(make("line", {
    x1: from[0], y1: from[1], x2: to[0], y2: to[1], stroke: "currentColor", "stroke-opacity": opacity }));
  const text = (place, dx, dy, anchor, words) => root.append(make("text", {
    x: place[0] + dx, y: place[1] + dy, "text-anchor": anchor }, words));
  const taken = []; // zero and the ends come first; a tick for which there is no room is left out
  for (const y of yTicks.toSorted((a, b) => (b === 0) - (a === 0) || Math.abs(b) - Math.abs(a))) {
    const place = at(x0, y);
    if (taken.some((other) => Math.abs(other - place[1]) < 13)) continue;
    taken.push(place[1]);
    line(place, at(x1, y), y ? 0.18 : 0.7);
    text(place, -6, 4, "end", tickText(y));
  }
  line(at(x0, bottom), at(x0, top), 0.7);
  for (const x of xTicks) text(at(x, bottom), 0, 16, "middle", tickText(x));
  text(at((x0 + x1) / 2, bottom), 0, 33, "middle", xTitle);
  text([left, 16], 0, 0, "start", title);
  const heightOf = (clientY) => {
    const box = root.getBoundingClientRect();
    const y = ((clientY - box.top) / box.height) * height;
    const share = (height - below - y) / (height - above - below);
    return bottom + Math.min(1, Math.max(0, share)) * (top - bottom);
  };
  return { root, at, heightOf, x: [x0, x1] };
}

function curve(plot, f, attributes) {
  const [x0, x1] = plot.x;
  const points = Array.from({ length: 201 }, (_, i) => x0 + (i / 200) * (x1 - x0))
    .map((x) => [x, f(x)]).filter(([, y]) => Number.isFinite(y));
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${plot.at(x, y).map((v) => v.toFixed(2)).join(" ")}`).join("");
  plot.root.append(make("path", { d, fill: "none", "stroke-width": 2.2, ...attributes }));
}

function dot(plot, x, y, color) {
  const [cx, cy] = plot.at(x, y);
  plot.root.append(make("circle", { cx, cy, r: 5, fill: color }));
}

// A dashed line from side to side, with a word on it.
function level(plot, y, words) {
  const [[x1, y1], [x2]] = plot.x.map((x) => plot.at(x, y));
  plot.root.append(make("line", { x1, y1, x2, y2: y1, stroke: "var(--ng-other)", "stroke-dasharray": "5 4", "stroke-width": 1.8 }),
    make("text", { x: x2, y: y1 - 5, "text-anchor": "end", stroke: "var(--ng-grip)", "stroke-width": 3, "paint-order": "stroke" }, words));
}

// Bars at x = 1, 2, ...; with `grips` each has a handle, see `drag`. A value that is not finite has no bar.
function bars(plot, values, color, { grips = false, share = 0.7 } = {}) {
  const width = share * (plot.at(1, 0)[0] - plot.at(0, 0)[0]);
  values.forEach((value, i) => {
    const [x, zero] = plot.at(i + 1, 0);
    const y = plot.at(0, Number.isFinite(value) ? value : 0)[1];
    const rect = (from, height, attributes) => plot.root.append(make("rect", {
      x: x - width / 2, width, y: from, height, ...attributes }));
    rect(Math.min(y, zero), Math.abs(y - zero), { fill: color });
    if (!grips) return;
    const style = "display: block; cursor: ns-resize; touch-action: none"; // touch-action is not for what is inline
    plot.root.append(make("circle", { cx: x, cy: y, r: 4, fill: "var(--ng-grip)", stroke: color, "stroke-width": 2 }));
    rect(y - 14, 28, { fill: "transparent", "data-bar": i, "data-grip": "", style });
  });
}

// Dragging the handles of `bars`. `host` outlives the drawing, `plot()` is the drawing as it stands now.
function drag(host, plot, write) {
  let bar = null;
  const move = (event) => bar !== null && write(bar, plot().heightOf(event.clientY));
  host.addEventListener("pointerdown", (event) => {
    const grip = event.target.closest("[data-grip]");
    if (!grip) return;
    bar = Number(grip.dataset.bar);
    host.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  host.addEventListener("pointermove", move);
  for (const end of ["pointerup", "pointercancel"]) host.addEventListener(end, () => (bar = null));
}

// Bars that are dragged over a number field for each; both call `write(i, value)`. `draw` spans at least `extent`.
function barEditor(model, name, { title, symbol, color, extent, decimals, write }) {
  const host = make("div");
  let plot;
  drag(host, () => plot, (i, y) => write(i, Number(y.toFixed(decimals))));
  const column = make("div", { class: "ng-column" }, host, cells(model, name, title, symbol, write));
  const draw = (frame) => {
    const values = model.get(name).map((x) => (Math.abs(x) <= 1000 ? x : NaN));
    const low = -nice(Math.max(-extent[0], ...values.map((x) => -x || 0)));
    const high = nice(Math.max(extent[1], ...values.map((x) => x || 0)));
    plot = axes(`${title}: drag, or type below`, "", high, [low, high / 2, high, ...(low ? [0] : [])], { ...frame, bottom: low, height: 190 });
    bars(plot, values, color, { grips: true });
    host.replaceChildren(plot.root);
  };
  return { column, draw };
}

// Draw now and whenever one of these values changes; returns what ends it.
function redraw(model, names, draw) {
  for (const name of names) model.on(`change:${name}`, draw);
  draw();
  return () => names.forEach((name) => model.off(`change:${name}`, draw));
}
