// The arithmetic of gae.py, and its drawing.

const MOST = 8; // tokens of the longest completion
const EPS = 1e-4; // added to the std, as group_advantages does by default

// Rewards of the tokens, and the critic's values before them.
const PRESETS = {
  "wrong answer, mistake at token 3": [[0, 0, 0, 0, 0, 0], [0.6, 0.6, 0.6, 0.1, 0.1, 0.1]],
  "right answer, found at token 4": [[0, 0, 0, 0, 0, 1], [0.2, 0.2, 0.2, 0.2, 0.9, 0.9]],
  "critic says nothing": [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]],
  "critic was sure": [[0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]],
  "a price on each token": [[-0.1, -0.1, -0.1, -0.1, -0.1, 0.9], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]],
};

const sum = (values) => values.reduce((a, b) => a + b, 0);

export function gae(rewards, values, gamma, lam) {
  const advantages = [];
  let [nextValue, nextAdvantage] = [0, 0]; // nothing follows the end
  for (let t = rewards.length - 1; t >= 0; t--) {
    nextAdvantage = rewards[t] + gamma * nextValue - values[t] + gamma * lam * nextAdvantage;
    nextValue = values[t];
    advantages[t] = nextAdvantage;
  }
  return { advantages, returns: advantages.map((a, t) => a + values[t]) };
}

// NaN if no group has this mean and std.
export function grpoAdvantage(reward, mean, std) {
  if (!(Number.isFinite(mean) && std >= 0 && std < Infinity)) return NaN;
  if (std === 0) return Math.abs(reward - mean) < 1e-9 ? 0 : NaN;
  return (reward - mean) / (std + EPS);
}

// As many tokens as wanted, with the reward of the last token still on the last.
export function resize(rewards, values, T) {
  const before = Array.from({ length: T - 1 }, (_, t) => (t < rewards.length - 1 ? rewards[t] : 0));
  return [[...before, rewards.at(-1)], Array.from({ length: T }, (_, t) => values[t] ?? values.at(-1))];
}

export function complaint(rewards, values, gamma, lam) {
  for (const [name, list] of Object.entries({ reward: rewards, value: values })) {
    const bad = list.findIndex((x) => !(Math.abs(x) <= 1000));
    if (bad >= 0) return `The ${name} of token ${bad + 1} is ${Number.isNaN(list[bad]) ? "not a number" : list[bad]}; this figure takes numbers from -1000 to 1000.`;
  }
  if (rewards.length !== values.length || !rewards.length) return `Rewards: ${rewards.length}, values: ${values.length}. Each token has one of both.`;
  for (const [name, x] of Object.entries({ gamma, lambda: lam })) if (!(x >= 0 && x <= 1)) return `${name} is ${Number.isNaN(x) ? "not a number" : x}; it must be from 0 to 1.`;
  return "";
}

function groupLine(total, mean, std) {
  const A = grpoAdvantage(total, mean, std);
  if (std === 0 && A === 0) return "GRPO: all rewards of the group are equal, so every token gets exactly 0.";
  if (std === 0 && Number.isFinite(mean)) return `GRPO: a std of 0 means that all rewards of the group are equal, yet this completion's is ${fixed(total)} and the mean is ${fixed(mean)}. There is no such group.`;
  if (Number.isNaN(A)) return "GRPO needs the mean of the group's rewards, a number, and their std, a number of at least 0.";
  return `GRPO: (${fixed(total)} - ${fixed(mean)}) / (${fixed(std)} + ${EPS}) = ${fixed(A)} for every token, without a critic.`;
}

export function readout(rewards, values, gamma, lam, mean, std) {
  const trouble = complaint(rewards, values, gamma, lam);
  if (trouble) return trouble;
  const { advantages, returns } = gae(rewards, values, gamma, lam);
  const list = (name, numbers) => `${name}: ${numbers.map((x) => fixed(x)).join(", ")}.`;
  const lines = [list("Advantages by GAE", advantages), list("Returns, the critic's targets", returns),
    groupLine(sum(rewards), mean, std)];
  if (gamma === 0) lines.push("gamma = 0: nothing after the token counts, its own reward is compared with its value.");
  else if (lam === 0) lines.push("lambda = 0: an advantage is the change of the critic's mind over one token. It is as good as the critic.");
  else if (lam === 1) lines.push("lambda = 1: an advantage is the reward that came, less the value. The critic is a baseline and nothing else.");
  if (advantages.every((a) => Math.abs(a) < 1e-9)) lines.push("Every advantage is 0: the critic has foreseen all of it, and nothing is learned.");
  return lines.join("\n");
}

function render({ model, el }) {
  const write = (name) => (i, value) => put(model, name, model.get(name).map((x, j) => (i === j ? value : x)));
  const rewards = barEditor(model, "rewards", { title: "rewards", symbol: "r", color: "var(--ng-soft)", extent: [-1, 1], decimals: 1, write: write("rewards") });
  const values = barEditor(model, "values", { title: "values of the critic", symbol: "V", color: "var(--ng-line)", extent: [0, 1], decimals: 2, write: write("values") });
  const both = ([r, v]) => (put(model, "rewards", [...r]), put(model, "values", [...v]));
  const tokens = choice("T, tokens of the completion", Array.from({ length: MOST }, (_, i) => [i + 1, String(i + 1)]), (T) =>
    both(resize(model.get("rewards"), model.get("values"), Number(T))));
  const controls = make("div", { class: "ng-controls" },
    control(model, "gamma", "gamma, discount a token", { min: 0, max: 1, step: 0.01 }).label,
    control(model, "lam", "lambda", { min: 0, max: 1, step: 0.01 }).label,
    control(model, "group_mean", "mean reward of the group, for GRPO", { type: "number", step: 0.1 }).label,
    control(model, "group_std", "std of the group's rewards, for GRPO", { type: "number", min: 0, step: 0.1 }).label, tokens.label);
  const panels = make("div", { class: "ng-panels" });
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  el.append(make("div", { class: "ng", role: "group", "aria-label": "Advantages along a completion" },
    make("style", {}, STYLE), controls, buttons(PRESETS, both), make("div", { class: "ng-panels" }, rewards.column, values.column), panels, words));
  const names = ["rewards", "values", "gamma", "lam", "group_mean", "group_std"];
  return redraw(model, names, () => {
    const all = names.map((name) => model.get(name));
    const [r, v, gamma, lam, mean, std] = all;
    tokens.follow(String(r.length));
    words.textContent = readout(...all);
    const frame = { x: [0.4, r.length + 0.6], xTicks: r.map((_, i) => i + 1) };
    rewards.draw(frame);
    values.draw(frame);
    if (complaint(r, v, gamma, lam)) return present(panels, []);
    const { advantages, returns } = gae(r, v, gamma, lam);
    const grpo = grpoAdvantage(sum(r), mean, std);
    present(panels, [[advantages, "advantages: bars GAE, dashed GRPO", "var(--ng-line)", grpo], [returns, "returns, the critic's targets", "var(--ng-soft)", NaN]].map(([list, title, color, line]) => {
      const top = nice(Math.max(1, ...[...list, line].filter(Number.isFinite).map(Math.abs)));
      const plot = axes(title, "token", top, [-top, -top / 2, 0, top / 2, top], { ...frame, bottom: -top });
      bars(plot, list, color);
      if (Number.isFinite(line)) level(plot, line, "");
      return plot.root;
    }));
  });
}

export default { render };
