// The arithmetic of entropy.py, and its drawing.

const SECONDS = 6; // how long a collapse plays

const PRESETS = { uniform: null, "collapse begins: 0.3": 0.3, "0.6": 0.6, "0.9": 0.9, "one token only": 1 };

// One token has probability `top`, the size - 1 others share the rest.
export function measures(size, top) {
  const other = (1 - top) / (size - 1);
  const mean = (f) => (top > 0 ? top * f(top) : 0) + (other > 0 ? (size - 1) * other * f(other) : 0);
  const entropy = mean((p) => -Math.log(p));
  const scatter = Math.sqrt(Math.max(0, mean((p) => (Math.log(p) + entropy) ** 2)));
  return { entropy, sampled: entropy, scatter, proxy: mean((p) => -p * Math.log(p)) };
}

export function complaint(size, top) {
  if (!Number.isInteger(size) || size < 2) return `V is ${size}; it must be a whole number of at least 2.`;
  if (Number.isNaN(top)) return "The probability is not a number; it must be from 0 to 1.";
  if (!(top >= 0 && top <= 1)) return `The probability is ${top}; it must be from 0 to 1.`;
  return "";
}

export function readout(size, top) {
  const trouble = complaint(size, top);
  if (trouble) return trouble;
  const [start, now] = [measures(size, 1 / size), measures(size, top)];
  const gap = Math.abs(top - 1 / size) < 1e-9 ? 0 : now.proxy - start.proxy;
  const lines = [
    `V = ${size}, one token at ${fixed(top)}, each other at ${fixed((1 - top) / (size - 1), 4)}.`,
    `Exact entropy H = ${fixed(now.entropy)} nats (uniform: ${fixed(start.entropy)}).`,
    `Mean of -log p over samples: ${fixed(now.sampled)}, the same. One sample scatters by ${fixed(now.scatter)}, a mean of 256 by ${fixed(now.scatter / 16)}.`,
    `Mean of the proxy p (-log p): ${fixed(now.proxy, 4)} (uniform: ${fixed(start.proxy, 4)}).`,
  ];
  if (gap === 0) lines.push("All tokens are equally probable: H is at its largest, log V.");
  else if (top === 1) lines.push("One token is certain: all three are 0.");
  else if (top === 0) lines.push("This token never occurs: the others are uniform.");
  else lines.push(`Since uniform, H has fallen by ${fixed(start.entropy - now.entropy)} and the proxy has ${gap > 0 ? "risen" : "fallen"} by ${fixed(Math.abs(gap), 4)}.${gap > 0 ? " An alarm that waits for the proxy to fall stays silent." : ""}`);
  return lines.join("\n");
}

// A button that plays the collapse. Where the reader wants no motion, each press is one still further on.
function player(model, quiet) {
  const button = make("button", { type: "button" });
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let frame = 0;
  const label = () => (button.textContent = still.matches ? "Next step of the collapse" : frame ? "Pause" : "Play the collapse");
  const stop = () => {
    if (!frame) return;
    cancelAnimationFrame(frame);
    frame = 0;
    quiet(false);
    label();
    model.save_changes();
  };
  const origin = () => {
    const [top, start] = [model.get("top"), 1 / model.get("size")];
    return top >= start && top < 1 ? top : start;
  };
  const play = () => {
    const [from, pace, began] = [origin(), (1 - 1 / model.get("size")) / (1000 * SECONDS), performance.now()];
    quiet(true);
    const tick = (now) => {
      const top = from + pace * Math.max(0, now - began);
      model.set("top", Math.min(1, Math.round(1000 * top) / 1000));
      if (top < 1) frame = requestAnimationFrame(tick);
      else stop();
    };
    frame = requestAnimationFrame(tick);
    label();
  };
  const step = () => {
    const done = model.get("top") >= 1;
    put(model, "top", done ? 1 / model.get("size") : Math.min(1, Math.round(10 * origin() + 1) / 10));
  };
  button.addEventListener("click", () => (still.matches ? (stop(), step()) : frame ? stop() : play()));
  still.addEventListener("change", label);
  label();
  return { button, stop, end: () => (stop(), still.removeEventListener("change", label)) };
}

function render({ model, el }) {
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  const { button, stop, end } = player(model, (playing) => words.setAttribute("aria-live", playing ? "off" : "polite"));
  const controls = make("div", { class: "ng-controls" },
    control(model, "top", "probability of the top token", { min: 0, max: 1, step: 0.01 }).label,
    control(model, "top", "the same, typed", { type: "number", min: 0, max: 1, step: "any" }).label,
    control(model, "size", "V, tokens of the vocabulary", { min: 2, max: 65, step: 1 }).label);
  const presets = buttons(PRESETS, (top) => (stop(), put(model, "top", top ?? 1 / model.get("size"))));
  presets.prepend(button);
  const [place, panels] = [0, 1].map(() => make("div", { class: "ng-panels" }));
  el.append(make("div", { class: "ng", role: "group", "aria-label": "Entropy of a distribution, and two estimates of it" },
    make("style", {}, STYLE), controls, presets, place, panels, words));
  controls.addEventListener("input", stop);
  let shares;
  drag(place, () => shares, (_, y) => (stop(), put(model, "top", Math.round(100 * y) / 100)));
  const cease = redraw(model, ["size", "top"], () => {
    const [size, top] = [model.get("size"), model.get("top")];
    words.textContent = readout(size, top);
    const sane = !complaint(size, top);
    const middle = Math.ceil(size / 2);
    shares = axes("the distribution: drag the first bar", "token", 1, [0, 0.5, 1], { x: [0.4, size + 0.6], xTicks: [1, ...(middle > 1 ? [middle] : []), size], height: 150 });
    if (sane) bars(shares, [NaN, ...Array(size - 1).fill((1 - top) / (size - 1))], "var(--ng-soft)");
    bars(shares, [sane ? top : NaN], "var(--ng-line)", { grips: true });
    const over = (title, what, color) => {
      const most = nice(Math.max(...Array.from({ length: 101 }, (_, i) => measures(size, i / 100)[what])));
      const plot = axes(title, "probability of the top token", most, [0, most / 2, most]);
      curve(plot, (x) => measures(size, x)[what], { stroke: color });
      dot(plot, 1 / size, measures(size, 1 / size)[what], "var(--ng-soft)");
      if (sane) dot(plot, top, measures(size, top)[what], color);
      return plot.root;
    };
    place.replaceChildren(shares.root);
    panels.replaceChildren(over("exact entropy H = mean of -log p", "entropy", "var(--ng-line)"), over("mean of the proxy p (-log p)", "proxy", "var(--ng-other)"));
  });
  return () => (end(), cease());
}

export default { render };
