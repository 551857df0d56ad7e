// The arithmetic of length.py, and its drawing.

const MOST = 12; // tokens of the longest completion that is drawn

const AGGREGATIONS = {
  sequence_mean: "sequence_mean (GRPO)",
  token_mean: "token_mean (DAPO)",
  constant: "constant (Dr. GRPO)",
  sequence_sum: "sequence_sum (REINFORCE)",
};

// The weight of one token of each completion in the loss; 0 for a completion without tokens.
export function tokenWeights(lengths, how, maxLength) {
  const [B, tokens] = [lengths.length, lengths.reduce((a, b) => a + b, 0)];
  const weight = {
    sequence_mean: (length) => 1 / (B * length),
    token_mean: () => 1 / tokens,
    constant: () => 1 / (B * maxLength),
    sequence_sum: () => 1 / B,
  }[how];
  return lengths.map((length) => (length ? weight(length) : 0));
}

export function complaint(lengths, maxLength) {
  const bad = lengths.findIndex((n) => !Number.isInteger(n) || n < 0 || n > MOST);
  if (bad >= 0) return `Completion ${bad + 1} has length ${lengths[bad]}; it must be a whole number from 0 to ${MOST}.`;
  if (lengths.every((n) => n === 0)) return "No completion has a token, so there is nothing to average. The package raises an error here.";
  if (!Number.isInteger(maxLength) || maxLength < 1) return `max_length is ${maxLength}; it must be a whole number of at least 1.`;
  return "";
}

export function readout(lengths, maxLength) {
  const trouble = complaint(lengths, maxLength);
  if (trouble) return trouble;
  const lines = Object.keys(AGGREGATIONS).map((how) => {
    const weights = tokenWeights(lengths, how, maxLength);
    return `${how}: a token weighs ${weights.map((w) => fixed(w, 4)).join(", ")}; a completion ${weights.map((w, i) => fixed(w * lengths[i])).join(", ")}.`;
  });
  const some = lengths.filter((n) => n > 0);
  const [short, long] = [Math.min(...some), Math.max(...some)];
  lines.push(short < long
    ? `Under sequence_mean a token of the shortest completion counts ${fixed(long / short, 2)} times as much as one of the longest.`
    : "Under every aggregation all tokens weigh the same: no two lengths differ.");
  if (some.length < lengths.length) lines.push("A completion without tokens adds nothing; all but token_mean count it all the same.");
  if (long > maxLength) lines.push(`A completion is longer than max_length = ${maxLength}, which no sampler with that limit gives.`);
  return lines.join("\n");
}

function rows(how, lengths, maxLength) {
  const weights = tokenWeights(lengths, how, maxLength);
  const [left, size, pitch] = [22, 14, 26];
  const svg = make("svg", { viewBox: `0 0 340 ${34 + pitch * lengths.length}`, "aria-hidden": "true" });
  const title = how === "constant" ? `${AGGREGATIONS[how]}, max_length ${maxLength}` : AGGREGATIONS[how];
  svg.append(make("text", { x: 4, y: 16 }, title));
  lengths.forEach((length, i) => {
    const y = 28 + pitch * i;
    svg.append(make("text", { x: 4, y: y + 14 }, String(i + 1)));
    for (let t = 0; t < length; t++) svg.append(make("rect", { x: left + size * t, y, width: size - 2, height: 20, stroke: "currentColor", "stroke-opacity": 0.5,
      fill: "var(--ng-line)", "fill-opacity": weights[i] / Math.max(...weights) }));
    svg.append(make("text", { x: left + size * MOST + 6, y: y + 14 }, `${length} × ${fixed(weights[i], 4)} = ${fixed(length * weights[i])}`));
  });
  return svg;
}

function lengthSliders(model) {
  const box = make("div", { class: "ng-controls", role: "group", "aria-label": "Lengths" });
  let sliders = [];
  const update = () => {
    const lengths = model.get("lengths");
    if (sliders.length !== lengths.length) {
      sliders = lengths.map((_, i) => ({ shown: make("strong"), ...field({ type: "range", min: 0, max: MOST, step: 1 }, (value) =>
        put(model, "lengths", model.get("lengths").map((n, j) => (i === j ? value : n)))) }));
      box.replaceChildren(...sliders.map(({ shown, input }, i) => make("label", {}, `tokens of completion ${i + 1} = `, shown, input)));
    }
    sliders.forEach(({ shown, follow }, i) => { follow(lengths[i]); shown.textContent = lengths[i]; });
  };
  model.on("change:lengths", update);
  update();
  return box;
}

function render({ model, el }) {
  const count = choice("Completions in the batch", { 2: "2", 3: "3", 4: "4" }, (B) =>
    put(model, "lengths", Array.from({ length: Number(B) }, (_, i) => model.get("lengths")[i] ?? 4)));
  const controls = make("div", { class: "ng-controls" }, count.label,
    control(model, "max_length", "max_length, for constant", { type: "number", min: 1, step: 1 }).label);
  const panels = make("div", { class: "ng-panels" });
  const note = make("p", { class: "ng-note" }, "A cell is a token; its shade is its weight against the largest in the same panel. Beside each row: tokens × weight = weight of the completion.");
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  el.append(make("div", { class: "ng", role: "group", "aria-label": "Weight of a token under each aggregation" },
    make("style", {}, STYLE), controls, lengthSliders(model), panels, note, words));
  return redraw(model, ["lengths", "max_length"], () => {
    const [lengths, maxLength] = [model.get("lengths"), model.get("max_length")];
    count.follow(String(lengths.length));
    words.textContent = readout(lengths, maxLength);
    present(panels, complaint(lengths, maxLength) ? [] : Object.keys(AGGREGATIONS).map((how) => rows(how, lengths, maxLength)));
  });
}

export default { render };
