// The arithmetic of weight.py, and its drawing.

const clampTo = (x, low, high) => Math.min(Math.max(x, low), high);

// The clip: cut where there is nothing more to gain, else the ratio itself.
function clipWeight({ clip_low, clip_high, delta }, ratio, sign) {
  if (sign > 0) return ratio > 1 + clip_high ? 0 : ratio;
  return ratio < 1 - clip_low || (delta !== null && ratio > delta) ? 0 : ratio;
}

function sapoWeight({ shape }, ratio, sign) {
  const tau = sign > 0 ? shape.sapo_temperature_pos : shape.sapo_temperature_neg;
  const gate = 1 / (1 + Math.exp(-tau * (ratio - 1)));
  return 4 * gate * (1 - gate) * ratio;
}

// Kullback and Leibler's distance of two coins, p from q, in nats.
function binaryKl(p, q) {
  const part = (a, b) => (a === 0 ? 0 : a * Math.log(a / b));
  return part(p, q) + part(1 - p, 1 - q);
}

function dppoWeight({ surrogate, clip_low, clip_high, delta }, ratio, sign, old) {
  const now = old * ratio;
  const far = surrogate === "dppo_tv" ? Math.abs(now - old) : binaryKl(old, now);
  if (sign > 0 ? now > old && far > clip_high : now < old && far > clip_low) return 0;
  return delta === null ? ratio : Math.min(ratio, delta);
}

// The geometric mean of clipped ratios; a token whose own clip binds is not pushed.
function gmpoWeight({ clip_low, clip_high }, ratio, sign, tokens, others) {
  const held = (log) => (sign > 0 ? Math.min(log, clip_high) : Math.max(log, -clip_low));
  const own = Math.log(ratio);
  if (sign > 0 ? own > clip_high : own < -clip_low) return 0;
  return Math.exp((held(own) + (tokens - 1) * held(Math.log(others))) / tokens);
}

function vespoWeight({ shape }, ratio, sign, tokens, others) {
  const bounded = (log) => clampTo(log, -20, 20);
  const log = clampTo(bounded(Math.log(ratio)) + (tokens - 1) * bounded(Math.log(others)), Math.log(1e-8), 20);
  const [k, fall] = sign > 0 ? [shape.vespo_k_pos, shape.vespo_lambda_pos] : [shape.vespo_k_neg, shape.vespo_lambda_neg];
  return Math.exp(fall + k * log - fall * Math.exp(log));
}

// How hard the token is pushed, in units of the push at a ratio of 1; the sign is that of the advantage.
export function tokenWeight(row, ratio, sign, old, tokens, others) {
  const whole = row.importance_sampling_level !== "token";
  const used = whole ? Math.exp((Math.log(ratio) + (tokens - 1) * Math.log(others)) / tokens) : ratio;
  const weight = {
    clip: () => clipWeight(row, used, sign),
    cispo: () => clampTo(used, 1 - row.clip_low, 1 + row.clip_high),
    sapo: () => sapoWeight(row, used, sign),
    dppo_tv: () => dppoWeight(row, ratio, sign, old),
    dppo_kl: () => dppoWeight(row, ratio, sign, old),
    gmpo: () => gmpoWeight(row, ratio, sign, tokens, others),
    vespo: () => vespoWeight(row, ratio, sign, tokens, others),
  }[row.surrogate]();
  return sign * weight;
}

export function complaint(ratio, old, tokens, others) {
  if (!(Number.isFinite(ratio) && ratio > 0)) return `The ratio is ${ratio}; it is a quotient of two probabilities, a number above 0.`;
  if (!(old > 0 && old <= 1)) return `The old probability is ${old}; it must be above 0 and at most 1.`;
  if (!(Number.isInteger(tokens) && tokens >= 1)) return `The completion has ${tokens} tokens; it needs a whole number, at least 1.`;
  if (!(Number.isFinite(others) && others > 0)) return `The ratio of the other tokens is ${others}; it must be above 0.`;
  if (ratio * old > 1) return `A ratio of ${fixed(ratio, 2)} would make the probability ${fixed(ratio * old, 2)}. Lower one of the two.`;
  return "";
}

const MATTERS = { gspo: "tokens", luspo: "tokens", gmpo: "tokens", vespo: "tokens", dppo_tv: "probability", dppo_kl: "probability" };

export function readout(rows, left, right, ratio, old, tokens, others) {
  const trouble = complaint(ratio, old, tokens, others);
  if (trouble) return trouble;
  const say = (name) => {
    const row = rows.find(({ members }) => members.includes(name));
    const at = (sign) => {
      const weight = tokenWeight(row, ratio, sign, old, tokens, others);
      return `${fixed(weight)}${weight === 0 ? " (cut)" : ""}`;
    };
    const hint = { tokens: "; here the other tokens count, too", probability: "; here the probability counts, too" }[MATTERS[name]] ?? "";
    return `${name}: A > 0 ${at(1)}, A < 0 ${at(-1)}${hint}.`;
  };
  return `Ratio ${fixed(ratio, 2)}, probability ${fixed(old, 2)} to ${fixed(old * ratio, 2)}.\n${say(left)}\n${say(right)}`;
}

function panel(row, [ratio, old, tokens, others]) {
  const end = Math.max(3, ratio);
  const top = end;
  const options = { x: [0, end], xTicks: end === 3 ? [0, 0.5, 1, 1.5, 2, 2.5, 3] : [0, end / 2, end], bottom: -top, height: 270 };
  const plot = axes(`${row.members[0]}: weight`, "ratio", top, [-top, -1, 0, 1, top], options);
  const possible = (x) => x > 0 && x * old <= 1;
  for (const [sign, color] of [[1, "var(--ng-line)"], [-1, "var(--ng-other)"]]) {
    curve(plot, (x) => (possible(x) ? sign * x : NaN), { stroke: "var(--ng-soft)", "stroke-dasharray": "5 4", "stroke-width": 1.4 });
    const at = (x) => tokenWeight(row, x, sign, old, tokens, others);
    const inside = (x) => (possible(x) && Math.abs(at(x)) <= top ? at(x) : NaN);
    curve(plot, inside, { stroke: color, ...(sign < 0 ? { "stroke-dasharray": "9 2" } : {}) });
    if (Math.abs(at(ratio)) <= top) dot(plot, ratio, at(ratio), color);
  }
  return plot.root;
}

function render({ model, el }) {
  const names = ["left", "right", "ratio", "old_probability", "tokens", "others"];
  const rows = JSON.parse(model.get("rows"));
  const choices = rows.map(({ members: [first, ...more] }) => [first, more.length ? `${first}, and ${more.join(", ")}` : first]);
  const controls = make("div", { class: "ng-controls" },
    control(model, "left", "variant on the left", {}, choices).label,
    control(model, "right", "variant on the right", {}, choices).label,
    control(model, "ratio", "ratio of the token", { min: 0.05, max: 3, step: 0.05 }).label,
    control(model, "old_probability", "its probability when sampled", { min: 0.01, max: 0.99, step: 0.01 }).label,
    control(model, "tokens", "tokens of the completion", { min: 1, max: 16, step: 1 }).label,
    control(model, "others", "ratio of its other tokens", { min: 0.5, max: 1.5, step: 0.01 }).label);
  const panels = make("div", { class: "ng-panels" });
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  const note = make("p", { class: "ng-note" }, "Solid: A > 0, the token is pushed up. Long dashes: A < 0, pushed down. Short dashes: the ratio alone, without a bound. A curve ends where the probability would be above 1.");
  el.append(make("div", { class: "ng", role: "group", "aria-label": "Weight of a token under two variants" },
    make("style", {}, STYLE), controls, panels, note, words));
  return redraw(model, names, () => {
    const [left, right, ...values] = names.map((name) => model.get(name));
    words.textContent = readout(rows, left, right, ...values);
    const row = (name) => rows.find(({ members }) => members.includes(name));
    present(panels, complaint(...values) ? [] : [left, right].map((name) => panel(row(name), values)));
  });
}

export default { render };
