"""What the tests of the playground share: settings drawn from all options, and both sides' runs of them."""

import json
import random
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from nanogrpo.errors import OptionError
from nanogrpo.grpo import compute_advantages, compute_loss
from nanogrpo.losses import Denominators
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.show import playground
from nanogrpo.show.playground import twin
from nanogrpo.show.playground.tasks import TOKENIZER, PlayTask
from nanogrpo.step import add_reference

ENGINE = Path(playground.__file__).parent / "nanogrpo.js"
ANSWERS = {"1=": "1", "2+3=": "5", "9+94=": "103", "7": "7", "00+0=": "0", "3+3+3=": "9", "4==": "4"}
PROBLEMS = tuple({"prompt": prompt, "answer": answer} for prompt, answer in ANSWERS.items())
# Graded rewards that any text can earn, so that random weights have something to learn from.
MIXED = PlayTask(
    PROBLEMS,
    5,
    lambda text, _: (0.0, 0.37, 1.0)[len(set(text)) % 3],
    lambda text, answer: float(answer in text),
)

# One case in JavaScript: the first batch and its gradient, then the weights after so many steps.
CASE = """(m, { config, setting, weights, problems, steps }) => {
  const rule = (text) => [0, 0.37, 1][new Set(text).size % 3];
  const judge = (text, answer) => Number(text.includes(answer));
  m.TASKS.mixed = { problems, max_new_tokens: 5, rule, judge };
  const trainer = new m.Trainer(new m.GPT(config, Float64Array.from(weights)), { ...setting, task: "mixed" });
  const model = trainer.model, log = [], snapshots = [];
  const tokenizer = new m.CharTokenizer(m.CHARS);
  const probe = { prompts: problems.map((row) => tokenizer.encode(row.prompt)), group_size: 1,
    completions: problems.map(() => [2, 3, 1]) };
  const { logits } = m.completionLogits(model, probe, problems.map((_, i) => i));
  let batch, gradient;
  for (let step = 1; step <= Math.max(...steps); step++) {
    const [metrics, made] = trainer.step();
    log.push(metrics);
    if (step === 1) {
      batch = made;
      const before = new m.Trainer(trainer.reference, trainer.config);
      const tokens = made.rollout.mask.flat().filter(Boolean).length;
      const rows = made.rollout.mask.map((_, i) => i);
      const counts = { num_sequences: rows.length, num_tokens: tokens, max_length: setting.max_new_tokens };
      if (tokens) m.computeLoss(before.model, before.config, made, rows, counts);
      gradient = [...before.model.grad];
    }
    if (steps.includes(step)) snapshots.push([...model.theta]);
  }
  const { completions, logprobs, truncated } = batch.rollout;
  const { advantages } = batch;
  return { logits: [...logits], completions, logprobs, truncated, advantages, gradient, log, snapshots };
}"""


def needs_node():
    """A mark for tests that run the engine without a browser."""
    return pytest.mark.skipif(shutil.which("node") is None, reason="package: no node to run the engine")


def in_node(tmp_path, function: str, cases: list[dict]) -> list:
    """The results of a JavaScript function of the engine's module and a case, for each case."""
    shutil.copy(ENGINE, tmp_path / "engine.mjs")
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (tmp_path / "run.mjs").write_text(
        "import { readFileSync } from 'node:fs'; import * as m from './engine.mjs';\n"
        f"const run = {function};\n"
        "const cases = JSON.parse(readFileSync(new URL('cases.json', import.meta.url), 'utf8'));\n"
        "console.log(JSON.stringify(cases.map((c) => run(m, c))));\n"
    )
    done = subprocess.run(["node", tmp_path / "run.mjs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def random_cases(count: int, seed: int, steps: list[int]) -> list[dict]:
    """Settings from all options, each with a model of its own."""
    draw, cases = random.Random(seed), []
    while len(cases) < count:
        setting, heads = random_setting(draw), draw.choice([1, 2, 3])
        config = GPTConfig(
            TOKENIZER.vocab_size, 12, draw.choice([1, 2]), heads, heads * draw.choice([2, 5, 8])
        )
        weights = new_weights(config, len(cases))
        if allowed(setting) and starts_with_a_signal(vars(config), weights, setting):
            case = {"config": vars(config), "setting": setting, "weights": weights}
            cases.append(case | {"problems": list(PROBLEMS), "steps": steps})
    return cases


def allowed(setting: dict) -> bool:
    """Whether these options go together. A reward with the KL of the same weights differs by rounding alone,
    and without an epsilon the deviation of a group makes numbers of any size of that."""
    if setting["kl_in"] == "reward" and setting["beta"] and setting["std_eps"] == 0:
        return False
    try:
        return bool(twin.options_of(setting))
    except OptionError:
        return False


def starts_with_a_signal(config: dict, weights: list[float], setting: dict) -> bool:
    """Whether each group of the first batch has one, in a token that counts. Where the gradient is 0 but for
    rounding, Adam makes steps of any size of it, and a comparison of weights is one of rounding alone."""
    first = first_batch(model_of(config, weights), setting)
    advantages, gradient = torch.tensor(first["advantages"]), torch.tensor(first["gradient"])
    return bool(gradient.abs().max() > 1e-6) and bool(
        advantages.view(-1, setting["group_size"]).abs().amax(1).gt(1e-3).all()
    )


def random_setting(draw: random.Random) -> dict:
    some = draw.choice
    low = round(draw.uniform(0.05, 0.4), 3)
    return {
        "max_new_tokens": some([2, 3, 5]), "group_size": draw.randint(2, 6),
        "prompts_per_step": draw.randint(1, 9),
        "learning_rate": some([1e-3, 1e-2]), "temperature": some([0.5, 1.0, 1.7]),
        "baseline": some(["group", "leave_one_out", "batch", "none"]),
        "scale_rewards": some(["group", "batch", "global", "none"]), "correction": some([0, 1]),
        "std_eps": some([0.0, 1e-4, 0.1]) if draw.random() < 0.5 else 1e-4,
        "overlong_buffer": some([0, 0, 1, 2]), "mask_truncated_completions": some([False, False, True]),
        "max_resamples": some([0, 0, 2]), "surrogate": some(["clip", "clip", "cispo"]),
        "importance_sampling_level": some(["token", "sequence", "sequence_token"]),
        "clip_low": low, "clip_high": round(draw.uniform(0.05, 0.5), 3), "delta": some([None, None, 1.6]),
        "aggregation": some(["sequence_mean", "token_mean", "constant", "sequence_sum"]),
        "beta": some([0.0, 0.05, 0.5]), "kl_in": some(["loss", "reward"]),
        "kl_estimator": some([None, "k1", "k2", "k3"]), "use_bias_correction_kl": some([False, True]),
        "entropy_coef": some([0.0, 0.0, 0.03]), "num_iterations": some([1, 2, 3]),
        "num_mini_batches": some([1, 1, 2]),
        "max_grad_norm": some([None, 0.05, 1.0]), "seed": draw.randint(0, 10_000),
        "bug": some(["none", "none", "eos_left_out", "other_temperature"]),
    }  # fmt: skip


def new_weights(config: GPTConfig, seed: int) -> list[float]:
    torch.manual_seed(seed)
    model = GPT(config).double()
    with torch.no_grad():  # biases and norms that are not where they start, too
        parts = [p + 0.1 * torch.randn(p.shape, dtype=p.dtype) for p in model.parameters()]
    return torch.cat([p.flatten() for p in parts]).tolist()


def model_of(config: dict, weights: list[float]) -> GPT:
    model = GPT(GPTConfig(**config)).double()
    torch.nn.utils.vector_to_parameters(torch.tensor(weights, dtype=torch.float64), model.parameters())
    return model


def flat(model: GPT) -> list[float]:
    return torch.nn.utils.parameters_to_vector(model.parameters()).tolist()


def in_python(case: dict) -> dict:
    """The same of the package, in float64."""
    model = model_of(case["config"], case["weights"])
    setting, steps = case["setting"], case["steps"]
    result = first_batch(model, setting) | {"log": [], "snapshots": []}
    for row in twin.run(model, setting, MIXED):
        result["log"].append(row)
        if row["step"] in steps:
            result["snapshots"].append(flat(model))
        if row["step"] == max(steps):
            return result
    raise AssertionError("the run ended by itself")


def first_batch(model: GPT, setting: dict) -> dict:
    """Logits, samples, advantages and the gradient of the whole first batch."""
    from nanogrpo.rollout import completion_logits

    _, bug, config = twin.options_of(setting)
    ids, lens = TOKENIZER.encode_prompts([row["prompt"] for row in PROBLEMS])
    logits = completion_logits(model, ids, lens, torch.tensor([[2, 3, 1]] * len(PROBLEMS)))
    drawn, _ = twin.collect(model, MIXED, config, twin.Chance(config.seed, 1))
    batch, _ = add_reference(drawn, model, config)
    batch, _ = compute_advantages(batch, config)
    batch = twin.with_bug(batch, bug)
    scored = replace(config, temperature=1.0) if bug == "other_temperature" else config
    mask = batch.rollout.completion_mask
    model.zero_grad()
    if mask.any():
        loss, _ = partial(compute_loss, model, scored)(batch, Denominators.of(mask, config.max_new_tokens))
        loss.backward()
    zero = torch.zeros(())
    gradient = [
        (p.grad if p.grad is not None else zero.expand(p.shape)).flatten() for p in model.parameters()
    ]
    rollout, kept = drawn.rollout, drawn.rollout.completion_mask
    model.zero_grad()
    return {
        "logits": logits.flatten().tolist(),
        "completions": [row[m].tolist() for row, m in zip(rollout.completion_ids, kept, strict=True)],
        "logprobs": [row[m].tolist() for row, m in zip(rollout.logprobs, kept, strict=True)],
        "truncated": rollout.truncated.tolist(),
        "advantages": batch.advantages.tolist(),
        "gradient": torch.cat(gradient).tolist(),
    }
