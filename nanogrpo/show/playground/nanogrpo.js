// GRPO in plain JavaScript: prompt -> rollout -> reward -> advantage -> loss -> step, as in the Python.
//
// Each section has the name of the Python file that it mirrors, and each function that of its Python twin. What
// differs: rows are lists of their own length, so there is no padding; gradients are written out by hand, since
// there is no autograd; every number is a float64. Tests hold both to the same logits, samples and weights.
//
// Dimensions: P prompts, G completions a prompt, B = P * G rows (row i answers prompt floor(i / G)), N tokens of
// all rows one after the other, V vocabulary, C channels, H heads, D = C / H channels a head.

export class NanoGRPOError extends Error {}
export class OptionError extends NanoGRPOError {}
export class NonFiniteError extends NanoGRPOError {}

const zeros = (n) => new Float64Array(n);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const mean = (values) => sum(values) / values.length;

// ---- chance: random numbers that JavaScript and Python draw alike, anew for each step of a seed --------------

export class Chance {
  constructor(seed, step) {
    this.state = (Math.imul(seed, 1000003) + step) >>> 0;
    for (let i = 0; i < 2; i++) this.state = this.bits(); // neighboring seeds and steps go apart
  }

  // 32 random bits: a counter, mixed.
  bits() {
    this.state = (this.state + 0x9e3779b9) >>> 0;
    let z = this.state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  }

  uniform() { return (this.bits() + 1) / 4294967296; } // in (0, 1]

  permutation(n) {
    const order = Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.bits() % (i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  uniforms(rows, tokens) { return Array.from({ length: rows }, () => Float64Array.from({ length: tokens }, () => this.uniform())); }
}

// ---- tokenizer.py --------------------------------------------------------------------------------------------

export const [PAD, EOS] = [0, 1];

export class CharTokenizer {
  constructor(chars) { this.chars = chars; }
  encode(text) { return [...text].map((c) => this.chars.indexOf(c) + 2); }
  decode(ids) { return [...ids].map((i) => (i < 2 ? "" : this.chars[i - 2])).join(""); }
}

// ---- playground/tasks.py: problems, and rules that reward -----------------------------------------------------

export const CHARS = "0123456789+=";
const digits = Array.from({ length: 10 }, (_, i) => i);
const [exact, contains] = [(text, answer) => Number(text === answer), (text, answer) => Number(text.includes(answer))];
const first = (text, answer) => Number(text.startsWith(answer));
const sums = digits.flatMap((a) => digits.map((b) => ({ prompt: `${a}+${b}=`, answer: String(a + b) })));

// The rule rewards; the judge, which knows what is meant, is only watched.
export const TASKS = {
  sums: { problems: sums, max_new_tokens: 4, rule: exact, judge: exact },
  contains: { problems: sums, max_new_tokens: 8, rule: contains, judge: exact },
  first: { problems: digits.map((d) => ({ prompt: `${d}=`, answer: String(d) })), max_new_tokens: 10, rule: first, judge: first },
};

// ---- model.py -------------------------------------------------------------------------------------------------

// Names and shapes of all weights, in the order of the Python's parameters().
export function shapes({ vocab_size, block_size, n_layer, n_embd: C }) {
  const block = (i) => [
    ["norm1.weight", [C]], ["norm1.bias", [C]],
    ["attention.qkv.weight", [3 * C, C]], ["attention.qkv.bias", [3 * C]],
    ["attention.proj.weight", [C, C]], ["attention.proj.bias", [C]],
    ["norm2.weight", [C]], ["norm2.bias", [C]],
    ["up.weight", [4 * C, C]], ["up.bias", [4 * C]], ["down.weight", [C, 4 * C]], ["down.bias", [C]],
  ].map(([name, shape]) => [`blocks.${i}.${name}`, shape]);
  return [
    ["token.weight", [vocab_size, C]], ["position.weight", [block_size, C]],
    ...Array.from({ length: n_layer }, (_, i) => block(i)).flat(),
    ["norm.weight", [C]], ["norm.bias", [C]], ["head.weight", [vocab_size, C]],
  ];
}

// y = x W' + b for N rows; four outputs at a time, which keeps the processor's pipeline full.
function linear(x, W, b, N, I, O) {
  const y = zeros(N * O);
  for (let n = 0; n < N; n++) {
    const [from, to] = [n * I, n * O];
    let o = 0;
    for (; o + 3 < O; o += 4) {
      let [s0, s1, s2, s3] = b ? [b[o], b[o + 1], b[o + 2], b[o + 3]] : [0, 0, 0, 0];
      const [w0, w1, w2, w3] = [o * I, (o + 1) * I, (o + 2) * I, (o + 3) * I];
      for (let i = 0; i < I; i++) {
        const v = x[from + i];
        s0 += v * W[w0 + i]; s1 += v * W[w1 + i]; s2 += v * W[w2 + i]; s3 += v * W[w3 + i];
      }
      y[to + o] = s0; y[to + o + 1] = s1; y[to + o + 2] = s2; y[to + o + 3] = s3;
    }
    for (; o < O; o++) {
      let s = b ? b[o] : 0;
      for (let i = 0; i < I; i++) s += x[from + i] * W[o * I + i];
      y[to + o] = s;
    }
  }
  return y;
}

// The gradient of x; those of W and b are added to dW and db.
function linearBackward(dy, x, W, dW, db, N, I, O) {
  const dx = zeros(N * I);
  for (let n = 0; n < N; n++) {
    const from = n * I;
    for (let o = 0; o < O; o++) {
      const g = dy[n * O + o];
      if (g === 0) continue;
      if (db) db[o] += g;
      const w = o * I;
      for (let i = 0; i < I; i++) {
        dx[from + i] += g * W[w + i];
        dW[w + i] += g * x[from + i];
      }
    }
  }
  return dx;
}

// LayerNorm: keeps the normalized x and 1 / std for the way back.
function layerNorm(x, weight, bias, N, C) {
  const [y, xhat, rstd] = [zeros(N * C), zeros(N * C), zeros(N)];
  for (let n = 0; n < N; n++) {
    let [m, v] = [0, 0];
    for (let i = 0; i < C; i++) m += x[n * C + i];
    m /= C;
    for (let i = 0; i < C; i++) v += (x[n * C + i] - m) ** 2;
    rstd[n] = 1 / Math.sqrt(v / C + 1e-5);
    for (let i = 0, k = n * C; i < C; i++, k++) {
      xhat[k] = (x[k] - m) * rstd[n];
      y[k] = xhat[k] * weight[i] + bias[i];
    }
  }
  return { y, xhat, rstd };
}

function layerNormBackward(dy, { xhat, rstd }, weight, dWeight, dBias, N, C) {
  const dx = zeros(N * C);
  for (let n = 0; n < N; n++) {
    let [a, b] = [0, 0]; // means of the gradient of xhat, and of it times xhat
    for (let i = 0, k = n * C; i < C; i++, k++) {
      dWeight[i] += dy[k] * xhat[k];
      dBias[i] += dy[k];
      a += (dy[k] * weight[i]) / C;
      b += (dy[k] * weight[i] * xhat[k]) / C;
    }
    for (let i = 0, k = n * C; i < C; i++, k++) dx[k] = rstd[n] * (dy[k] * weight[i] - a - xhat[k] * b);
  }
  return dx;
}

// The normal density, and its integral: a table at multiples of 1 / 64, and Taylor's series between them.
const density = (x) => Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI);
const TABLE = Float64Array.from({ length: 1025 }, (_, k) => {
  const x = (k - 512) / 64;
  let [term, series] = [x, x];
  for (let n = 3; Math.abs(term) > 1e-18 * Math.abs(series); n += 2) series += term *= (x * x) / n;
  return 0.5 + density(x) * series;
});
const DENSITIES = Float64Array.from({ length: 1025 }, (_, k) => density((k - 512) / 64));

export function normalCdf(x) {
  if (!(Math.abs(x) < 7.9)) return x > 0 ? 1 : x < 0 ? 0 : NaN;
  const k = Math.round(x * 64), a = k / 64, d = x - a;
  const tail = 1 + d * (-a / 2 + d * ((a * a - 1) / 6 + d * ((3 * a - a * a * a) / 24 + (d * (a ** 4 - 6 * a * a + 3)) / 120)));
  return TABLE[k + 512] + DENSITIES[k + 512] * d * tail;
}

// What a query sees: softmax(q k / sqrt(D)) over the keys at `count` places, and the mean of the values by it.
function attendOne(q, qAt, keys, kAt, values, vAt, places, count, stride, D, probs, pAt, y, yAt) {
  let [top, total] = [-Infinity, 0];
  const scale = 1 / Math.sqrt(D);
  for (let j = 0; j < count; j++) {
    let s = 0;
    for (let i = 0, k = places[j] * stride + kAt; i < D; i++) s += q[qAt + i] * keys[k + i];
    probs[pAt + j] = s *= scale;
    if (s > top) top = s;
  }
  for (let j = 0; j < count; j++) total += probs[pAt + j] = Math.exp(probs[pAt + j] - top);
  for (let j = 0; j < count; j++) {
    const p = (probs[pAt + j] /= total);
    for (let i = 0, v = places[j] * stride + vAt; i < D; i++) y[yAt + i] += p * values[v + i];
  }
}

// Keys and values of the tokens read so far, for sampling.
class KVCache {
  constructor(config, rows) {
    const size = rows * config.block_size * config.n_embd;
    this.config = config;
    this.keys = Array.from({ length: config.n_layer }, () => zeros(size));
    this.values = Array.from({ length: config.n_layer }, () => zeros(size));
    this.probs = zeros(config.block_size);
    this.places = Array.from({ length: rows }, (_, row) => Array.from({ length: config.block_size }, (_, t) => row * config.block_size + t));
  }

  // The new tokens `n` stand in rows `rows[n]` at `positions[n]`, each row's tokens in order.
  attend(layer, qkv, rows, positions) {
    const { n_embd: C, n_head: H, block_size: T } = this.config;
    const [keys, values, D, y] = [this.keys[layer], this.values[layer], C / H, zeros(rows.length * C)];
    for (let n = 0; n < rows.length; n++) {
      const at = (rows[n] * T + positions[n]) * C;
      keys.set(qkv.subarray(n * 3 * C + C, n * 3 * C + 2 * C), at);
      values.set(qkv.subarray(n * 3 * C + 2 * C, n * 3 * C + 3 * C), at);
      for (let h = 0; h < H; h++) {
        attendOne(qkv, n * 3 * C + h * D, keys, h * D, values, h * D, this.places[rows[n]], positions[n] + 1, C, D, this.probs, 0, y, n * C + h * D);
      }
    }
    return y;
  }

  // A cache in which every row stands `times` times in a row: one prefill serves a whole group.
  repeat(times) {
    const { n_embd: C, block_size: T } = this.config;
    const rows = this.keys[0].length / (C * T);
    const copy = new KVCache(this.config, rows * times);
    for (const what of ["keys", "values"]) this[what].forEach((table, layer) => {
      for (let row = 0; row < rows * times; row++) copy[what][layer].set(table.subarray(Math.floor(row / times) * T * C, (Math.floor(row / times) + 1) * T * C), row * T * C);
    });
    return copy;
  }
}

// Attention in training: token n looks at the tokens `sees[n]`, itself the last; `backward` goes back to qkv.
class Causal {
  constructor(config, sees) {
    Object.assign(this, { config, sees, kept: [] });
    this.most = Math.max(...sees.map((places) => places.length));
  }

  attend(layer, qkv) {
    const { n_embd: C, n_head: H } = this.config;
    const [D, N, L] = [C / H, this.sees.length, this.most];
    const [probs, y] = [zeros(N * H * L), zeros(N * C)];
    this.sees.forEach((places, n) => {
      for (let h = 0; h < H; h++) {
        attendOne(qkv, n * 3 * C + h * D, qkv, C + h * D, qkv, 2 * C + h * D, places, places.length, 3 * C, D, probs, (n * H + h) * L, y, n * C + h * D);
      }
    });
    this.kept[layer] = { probs, qkv };
    return y;
  }

  backward(layer, dy) {
    const { n_embd: C, n_head: H } = this.config;
    const { probs, qkv } = this.kept[layer];
    const [D, L, dqkv, dp] = [C / H, this.most, zeros(qkv.length), zeros(this.most)];
    const scale = 1 / Math.sqrt(D);
    this.sees.forEach((places, n) => {
      for (let h = 0; h < H; h++) {
        const q = n * 3 * C + h * D, g = n * C + h * D, p = (n * H + h) * L;
        let dot = 0; // sum of p dp, which the softmax takes off
        for (let j = 0; j < places.length; j++) {
          const v = places[j] * 3 * C + 2 * C + h * D;
          dp[j] = 0;
          for (let i = 0; i < D; i++) {
            dp[j] += dy[g + i] * qkv[v + i];
            dqkv[v + i] += probs[p + j] * dy[g + i];
          }
          dot += probs[p + j] * dp[j];
        }
        for (let j = 0; j < places.length; j++) {
          const k = places[j] * 3 * C + C + h * D, ds = probs[p + j] * (dp[j] - dot) * scale;
          for (let i = 0; i < D; i++) {
            dqkv[q + i] += ds * qkv[k + i];
            dqkv[k + i] += ds * qkv[q + i];
          }
        }
      }
    });
    return dqkv;
  }
}

export class GPT {
  constructor(config, theta) {
    this.config = config;
    this.theta = theta ?? zeros(sum(shapes(config).map(([, shape]) => shape.reduce((a, b) => a * b, 1))));
    this.grad = zeros(this.theta.length);
    [this.w, this.dw] = [this.views(this.theta), this.views(this.grad)];
  }

  views(flat) {
    let at = 0;
    return Object.fromEntries(shapes(this.config).map(([name, shape]) => {
      const size = shape.reduce((a, b) => a * b, 1);
      return [name, flat.subarray(at, (at += size))];
    }));
  }

  copy() { return new GPT(this.config, this.theta.slice()); }

  // The residual stream of N tokens after the last layer, normalized, and what the way back needs.
  hidden(ids, positions, attend) {
    const { n_layer, n_embd: C } = this.config;
    const [N, w, x, blocks] = [ids.length, this.w, zeros(ids.length * C), []];
    for (let n = 0; n < N; n++) for (let i = 0; i < C; i++) {
      x[n * C + i] = w["token.weight"][ids[n] * C + i] + w["position.weight"][positions[n] * C + i];
    }
    for (let layer = 0; layer < n_layer; layer++) {
      const at = (name) => w[`blocks.${layer}.${name}`];
      const norm1 = layerNorm(x, at("norm1.weight"), at("norm1.bias"), N, C);
      const qkv = linear(norm1.y, at("attention.qkv.weight"), at("attention.qkv.bias"), N, C, 3 * C);
      const y = attend(layer, qkv);
      const added = linear(y, at("attention.proj.weight"), at("attention.proj.bias"), N, C, C);
      for (let k = 0; k < x.length; k++) x[k] += added[k];
      const norm2 = layerNorm(x, at("norm2.weight"), at("norm2.bias"), N, C);
      const up = linear(norm2.y, at("up.weight"), at("up.bias"), N, C, 4 * C);
      const [cdf, act] = [zeros(up.length), zeros(up.length)];
      for (let k = 0; k < up.length; k++) act[k] = up[k] * (cdf[k] = normalCdf(up[k])); // GELU
      const more = linear(act, at("down.weight"), at("down.bias"), N, 4 * C, C);
      for (let k = 0; k < x.length; k++) x[k] += more[k];
      blocks.push({ norm1, y, norm2, up, cdf, act });
    }
    return { ids, positions, blocks, norm: layerNorm(x, w["norm.weight"], w["norm.bias"], N, C) };
  }

  logits(y, N) { return linear(y, this.w["head.weight"], null, N, this.config.n_embd, this.config.vocab_size); }

  // From the gradient of the hidden states to that of every weight, added to `grad`.
  backward(kept, dy, causal) {
    const { n_layer, n_embd: C } = this.config;
    const [N, w, dw] = [kept.ids.length, this.w, this.dw];
    const dx = layerNormBackward(dy, kept.norm, w["norm.weight"], dw["norm.weight"], dw["norm.bias"], N, C);
    const add = (more) => { for (let k = 0; k < dx.length; k++) dx[k] += more[k]; };
    for (let layer = n_layer - 1; layer >= 0; layer--) {
      const { norm1, y, norm2, up, cdf, act } = kept.blocks[layer];
      const at = (name) => [w, dw].map((all) => all[`blocks.${layer}.${name}`]);
      const back = (name, grad, x, I, O) => {
        const [[W, dW], [, db]] = [at(`${name}.weight`), at(`${name}.bias`)];
        return linearBackward(grad, x, W, dW, db, N, I, O);
      };
      const norm = (name, grad, values) => {
        const [[weight, dWeight], [, dBias]] = [at(`${name}.weight`), at(`${name}.bias`)];
        return layerNormBackward(grad, values, weight, dWeight, dBias, N, C);
      };
      const dact = back("down", dx, act, 4 * C, C);
      for (let k = 0; k < dact.length; k++) dact[k] *= cdf[k] + up[k] * density(up[k]);
      add(norm("norm2", back("up", dact, norm2.y, C, 4 * C), norm2));
      const dqkv = causal.backward(layer, back("attention.proj", dx, y, C, C));
      add(norm("norm1", back("attention.qkv", dqkv, norm1.y, C, 3 * C), norm1));
    }
    for (let n = 0; n < N; n++) for (let i = 0; i < C; i++) {
      dw["token.weight"][kept.ids[n] * C + i] += dx[n * C + i];
      dw["position.weight"][kept.positions[n] * C + i] += dx[n * C + i];
    }
  }
}

// ---- rollout.py -------------------------------------------------------------------------------------------------

// Log-probs of all tokens at a temperature, from the V logits at `at`.
function logSoftmax(logits, at, V, temperature) {
  const out = zeros(V);
  let [top, total] = [-Infinity, 0];
  for (let v = 0; v < V; v++) top = Math.max(top, (out[v] = logits[at + v] / temperature));
  for (let v = 0; v < V; v++) total += Math.exp(out[v] - top);
  const log = top + Math.log(total);
  for (let v = 0; v < V; v++) out[v] -= log;
  return out;
}

// The first token whose cumulative probability reaches the uniform number, and its log-prob.
export function choose(logits, at, V, u, temperature) {
  const logprobs = logSoftmax(logits, at, V, temperature);
  if (!logprobs.every(Number.isFinite)) throw new NonFiniteError("a logit of the policy is NaN or infinite, so its weights are broken; press Reset and lower the learning rate");
  const probs = logprobs.map(Math.exp);
  const target = u * sum(probs); // the last sum is 1 only up to rounding
  let [token, reached] = [0, probs[0]];
  while (reached < target && token < V - 1) reached += probs[++token];
  return [token, logprobs[token]];
}

// G completions of each prompt (lists of ids); number [i][t] of `uniforms` chooses token t of row i.
export function generate(model, prompts, { group_size: G, max_new_tokens, temperature }, uniforms) {
  const { vocab_size: V } = model.config;
  const rows = prompts.flatMap((_, p) => Array(G).fill(p));
  const read = (cache, ids, which, positions) => model.hidden(ids, positions, (layer, qkv) => cache.attend(layer, qkv, which, positions)).norm.y;
  let cache = new KVCache(model.config, prompts.length);
  const flat = prompts.flatMap((ids, p) => ids.map((id, t) => [id, p, t]));
  const columns = [0, 1, 2].map((k) => flat.map((entry) => entry[k]));
  const y = read(cache, ...columns); // (tokens of the prompts, C)
  const C = model.config.n_embd, ends = prompts.map((_, p) => sum(prompts.slice(0, p + 1).map((ids) => ids.length)) - 1);
  const last = zeros(rows.length * C);
  rows.forEach((p, i) => last.set(y.subarray(ends[p] * C, (ends[p] + 1) * C), i * C));
  cache = cache.repeat(G);

  const [completions, logprobs, truncated] = [rows.map(() => []), rows.map(() => []), rows.map(() => true)];
  let [open, logits] = [rows.map((_, i) => i), model.logits(last, rows.length)];
  for (let t = 0; t < max_new_tokens && open.length; t++) {
    open = open.filter((i, k) => {
      const [token, logprob] = choose(logits, k * V, V, uniforms[i][t], temperature);
      completions[i].push(token);
      logprobs[i].push(logprob);
      truncated[i] = token !== EOS;
      return truncated[i];
    });
    if (t + 1 === max_new_tokens || !open.length) break;
    logits = model.logits(read(cache, open.map((i) => completions[i][t]), open, open.map((i) => prompts[rows[i]].length + t)), open.length);
  }
  return { prompts, completions, logprobs, truncated, group_size: G, mask: completions.map((ids) => ids.map(() => true)) };
}

// One teacher-forced pass over some rows: logits (N, V) that predict their completions, and the way back. A prompt
// is read once for its whole group: the tokens of a completion see it, and those before them (packed.py does so too).
export function completionLogits(model, rollout, rows) {
  const [ids, positions, sees, wanted, ends] = [[], [], [], [], {}];
  const read = (id, before) => {
    positions.push(before.length);
    return sees[ids.push(id) - 1] = [...before, ids.length - 1];
  };
  for (const i of rows) {
    const p = Math.floor(i / rollout.group_size);
    let seen = (ends[p] ??= rollout.prompts[p].reduce((before, id) => read(id, before), []));
    rollout.completions[i].forEach((id, t, all) => { // the shift: each token is predicted by the one before it
      wanted.push(seen.at(-1));
      if (t + 1 < all.length) seen = read(id, seen); // the last one predicts nothing that is needed
    });
  }
  const causal = new Causal(model.config, sees);
  const kept = model.hidden(ids, positions, (layer, qkv) => causal.attend(layer, qkv));
  const C = model.config.n_embd, V = model.config.vocab_size, y = zeros(wanted.length * C);
  wanted.forEach((n, k) => y.set(kept.norm.y.subarray(n * C, (n + 1) * C), k * C));
  const backward = (dlogits) => {
    const dy = linearBackward(dlogits, y, model.w["head.weight"], model.dw["head.weight"], null, wanted.length, C, V);
    const all = zeros(kept.norm.y.length);
    wanted.forEach((n, k) => { for (let i = 0; i < C; i++) all[n * C + i] += dy[k * C + i]; });
    model.backward(kept, all, causal);
  };
  return { logits: model.logits(y, wanted.length), backward };
}

// Log-probs of the sampled tokens under another model, row by row.
export function logprobsUnder(model, rollout, temperature) {
  const { logits } = completionLogits(model, rollout, rollout.completions.map((_, i) => i));
  let n = 0;
  const V = model.config.vocab_size;
  return rollout.completions.map((ids) => ids.map((id) => logSoftmax(logits, V * n++, V, temperature)[id]));
}

// ---- advantages.py ----------------------------------------------------------------------------------------------

const tied = (values) => Math.max(...values) === Math.min(...values);

function std(values, correction) {
  const center = mean(values);
  return Math.sqrt(sum(values.map((v) => (v - center) ** 2)) / (values.length - correction));
}

// Of rewards (P, G): each less what it is compared with. Equal rewards give exactly 0.
export const BASELINES = {
  group: (rewards) => rewards.map((group) => (tied(group) ? group.map(() => 0) : group.map((r) => r - mean(group)))),
  leave_one_out: (rewards) => rewards.map((group) => (tied(group) ? group.map(() => 0) : group.map((r) => r - (sum(group) - r) / (group.length - 1)))),
  batch: (rewards) => rewards.map((group) => group.map((r) => (tied(rewards.flat()) ? 0 : r - mean(rewards.flat())))),
  none: (rewards) => rewards,
};

// (r - b) / (sigma + eps), (P, G).
export function baselineAdvantages(rewards, { baseline, scale_rewards, std_eps, correction }, lengths) {
  const advantages = BASELINES[baseline](rewards);
  if (scale_rewards === "none") return advantages;
  if (scale_rewards === "global") return standardized(advantages, lengths, std_eps, correction);
  const whole = scale_rewards === "batch" ? std(rewards.flat(), correction) : null;
  return advantages.map((group, p) => {
    const scale = whole ?? std(rewards[p], correction);
    return group.map((a) => (a === 0 ? 0 : a / (scale + std_eps)));
  });
}

// Mean 0 and standard deviation 1 over the batch, each completion as often as it has tokens.
function standardized(advantages, lengths, eps, correction) {
  const flat = advantages.flat();
  if (flat.every((a) => a === flat[0])) return advantages.map((group) => group.map(() => 0));
  const total = sum(lengths.flat()), weights = lengths.flat().map((n) => n / total);
  const center = sum(flat.map((a, i) => weights[i] * a));
  const variance = sum(flat.map((a, i) => weights[i] * (a - center) ** 2)) * total / (total - correction);
  const scale = Math.sqrt(variance);
  return advantages.map((group) => group.map((a) => (a - center) / (scale + eps)));
}

// From 0 down to -1 over the last `buffer` tokens (in float32, as in the Python).
const overlongPenalty = (length, max, buffer) => Math.fround(Math.min(0, Math.max(-1, (max - buffer - length) / buffer)));

// ---- kl.py --------------------------------------------------------------------------------------------------------

// Estimates from delta = log ref - log policy: value, and derivative with respect to log policy.
export const KL_ESTIMATORS = {
  k1: (delta) => [-delta, 1],
  k2: (delta) => [0.5 * delta ** 2, -delta],
  k3: (delta) => [Math.expm1(delta) - delta, -Math.expm1(delta)],
};

// ---- losses.py ----------------------------------------------------------------------------------------------------

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// Of one token: loss, its derivative with respect to the ratio, and with respect to the log-prob itself.
export const SURROGATES = {
  clip(ratio, logprob, A, { clip_low, clip_high, delta }) {
    if (A === 0) return [0, 0, 0];
    const capped = Math.min(ratio, delta ?? Infinity), clipped = clamp(ratio, 1 - clip_low, 1 + clip_high);
    const bound = clipped !== ratio && clipped * A <= capped * A; // the clip binds: no gradient
    return [-Math.min(capped * A, clipped * A), bound || capped !== ratio ? 0 : -A, 0];
  },
  cispo(ratio, logprob, A, { clip_low, clip_high }) {
    const weight = clamp(ratio, 1 - clip_low, 1 + clip_high);
    return [-weight * A * logprob, 0, -weight * A];
  },
};

// What each token of a row weighs in the loss.
export function tokenWeight(length, aggregation, { num_sequences, num_tokens, max_length }) {
  if (aggregation === "token_mean") return 1 / num_tokens;
  if (aggregation === "constant") return 1 / (num_sequences * max_length);
  return 1 / num_sequences / (aggregation === "sequence_mean" ? Math.max(1, length) : 1);
}

// Ratios of one row, and the map from derivatives with respect to them to those with respect to the log-probs.
export function importanceRatio(logprobs, old, mask, level) {
  const logRatio = logprobs.map((x, t) => (mask[t] ? x - old[t] : 0));
  if (level === "token") {
    const ratio = logRatio.map(Math.exp);
    return [ratio, (g) => g.map((x, t) => (x === 0 ? 0 : x * ratio[t]))];
  }
  const n = Math.max(1, mask.filter(Boolean).length), s = Math.exp(sum(logRatio) / n);
  const ratio = logRatio.map(() => s);
  if (level === "sequence_token") return [ratio, (g) => g.map((x) => (x === 0 ? 0 : x * s))];
  return [ratio, (g) => { const all = sum(g); return g.map((_, t) => (mask[t] && all !== 0 ? (all * s) / n : 0)); }];
}

// The loss of one row: per token its value and its derivative with respect to the log-prob; and what is logged.
export function grpoLoss(logprobs, old, ref, A, mask, config) {
  const [ratio, back] = importanceRatio(logprobs, old, mask, config.importance_sampling_level);
  const parts = ratio.map((r, t) => (mask[t] ? SURROGATES[config.surrogate](r, logprobs[t], A, config) : [0, 0, 0]));
  const [loss, grad] = [parts.map((p) => p[0]), back(parts.map((p) => p[1])).map((g, t) => g + parts[t][2])];
  const cut = ratio.filter((r, t) => mask[t] && ((r < 1 - config.clip_low && A < 0) || (r > 1 + config.clip_high && A > 0))).length;
  let kl = 0;
  if (ref) mask.forEach((inside, t) => {
    if (!inside) return;
    let [value, slope] = KL_ESTIMATORS[estimatorOf(config)](ref[t] - logprobs[t]);
    kl += value;
    if (config.use_bias_correction_kl) {
      const r = Math.exp(logprobs[t] - old[t]);
      [value, slope] = [r * value, r * value + r * slope];
    }
    loss[t] += config.beta * value;
    grad[t] += config.beta * slope;
  });
  return { loss, grad, cut, kl };
}

// ---- optim.py -----------------------------------------------------------------------------------------------------

export class AdamW {
  constructor(model, lr) {
    Object.assign(this, { model, lr, steps: 0, mean: zeros(model.theta.length), square: zeros(model.theta.length) });
  }

  // Moves every weight; weights that are no numbers are refused, and all are as they were.
  step(where) {
    const { theta, grad } = this.model, before = theta.slice(), t = ++this.steps;
    const rate = this.lr / (1 - 0.9 ** t), root = Math.sqrt(1 - 0.999 ** t);
    let norm = 0;
    for (let i = 0; i < theta.length; i++) {
      this.mean[i] += (grad[i] - this.mean[i]) * (1 - 0.9);
      this.square[i] = this.square[i] * 0.999 + (1 - 0.999) * grad[i] * grad[i];
      theta[i] -= (rate * this.mean[i]) / (Math.sqrt(this.square[i]) / root + 1e-8);
      norm += theta[i] ** 2;
    }
    if (norm < Infinity) return;
    theta.set(before);
    throw new NonFiniteError(`the weights' norm would be ${Math.sqrt(norm)} after ${where} with learning rate ${this.lr}; they are as they were. Lower the learning rate`);
  }
}

// Scales the gradient to at most `max`; returns the length before.
export function clipGradNorm(grad, max, where) {
  const norm = Math.sqrt(grad.reduce((s, g) => s + g * g, 0));
  if (!(norm < Infinity)) throw new NonFiniteError(`the gradient's norm is ${norm} at ${where}; the weights are as they were. Lower the learning rate`);
  if (max && norm > max) for (let i = 0; i < grad.length; i++) grad[i] *= max / norm;
  return norm;
}

// ---- step.py ------------------------------------------------------------------------------------------------------

const rowsOf = (p, G) => Array.from({ length: G }, (_, g) => p * G + g);
const grouped = (values, G) => Array.from({ length: values.length / G }, (_, p) => values.slice(p * G, (p + 1) * G));

// The batch of some prompts, with their whole groups.
function pick(batch, prompts) {
  const { rollout } = batch, G = rollout.group_size, rows = prompts.flatMap((p) => rowsOf(p, G));
  const of = (values) => values && rows.map((i) => values[i]);
  const part = { prompts: prompts.map((p) => rollout.prompts[p]), group_size: G };
  for (const name of ["completions", "logprobs", "truncated", "mask"]) part[name] = of(rollout[name]);
  return { ...batch, problems: prompts.map((p) => batch.problems[p]), rollout: part, texts: of(batch.texts),
    rewards: prompts.map((p) => batch.rewards[p]), advantages: of(batch.advantages), ref: of(batch.ref) };
}

function join(rounds) {
  const flat = (get) => rounds.flatMap(get);
  const rollout = { group_size: rounds[0].rollout.group_size };
  for (const name of ["prompts", "completions", "logprobs", "truncated", "mask"]) rollout[name] = flat((b) => b.rollout[name]);
  return { problems: flat((b) => b.problems), rollout, texts: flat((b) => b.texts), rewards: flat((b) => b.rewards) };
}

// Draws prompts and answers them; with max_resamples, others in place of groups without signal.
export function collect(model, config, chance) {
  const task = TASKS[config.task], tokenizer = new CharTokenizer(CHARS), G = config.group_size;
  const [waiting, rounds] = [chance.permutation(task.problems.length), []];
  let missing = config.prompts_per_step;
  while (missing > 0 && waiting.length && rounds.length <= config.max_resamples) {
    const problems = waiting.splice(0, missing).map((i) => task.problems[i]);
    const uniforms = chance.uniforms(problems.length * G, config.max_new_tokens);
    const rollout = generate(model, problems.map((row) => tokenizer.encode(row.prompt)), config, uniforms);
    const texts = rollout.completions.map((ids) => tokenizer.decode(ids));
    const rewards = grouped(texts.map((text, i) => task.rule(text, problems[Math.floor(i / G)].answer)), G);
    rounds.push({ problems, rollout, texts, rewards });
    missing -= rewards.filter((group) => !tied(group)).length;
  }
  const everything = join(rounds);
  if (rounds.length === 1) return [everything, everything];
  const order = everything.rewards.map((group, p) => [tied(group) ? 1 : 0, p]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  return [pick(everything, order.slice(0, config.prompts_per_step).map(([, p]) => p)), everything];
}

// Metrics of what was sampled, named as TRL names them; `judge` is the rule that is meant.
export function describe({ rollout, rewards, texts, problems }, config) {
  const flat = rewards.flat(), logprobs = rollout.logprobs.flat(), G = rollout.group_size;
  const meant = texts.map((text, i) => TASKS[config.task].judge(text, problems[Math.floor(i / G)].answer));
  const wrong = rollout.completions.filter((_, i) => flat[i] === 0).map((ids) => ids.length);
  return {
    reward: mean(flat), reward_std: std(flat, 1), frac_reward_zero_std: mean(rewards.map((group) => Number(tied(group)))),
    "completions/mean_length": mean(rollout.completions.map((ids) => ids.length)),
    "completions/clipped_ratio": mean(rollout.truncated.map(Number)),
    entropy: -sum(logprobs) / logprobs.length,
    "rewards/judge/mean": mean(meant), "completions/mean_length_wrong": wrong.length ? mean(wrong) : NaN,
    ...(config.max_resamples ? { groups_sampled: rewards.length } : {}),
  };
}

// One update on one batch: gradient of its loss, clipped, and a step of the optimizer.
export function update(model, batch, optimizer, config, where) {
  const { rollout } = batch, G = rollout.group_size, B = rollout.completions.length;
  const denominators = { num_sequences: B, num_tokens: sum(rollout.mask.map((m) => m.filter(Boolean).length)), max_length: config.max_new_tokens };
  const always = (config.beta && config.kl_in === "loss") || config.entropy_coef;
  const rows = batch.rewards.flatMap((_, p) => rowsOf(p, G)).filter((i) => {
    const group = rowsOf(Math.floor(i / G), G); // a group without signal has gradient 0, and is not computed
    return group.some((k) => rollout.mask[k].some(Boolean)) && (always || group.some((k) => batch.advantages[k] !== 0));
  });
  model.grad.fill(0);
  const metrics = rows.length ? computeLoss(model, config, batch, rows, denominators) : { loss: 0, "clip_ratio/region_mean": 0, ...(config.beta && config.kl_in === "loss" ? { kl: 0 } : {}) };
  metrics.grad_norm = clipGradNorm(model.grad, config.max_grad_norm, where);
  optimizer.step(where);
  return metrics;
}

// ---- grpo.py ------------------------------------------------------------------------------------------------------

export const DEFAULTS = {
  task: "sums", max_new_tokens: 4, group_size: 8, prompts_per_step: 8, learning_rate: 1e-3, temperature: 1,
  baseline: "group", scale_rewards: "group", correction: 0, std_eps: 1e-4, overlong_buffer: 0,
  mask_truncated_completions: false, max_resamples: 0, importance_sampling_level: "token", surrogate: "clip",
  clip_low: 0.2, clip_high: 0.2, delta: null, aggregation: "token_mean", beta: 0, kl_in: "loss", kl_estimator: null,
  use_bias_correction_kl: false, entropy_coef: 0, num_iterations: 1, num_mini_batches: 1, max_grad_norm: 1, seed: 0,
  bug: "none",
};
// What a value may be.
const WHOLE = {
  max_new_tokens: [1, 10], group_size: [2, 64], prompts_per_step: [1, 100], correction: [0, 1], overlong_buffer: [0, 10],
  max_resamples: [0, 20], num_iterations: [1, 20], num_mini_batches: [1, 100], seed: [0, 1e9],
};
const REAL = { learning_rate: [0, 10], temperature: [0.01, 100], std_eps: [0, 10], clip_low: [0, 100], clip_high: [0, 100], beta: [0, 100], entropy_coef: [-10, 10] };
export const CHOICES = {
  baseline: Object.keys(BASELINES), scale_rewards: ["group", "batch", "global", "none"],
  importance_sampling_level: ["token", "sequence", "sequence_token"], surrogate: Object.keys(SURROGATES),
  aggregation: ["sequence_mean", "token_mean", "constant", "sequence_sum"], kl_in: ["loss", "reward"],
  kl_estimator: [null, ...Object.keys(KL_ESTIMATORS)], bug: ["none", "eos_left_out", "other_temperature"],
};

// The config with all defaults, or an OptionError that names the value and the remedy.
export function checked(setting) {
  const config = { ...DEFAULTS, max_new_tokens: TASKS[setting.task ?? DEFAULTS.task]?.max_new_tokens, ...setting };
  for (const [name, values] of Object.entries({ task: Object.keys(TASKS), ...CHOICES })) {
    if (!values.includes(config[name])) throw new OptionError(`${name}=${config[name]} is unknown; choose one of ${values.join(", ")}`);
  }
  for (const [name, [low, high]] of Object.entries({ ...WHOLE, ...REAL })) {
    const value = config[name], shown = Number.isNaN(value) ? "(not a number)" : value;
    if (name in WHOLE && !Number.isInteger(value)) throw new OptionError(`${name}=${shown} must be a whole number from ${low} to ${high}`);
    if (!(value >= low && value <= high)) throw new OptionError(`${name}=${shown} must be a number from ${low} to ${high}`);
  }
  if (config.scale_rewards === "group" && !["group", "leave_one_out"].includes(config.baseline)) {
    throw new OptionError(`scale_rewards=group with baseline=${config.baseline} divides groups of equal rewards by eps alone; choose scale_rewards=batch or none`);
  }
  if (config.num_mini_batches > config.prompts_per_step) throw new OptionError("num_mini_batches is above prompts_per_step: a minibatch needs at least one prompt");
  return config;
}

const estimatorOf = (config) => config.kl_estimator ?? (config.kl_in === "reward" ? "k1" : "k3");

// The batch with advantages, one a completion.
export function computeAdvantages(batch, config) {
  const { rollout } = batch, G = rollout.group_size;
  let rewards = batch.rewards;
  const less = (of) => rewards.map((group, p) => group.map((r, g) => r + of(p * G + g)));
  if (config.overlong_buffer) rewards = less((i) => overlongPenalty(rollout.completions[i].length, config.max_new_tokens, config.overlong_buffer));
  if (config.beta && config.kl_in === "reward") {
    const estimate = KL_ESTIMATORS[estimatorOf(config)];
    rewards = less((i) => -config.beta * sum(rollout.logprobs[i].map((x, t) => estimate(batch.ref[i][t] - x)[0])));
  }
  const lengths = grouped(rollout.completions.map((ids) => ids.length), G);
  const advantages = baselineAdvantages(rewards, config, lengths).flat();
  const kept = (ids, i, id) => !(config.mask_truncated_completions && rollout.truncated[i]) && !(config.bug === "eos_left_out" && id === EOS);
  const mask = rollout.completions.map((ids, i) => ids.map((id) => kept(ids, i, id)));
  return { ...batch, rollout: { ...rollout, mask }, advantages };
}

// Loss and gradient of some rows of a batch; metrics are means over its tokens.
export function computeLoss(model, config, batch, rows, denominators) {
  const { rollout, advantages, ref } = batch, V = model.config.vocab_size;
  const temperature = config.bug === "other_temperature" ? 1 : config.temperature;
  const { logits, backward } = completionLogits(model, rollout, rows);
  const dlogits = zeros(logits.length), inLoss = config.beta && config.kl_in === "loss";
  let [n, loss, cut, kl] = [0, 0, 0, 0];
  for (const i of rows) {
    const [ids, mask, first] = [rollout.completions[i], rollout.mask[i], n];
    const all = ids.map(() => logSoftmax(logits, V * n++, V, temperature));
    const row = grpoLoss(ids.map((id, t) => all[t][id]), rollout.logprobs[i], inLoss ? ref[i] : null, advantages[i], mask, config);
    const weight = tokenWeight(mask.filter(Boolean).length, config.aggregation, denominators);
    cut += row.cut;
    kl += row.kl;
    ids.forEach((id, t) => {
      if (!mask[t]) return;
      const H = -all[t].reduce((s, x) => s + Math.exp(x) * x, 0);
      loss += weight * (row.loss[t] - config.entropy_coef * H);
      for (let v = 0, at = V * (first + t); v < V; v++) {
        const p = Math.exp(all[t][v]);
        dlogits[at + v] = (weight * (row.grad[t] * ((v === id ? 1 : 0) - p) + config.entropy_coef * p * (all[t][v] + H))) / temperature;
      }
    });
  }
  backward(dlogits);
  const tokens = denominators.num_tokens;
  return { loss, "clip_ratio/region_mean": cut / tokens, ...(inLoss ? { kl: kl / tokens } : {}) };
}

export class Trainer {
  constructor(model, config) {
    this.config = checked(config);
    this.model = model.copy();
    this.reference = model;
    this.optimizer = new AdamW(this.model, this.config.learning_rate);
    [this.steps, this.num_tokens] = [0, 0];
  }

  // One step: its metrics, and the batch that it learned from.
  step(chance = new Chance(this.config.seed, this.steps + 1)) {
    const { config, model } = this, where = `step ${this.steps + 1}`;
    const [drawn, everything] = collect(model, config, chance);
    const ref = logprobsUnder(this.reference, drawn.rollout, config.temperature);
    const measured = sum(drawn.rollout.logprobs.flatMap((row, i) => row.map((x, t) => KL_ESTIMATORS.k3(ref[i][t] - x)[0])));
    const batch = computeAdvantages({ ...drawn, ref }, config);
    const rows = minibatches(batch.rewards.length, config, chance).map((prompts) =>
      update(model, pick(batch, prompts), this.optimizer, config, where));
    this.steps += 1;
    this.num_tokens += sum(everything.rollout.completions.map((ids) => ids.length));
    const updates = Object.fromEntries(Object.keys(rows[0]).map((name) => [name, mean(rows.map((row) => row[name]))]));
    const metrics = { step: this.steps, num_tokens: this.num_tokens, ...describe(everything, config),
      advantage_abs_mean: mean(batch.advantages.map(Math.abs)), kl: measured / drawn.rollout.logprobs.flat().length, ...updates };
    return [metrics, batch];
  }
}

// Indices of prompts for each update: num_iterations times all of them, in num_mini_batches parts.
export function minibatches(prompts, { num_iterations, num_mini_batches }, chance) {
  const parts = Math.min(num_mini_batches, prompts);
  return Array.from({ length: num_iterations }, () => {
    const order = parts === 1 ? Array.from({ length: prompts }, (_, i) => i) : chance.permutation(prompts);
    const ends = Array.from({ length: parts }, (_, k) => (k + 1) * Math.floor(prompts / parts) + Math.min(k + 1, prompts % parts));
    return ends.map((end, k) => order.slice(k ? ends[k - 1] : 0, end));
  }).flat();
}
