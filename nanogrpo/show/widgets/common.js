// Drawing that all widgets share: labeled controls, and axes in SVG that follow the colors of the page.

const STYLE = `
.ng { color: inherit; font: inherit; font-size: 0.95rem; max-width: 46rem;
  --ng-line: #0072b2; --ng-other: #b34700; --ng-soft: #5f6b76; }
html[data-theme="dark"] .ng, html[theme="dark"] .ng, body[data-jp-theme-light="false"] .ng {
  --ng-line: #56b4e9; --ng-other: #f0a35e; --ng-soft: #a8b3bd; }
.ng-controls { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 0.6rem 1.4rem; }
.ng-controls label { display: block; }
.ng-controls input, .ng-controls select { width: 100%; font: inherit; box-sizing: border-box; }
.ng-controls select { padding: 0.2rem; color: inherit; background: transparent; border: 1px solid currentColor; }
.ng-controls option { color: #111; background: #fff; }
.ng-controls :focus-visible { outline: 2px solid var(--ng-line); outline-offset: 2px; }
.ng-panels { display: flex; flex-wrap: wrap; gap: 0.5rem 1rem; margin-top: 0.8rem; }
.ng-panels svg { flex: 1 1 17rem; min-width: 0; max-width: 30rem; height: auto; }
.ng-panels text { fill: currentColor; font-size: 12px; }
.ng-readout { display: block; margin: 0.4rem 0; min-height: 3em; }
`;

function make(tag, attributes = {}, ...children) {
  const inSvg = ["svg", "g", "path", "line", "circle", "text"].includes(tag);
  const element = inSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A slider or a list with its label; both write to the model, and follow it.
function control(model, name, title, attributes, options = null) {
  const number = options === null;
  const input = number
    ? make("input", { type: "range", ...attributes })
    : make("select", attributes, ...Object.entries(options).map(([value, text]) => make("option", { value }, text)));
  const shown = make("strong");
  const label = make("label", {}, title, number ? " = " : "", shown, input);
  const follow = () => {
    input.value = model.get(name);
    if (number) shown.textContent = Number.isInteger(Number(attributes.step)) ? model.get(name) : Number(model.get(name)).toFixed(2);
  };
  input.addEventListener("input", () => {
    model.set(name, number ? Number(input.value) : input.value);
    model.save_changes();
  });
  model.on(`change:${name}`, follow);
  follow();
  return { label, input };
}

// An empty plot: x from 0 to 1, y from 0 to top; `at` maps data to the drawing.
function axes(title, xTitle, top, yTicks) {
  const [width, height, left, right, above, below] = [340, 230, 44, 12, 30, 40];
  const at = (x, y) => [left + x * (width - left - right), height - below - (y / top) * (height - above - below)];
  const root = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const line = (from, to, opacity) => root.append(make("line", {
    x1: from[0], y1: from[1], x2: to[0], y2: to[1], stroke: "currentColor", "stroke-opacity": opacity }));
  const text = (place, dx, dy, anchor, words) => root.append(make("text", {
    x: place[0] + dx, y: place[1] + dy, "text-anchor": anchor }, words));
  for (const y of yTicks) {
    line(at(0, y), at(1, y), y ? 0.18 : 0.7);
    text(at(0, y), -6, 4, "end", String(y));
  }
  line(at(0, 0), at(0, top), 0.7);
  for (const x of [0, 0.25, 0.5, 0.75, 1]) text(at(x, 0), 0, 16, "middle", String(x));
  text(at(0.5, 0), 0, 33, "middle", xTitle);
  text([left, 16], 0, 0, "start", title);
  return { root, at };
}

function curve(plot, f, attributes) {
  const points = Array.from({ length: 201 }, (_, i) => [i / 200, f(i / 200)]).filter(([, y]) => Number.isFinite(y));
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${plot.at(x, y).map((v) => v.toFixed(2)).join(" ")}`).join("");
  plot.root.append(make("path", { d, fill: "none", "stroke-width": 2.2, ...attributes }));
}

function dot(plot, x, y, color) {
  const [cx, cy] = plot.at(x, y);
  plot.root.append(make("circle", { cx, cy, r: 5, fill: color }));
}
