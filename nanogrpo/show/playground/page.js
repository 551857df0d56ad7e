// The playground in the page: knobs, curves and the group, for one run or two. The training is in worker.js.

// The engine is one text for the page, which needs the options and their check, and for the worker.
const { DEFAULTS, checked } = new Function(`${ENGINE}\nreturn { DEFAULTS, checked };`)();

const PANELS = {
  reward: ["reward (dotted: what is meant)", 1, "rewards/judge/mean"],
  entropy: ["entropy, nats a token", 0],
  kl: ["KL to the start, nats a token", 0],
  frac_reward_zero_std: ["share of dead groups", 1],
  "completions/mean_length": ["mean length, tokens (dotted: of wrong answers)", 0, "completions/mean_length_wrong"],
  "clip_ratio/region_mean": ["share of clipped tokens", 0],
};
// Name of the option, its title, and a list of values or the attributes of a number field.
const KNOBS = {
  task: ["task", { sums: "one-digit sums", contains: "sums, a judge easily fooled", first: "first digit, then anything" }],
  group_size: ["G, completions a prompt", { min: 2, max: 64, step: 1 }],
  prompts_per_step: ["P, prompts a step", { min: 1, max: 100, step: 1 }],
  learning_rate: ["learning rate", { min: 0, max: 10, step: "any" }],
  temperature: ["temperature", { min: 0.01, max: 100, step: "any" }],
  baseline: ["baseline", { group: "mean of the group", leave_one_out: "mean of the others", batch: "mean of the batch", none: "none" }],
  scale_rewards: ["divided by the std of", { group: "the group", batch: "the batch", global: "all advantages", none: "nothing" }],
  aggregation: ["mean over", { token_mean: "all tokens", sequence_mean: "tokens, then answers", constant: "a constant length", sequence_sum: "answers, of sums" }],
  clip_low: ["clip below", { min: 0, max: 100, step: "any" }],
  clip_high: ["clip above", { min: 0, max: 100, step: "any" }],
  num_iterations: ["inner epochs", { min: 1, max: 20, step: 1 }],
  beta: ["beta, price of KL", { min: 0, max: 100, step: "any" }],
  kl_estimator: ["form of KL", { "": "usual", k1: "k1", k2: "k2", k3: "k3" }],
  kl_in: ["KL charged in the", { loss: "loss", reward: "reward" }],
  entropy_coef: ["entropy bonus", { min: -10, max: 10, step: "any" }],
  bug: ["planted bug", { none: "none", eos_left_out: "end left out of the loss", other_temperature: "scored at temperature 1" }],
};
const NAMES = ["A", "B"], COLORS = ["var(--ng-line)", "var(--ng-other)"], DASHES = ["", "7 4"];
const MOST = 2000; // steps, after which a run stops by itself
const isNumber = (name) => typeof DEFAULTS[name] === "number";

// Settings to the end of a link and back: only what differs from the defaults, B's names with "b." before them.
function toLink([a, b]) {
  const query = new URLSearchParams();
  const put = (setting, prefix, base) => Object.keys(DEFAULTS).filter((name) => (setting[name] ?? base[name]) !== base[name])
    .forEach((name) => query.set(prefix + name, setting[name] ?? ""));
  put(a, "", DEFAULTS);
  if (b) { query.set("b", ""); put(b, "b.", { ...DEFAULTS, ...a }); }
  return query.toString();
}

function fromLink(text) {
  const query = new URLSearchParams(text), unknown = [];
  const read = (entries, base) => entries.reduce((setting, [name, value]) => {
    if (!(name in DEFAULTS)) unknown.push(name);
    else if (typeof DEFAULTS[name] === "boolean") setting[name] = value === "true";
    else if (isNumber(name) || name === "delta") setting[name] = value === "" ? null : Number(value);
    else setting[name] = value === "" ? null : value;
    return setting;
  }, { ...base });
  const all = [...query].filter(([name]) => name !== "b" && name !== "preset");
  const a = read(all.filter(([name]) => !name.startsWith("b.")), {});
  const b = read(all.filter(([name]) => name.startsWith("b.")).map(([name, value]) => [name.slice(2), value]), a);
  return { settings: query.has("b") || all.some(([name]) => name.startsWith("b.")) ? [a, b] : [a], unknown, preset: query.get("preset") };
}

// A log as the CSV that `nanogrpo plot` and `read_csv` take.
const toCSV = (rows) => [Object.keys(rows[0]), ...rows.map(Object.values)].map((cells) => cells.map((x) => (Number.isNaN(x) ? "nan" : x)).join(",")).join("\n") + "\n";

const makeWorker = () => {
  const url = URL.createObjectURL(new Blob([ENGINE, OFF_THE_PAGE], { type: "text/javascript" }));
  return new Worker(url);
};

class Playground {
  constructor(el, small) {
    Object.assign(this, { el, small, settings: [{}], logs: [[]], groups: [], troubles: [], playing: false, busy: false, turn: 0, left: 0 });
    this.still = matchMedia("(prefers-reduced-motion: reduce)").matches; // then nothing moves by itself
    this.build();
    const link = fromLink(small ? "" : location.hash.slice(1));
    const preset = PRESETS.find(({ name }) => name === link.preset);
    if (preset) this.usePreset(preset);
    else this.use(link.settings, link.unknown.length ? `The link names what is unknown here: ${link.unknown.join(", ")}.` : "");
    document.addEventListener("visibilitychange", () => this.next());
    if (!small) window.addEventListener("hashchange", () => {
      const { settings, preset: name } = fromLink(location.hash.slice(1)), found = PRESETS.find((p) => p.name === name);
      if (found) this.usePreset(found);
      else if (toLink(settings) !== toLink(this.settings)) this.use(settings);
    });
  }

  button(text, call) {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", call);
    return button;
  }

  build() {
    const root = make("div", { class: `ng ngp${this.small ? " ngp-small" : ""}`, role: "group", "aria-label": "GRPO playground" });
    this.play = this.button("Play", () => (this.playing ? this.pause() : this.start()));
    this.play.className = "ngp-play";
    const bar = make("div", { class: "ng-buttons ngp-bar", role: "group", "aria-label": "Run" }, this.play,
      this.button("Step", () => { this.pause(); this.left = 1; this.next(); }), this.button("Reset", () => this.reset()));
    this.alert = make("p", { class: "ngp-alert", role: "alert" });
    this.live = make("output", { class: "ng-readout", "aria-live": "polite" });
    this.panels = make("div", { class: "ng-panels ngp-panels" });
    this.board = make("div", { class: "ngp-board" });
    root.append(make("style", {}, STYLE + LOOK), bar);
    if (!this.small) {
      this.notice = make("p", { class: "ngp-notice" });
      bar.append(this.button("Copy the link", () => this.copyLink()), ...NAMES.map((name, run) => (this[`csv${run}`] = this.button(`CSV of ${name}`, () => this.download(run)))));
      root.append(this.presetBar(), this.notice);
    }
    root.append(this.alert, this.live, make("div", { class: "ngp-view" }, this.panels, this.board));
    if (!this.small) root.append(this.knobs());
    this.el.replaceChildren(root);
  }

  presetBar() {
    const bar = make("div", { class: "ng-buttons", role: "group", "aria-label": "Break it" });
    for (const preset of PRESETS) {
      const button = this.button(preset.title, () => { this.usePreset(preset); this.start(); });
      button.dataset.preset = preset.name;
      bar.append(button);
    }
    return bar;
  }

  knobs() {
    const grid = make("div", { class: "ngp-knobs" });
    this.fields = NAMES.map(() => ({}));
    for (const [name, [title, values]] of Object.entries(KNOBS)) {
      const inputs = NAMES.map((run, k) => {
        const write = (value) => this.turnKnob(k, name, value);
        const { input, follow } = isNumber(name) ? field(values, write) : choice("", Object.entries(values), (value) => write(value === "" ? null : value));
        input.setAttribute("aria-label", `${title}, run ${run}`);
        input.className = `ngp-${run}`;
        this.fields[k][name] = { input, follow };
        return input;
      });
      grid.append(make("div", {}, make("span", { "aria-hidden": "true" }, title), make("div", { class: "ngp-pair" }, ...inputs)));
    }
    this.second = make("input", { type: "checkbox" });
    this.second.addEventListener("input", () => this.use(this.second.checked ? [this.settings[0], { ...this.settings[0] }] : [this.settings[0]]));
    this.seed = field({ min: 0, max: 1e9, step: 1 }, (seed) => this.use(this.settings.map((setting) => ({ ...setting, seed }))));
    return make("div", { class: "ngp-options" }, make("div", { class: "ng-buttons" },
      make("label", {}, this.second, " a second run beside it, with the same random numbers"), make("label", { class: "ngp-seed" }, "seed ", this.seed.input)), grid);
  }

  // ---- settings

  turnKnob(run, name, value) {
    const settings = this.settings.map((setting) => ({ ...setting }));
    settings[run][name] = value;
    if (name === "task") delete settings[run].max_new_tokens;
    this.use(settings);
  }

  usePreset(preset) {
    this.use(preset.settings.map((setting) => ({ ...setting })));
    if (this.small) return;
    this.notice.replaceChildren(make("strong", {}, `${preset.title}. `), `${preset.notice} `, make("a", { href: preset.chapter }, "The chapter."));
    for (const button of this.el.querySelectorAll("[data-preset]")) button.setAttribute("aria-pressed", button.dataset.preset === preset.name);
  }

  // New settings start new runs; one that is refused leaves everything as it was, but says so.
  use(settings, remark = "") {
    this.pause();
    let wrong = "";
    try { settings.forEach(checked); } catch (error) { wrong = error.message; }
    this.alert.textContent = wrong || remark;
    if (this.second) this.second.checked = settings.length === 2;
    this.refused = wrong !== "";
    this.settings = settings;
    this.follow();
    if (wrong) return;
    if (!this.small) {
      history.replaceState(null, "", `#${toLink(settings)}`);
      this.notice.replaceChildren();
      for (const button of this.el.querySelectorAll("[data-preset]")) button.setAttribute("aria-pressed", "false");
    }
    this.reset();
  }

  follow() {
    if (this.small) return;
    this.el.querySelector(".ngp").classList.toggle("ngp-two", this.settings.length === 2);
    this.settings.forEach((setting, run) => {
      for (const [name, { follow }] of Object.entries(this.fields[run])) follow((name in setting ? setting[name] : DEFAULTS[name]) ?? "");
    });
    this.seed.follow(this.settings[0].seed ?? 0);
    this.csv1.hidden = this.settings.length < 2;
  }

  // ---- running

  start() {
    if (this.refused) return;
    [this.playing, this.left] = [!this.still, this.still ? 10 : 0];
    this.label();
    this.next();
  }

  pause() {
    [this.playing, this.left] = [false, 0];
    this.label();
    if (this.logs[0].length) this.say();
  }

  label() { this.play.textContent = this.playing ? "Pause" : this.still ? "10 steps" : "Play"; }

  reset() {
    this.pause();
    [this.logs, this.groups, this.troubles, this.busy] = [this.settings.map(() => []), [], [], false];
    if (this.worker) this.worker.postMessage({ settings: this.settings, policy: POLICY, turn: ++this.turn });
    if (!this.refused) this.alert.textContent = "";
    this.live.textContent = `Step 0. Press ${this.play.textContent}.`;
    this.draw();
  }

  // Asks for one more step, if one is wanted; none is while the page is hidden.
  next() {
    const wanted = (this.playing || this.left > 0) && !this.busy && !document.hidden && !this.refused;
    if (!wanted) return;
    if (this.logs[0].length >= MOST || this.troubles.filter(Boolean).length === this.settings.length) return this.pause();
    if (!this.worker) {
      this.worker = makeWorker();
      this.worker.onmessage = ({ data }) => this.receive(data);
      this.worker.postMessage({ settings: this.settings, policy: POLICY, turn: ++this.turn });
    }
    this.busy = true;
    this.worker.postMessage({ turn: this.turn });
  }

  receive({ turn, rows }) {
    if (turn !== this.turn) return;
    this.busy = false;
    rows.forEach(({ metrics, group, trouble }, run) => {
      if (trouble) this.troubles[run] = trouble;
      else { this.logs[run].push(metrics); this.groups[run] = group; }
    });
    if (this.left > 0) this.left -= 1;
    const trouble = this.troubles.map((text, run) => (text ? `Run ${NAMES[run]} has stopped: ${text}.` : "")).filter(Boolean).join(" ");
    if (trouble !== this.alert.textContent) this.alert.textContent = trouble;
    if (!this.still || this.left === 0) {
      this.waiting ??= requestAnimationFrame(() => { this.waiting = null; this.draw(); });
      if (this.logs[0].length % 10 === 1 || !this.playing) this.say();
    }
    this.next();
  }

  say() {
    const parts = this.logs.map((rows, run) => {
      const last = rows.slice(-10), mean = (name) => last.reduce((sum, row) => sum + row[name], 0) / last.length;
      const judge = this.settings[run].task === "contains" ? `, really right ${fixed(mean("rewards/judge/mean"), 2)}` : "";
      return last.length ? `${this.logs.length > 1 ? `${NAMES[run]}: ` : ""}reward ${fixed(mean("reward"), 2)}${judge}, entropy ${fixed(mean("entropy"), 2)}, length ${fixed(mean("completions/mean_length"), 1)}` : "";
    });
    this.live.textContent = `Step ${Math.max(...this.logs.map((rows) => rows.length))}, mean of the last 10. ${parts.filter(Boolean).join("; ")}.`;
  }

  // ---- drawing

  draw() {
    const names = this.small ? ["reward"] : Object.keys(PANELS);
    this.panels.replaceChildren(...names.map((name) => this.panel(name)));
    this.board.replaceChildren(...this.groups.map((group, run) => this.group(group, run)));
  }

  panel(name) {
    const [title, fixedTop, other] = PANELS[name], all = this.logs.flat();
    const values = all.flatMap((row) => [row[name], row[other]]).filter(Number.isFinite);
    const top = fixedTop || nice(Math.max(0.01, ...values)), steps = Math.max(50, ...this.logs.map((rows) => rows.length));
    const low = Math.min(0, ...values), bottom = low < 0 ? -nice(-low) : 0;
    const plot = axes(this.small ? "reward, mean of five steps" : title, "training step", top, [...(bottom ? [bottom] : []), 0, Number((top / 2).toPrecision(6)), top], { x: [0, steps], xTicks: [0, Math.round(steps / 2), steps], bottom, height: 168 });
    this.logs.forEach((rows, run) => {
      if (other) this.line(plot, rows, other, { stroke: COLORS[run], "stroke-dasharray": "1 4", "stroke-width": 1.6 });
      this.line(plot, rows, name, { stroke: COLORS[run], "stroke-dasharray": DASHES[run], "stroke-width": 2 });
    });
    return plot.root;
  }

  // A running mean of five steps, at most 300 points.
  line(plot, rows, name, attributes) {
    const every = Math.ceil(rows.length / 300);
    const points = rows.map((row, i) => {
      const near = rows.slice(Math.max(0, i - 4), i + 1).map((r) => r[name]).filter(Number.isFinite);
      return [row.step, near.reduce((a, b) => a + b, 0) / near.length];
    }).filter(([, y], i) => i % every === 0 && Number.isFinite(y));
    const d = points.map(([x, y], i) => `${i ? "L" : "M"}${plot.at(x, y).map((v) => v.toFixed(1)).join(" ")}`).join("");
    plot.root.append(make("path", { d, fill: "none", ...attributes }));
  }

  // The group as a heat map: each token as strongly colored as it is pulled, up or down.
  group({ prompt, answer, rows }, run) {
    const most = Math.max(...rows.flatMap((row) => row.tokens.map(([, weight]) => Math.abs(weight))), 1e-9);
    const cell = ([text, weight]) => {
      const token = make("span", { class: `ngp-token ${weight < 0 ? "ngp-down" : "ngp-up"}` }, text);
      token.style.setProperty("--pull", `${Math.round((70 * Math.abs(weight)) / most)}%`);
      return token;
    };
    const shown = rows.slice(0, this.small ? 4 : 16);
    const table = make("table", { class: `ngp-${NAMES[run]}` }, make("caption", {}, `${this.settings.length > 1 ? `Run ${NAMES[run]}: ` : ""}${prompt} (right: ${answer})`),
      make("thead", {}, make("tr", {}, ...["completion", "reward", "advantage", "weight of a token"].slice(0, this.small ? 3 : 4).map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, ...shown.map((row) => make("tr", {}, make("td", { class: "ngp-text" }, ...row.tokens.map(cell)), make("td", {}, String(row.reward)), make("td", {}, fixed(row.advantage, 2)),
        ...(this.small ? [] : [make("td", {}, fixed(Math.max(...row.tokens.map(([, w]) => Math.abs(w))) * Math.sign(row.advantage), 2))])))));
    return make("div", { class: "ngp-scroll", tabindex: "0", role: "region", "aria-label": `Group of run ${NAMES[run]}` }, table);
  }

  // ---- taking away

  async copyLink() {
    const link = location.href;
    try {
      await navigator.clipboard.writeText(link);
      this.live.textContent = "The link is copied.";
    } catch { this.live.textContent = `The link: ${link}`; } // no clipboard here; the address bar has it, too
  }

  download(run) {
    if (!this.logs[run]?.length) return void (this.live.textContent = "No step has been made yet.");
    const url = URL.createObjectURL(new Blob([toCSV(this.logs[run])], { type: "text/csv" }));
    make("a", { href: url, download: `playground-${NAMES[run]}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }
}

for (const el of document.querySelectorAll(".ng-playground")) new Playground(el, el.hasAttribute("data-small"));
