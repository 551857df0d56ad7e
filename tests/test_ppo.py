"""The PPO trainer: what each part does, what it reduces to without them, and what it says of bad input."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from mathcheck import Recorder, close
from test_exact import EOS, PROMPT, T, binary, tiny

from nanogrpo import grpo, microbatches, ppo, step
from nanogrpo.advantages import gae, group_advantages
from nanogrpo.checkpoint import load_tensors, save_tensors
from nanogrpo.critic import explained_variance, new_critic, values_of
from nanogrpo.errors import MaskError, NonFiniteError, OptionError, RewardError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.kl import entropy, kl_k1
from nanogrpo.losses import Denominators, aggregate, grpo_loss, reinforce_loss, value_loss
from nanogrpo.metrics import logged
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.ppo import PPOConfig, compute_advantages, compute_loss, start, train
from nanogrpo.rollout import Rollout, completion_logits, token_logprobs
from nanogrpo.state import TrainState
from nanogrpo.step import Batch, add_reference, sample, update
from nanogrpo.teach.exact import Microscope, pad
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("ab")
ROWS = [{"prompt": "a"}, {"prompt": "ab"}, {"prompt": "bba"}, {"prompt": "b"}]
CONFIG = PPOConfig(max_new_tokens=4, group_size=4, prompts_per_step=4, learning_rate=3e-3, max_steps=3)
KINDS = ["separate", "head"]
each_kind = pytest.mark.parametrize("kind", KINDS)
AGGREGATIONS = ["sequence_mean", "token_mean", "constant", "sequence_sum"]


def count_b(prompts, completions, **columns):
    """More of the letter b is better."""
    return [completion.count("b") / 4 for completion in completions]


def policy(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return GPT(GPTConfig(TOKENIZER.vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=16)).to(dtype)


def critic_of(model, kind="separate", seed=5):
    """A critic that has opinions: its last layer is random, not 0."""
    critic = new_critic(model, kind)
    generator = torch.Generator().manual_seed(seed)
    for p in (critic.head if kind == "separate" else critic).parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / 4)
    return critic


def config(**options):
    return replace(CONFIG, **options)


def run(model=None, reward=count_b, config=CONFIG, rows=ROWS, **options):
    return list(train(model or policy(), TOKENIZER, rows, reward, config, **options))


def rollout_of(model, config=CONFIG, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sample(model, TOKENIZER, [row["prompt"] for row in ROWS], config, generator)


def batch_of(model, critic, config=CONFIG, dtype=torch.float64, reference=None):
    rollout = rollout_of(model, config)
    rewards = torch.tensor(count_b([], TOKENIZER.decode_batch(rollout.completion_ids)), dtype=dtype)
    batch, kl = add_reference(Batch(rollout, rewards.view(4, -1), {}), reference, config)
    batch, metrics = compute_advantages(batch, model, critic, config)
    return batch, kl | metrics


def with_group_advantages(batch):
    """GRPO's advantages, at every token, and a critic that has nothing to learn."""
    mask = batch.rollout.completion_mask
    groups = group_advantages(batch.rewards).flatten().to(batch.rollout.logprobs)  # (B,)
    nothing = torch.zeros_like(batch.rollout.logprobs)  # (B, T)
    return replace(batch, advantages=torch.where(mask, groups[:, None], 0.0), values=nothing, returns=nothing)


def gradient_of(model, critic, batch, options):
    """The trainer's own update at learning rate 0: its gradients stay in the modules; its metrics."""
    state = start(model, critic, replace(options, learning_rate=0.0, critic_learning_rate=0.0))
    loss = partial(compute_loss, model, critic, options, False)
    return update(batch, loss, [state.optimizer, state.critic_optimizer], options, "a test")


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before, module):
    return all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def moved(model, size=0.05, seed=3):
    """The policy a few updates later: its ratios are not 1 any more."""
    generator = torch.Generator().manual_seed(seed)
    later = copy.deepcopy(model)
    for p in later.parameters():
        p.data.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return later


# What a step does


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "kind"), [(0, "separate"), (1, "separate"), (2, "separate"), (0, "head")])
def test_it_learns_to_write_what_is_rewarded(seed, kind):
    options = config(group_size=8, max_steps=50, seed=seed, critic=kind)
    metrics = run(policy(seed), config=options)
    assert metrics[0]["reward"] < 0.45 and metrics[-1]["reward"] > 0.9


@pytest.mark.slow
def test_without_groups_it_learns_as_well():
    metrics = run(config=config(group_size=1, prompts_per_step=24, max_steps=50), rows=ROWS * 6)
    assert metrics[0]["reward"] < 0.45 and metrics[-1]["reward"] > 0.9
    assert "frac_reward_zero_std" not in metrics[0]


def test_one_seed_gives_the_same_log_byte_for_byte_and_another_seed_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = config(prompts_per_step=3, num_mini_batches=2, num_ppo_epochs=2, seed=seed)
        list(logged(train(policy(), TOKENIZER, ROWS, count_b, options), tmp_path / name))
        torch.rand(3)  # the global random numbers are nobody's business
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b and a != c


@pytest.mark.parametrize("options", [{}, {"num_mini_batches": 2, "value_warmup_steps": 1, "beta": 0.1}])
def test_the_first_samples_are_those_of_grpo_and_the_prompts_of_all_steps(options, monkeypatch):
    seen = {"grpo": [], "ppo": []}

    def watched(name):
        def reward(prompts, completions, **columns):
            seen[name].append((prompts, completions))
            return count_b(prompts, completions)

        return reward

    same_samples = GRPOConfig(max_new_tokens=4, group_size=4, prompts_per_step=2, max_steps=3, seed=7)
    list(grpo.train(policy(), TOKENIZER, ROWS, watched("grpo"), same_samples))
    run(reward=watched("ppo"), config=config(prompts_per_step=2, seed=7, **options))
    assert seen["ppo"][0] == seen["grpo"][0], "the first batch of samples is not GRPO's"
    assert [prompts for prompts, _ in seen["ppo"]] == [prompts for prompts, _ in seen["grpo"]]


def test_the_log_holds_the_metrics_of_grpo_and_of_the_critic():
    row = run(config=config(beta=0.1))[0]
    theirs = next(grpo.train(policy(), TOKENIZER, ROWS, count_b, GRPOConfig(4, group_size=4, beta=0.1)))
    assert {"value_loss", "explained_variance", "advantage_abs_mean"} <= set(row)
    for name in ("step", "num_tokens", "reward", "reward_std", "frac_reward_zero_std", "entropy", "loss",
                 "completions/mean_length", "completions/clipped_ratio", "grad_norm", "kl",
                 "clip_ratio/region_mean"):  # fmt: skip
        assert name in row and name in theirs, name
    for name in ("reward", "reward_std", "entropy", "num_tokens"):
        assert row[name] == theirs[name], name


# What it reduces to


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio_is_one", [True, False])
def test_with_the_group_s_advantage_at_every_token_the_update_is_grpo_s(aggregation, ratio_is_one):
    """Value and gradient, against the loss written with the simple, slow pass."""
    options = config(aggregation=aggregation, max_grad_norm=None)
    old = policy(dtype=torch.float64)
    batch = with_group_advantages(batch_of(old, critic_of(old), options)[0])
    model, rollout = old if ratio_is_one else moved(old), batch.rollout
    rewards = torch.tensor(count_b([], TOKENIZER.decode_batch(rollout.completion_ids)), dtype=torch.float64)
    expected, metrics = grpo_loss(
        token_logprobs(model, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids),
        rollout.logprobs, None, group_advantages(rewards.view(4, 4)).flatten(), rollout.completion_mask,
        aggregation=aggregation, denominators=Denominators.of(rollout.completion_mask, 4),
    )  # fmt: skip
    gradient = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    found = gradient_of(model, critic_of(model), batch, options)
    assert found["loss"] == pytest.approx(expected.item(), abs=1e-12)
    assert (metrics["clip_ratio/region_mean"] > 0) != ratio_is_one, "the case is not what its name says"
    assert found["clip_ratio/region_mean"] == pytest.approx(metrics["clip_ratio/region_mean"].item())
    for p, g in zip(model.parameters(), gradient, strict=True):
        found = torch.zeros_like(p) if p.grad is None else p.grad
        close(found, 0.0 if g is None else g, "not GRPO's gradient")


@pytest.mark.parametrize("updates", [1, 3])
def test_with_the_group_s_advantage_at_every_token_the_whole_run_is_grpo_s(updates, monkeypatch):
    theirs, ours = policy(), policy()
    expected = list(grpo.train(theirs, TOKENIZER, ROWS, count_b, GRPOConfig(
        4, group_size=4, prompts_per_step=3, learning_rate=3e-3, max_steps=4, num_iterations=updates
    )))  # fmt: skip
    monkeypatch.setattr(ppo, "compute_advantages", lambda batch, *_: (with_group_advantages(batch), {}))
    found = run(ours, config=config(prompts_per_step=3, max_steps=4, num_ppo_epochs=updates))
    assert [row["reward"] for row in found] == [row["reward"] for row in expected]
    assert found[-1]["reward"] != found[0]["reward"], "nothing was learned, so nothing was compared"
    for name, tensor in theirs.state_dict().items():
        close(ours.state_dict()[name], tensor, f"{name} differs from GRPO's", atol=1e-6)


def test_with_lambda_1_and_the_group_mean_as_value_gae_is_the_group_advantage():
    mask = torch.arange(4) < torch.tensor([[4], [2], [1], [3]])
    scores = torch.tensor([1.0, 0.0, 0.25, 0.5], dtype=torch.float64)
    last = mask.sum(1, keepdim=True) - 1
    rewards = torch.zeros(4, 4, dtype=torch.float64).scatter(1, last, scores[:, None])
    means = scores.view(2, 2).mean(1).repeat_interleave(2)
    advantages, _ = gae(rewards, means[:, None].expand(4, 4), mask, lam=1.0)
    groups = group_advantages(scores.view(2, 2), "none").flatten()
    close(
        advantages,
        torch.where(mask, groups[:, None], 0.0),
        "a value that is the group mean is the group baseline",
    )
    close(groups, torch.tensor([0.5, -0.5, -0.125, 0.125]), "not the reward less the group mean")


@each_kind
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("estimator", ["gae", "return_minus_value", "group"])
def test_at_ratio_1_it_is_reinforce(aggregation, estimator, kind):
    known = {} if estimator == "group" else {"advantage_estimator": estimator}
    options = config(**known, aggregation=aggregation, max_grad_norm=None, vf_coef=0.0,
                     critic=kind)  # fmt: skip
    model = policy(dtype=torch.float64)
    critic = critic_of(model, kind)
    batch, _ = batch_of(model, critic, options)
    batch = with_group_advantages(batch) if estimator == "group" else batch
    rollout, mask = batch.rollout, batch.rollout.completion_mask
    logprobs = token_logprobs(model, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
    per_token = reinforce_loss(logprobs, batch.advantages, mask)
    loss = aggregate(per_token, mask, aggregation, Denominators.of(mask, 4))
    expected = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    gradient_of(model, critic, batch, options)
    for p, g in zip(model.parameters(), expected, strict=True):
        close(torch.zeros_like(p) if p.grad is None else p.grad, 0.0 if g is None else g, "not REINFORCE")


def expected_update(rewards, **options):
    """Sum of the trainer's gradients over all 15 completions, each weighed with its probability."""
    model, reference = tiny(), tiny(1).requires_grad_(False)
    scope, critic = Microscope(model, [PROMPT], T, reference=reference), critic_of(tiny(2))
    truncated = scope.mask.all(1) & (scope.ids[:, -1] != EOS)
    recorders = [Recorder(model), Recorder(critic)]
    settings = PPOConfig(T, group_size=1, whiten_advantages=False, aggregation="sequence_sum",
                         max_grad_norm=1e9, **options)  # fmt: skip
    total = 0.0
    for i, p in enumerate(scope.probabilities[0].detach()):
        own = slice(i, i + 1)
        drawn = Rollout(*pad([PROMPT]), scope.ids[own], scope.mask[own], scope.logprobs[0, own].detach(),
                        truncated[own], 1)  # fmt: skip
        batch, _ = add_reference(Batch(drawn, rewards[own][None], {}), reference, settings)
        batch, _ = compute_advantages(batch, model, critic, settings)
        update(batch, partial(compute_loss, model, critic, settings, False), recorders, settings, "a test")
        total = total + p * recorders[0].gradient
    return scope, total


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("options", [{"lam": 1.0}, {"advantage_estimator": "return_minus_value"}])
def test_whatever_the_critic_says_with_lambda_1_the_update_ascends_the_mean_reward(options, beta):
    """A value is known before its token is sampled, so it is a baseline and moves no expectation."""
    rewards = binary(Microscope(tiny(), [PROMPT], T))
    scope, found = expected_update(rewards, beta=beta, **options)
    goal = scope.objective(rewards) - (beta * scope.kl() if beta else 0.0)
    close(found, -scope.gradient(goal), "biased: is V_t read after token t, or the KL without its k1?")


def test_with_a_smaller_lambda_a_wrong_critic_does_bias_the_update():
    rewards = binary(Microscope(tiny(), [PROMPT], T))
    scope, found = expected_update(rewards, lam=0.5)
    exact = -scope.gradient(scope.objective(rewards))
    assert (found - exact).norm() > 0.05 * exact.norm()


# Numbers by hand


def batch_by_hand(monkeypatch, **options):
    """One completion of three tokens, score 1; the critic said 0.5, 0.6, 0.8."""
    monkeypatch.setattr(ppo, "values_before", lambda *a: torch.tensor([[0.5, 0.6, 0.8]]))
    logprobs = torch.tensor([[-1.0, -2.0, -0.5]])
    rollout = Rollout(torch.tensor([[2]]), torch.tensor([1]), torch.tensor([[2, 2, 1]]),
                      torch.ones(1, 3, dtype=torch.bool), logprobs, torch.tensor([False]), 1)  # fmt: skip
    options = config(whiten_advantages=False, group_size=1, **options)
    reference = policy() if options.beta else None
    batch, kl = add_reference(Batch(rollout, torch.tensor([[1.0]]), {}), reference, options)
    batch, metrics = compute_advantages(batch, policy(), policy(), options)
    return batch, kl | metrics


def test_gae_and_returns_of_one_completion_by_hand(monkeypatch):
    batch, metrics = batch_by_hand(monkeypatch, lam=0.5)
    # errors: 0.6 - 0.5, 0.8 - 0.6, 1 - 0.8; backwards: 0.2, then 0.2 + 0.5 * 0.2, then 0.1 + 0.5 * 0.3
    close(batch.advantages, torch.tensor([[0.25, 0.3, 0.2]]), "advantages", 1e-6)
    close(batch.returns, torch.tensor([[0.75, 0.9, 1.0]]), "returns are advantage + value", 1e-6)
    assert metrics["advantage_abs_mean"] == pytest.approx(0.25) and "kl" not in metrics
    assert math.isnan(metrics["explained_variance"]), "all rewards to come are 1: nothing to explain"


def test_gamma_discounts_each_token(monkeypatch):
    batch, _ = batch_by_hand(monkeypatch, lam=1.0, gamma=0.5)
    close(batch.returns, torch.tensor([[0.25, 0.5, 1.0]]), "0.5 ** 2, 0.5, 1", 1e-6)
    close(batch.advantages, torch.tensor([[-0.25, -0.1, 0.2]]), "returns less values", 1e-6)


def test_return_minus_value_is_one_number_a_completion(monkeypatch):
    batch, _ = batch_by_hand(monkeypatch, advantage_estimator="return_minus_value", lam=0.3)
    close(batch.advantages, torch.tensor([[0.5, 0.5, 0.5]]), "1 - 0.5 for all; lambda has no say", 1e-6)
    close(batch.returns, torch.tensor([[1.0, 1.0, 1.0]]), "the critic learns the reward itself", 1e-6)


def test_kl_is_charged_to_the_token_that_causes_it(monkeypatch):
    monkeypatch.setattr(step, "logprobs_under", lambda *a: torch.tensor([[-1.5, -2.0, -0.25]]))
    batch, metrics = batch_by_hand(monkeypatch, lam=1.0, beta=0.2)
    # k1: 0.5, 0, -0.25; rewards: -0.1, 0, 1.05; to come: 0.95, 1.05, 1.05
    close(batch.returns, torch.tensor([[0.95, 1.05, 1.05]]), "rewards to come, KL taken off", 1e-6)
    k3 = (math.exp(-0.5) - 1 + 0.5) + 0 + (math.exp(0.25) - 1 - 0.25)
    assert metrics["kl"] == pytest.approx(k3 / 3), "what is logged is k3, as GRPO logs it"
    assert metrics["explained_variance"] == pytest.approx(-3, rel=1e-4)
    # errors 0.45, 0.45, 0.25 with variance 8/900; rewards to come with variance 2/900


def test_explained_variance_by_hand():
    mask = torch.tensor([[True, True], [True, False]])
    returns, junk = torch.tensor([[0.0, 1.0], [2.0, math.nan]]), torch.tensor([[0.0, 0.0], [0.0, math.inf]])
    # variance of the returns 2/3; a critic that says 0, 1, 1 errs by 0, 0, 1, with variance 2/9
    assert explained_variance(torch.tensor([[0.0, 1.0], [1.0, 9.0]]), returns, mask) == pytest.approx(2 / 3)
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(junk, returns, mask) == 0, "the same of everything explains nothing"
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3), "worse than nothing is below 0"
    assert math.isnan(explained_variance(returns, torch.ones(2, 2), mask))
    with pytest.raises(MaskError, match="no token is unmasked"):
        explained_variance(returns, returns, mask & False)


# The critic


@each_kind
def test_the_value_of_a_token_is_that_of_the_prefix_before_it(kind):
    """Off by one: a value that has seen its token is no baseline."""
    model = policy(dtype=torch.float64)
    critic, rollout = critic_of(model, kind), rollout_of(model)
    values = values_of(critic, model, rollout)
    reader, head = (critic, critic.head) if kind == "separate" else (model, critic)
    for row in range(0, 16, 3):
        prompt = rollout.prompt_ids[row // 4, : rollout.prompt_lens[row // 4]]
        for t in range(int(rollout.lengths[row])):
            prefix = torch.cat([prompt, rollout.completion_ids[row, :t]])
            expected = head(reader.hidden(prefix[None])[0, -1]).squeeze()
            close(values[row, t], expected, f"V of token {t} is not that of the {t} tokens before it", 1e-10)
    ids = rollout.completion_ids.clone()
    ids[:, 1] = (ids[:, 1] + 1) % 4
    changed = values_of(critic, model, replace(rollout, completion_ids=ids))
    assert torch.equal(changed[:, :2], values[:, :2]), "the value of token 1 has seen token 1"
    assert (changed[:, 2] != values[:, 2]).all(), "the value of token 2 has not seen token 1"


@each_kind
def test_a_new_critic_says_0_shares_no_memory_and_draws_no_random_numbers(kind):
    model = policy()
    state = torch.get_rng_state()
    critic = new_critic(model, kind)
    assert torch.equal(torch.get_rng_state(), state)
    assert (values_of(critic, model, rollout_of(model)) == 0).all()
    own = {p.data_ptr() for p in critic.parameters()}
    assert not own & {p.data_ptr() for p in model.parameters()}
    size = sum(p.numel() for p in critic.parameters())
    assert size == (17 if kind == "head" else model.num_parameters - 16 * TOKENIZER.vocab_size + 17)


@pytest.mark.slow
@each_kind
def test_the_critic_learns_what_is_to_come(kind):
    options = config(learning_rate=0.0, critic_learning_rate=1e-2, group_size=16, max_steps=40, critic=kind)
    metrics = run(config=options)
    last = metrics[-10:]
    explained = sum(row["explained_variance"] for row in last) / 10
    assert abs(metrics[0]["explained_variance"]) < 1e-6 and explained > 0.1
    assert sum(row["value_loss"] for row in last) / 10 < metrics[0]["value_loss"] / 2


@each_kind
def test_in_warmup_steps_only_the_critic_learns(kind):
    model = policy()
    critic = new_critic(model, kind)
    before, critic_before = weights(model), weights(critic)
    rows = train(model, TOKENIZER, ROWS, count_b, config(value_warmup_steps=2, critic=kind), critic=critic)
    first, second = next(rows), next(rows)
    assert same(before, model), "the policy moved in a warm-up step"
    assert not same(critic_before, critic) and second["value_loss"] != first["value_loss"]
    assert first["grad_norm"] == first["loss"] == 0
    third = next(rows)
    assert not same(before, model) and third["grad_norm"] > 0, "after the warm-up the policy learns"


def test_a_separate_critic_leaves_the_policy_s_gradient_alone_and_a_head_does_not():
    gradients = {}
    for kind in KINDS:
        for vf_coef in (0.0, 1.0):
            options = config(critic=kind, vf_coef=vf_coef, max_grad_norm=None)
            model = policy(dtype=torch.float64)
            critic = critic_of(model, kind)
            batch, _ = batch_of(model, critic, options)
            gradient_of(model, critic, batch, options)
            gradients[kind, vf_coef] = torch.cat([p.grad.flatten() for p in model.blocks.parameters()])
    close(gradients["separate", 0.0], gradients["separate", 1.0], "the value loss reached the policy", 0.0)
    assert (gradients["head", 0.0] - gradients["head", 1.0]).norm() > 1e-3


def test_the_value_clip_holds_back_a_value_that_has_moved_far():
    model = policy(dtype=torch.float64)
    critic = critic_of(model)
    batch, _ = batch_of(model, critic)
    later = critic_of(model, seed=6)
    values = values_of(later, model, batch.rollout)
    mask = batch.rollout.completion_mask
    for clip in (None, 0.2, 0.01):
        options = config(cliprange_value=clip)
        _, metrics = compute_loss(model, later, options, False, batch, Denominators.of(mask, 4))
        old = None if clip is None else batch.values
        expected = aggregate(value_loss(values, batch.returns, mask, old, clip), mask, "token_mean")
        close(metrics["value_loss"], expected, f"cliprange_value={clip}")
    assert metrics["value_loss"] > value_loss(values, batch.returns, mask).sum() / mask.sum()


# Whitening, entropy, KL


@pytest.mark.parametrize("estimator", ["gae", "return_minus_value"])
def test_whitening_changes_the_advantages_scale_and_shift_and_nothing_else(estimator):
    model = policy(dtype=torch.float64)
    critic, options = critic_of(model), config(advantage_estimator=estimator)
    plain, metrics = batch_of(model, critic, replace(options, whiten_advantages=False))
    white, others = batch_of(model, critic, options)
    mask = plain.rollout.completion_mask
    assert others == metrics, "what is logged is measured before whitening"
    close(white.returns, plain.returns, "the critic's targets were whitened", 0.0)
    assert white.advantages[mask].mean().abs() < 1e-12 and (white.advantages[~mask] == 0).all()
    assert white.advantages[mask].std(correction=0).item() == pytest.approx(1, abs=1e-3)
    a, b = plain.advantages[mask], white.advantages[mask]
    slope = (a - a.mean()).norm() / (b - b.mean()).norm()
    close(b * slope + a.mean(), a, "not a shift and a scale")


def test_the_entropy_bonus_is_that_of_the_full_logits_in_the_loss():
    model = policy(dtype=torch.float64)
    options, critic = config(temperature=0.7, entropy_coef=0.3, vf_coef=0.0), critic_of(model)
    batch, _ = batch_of(model, critic, options)
    rollout, mask = batch.rollout, batch.rollout.completion_mask
    n = Denominators.of(mask, 4)
    loss, _ = compute_loss(model, critic, options, False, batch, n)
    without, _ = compute_loss(model, critic, replace(options, entropy_coef=0.0), False, batch, n)
    logits = completion_logits(model, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
    mean = entropy(logits / 0.7, mask).sum() / mask.sum()
    close(loss, without - 0.3 * mean, "the bonus is not the mean entropy of the sampled-from distribution")


def constant(prompts, completions, **columns):
    return [1.0] * len(completions)


def test_with_nothing_to_earn_the_entropy_bonus_makes_the_policy_more_random():
    options = config(entropy_coef=1.0, max_steps=30)
    metrics = run(reward=lambda completions, **_: [0.0] * len(completions), config=options)
    assert all(row["advantage_abs_mean"] == 0 for row in metrics), "a new critic says 0, and is right"
    assert metrics[-1]["entropy"] > metrics[0]["entropy"] + 0.05
    assert metrics[-1]["entropy"] == pytest.approx(math.log(4), abs=0.1)


@pytest.mark.slow
def test_with_nothing_to_earn_the_kl_penalty_pulls_the_policy_to_its_reference():
    options = config(group_size=8, beta=1.0, lam=1.0, max_steps=40)
    metrics = run(reward=constant, config=options, reference=policy(seed=1))
    assert metrics[-1]["kl"] < metrics[0]["kl"] / 2, "the penalty must pull the policy to the reference"


def test_the_penalty_is_the_k1_of_the_policy_that_sampled():
    model, reference = policy(dtype=torch.float64), policy(seed=1, dtype=torch.float64)
    options = config(beta=0.5, lam=1.0, whiten_advantages=False, temperature=0.8)
    batch, _ = batch_of(model, new_critic(model), options, reference=reference)
    rollout, mask = batch.rollout, batch.rollout.completion_mask
    arguments = (rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
    k1 = kl_k1(token_logprobs(model, *arguments, 0.8), token_logprobs(reference, *arguments, 0.8), mask)
    scores = torch.tensor(count_b([], TOKENIZER.decode_batch(rollout.completion_ids)), dtype=torch.float64)
    expected = scores[:, None] - 0.5 * k1.flip(1).cumsum(1).flip(1)
    close(batch.returns, torch.where(mask, expected, 0.0), "not the score less the KL still to come")


def test_2E_42_the_reference_is_not_trained_not_aliased_and_holds_no_gradient():
    reference = policy(seed=1).requires_grad_(True)  # even where the caller forgot to freeze it
    before = weights(reference)
    run(reference=reference, config=config(beta=0.1, num_ppo_epochs=2))
    assert same(before, reference), "the reference was trained"
    assert all(p.grad is None for p in reference.parameters()), "gradient reached the reference"


def test_the_default_reference_is_a_frozen_copy_of_the_start():
    metrics = run(config=config(beta=0.1, max_steps=5))
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[-1]["kl"] > 1e-5, "KL stays 0: the reference is the policy itself"


# Updates


def test_epochs_and_minibatches_are_updates_on_the_same_samples():
    model = policy()
    critic = new_critic(model)
    options = config(num_ppo_epochs=3, num_mini_batches=2, learning_rate=3e-2, max_steps=2)
    state = start(model, critic, options)
    metrics = run(model, config=options, critic=critic, state=state)
    assert state.optimizer.steps == state.critic_optimizer.steps == 12
    assert metrics[0]["num_tokens"] <= 4 * 4 * 4
    assert metrics[0]["clip_ratio/region_mean"] > 0, "after five updates at a large rate nothing is clipped"
    assert run(config=config(learning_rate=3e-2))[0]["clip_ratio/region_mean"] == 0, "one update: ratio 1"


def test_metrics_of_a_step_are_means_over_its_updates(monkeypatch):
    seen, real = [], step.update
    monkeypatch.setattr(step, "update", lambda *a: seen.append(real(*a)) or seen[-1])
    row = run(config=config(num_ppo_epochs=3, max_steps=1))[0]
    for name in ("loss", "value_loss", "grad_norm", "clip_ratio/region_mean"):
        assert row[name] == pytest.approx(sum(one[name] for one in seen) / 3)


@each_kind
def test_microbatches_change_no_gradient_and_no_value(kind, monkeypatch):
    gradients, batches = [], []
    for tokens in (10**6, 1):
        monkeypatch.setitem(microbatches.MICROBATCH_TOKENS, "cpu", tokens)
        options = config(critic=kind, max_grad_norm=None, beta=0.1, entropy_coef=0.01)
        model = policy(dtype=torch.float64)
        critic = critic_of(model, kind)
        batch, _ = batch_of(model, critic, options, reference=policy(1, torch.float64))
        gradient_of(model, critic, batch, options)
        both = [*model.parameters(), *critic.parameters()]
        gradients.append(torch.cat([p.grad.flatten() for p in both if p.grad is not None]))
        batches.append(torch.stack([batch.values, batch.advantages, batch.returns]))
    close(batches[1], batches[0], "values depend on how the batch is cut")
    close(gradients[1], gradients[0], "the gradient depends on how the batch is cut")


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, "V VP"), ({"critic": "head"}, "P P"), ({"beta": 0.1}, "R V VP"),
        ({"beta": 0.1, "kl_in": "loss", "num_ppo_epochs": 2}, "R V VP VP"),
        ({"value_warmup_steps": 1}, "V V"),
        ({"num_ppo_epochs": 2}, "V VP VP"),
    ],
)  # fmt: skip
def test_no_pass_is_wasted(options, passes, monkeypatch):
    """Old log-probs come from sampling; values are read once, and once for each update."""
    model, reference, seen = policy(), policy(), []
    critic = new_critic(model, options.get("critic", "separate"))
    names = {id(model): "P", id(reference): "R", id(critic): "V"}
    real = GPT.hidden

    def counted(self, idx, cache=None):
        if type(cache).__name__ == "_SharedPrompt" and not cache.length:  # else it samples
            seen.append(names[id(self)])
        return real(self, idx, cache)

    monkeypatch.setattr(GPT, "hidden", counted)
    run(
        model,
        config=config(max_steps=1, **options),
        critic=critic,
        reference=reference if "beta" in options else None,
    )
    assert sorted(seen) == sorted(passes.replace(" ", ""))


# Stopping and going on


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {}, {"critic": "head", "value_warmup_steps": 3}, {"beta": 0.1, "entropy_coef": 0.01},
        {"num_ppo_epochs": 2, "num_mini_batches": 2},
    ],
)  # fmt: skip
def test_five_steps_are_two_steps_saved_and_loaded_and_three_more(options, tmp_path):
    options = config(prompts_per_step=3, max_steps=5, **options)
    whole, reference = policy(), policy() if options.beta else None
    expected = run(whole, config=options, reference=reference)

    def parts_of_a_run(seed):
        model = policy(seed)
        critic = new_critic(model, options.critic)
        return model, critic, start(model, critic, replace(options, seed=seed))

    model, critic, state = parts_of_a_run(0)
    given = {"critic": critic, "state": state, "reference": reference}
    first = run(model, config=replace(options, max_steps=2), **given)
    for name, tensors in (("state", state.tensors()), ("model", model.state_dict()),
                          ("critic", critic.state_dict())):  # fmt: skip
        save_tensors(tmp_path / name, tensors, {})

    model, critic, state = parts_of_a_run(9)
    model.load_state_dict(load_tensors(tmp_path / "model")[0])
    state.restore(load_tensors(tmp_path / "state")[0])
    critic.load_state_dict(load_tensors(tmp_path / "critic")[0])
    second = run(model, config=options, critic=critic, state=state, reference=reference)
    assert [repr(row) for row in first + second] == [repr(row) for row in expected]
    assert same(weights(whole), model)


@pytest.mark.parametrize("broken", ["policy", "critic"])
def test_a_gradient_that_is_not_finite_stops_the_run_and_moves_nothing(broken, monkeypatch):
    model = policy()
    critic = critic_of(model)
    before, critic_before = weights(model), weights(critic)
    place, name = (grpo, "grpo_loss") if broken == "policy" else (ppo, "value_loss")
    real = getattr(place, name)

    def nan(*args, **options):
        result = real(*args, **options)
        return (result[0] * math.nan, result[1]) if broken == "policy" else result * math.nan

    monkeypatch.setattr(place, name, nan)
    with pytest.raises(NonFiniteError, match="at step 1"):
        run(model, critic=critic)
    assert same(before, model) and same(critic_before, critic), "one of the two was moved"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_reward_stops_the_run_before_the_step(bad):
    model = policy()
    before = weights(model)
    with pytest.raises(RewardError, match="judge returned (nan|inf) for completion"):

        def judge(prompts, completions, **columns):
            return [bad] * len(completions)

        run(model, reward=judge)
    assert same(before, model)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_new_tokens": 0}, OptionError), ({"group_size": 0}, OptionError),
        ({"prompts_per_step": 0}, OptionError), ({"num_ppo_epochs": 0}, OptionError),
        ({"num_mini_batches": 0}, OptionError), ({"num_mini_batches": 5}, OptionError),
        ({"gamma": 1.1}, OptionError), ({"lam": -0.1}, OptionError), ({"lam": math.nan}, OptionError),
        ({"temperature": 0.0}, OptionError), ({"cliprange_value": 0.0}, OptionError),
        ({"advantage_estimator": "td"}, OptionError), ({"critic": "both"}, OptionError),
        ({"value_warmup_steps": -1}, OptionError), ({"vf_coef": -0.1}, OptionError),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused_when_the_config_is_made(options, error):
    with pytest.raises(error, match=next(iter(options))):
        config(**options)


def test_parts_that_do_not_belong_together_are_refused():
    model = policy()
    with pytest.raises(OptionError, match="critic='head', but the critic handed in is a GPT"):
        run(model, config=config(critic="head"), critic=new_critic(model))
    with pytest.raises(OptionError, match="critic='separate', but the critic handed in is a Linear"):
        run(model, critic=new_critic(model, "head"))
    with pytest.raises(OptionError, match="a state needs its critic"):
        run(model, state=start(model, new_critic(model), CONFIG))
    with pytest.raises(OptionError, match="a state needs its critic"):
        run(model, critic=new_critic(model), state=TrainState.start(model.parameters(), 0.1, 0))
    with pytest.raises(OptionError, match="critic='both'"):
        new_critic(model, "both")
