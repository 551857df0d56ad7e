// The training of the page, off the page: one step of each run, whenever the page asks for one.

let [runs, turn] = [[], 0];

// Half precision to numbers: sign, exponent, fraction.
const half = (bits) => {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
};

function policy({ config, weights }) {
  const bytes = Uint8Array.from(atob(weights), (c) => c.charCodeAt(0));
  return new GPT(config, Float64Array.from({ length: bytes.length / 2 }, (_, i) => half(bytes[2 * i] | (bytes[2 * i + 1] << 8))));
}

// The first group with a signal, or the first: what was written, what it earned, and how hard each token is pulled.
function shown({ problems, rollout, rewards, advantages }, config) {
  const G = rollout.group_size, tokenizer = new CharTokenizer(CHARS);
  const p = Math.max(0, rewards.findIndex((group) => Math.max(...group) !== Math.min(...group)));
  const count = { num_sequences: rollout.mask.length, num_tokens: rollout.mask.flat().filter(Boolean).length, max_length: config.max_new_tokens };
  return { ...problems[p], rows: rewards[p].map((reward, g) => {
    const i = p * G + g, mask = rollout.mask[i];
    const weight = advantages[i] * tokenWeight(mask.filter(Boolean).length, config.aggregation, count) * rollout.mask.length;
    return { reward, advantage: advantages[i], tokens: rollout.completions[i].map((id, t) => [id === EOS ? "end" : tokenizer.decode([id]), mask[t] ? weight : 0]) };
  }) };
}

onmessage = ({ data }) => {
  if (data.settings) {
    const model = policy(data.policy);
    [runs, turn] = [data.settings.map((setting) => new Trainer(model, setting)), data.turn];
    return;
  }
  if (data.turn !== turn) return;
  const rows = runs.map((trainer) => {
    if (trainer.trouble) return { trouble: trainer.trouble };
    try {
      const [metrics, batch] = trainer.step();
      return { metrics, group: shown(batch, trainer.config) };
    } catch (error) {
      trainer.trouble = error.message;
      return { trouble: error.message };
    }
  });
  postMessage({ turn, rows });
};
