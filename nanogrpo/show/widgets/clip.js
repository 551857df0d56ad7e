// The arithmetic of clip.py, and its drawing.

// The clipped objective of one token, and its gradient for the token's log-probability. delta = 0: no bound.
export function surrogate(ratio, advantage, clipLow, clipHigh, delta) {
  const [low, high] = [1 - clipLow, 1 + clipHigh];
  const plain = (delta ? Math.min(ratio, delta) : ratio) * advantage;
  const clipped = Math.min(Math.max(ratio, low), high) * advantage;
  const ofPlain = delta && ratio > delta ? 0 : advantage;
  const ofClipped = ratio < low || ratio > high ? 0 : advantage;
  const slope = plain < clipped ? ofPlain : ofClipped; // where the two are equal, so are their slopes
  return { objective: Math.min(plain, clipped), gradient: ratio * slope };
}

export function complaint(ratio, size, clipLow, clipHigh, delta) {
  if (!(Number.isFinite(ratio) && ratio >= 0)) return `The ratio is ${ratio}; it is a quotient of two probabilities, a number of at least 0.`;
  if (!(Number.isFinite(size) && size >= 0)) return `The size of the advantage is ${size}; it must be a number of at least 0.`;
  if (!(clipLow >= 0 && clipHigh >= 0)) return "clip_low and clip_high are distances from 1: numbers of at least 0.";
  if (delta !== 0 && !(delta > 1 + clipHigh)) return `delta = ${delta} bounds the ratio itself; it must be above 1 + clip_high = ${fixed(1 + clipHigh, 2)}.`;
  return "";
}

// Whether the gradient is cut at this ratio, and why.
export function verdict(ratio, sign, clipLow, clipHigh, delta) {
  if (sign > 0 && ratio > 1 + clipHigh) return `cut by the clip: above 1 + clip_high = ${fixed(1 + clipHigh, 2)} there is nothing more to gain`;
  if (sign < 0 && ratio < 1 - clipLow) return `cut by the clip: below 1 - clip_low = ${fixed(1 - clipLow, 2)} there is nothing more to gain`;
  if (sign < 0 && delta && ratio > delta) return `cut by delta = ${delta}`;
  if (ratio === 0) return "not cut, but zero: it is the ratio times A, and the ratio is 0";
  if (sign < 0 && ratio > 1 + clipHigh) return delta
    ? `not cut: the clip does not act here, only delta = ${delta} does, further up`
    : "not cut: where A is negative nothing bounds a large ratio, unless delta is given";
  if (sign > 0 && ratio < 1 - clipLow) return "not cut: the token is to become more probable, the lower bound does not hold it";
  return ratio === 1 ? "not cut: at ratio 1 it is that of REINFORCE" : "not cut";
}

export function readout(ratio, size, clipLow, clipHigh, delta) {
  const trouble = complaint(ratio, size, clipLow, clipHigh, delta);
  if (trouble) return trouble;
  if (size === 0) return `Ratio ${fixed(ratio, 2)}, A = 0: objective and gradient are zero at every ratio. This is a group whose rewards are all equal.`;
  const line = (sign) => {
    const { objective, gradient } = surrogate(ratio, sign * size, clipLow, clipHigh, delta);
    return `A = ${sign > 0 ? "+" : "-"}${fixed(size, 1)}: objective ${fixed(objective)}, gradient ${fixed(gradient)}; ${verdict(ratio, sign, clipLow, clipHigh, delta)}.`;
  };
  return `Ratio ${fixed(ratio, 2)}.\n${line(1)}\n${line(-1)}`;
}

function shade(plot, from, to, bottom, top) {
  if (to <= from) return;
  const [[x1, y1], [x2, y2]] = [plot.at(from, top), plot.at(to, bottom)];
  plot.root.append(make("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, fill: "var(--ng-soft)", "fill-opacity": 0.22 }));
}

function column(sign, [ratio, size, low, high, delta]) {
  const right = Math.max(3, delta > 2 ? delta + 1 : 0, ratio > 3 ? nice(ratio) : 0);
  const top = nice(Math.max(size, 0.1) * right);
  const [floor, ceiling] = sign > 0 ? [0, top] : [-top, 0];
  const ticks = [floor, (floor + ceiling) / 2, ceiling];
  const options = { x: [0, right], xTicks: right === 3 ? [0, 0.5, 1, 1.5, 2, 2.5, 3] : [0, right / 4, right / 2, (3 * right) / 4, right], bottom: floor, height: 200 };
  const color = sign > 0 ? "var(--ng-line)" : "var(--ng-other)";
  const at = (x) => surrogate(x, sign * size, low, high, delta);
  const cuts = sign > 0 ? [[1 + high, right]] : [[0, Math.max(0, 1 - low)], ...(delta ? [[delta, right]] : [])];
  return make("div", { class: "ng-column" }, ...["objective", "gradient"].map((what) => {
    const plot = axes(`${what}, A = ${fixed(size, 1) === "0.0" ? "" : sign > 0 ? "+" : "-"}${fixed(size, 1)}`, what === "gradient" ? "ratio" : "", ceiling, ticks, options);
    for (const [from, to] of cuts) shade(plot, from, to, floor, ceiling);
    curve(plot, (x) => sign * size * x, { stroke: "var(--ng-soft)", "stroke-dasharray": "5 4", "stroke-width": 1.4 });
    curve(plot, (x) => at(x)[what], { stroke: color });
    dot(plot, ratio, at(ratio)[what], color);
    return plot.root;
  }));
}

function render({ model, el }) {
  const names = ["ratio", "advantage_size", "clip_low", "clip_high", "delta"];
  const controls = make("div", { class: "ng-controls" },
    control(model, "ratio", "ratio of new to old probability", { min: 0, max: 3, step: 0.01 }).label,
    control(model, "ratio", "the ratio, typed", { type: "number", min: 0, step: "any" }).label,
    control(model, "clip_low", "clip_low", { min: 0, max: 1, step: 0.01 }).label,
    control(model, "clip_high", "clip_high", { min: 0, max: 1, step: 0.01 }).label,
    control(model, "advantage_size", "size of the advantage A", { min: 0, max: 3, step: 0.1 }).label,
    control(model, "delta", "delta, a bound on the ratio itself", {}, [[0, "none"], [1.5, "1.5"], [2, "2"], [4, "4"]]).label);
  const panels = make("div", { class: "ng-panels" });
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  const note = make("p", { class: "ng-note" }, "Shaded: no gradient. Dashed: without a clip. The gradient is that for the log-probability of the token.");
  el.append(make("div", { class: "ng", role: "group", "aria-label": "The clipped objective and its gradient" },
    make("style", {}, STYLE), controls, panels, note, words));
  return redraw(model, names, () => {
    const values = names.map((name) => model.get(name));
    words.textContent = readout(...values);
    present(panels, complaint(...values) ? [] : [column(1, values), column(-1, values)]);
  });
}

export default { render };
