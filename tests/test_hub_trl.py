"""TRL's own GRPOTrainer trains our model: one step of it and one of ours give the same weights.

Both begin with the same weights and are given the same completions, ours; prompts have different lengths, and
some completions end early. Loss, advantages and optimizer are TRL's. The tolerance is derived: Adam's first
step is lr * g / (abs(g) + eps), whose slope is at most lr / eps, so that weights are at most lr / eps times
as far apart as gradients are. Adam's eps is 1e-2 here, to keep that factor below one.

TRL computes the last layer in float32 whatever the model is, so gradients agree to float32. With that one
function replaced by the formula in the model's own float64, they agree to float64: nothing else differs.
"""

from collections import defaultdict

import pytest
import torch

from nanogrpo import grpo, hub
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.rollout import token_logprobs
from nanogrpo.state import TrainState
from nanogrpo.tokenizer import CharTokenizer

REASON = "package: TRL is not installed here; `make parity` trains our model with it"
trl = pytest.importorskip("trl", reason=REASON)
datasets = pytest.importorskip("datasets", reason=REASON)

TOKENIZER = CharTokenizer("0123456789+=")
PROBLEMS = [
    {"prompt": prompt, "answer": answer}
    for prompt, answer in (("1+2=", "3"), ("12+34=", "46"), ("5+60=", "65"), ("10+2=", "12"))
]
P, G, T, RATE, EPS = 4, 4, 6, 1e-3, 1e-2
LOSS_TYPE = {"token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}
# A gradient is a sum of at most P * G * T tokens' parts, each with the rounding of a few sums over channels.
ROUNDING = P * G * T * 10


def policy(seed: int) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(TOKENIZER.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=16)).double()


def reward(prompts, completions, answer, **columns):
    """Graded, so that no group is without a signal, and exact in float32."""
    return [
        float(sum(c in right for c in text)) - 0.25 * len(text)
        for text, right in zip(completions, answer, strict=True)
    ]


def our_step(options):
    """The policy after one step of ours, the batch that it learned from, and the metrics."""
    config = grpo.GRPOConfig(
        max_new_tokens=T, group_size=G, prompts_per_step=P, learning_rate=RATE, correction=1, **options
    )
    model, reference = policy(0), policy(1).requires_grad_(False) if config.beta else None
    state = TrainState.start(model.parameters(), RATE, seed=0)
    state.optimizer.eps = EPS
    metrics, batch = grpo.step(model, TOKENIZER, PROBLEMS, reward, config, state, reference)
    return model, batch, metrics


def trainer(folder, reward=reward, problems=PROBLEMS, rollout_func=None, **changes):
    """TRL's trainer on our policy. With a KL, its reference is what the folder holds."""
    transformers = pytest.importorskip("transformers")
    hub.save_pretrained(folder, policy(1), TOKENIZER)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.load_state_dict(hub.to_transformers(policy(0), TOKENIZER)[0].state_dict())
    options = {
        "output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "per_device_train_batch_size": P * G, "num_generations": G, "max_completion_length": T,
        "learning_rate": RATE, "lr_scheduler_type": "constant", "adam_epsilon": EPS, "max_steps": 1,
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
    } | changes  # fmt: skip
    return trl.GRPOTrainer(
        model, reward, args=trl.GRPOConfig(**options), train_dataset=datasets.Dataset.from_list(problems),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder), rollout_func=rollout_func,
    )  # fmt: skip


def their_step(batch, options, folder):
    """The policy after TRL's step on the completions of our batch."""
    rollout, rows = batch.rollout, defaultdict(list)
    for i, (ids, mask) in enumerate(zip(rollout.completion_ids, rollout.completion_mask, strict=True)):
        prompt = rollout.prompt_ids[i // G, : rollout.prompt_lens[i // G]]
        rows[TOKENIZER.decode(prompt)].append(ids[mask].tolist())

    def rollout_func(prompts, _):
        left = {prompt: iter(completions) for prompt, completions in rows.items()}
        drawn = [next(left[prompt]) for prompt in prompts]
        ids = [TOKENIZER.encode(prompt) for prompt in prompts]
        return {"prompt_ids": ids, "completion_ids": drawn, "logprobs": None}

    times = options.get("num_iterations", 1)
    run = trainer(
        folder, rollout_func=rollout_func, max_steps=times, num_iterations=times,
        loss_type=LOSS_TYPE[options.get("aggregation", "token_mean")], beta=options.get("beta", 0.0),
        use_bias_correction_kl=options.get("use_bias_correction_kl", False),
        epsilon=options.get("clip_low", 0.2), epsilon_high=options.get("clip_high", 0.2),
        scale_rewards=options.get("scale_rewards", "group"), max_grad_norm=options["max_grad_norm"],
    )  # fmt: skip
    run.train()
    return hub.from_transformers(run.model, run.processing_class)[0]


def gap(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


class PlainHead:
    """Log-probs and entropies by their formulas, in the model's own type: instead of TRL's float32 kernel."""

    @staticmethod
    def apply(hidden, weight, bias, labels, temperature, *others):
        logprobs = (hidden @ weight.T / temperature).log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(1, labels[:, None]).squeeze(1), entropy, None, None, None


CASES = {
    "dapo": {},
    "grpo": {"aggregation": "sequence_mean"},
    "dr_grpo": {"aggregation": "constant", "scale_rewards": "none"},
    "kl": {"beta": 0.1},
    "kl, corrected": {"beta": 0.1, "use_bias_correction_kl": True},
}
OTHERS = {
    "several updates": {"num_iterations": 3, "clip_low": 0.001, "clip_high": 0.002, "beta": 0.1},
    "clipped gradient": {"max_grad_norm": 0.5},
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_theirs_is_a_step_of_ours_to_float32(name, tmp_path):
    options = CASES[name] | {"max_grad_norm": 0.0}
    ours, batch, _ = our_step(options)
    assert 1 < len(set(batch.rollout.prompt_lens.tolist())) and 1 < len(set(batch.rollout.lengths.tolist()))
    largest = max(p.grad.abs().max().item() for p in ours.parameters())
    tolerance = RATE / EPS * ROUNDING * torch.finfo(torch.float32).eps * largest
    off, moved = gap(ours, their_step(batch, options, tmp_path)), gap(ours, policy(0))
    print(f"{name}: off by {off:.1e}, allowed {tolerance:.1e}, moved by {moved:.1e}")
    assert off <= tolerance < moved / 10


@pytest.mark.parametrize("name", [*CASES, "several updates", "clipped gradient"])
def test_and_to_float64_where_their_last_layer_is(name, tmp_path, monkeypatch):
    """Without division of the advantages, which both take in float32: they are exact then."""
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", PlainHead)
    options = {"max_grad_norm": 0.0} | (CASES | OTHERS)[name] | {"scale_rewards": "none"}
    ours, batch, metrics = our_step(options)
    if name == "several updates":
        assert metrics["clip_ratio/region_mean"] > 0.1
    tolerance = RATE / EPS * ROUNDING * torch.finfo(torch.float64).eps
    if options["max_grad_norm"]:
        assert metrics["grad_norm"] > 2 * options["max_grad_norm"]
        tolerance += RATE / EPS * 1e-6  # PyTorch adds 1e-6 to the length that it divides by; we do not
    off, moved = gap(ours, their_step(batch, options, tmp_path)), gap(ours, policy(0))
    print(f"{name}: off by {off:.1e}, allowed {tolerance:.1e}, moved by {moved:.1e}")
    assert off <= tolerance


def test_what_trl_samples_is_what_our_model_would_have_sampled(tmp_path):
    """At its own defaults, temperature 1 among them: equal log-probs, and as probable as our own samples."""
    seen, draws = [], 64
    run = trainer(
        tmp_path, learning_rate=0.0, num_generations=draws, per_device_train_batch_size=P * draws,
        reward=lambda completions, completion_ids, prompts, **_: (
            seen.extend(zip(prompts, completion_ids, strict=True)) or [float(len(c)) for c in completions]
        ),
    )  # fmt: skip
    torch.manual_seed(0)
    run.train()
    assert len(seen) == P * draws and {len(ids) for _, ids in seen} > {T}
    model = policy(0)
    surprise, expected, variance = 0.0, 0.0, 0.0
    for prompt, ids in seen:
        row = torch.tensor([TOKENIZER.encode(prompt) + list(ids)])
        width = len(TOKENIZER.encode(prompt))
        with torch.no_grad():
            mask = torch.ones_like(row)
            ours = token_logprobs(model, row[:, :width], torch.tensor([width]), row[:, width:])
            theirs, _, _ = run._get_per_token_logps_and_entropies(run.model, row, mask, len(ids))
            first = model(row[:, :width])[0, -1].log_softmax(-1)  # (V,)
        assert (ours - theirs).abs().max() <= 1e-5  # their last layer is in float32
        surprise -= ours[0, 0].item()
        expected -= (first.exp() * first).sum().item()
        variance += (first.exp() * first**2).sum().item() - (first.exp() * first).sum().item() ** 2
    assert abs(surprise - expected) <= 4 * variance**0.5


def test_a_step_with_another_option_is_seen(tmp_path):
    """The control: what the tolerance forgives is far less than what any option of a case changes."""
    base = {"max_grad_norm": 0.0, "beta": 0.1}
    theirs = their_step(our_step(base)[1], base, tmp_path)
    allowed = gap(our_step(base)[0], theirs)
    others = [{"aggregation": "sequence_mean"}, {"aggregation": "constant"}, {"scale_rewards": "none"}]
    for other in [*others, {"beta": 0.0}]:
        assert gap(our_step(base | other)[0], theirs) > 100 * allowed, other
