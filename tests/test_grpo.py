"""The GRPO trainer: what a step does, what it does not need, and what it says of bad input."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from nanogrpo import grpo, step
from nanogrpo.errors import (
    BlockSizeError,
    EmptyPromptError,
    GroupSizeError,
    OptionError,
    RewardError,
    UnknownCharacterError,
)
from nanogrpo.grpo import GRPOConfig, compute_advantages, compute_loss, train
from nanogrpo.losses import Denominators, grpo_loss
from nanogrpo.metrics import logged, read_csv
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.optim import AdamW
from nanogrpo.rollout import Rollout, token_logprobs
from nanogrpo.step import Batch, add_reference, sample, update
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("ab")
ROWS = [{"prompt": "a"}, {"prompt": "ab"}, {"prompt": "bba"}, {"prompt": "b"}]
CONFIG = GRPOConfig(max_new_tokens=4, group_size=4, prompts_per_step=4, learning_rate=3e-3, max_steps=3)


def count_b(prompts, completions, **columns):
    """More of the letter b is better."""
    return [completion.count("b") / 4 for completion in completions]


def policy(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return GPT(GPTConfig(TOKENIZER.vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=16)).to(dtype)


def run(model=None, reward=count_b, config=CONFIG, rows=ROWS, **options):
    return list(train(model or policy(), TOKENIZER, rows, reward, config, **options))


def rollout_of(model, config=CONFIG, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sample(model, TOKENIZER, [row["prompt"] for row in ROWS], config, generator)


def gradient_step(model, rollout, advantages, config):
    """One update that moves nothing, but leaves its gradient; its metrics."""
    batch = Batch(rollout, torch.zeros_like(advantages), {}, advantages.flatten())
    loss = partial(compute_loss, model, config)
    return update(batch, loss, [AdamW(model.parameters(), 0.0)], config, "a test", ["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_to_write_what_is_rewarded(seed):
    config = GRPOConfig(
        max_new_tokens=4, group_size=8, prompts_per_step=4, learning_rate=3e-3, max_steps=60, seed=seed
    )
    metrics = run(policy(seed), config=config)
    assert metrics[0]["reward"] < 0.45 and metrics[-1]["reward"] > 0.9


def test_one_seed_gives_the_same_log_byte_for_byte_and_another_seed_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = GRPOConfig(max_new_tokens=4, group_size=4, prompts_per_step=2, max_steps=5, seed=seed)
        list(logged(train(policy(), TOKENIZER, ROWS, count_b, config), tmp_path / name))
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b and a != c


def test_metrics_are_those_of_the_samples():
    model = policy()
    row = next(train(copy.deepcopy(model), TOKENIZER, ROWS, count_b, CONFIG))
    generator = torch.Generator().manual_seed(CONFIG.seed)
    rows = [ROWS[i] for i in torch.randperm(4, generator=generator)]
    rollout = sample(model, TOKENIZER, [r["prompt"] for r in rows], CONFIG, generator)
    rewards = torch.tensor(count_b([], TOKENIZER.decode_batch(rollout.completion_ids))).view(4, 4)
    assert row["step"] == 1 and row["num_tokens"] == rollout.completion_mask.sum()
    assert row["reward"] == rewards.mean().item() and row["reward_std"] == rewards.std().item()
    assert row["frac_reward_zero_std"] == sum(len(set(g)) == 1 for g in rewards.tolist()) / 4
    assert row["completions/mean_length"] == pytest.approx(rollout.completion_mask.sum().item() / 16)
    assert row["entropy"] == pytest.approx(-rollout.logprobs[rollout.completion_mask].mean().item())


def test_on_policy_the_loss_is_zero_and_the_gradient_is_not():
    config = GRPOConfig(max_new_tokens=4, group_size=4, prompts_per_step=4, aggregation="sequence_mean")
    row = next(train(policy(), TOKENIZER, ROWS, count_b, config))
    assert abs(row["loss"]) < 1e-6 and row["grad_norm"] > 1e-3, "2C_21: the loss is no measure of progress"
    assert row["clip_ratio/region_mean"] == 0, (
        "the ratio is not 1 on the first update: another temperature, or a second pass?"
    )


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant", "sequence_sum"])
def test_leaving_out_groups_without_signal_changes_no_gradient(aggregation):
    config = GRPOConfig(max_new_tokens=4, group_size=4, aggregation=aggregation, max_grad_norm=None)
    model = policy(dtype=torch.float64)
    rollout = rollout_of(model, config)
    advantages = torch.randn(4, 4, dtype=torch.float64)
    advantages[1] = 0
    gradient_step(model, rollout, advantages, config)
    batch = (rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
    loss, _ = grpo_loss(
        token_logprobs(model, *batch), rollout.logprobs, None, advantages.flatten(), rollout.completion_mask,
        aggregation=aggregation, denominators=Denominators.of(rollout.completion_mask, config.max_new_tokens),
    )  # fmt: skip
    full = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for p, g in zip(model.parameters(), full, strict=True):
        torch.testing.assert_close(
            p.grad, g, rtol=0, atol=1e-12, msg="dead groups must still count in the denominators"
        )


def test_groups_without_signal_move_nothing():
    model = policy()
    before = copy.deepcopy(model.state_dict())
    metrics = run(model, reward=lambda completions, **_: [1.3] * len(completions))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert metrics[0]["frac_reward_zero_std"] == 1 and metrics[0]["grad_norm"] == 0


def test_with_a_kl_penalty_groups_without_signal_do_move_the_policy_back():
    model, reference = policy(), policy(seed=1)
    metrics = run(
        model, reward=lambda completions, **_: [1.0] * len(completions), reference=reference,
        config=GRPOConfig(
            max_new_tokens=4, group_size=8, prompts_per_step=4, beta=1.0, learning_rate=3e-3, max_steps=40
        ),
    )  # fmt: skip
    assert metrics[0]["frac_reward_zero_std"] == 1 and metrics[0]["grad_norm"] > 0
    assert metrics[-1]["kl"] < metrics[0]["kl"] / 2, "the penalty must pull the policy to the reference"


def test_2E_42_the_reference_is_not_trained_not_aliased_and_holds_no_gradient():
    reference = policy(seed=1).requires_grad_(True)  # even where the caller forgot to freeze it
    before = copy.deepcopy(reference.state_dict())
    model = policy()
    run(
        model,
        reference=reference,
        config=GRPOConfig(max_new_tokens=4, group_size=4, prompts_per_step=4, beta=0.1, max_steps=3),
    )
    assert all(torch.equal(before[k], v) for k, v in reference.state_dict().items()), (
        "the reference was trained"
    )
    assert all(p.grad is None for p in reference.parameters()), "gradient reached the reference"


def test_the_default_reference_is_a_frozen_copy_of_the_start():
    model = policy()
    metrics = run(
        model, config=GRPOConfig(max_new_tokens=4, group_size=4, prompts_per_step=4, beta=0.1, max_steps=5)
    )
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[-1]["kl"] > 1e-5, "KL stays 0: the reference is the policy itself"


def test_without_a_penalty_no_reference_is_copied_and_one_pass_serves_a_step(monkeypatch):
    passes, real = [], grpo.completion_hidden
    monkeypatch.setattr(grpo, "completion_hidden", lambda *a: passes.append(a[0]) or real(*a))
    monkeypatch.setattr(grpo.copy, "deepcopy", lambda *_: pytest.fail("beta=0 needs no reference in memory"))
    model = policy()
    run(model)
    assert passes == [model] * CONFIG.max_steps, (
        "on policy, old log-probs come from sampling and cost no pass"
    )


def test_inner_iterations_reuse_the_samples_and_leave_the_ratio_of_one():
    config = GRPOConfig(
        max_new_tokens=4, group_size=8, prompts_per_step=4, learning_rate=3e-2, num_iterations=4, max_steps=2
    )
    metrics = run(config=config)
    assert metrics[0]["num_tokens"] <= 4 * 8 * 4
    assert metrics[0]["clip_ratio/region_mean"] > 0, (
        "after three updates at a large learning rate nothing is clipped"
    )


def test_leaving_the_loop_leaves_a_readable_log_and_a_usable_model(tmp_path):
    model = policy()
    with pytest.raises(KeyboardInterrupt):
        for row in logged(train(model, TOKENIZER, ROWS, count_b, CONFIG), tmp_path / "log.csv"):
            if row["step"] == 2:
                raise KeyboardInterrupt  # what Ctrl-C in a cell does
    assert read_csv(tmp_path / "log.csv")["step"] == [1, 2]
    assert all(p.isfinite().all() for p in model.parameters())
    assert len(run(model)) == 3


# Options, one by one


def by_hand(**options):
    """Two groups of two: lengths 1, 3 and 2, 3 of at most 3 tokens; rewards 1, 0 and 1, 1."""
    mask = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]]).bool()
    logprobs = torch.where(mask, torch.tensor(-1.0), 0.0)
    ids, truncated = torch.full((4, 3), 2), torch.tensor([False, True, False, True])
    rollout = Rollout(torch.full((2, 1), 2), torch.tensor([1, 1]), ids, mask, logprobs, truncated, 2)
    config = GRPOConfig(3, group_size=2, **({"scale_rewards": "none"} | options))
    return Batch(rollout, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), {}), config


def test_overlong_shaping_charges_for_length_before_the_groups_are_compared():
    batch, config = by_hand(overlong_buffer=2)  # penalties 0, -1 and -0.5, -1
    batch, metrics = compute_advantages(batch, config)
    assert batch.advantages.tolist() == [1.0, -1.0, 0.25, -0.25], "rewards 1, -1 and 0.5, 0"
    assert metrics == {"advantage_abs_mean": 0.625}
    assert batch.rewards.tolist() == [[1.0, 0.0], [1.0, 1.0]], (
        "the log must show the rewards without the penalty"
    )


def test_the_kl_in_the_reward_is_a_sum_over_tokens_and_its_group_mean_cancels(monkeypatch):
    plain, config = by_hand(beta=0.5, kl_in="reward")
    ref = torch.where(
        plain.rollout.completion_mask, torch.tensor(-1.5), 9.0
    )  # k1 = 0.5 a token, 9 is padding
    monkeypatch.setattr(step, "logprobs_under", lambda *_: ref)
    batch, metrics = add_reference(plain, policy(), config)
    batch, _ = compute_advantages(batch, config)
    # Penalties 0.25, 0.75 and 0.5, 0.75; rewards 0.75, -0.75 and 0.5, 0.25; then less the group's mean.
    torch.testing.assert_close(batch.advantages, torch.tensor([0.75, -0.75, 0.125, -0.125]))
    assert metrics["kl"] == pytest.approx(math.exp(-0.5) - 0.5), "k3 is logged, k1 is charged"
    config = replace(config, kl_estimator="k2")
    batch, metrics = add_reference(plain, policy(), config)
    k2 = compute_advantages(batch, config)[0].advantages
    torch.testing.assert_close(k2, torch.tensor([0.5625, -0.5625, 0.03125, -0.03125]))
    assert metrics["kl"] == pytest.approx(math.exp(-0.5) - 0.5)


def test_which_estimator_is_used_where_none_is_named():
    assert GRPOConfig(3).estimator == "k3" and GRPOConfig(3, kl_in="reward").estimator == "k1"
    assert GRPOConfig(3, kl_in="reward", kl_estimator="k3").estimator == "k3"


def test_with_the_kl_in_the_reward_the_policy_stays_near_the_reference_and_no_pass_is_added(monkeypatch):
    passes, real = [], grpo.completion_hidden
    monkeypatch.setattr(grpo, "completion_hidden", lambda *a: passes.append(a[0]) or real(*a))
    options = {"group_size": 8, "prompts_per_step": 4, "learning_rate": 1e-2, "max_steps": 40}
    free = run(policy(), config=GRPOConfig(4, **options), reference=policy())
    assert len(passes) <= 40, "measuring the KL must not add passes of the loss"
    model = policy()
    held = run(model, config=GRPOConfig(4, **options, scale_rewards="none", beta=2.0, kl_in="reward"))
    assert 0 <= held[-1]["kl"] < free[-1]["kl"] / 2, "the penalty holds nothing back"
    assert set(passes[-30:]) == {model}


def test_a_reference_without_beta_only_measures():
    plain, watched = policy(), policy()
    rows, measured = run(plain), run(watched, reference=policy(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert measured[0]["kl"] > 0 and "kl" not in rows[0]
    assert [{k: v for k, v in row.items() if k != "kl"} for row in measured] == rows


def gradient_of(config, rollout, advantages, seed=0):
    model = policy(seed, torch.float64)
    metrics = gradient_step(model, rollout, advantages, config)
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                      for p in model.parameters()]), metrics  # fmt: skip


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant", "sequence_sum"])
def test_truncated_completions_leave_the_loss_and_its_denominators_but_not_the_baseline(
    aggregation, monkeypatch
):
    """What reaches the update is a rollout in which truncated rows have no token."""
    seen, real = [], step.update
    monkeypatch.setattr(step, "update", lambda batch, *a: seen.append(batch) or real(batch, *a))
    config = GRPOConfig(
        2, group_size=8, prompts_per_step=4, max_steps=1, mask_truncated_completions=True,
        aggregation=aggregation, max_grad_norm=1e9,
    )  # fmt: skip
    run(policy(dtype=torch.float64), config=config)
    [batch] = seen
    rollout, advantages = batch.rollout, batch.advantages
    assert 0 < rollout.truncated.sum() < 32 and advantages[rollout.truncated].ne(0).any()
    assert (rollout.lengths.eq(0) == rollout.truncated).all()
    found, _ = gradient_of(config, rollout, advantages.view(4, 8))
    other, _ = gradient_of(config, rollout, torch.where(rollout.truncated, 77.0, advantages).view(4, 8))
    assert found.norm() > 0 and torch.equal(found, other), "the advantage of a truncated completion was used"


def test_where_all_completions_are_truncated_and_masked_nothing_moves():
    config = GRPOConfig(
        1, group_size=4, prompts_per_step=4, max_steps=3, mask_truncated_completions=True, num_mini_batches=2
    )
    model = policy()
    with torch.no_grad():
        model.norm.bias.fill_(1.0)
        model.head.weight[TOKENIZER.eos_id] = -100.0  # it never ends a completion by itself
    before = copy.deepcopy(model.state_dict())
    metrics = run(model, config=config)
    assert metrics[0]["completions/clipped_ratio"] == 1 and metrics[0]["advantage_abs_mean"] > 0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [row["grad_norm"] for row in metrics] == [0, 0, 0]


def test_minibatches_are_that_many_updates_on_the_old_samples(monkeypatch):
    config = replace(CONFIG, num_iterations=3, num_mini_batches=2, max_steps=1, learning_rate=3e-2)
    model, seen, real = policy(), [], step.update
    state = grpo.TrainState.start(model.parameters(), config.learning_rate, 0)
    monkeypatch.setattr(step, "update", lambda batch, *a: seen.append(batch) or real(batch, *a))
    [row] = run(model, config=config, state=state)
    assert [len(batch.rewards) for batch in seen] == [2] * 6 and state.optimizer.steps == 6
    tokens = sum(int(batch.rollout.completion_mask.sum()) for batch in seen)
    assert tokens == 3 * row["num_tokens"], "each epoch goes once through all samples"
    assert row["clip_ratio/region_mean"] > 0


def test_the_samples_do_not_depend_on_how_often_they_are_used():
    """So that rungs of a ladder which differ in their updates see the same prompts."""
    one, many = policy(), policy()
    zero = {"learning_rate": 0.0, "max_steps": 4}
    a = run(one, config=replace(CONFIG, **zero))
    b = run(many, config=replace(CONFIG, **zero, num_iterations=3, num_mini_batches=4))
    assert [row["reward"] for row in a] == [row["reward"] for row in b]


def test_the_entropy_bonus_keeps_the_policy_undecided():
    options = {"group_size": 8, "prompts_per_step": 4, "learning_rate": 1e-2, "max_steps": 40}
    plain = run(policy(), config=GRPOConfig(4, **options))
    kept = run(policy(), config=GRPOConfig(4, **options, entropy_coef=1.0))
    assert kept[-1]["entropy"] > 2 * plain[-1]["entropy"]


def test_thrown_away_groups_cost_tokens_and_are_counted():
    def hopeless_but_one(prompts, completions, **columns):
        return [float(p == "bba" and "a" in c) for p, c in zip(prompts, completions, strict=True)]

    config = replace(CONFIG, prompts_per_step=1, group_size=16, max_steps=6, learning_rate=0.0)
    once = run(reward=hopeless_but_one, config=config)
    again = run(reward=hopeless_but_one, config=replace(config, max_resamples=3))
    assert any(row["grad_norm"] == 0 for row in once) and all(row["grad_norm"] > 0 for row in again)
    assert max(row["groups_sampled"] for row in again) > 1
    assert again[-1]["num_tokens"] > once[-1]["num_tokens"]


def test_a_trained_model_or_several_functions_may_be_the_reward():
    class Scorer:
        def __call__(self, prompts, completions, **columns):
            return [float(len(completion)) for completion in completions]

    config = replace(CONFIG, reward_weights=(1.0, 0.0))
    both, one = policy(), policy()
    rows = run(both, reward=[count_b, Scorer()], config=config)
    plain = run(one)
    assert all(torch.equal(a, b) for a, b in zip(both.parameters(), one.parameters(), strict=True))
    assert rows[0]["rewards/count_b/mean"] == plain[0]["reward"] and rows[0]["rewards/Scorer/mean"] > 0


@pytest.mark.parametrize("baseline", ["none", "batch"])
def test_a_scale_that_does_not_go_with_the_baseline_is_refused(baseline):
    with pytest.raises(OptionError, match="choose scale_rewards='batch' or 'none'"):
        GRPOConfig(4, baseline=baseline)
    assert GRPOConfig(4, baseline=baseline, scale_rewards="none")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"group_size": 1}, GroupSizeError),
        ({"max_new_tokens": 0}, OptionError), ({"prompts_per_step": 0}, OptionError),
        ({"num_iterations": 0}, OptionError),
        ({"num_mini_batches": 0}, OptionError), ({"num_mini_batches": 33}, OptionError),
        ({"max_resamples": -1}, OptionError),
        ({"overlong_buffer": -1}, OptionError), ({"overlong_buffer": 5}, OptionError),
        ({"kl_in": "advantage"}, OptionError), ({"kl_estimator": "kl"}, OptionError),
        ({"aggregation": "mean"}, OptionError), ({"scale_rewards": "std"}, OptionError),
        ({"temperature": 0.0}, OptionError), ({"temperature": -1.0}, OptionError),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused_when_the_config_is_made(options, error):
    with pytest.raises(error, match=next(iter(options))):
        GRPOConfig(**({"max_new_tokens": 4} | options))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_reward_stops_the_run_before_the_step_and_names_its_completion(bad):
    def judge(prompts, completions, **columns):
        return [bad if i == 3 else 0.0 for i in range(len(completions))]

    model = policy()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        RewardError, match=r"judge returned (nan|inf) for completion '[ab]*' of prompt '[ab]+'"
    ):
        run(model, reward=judge)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "the weights were changed"


def test_other_bad_input_is_a_typed_error():
    with pytest.raises(RewardError, match="returned 3 values for 16 completions"):
        run(reward=lambda **_: [0.0] * 3)
    with pytest.raises(BlockSizeError, match="over block_size=8"):
        run(rows=[{"prompt": "abababa"}])
    with pytest.raises(UnknownCharacterError, match="'x' at index 1"):
        run(rows=[{"prompt": "ax"}])
    with pytest.raises(EmptyPromptError, match="prompt of row 0 is empty"):
        run(rows=[{"prompt": ""}])
