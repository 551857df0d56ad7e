// The arithmetic of advantage.py, and its drawing.

const SCALINGS = {
  group: "group mean, group std (GRPO)",
  group_bessel: "the same, std with G - 1 (TRL)",
  none: "group mean only (Dr. GRPO)",
  leave_one_out: "leave-one-out (RLOO)",
  batch: "group mean, batch std",
  whole_batch: "batch mean, batch std",
  raw: "none: the reward itself",
};

const PRESETS = {
  "one right of eight": [1, 0, 0, 0, 0, 0, 0, 0],
  "half right": [1, 1, 1, 1, 0, 0, 0, 0],
  "all equal": [1.3, 1.3, 1.3, 1.3, 1.3, 1.3, 1.3, 1.3],
  "near-ties": [1.301, 1.3, 1.3, 1.299, 1.3, 1.3, 1.3, 1.3],
  graded: [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75],
  "a pair": [1, 0],
};

const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
const tied = (values) => Math.max(...values) === Math.min(...values);

function std(values, correction = 0) {
  const center = mean(values);
  return Math.sqrt(values.reduce((sum, v) => sum + (v - center) ** 2, 0) / (values.length - correction));
}

// The second group of the batch: as many answers, the first of them right.
export function secondGroup(size, right) {
  return Array.from({ length: size }, (_, i) => (i < right ? 1 : 0));
}

export function advantages(rewards, otherRight, scaling, eps) {
  const G = rewards.length;
  const batch = [...rewards, ...secondGroup(G, otherRight)];
  if (scaling === "raw") return [...rewards];
  if (tied(scaling === "whole_batch" ? batch : rewards)) return rewards.map(() => 0);
  if (scaling === "leave_one_out") {
    const sum = rewards.reduce((a, b) => a + b, 0);
    return rewards.map((r) => r - (sum - r) / (G - 1));
  }
  const center = mean(scaling === "whole_batch" ? batch : rewards);
  const scale = {
    none: () => 1,
    group: () => std(rewards) + eps,
    group_bessel: () => std(rewards, 1) + eps,
    batch: () => std(batch) + eps,
    whole_batch: () => std(batch) + eps,
  }[scaling]();
  return rewards.map((r) => (r - center) / scale);
}

// What is wrong with the input, or nothing.
export function complaint(rewards, otherRight) {
  const bad = rewards.findIndex((r) => !(Math.abs(r) <= 1000));
  if (bad >= 0 && Number.isNaN(rewards[bad])) return `Reward ${bad + 1} is not a number. The package raises an error here; it replaces nothing.`;
  if (bad >= 0) return `Reward ${bad + 1} is ${rewards[bad]}. This figure draws rewards from -1000 to 1000.`;
  if (rewards.length < 2) return "A group needs at least 2 completions: one has nothing to be compared with.";
  if (!Number.isInteger(otherRight) || otherRight < 0) return "The second prompt needs a whole number of right answers.";
  return "";
}

export function readout(rewards, otherRight, scaling, eps) {
  const trouble = complaint(rewards, otherRight);
  if (trouble) return trouble;
  const G = rewards.length;
  const A = advantages(rewards, otherRight, scaling, eps);
  const list = `Advantages: ${A.map((a) => fixed(a)).join(", ")}. Their sum is ${fixed(A.reduce((a, b) => a + b, 0))}.`;
  const head = `G = ${G}: mean ${fixed(mean(rewards))}, std ${fixed(std(rewards, scaling === "group_bessel" ? 1 : 0), 4)}.`;
  const batch = [...rewards, ...secondGroup(G, otherRight)];
  const wide = scaling.endsWith("batch") ? `Of the whole batch: mean ${fixed(mean(batch))}, std ${fixed(std(batch), 4)}.` : "";
  return [head, wide, list, remark(rewards, otherRight, scaling, A)].filter(Boolean).join("\n");
}

function remark(rewards, otherRight, scaling, A) {
  const batch = [...rewards, ...secondGroup(rewards.length, otherRight)];
  if (tied(rewards) && scaling === "raw") return A[0] === 0
    ? "All rewards are equal, and zero: there is nothing to push with."
    : "All rewards are equal, yet without a baseline every completion is pushed the same way.";
  if (scaling === "whole_batch" && tied(batch)) return "All rewards of the batch are equal (max = min), so every advantage is exactly 0.";
  if (tied(rewards) && scaling === "whole_batch") return "All rewards of this group are equal, yet they differ from the mean of the batch: the whole group is pushed the same way.";
  if (tied(rewards)) return "All rewards are equal (max = min): each is the mean, so every advantage is exactly 0, whatever eps is. This group teaches nothing.";
  const spread = Math.max(...rewards) - Math.min(...rewards);
  const largest = Math.max(...A.map(Math.abs));
  if (scaling.startsWith("group") && largest > 10 * spread) return `The rewards differ by at most ${spread.toPrecision(2)}; dividing by so small a std makes advantages of up to ${fixed(largest, 2)} out of that.`;
  return "";
}

function sizeControl(model) {
  const shown = make("strong");
  const { input, follow } = field({ type: "range", min: 2, max: 16, step: 1 }, (G) =>
    put(model, "rewards", Array.from({ length: G }, (_, i) => model.get("rewards")[i] ?? 0)));
  const update = () => { follow(model.get("rewards").length); shown.textContent = model.get("rewards").length; };
  model.on("change:rewards", update);
  update();
  return make("label", {}, "G, completions in the group = ", shown, input);
}

function render({ model, el }) {
  const root = make("div", { class: "ng", role: "group", "aria-label": "Rewards of a group and their advantages" });
  const write = (i, value) => put(model, "rewards", model.get("rewards").map((r, j) => (i === j ? value : r)));
  const eps = control(model, "eps", "eps, added to the std", {}, { 1e-8: "1e-8", 1e-6: "1e-6", 1e-4: "1e-4" });
  const other = control(model, "other_right", "right answers to a second prompt", { min: 0, max: 16, step: 1 });
  const controls = make("div", { class: "ng-controls" },
    control(model, "scaling", "Advantage by", {}, SCALINGS).label, sizeControl(model), eps.label, other.label);
  const presets = buttons(PRESETS, (rewards) => put(model, "rewards", [...rewards]));
  const panels = make("div", { class: "ng-panels" });
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  root.append(make("style", {}, STYLE), controls, presets, cells(model, "rewards", "Rewards of the group", "r", write), panels, words);

  let upper;
  drag(panels, () => upper, (i, y) => write(i, Math.round(20 * y) / 20));

  return (el.append(root), redraw(model, ["rewards", "other_right", "scaling", "eps"], () => {
    const [rewards, right, scaling, eps_] = ["rewards", "other_right", "scaling", "eps"].map((name) => model.get(name));
    const [G, inBatch] = [rewards.length, scaling === "batch" || scaling === "whole_batch"];
    eps.label.style.display = ["none", "leave_one_out", "raw"].includes(scaling) ? "none" : "";
    other.label.style.display = inBatch ? "" : "none";
    other.input.max = G;
    words.textContent = readout(rewards, right, scaling, eps_);
    const sane = !complaint(rewards, right);
    const shown = rewards.filter((r) => Math.abs(r) <= 1000);
    const [low, high] = [-nice(Math.max(1, -Math.min(0, ...shown))), nice(Math.max(2, ...shown))];
    const across = { x: [0.4, G + 0.6], xTicks: rewards.map((_, i) => i + 1) };
    upper = axes("rewards: drag, or type above", "completion", high, [low, 0, high / 2, high], { ...across, bottom: low });
    const A = sane ? advantages(rewards, right, scaling, eps_) : rewards.map(() => NaN);
    const top = nice(Math.max(1, ...A.filter(Number.isFinite).map(Math.abs)));
    const lower = axes("advantages", "completion", top, [-top, -top / 2, 0, top / 2, top], { ...across, bottom: -top });
    bars(upper, rewards.map((r) => (Math.abs(r) <= 1000 ? r : NaN)), "var(--ng-line)", { grips: true });
    bars(lower, A, "var(--ng-other)");
    const batch = [...rewards, ...secondGroup(G, right)];
    if (sane && scaling !== "raw") level(upper, mean(scaling === "whole_batch" ? batch : rewards), scaling === "whole_batch" ? "mean of the batch" : "mean");
    panels.replaceChildren(upper.root, lower.root);
    if (!inBatch) return;
    const second = axes("rewards of the second prompt", "completion", high, [low, 0, high / 2, high], { ...across, bottom: low });
    bars(second, secondGroup(G, right), "var(--ng-soft)");
    panels.append(second.root);
  }));
}

export default { render };
