"""What a step learns from: the draw of the prompts, dynamic sampling, several rewards, parts of a batch."""

import math
from dataclasses import replace

import pytest
import torch
from mathcheck import close

from nanogrpo import grpo, microbatches, ppo, step
from nanogrpo.critic import new_critic
from nanogrpo.errors import NonFiniteError, OptionError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.microbatches import logprobs_under, minibatches
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.optim import AdamW
from nanogrpo.ppo import PPOConfig
from nanogrpo.rollout import Rollout, token_logprobs
from nanogrpo.state import TrainState
from nanogrpo.step import (
    SAFE,
    Batch,
    add_reference,
    check_logits,
    collect,
    describe,
    join,
    rewards_of,
    sample,
)
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("ab")
# A prompt with an "a" is a coin flip; one without is hopeless, so its groups never have a signal.
ROWS = [{"prompt": "b" * n + tail, "kind": tail} for n in range(1, 5) for tail in ("a", "b")]
CONFIG = GRPOConfig(max_new_tokens=3, group_size=48, prompts_per_step=3)


def coin(prompts, completions, kind, **columns):
    return [
        float(k == "a" and completion.startswith("a"))
        for k, completion in zip(kind, completions, strict=True)
    ]


def length(prompts, completions, **columns):
    return [float(len(completion)) for completion in completions]


def policy(seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(TOKENIZER.vocab_size, block_size=9, n_layer=1, n_head=2, n_embd=16)).double()


def gather(seed=0, reward=coin, rows=ROWS, model=None, **options):
    generator = torch.Generator().manual_seed(seed)
    return collect(model or policy(), TOKENIZER, rows, reward, replace(CONFIG, **options), generator)


def prompts_of(groups):
    texts = [
        TOKENIZER.decode(ids[:n].tolist())
        for ids, n in zip(groups.rollout.prompt_ids, groups.rollout.prompt_lens, strict=True)
    ]
    return texts


@pytest.mark.parametrize("seed", range(6))
def test_without_resampling_the_first_prompts_of_a_shuffle_are_kept_as_they_are(seed):
    kept, everything = gather(seed)
    order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(seed))
    assert kept is everything and prompts_of(kept) == [ROWS[i]["prompt"] for i in order[:3]]


@pytest.mark.parametrize("seed", range(6))
def test_groups_without_a_signal_are_replaced_until_there_are_enough(seed):
    kept, everything = gather(seed, max_resamples=10)
    assert not kept.tied.any() and len(kept.rewards) == 3, "a group without spread was kept"
    assert all(prompt.endswith("a") for prompt in prompts_of(kept))
    drawn = prompts_of(everything)
    order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(seed))
    assert drawn == [ROWS[i]["prompt"] for i in order[: len(drawn)]], (
        "a prompt was drawn twice, or passed over"
    )
    assert int((~everything.tied).sum()) == 3, "more prompts were drawn than were missing"


def test_the_rounds_are_limited_and_what_is_missing_is_filled_with_groups_without_signal():
    hopeless = [row for row in ROWS if row["kind"] == "b"]
    kept, everything = gather(rows=hopeless, max_resamples=0)
    assert len(everything.rewards) == 3 and kept.tied.all()
    kept, everything = gather(rows=hopeless * 3, max_resamples=2)
    assert len(everything.rewards) == 9 and len(kept.rewards) == 3 and kept.tied.all()
    kept, everything = gather(rows=hopeless, max_resamples=9)
    assert len(everything.rewards) == 4, "all problems are drawn, and none twice"
    mixed = [row for row in ROWS if row["kind"] == "b"] + ROWS[:1]
    kept, everything = gather(rows=mixed, max_resamples=9)
    assert kept.tied.tolist() == [False, True, True] and prompts_of(kept)[0] == "ba"


def test_the_rewards_that_are_reported_are_those_of_all_that_was_sampled():
    kept, everything = gather(max_resamples=10)
    metrics = describe(everything, replace(CONFIG, max_resamples=10))
    assert metrics["reward"] == everything.rewards.mean().item() < kept.rewards.mean().item()
    assert metrics["groups_sampled"] == len(everything.rewards) > 3 and metrics["frac_reward_zero_std"] > 0
    assert "groups_sampled" not in describe(everything, CONFIG)


def test_rounds_of_different_lengths_join_without_changing_a_token():
    """Two rounds, padded to a common width, still score to the log-probs that they were sampled with."""
    model = policy()
    rounds = [gather(seed, rows=[row], model=model, prompts_per_step=1)[0] for seed, row in enumerate(ROWS)]
    assert len({part.rollout.prompt_ids.shape[1] for part in rounds}) > 1
    whole = join(rounds, TOKENIZER.pad_id)
    rollout = whole.rollout
    found = token_logprobs(model, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
    close(found.where(rollout.completion_mask, 0.0), rollout.logprobs, "a token or its place changed", 1e-10)
    for i, part in enumerate(rounds):
        picked = whole.pick(torch.tensor([i]))
        assert torch.equal(picked.rewards, part.rewards)
        for name in ("prompt_ids", "completion_ids", "completion_mask", "logprobs", "truncated"):
            assert torch.equal(getattr(picked.rollout, name), getattr(part.rollout, name)), name


def test_several_rewards_are_weighed_and_each_is_logged_by_its_name():
    kept, everything = gather(reward=[coin, length], reward_weights=(2.0, -0.5))
    weighed = 2 * kept.parts["coin"] - 0.5 * kept.parts["length"]
    assert torch.equal(kept.rewards, weighed), "the weights of the reward functions must count"
    metrics = describe(everything, CONFIG)
    assert metrics["rewards/length/mean"] == kept.parts["length"].mean().item()
    watched, _ = gather(reward=[coin, length], reward_weights=(1.0, 0.0))
    alone, _ = gather(reward=coin)
    assert torch.equal(watched.rewards, alone.rewards), "a function of weight 0 must only be watched"
    assert alone.parts == {} and not [name for name in describe(alone, CONFIG) if name.startswith("rewards/")]


def test_dynamic_sampling_keeps_the_parts_of_the_groups_that_it_keeps():
    kept, _ = gather(reward=[coin, length], reward_weights=(1.0, 0.0), max_resamples=10)
    assert torch.equal(kept.rewards, kept.parts["coin"]) and kept.parts["length"].shape == (3, 48)
    texts = TOKENIZER.decode_batch(kept.rollout.completion_ids)
    assert kept.parts["length"].flatten().tolist() == [len(text) for text in texts]


@pytest.mark.parametrize(
    ("functions", "weights", "message"),
    [
        ([coin, length], (1.0,), "1 reward_weights for 2 reward functions"),
        (coin, (1.0, 2.0), "2 reward_weights for 1 reward functions"),
        ([], None, "0 reward_weights for 0"),
        ([length, length], None, r"called \['length', 'length'\]; give each a name of its own"),
    ],
)
def test_weights_and_names_must_fit_the_functions(functions, weights, message):
    with pytest.raises(OptionError, match=message):
        rewards_of(functions, weights, ROWS[:1], ["a"])


@pytest.mark.parametrize("tokens", [1, 1 << 20])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_under_another_model_are_those_of_the_simple_path(monkeypatch, tokens, temperature):
    monkeypatch.setitem(microbatches.MICROBATCH_TOKENS, "cpu", tokens)
    rollout, other = gather()[0].rollout, policy(seed=1)
    expected = token_logprobs(
        other, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids, temperature
    ).where(rollout.completion_mask, 0.0)
    found = logprobs_under(other, rollout, temperature)
    close(found, expected, "the microbatches were not put back in their places", 1e-10)
    assert not found.requires_grad


def test_minibatches_go_through_all_prompts_once_an_epoch_shuffled_anew():
    parts = minibatches(10, epochs=3, parts=4, seed=1, step=5)
    assert len(parts) == 12 and {len(part) for part in parts} == {2, 3}
    epochs = [torch.cat(parts[i : i + 4]) for i in (0, 4, 8)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist(), "each epoch must be shuffled anew"
    again = torch.cat(minibatches(10, 3, 4, seed=1, step=5))
    assert torch.equal(torch.cat(parts), again)
    for other in ((1, 6), (2, 5)):
        assert not torch.equal(torch.cat(minibatches(10, 3, 4, *other)), again)
    assert [part.tolist() for part in minibatches(3, 2, 1, 0, 1)] == [[0, 1, 2], [0, 1, 2]]
    assert len(minibatches(2, 1, 4, 0, 1)) == 2, "no minibatch may be empty"


def test_describe_counts_as_by_hand():
    mask = torch.tensor([[True, False], [True, True], [True, True], [True, False]])
    logprobs = torch.tensor([[-1.0, 0.0], [-2.0, -3.0], [0.0, -1.0], [-5.0, 0.0]])
    truncated = torch.tensor([False, True, False, False])
    ids = torch.ones(4, 2, dtype=torch.long)
    rollout = Rollout(torch.full((2, 1), 2), torch.tensor([1, 1]), ids, mask, logprobs, truncated, 2)
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    batch = Batch(rollout, rewards, {})
    assert describe(batch, CONFIG) == {
        "reward": 0.75, "reward_std": 0.5, "frac_reward_zero_std": 0.5,
        "completions/mean_length": 1.5, "completions/clipped_ratio": 0.25, "entropy": 2.0,
    }  # fmt: skip
    assert batch.tied.tolist() == [False, True]


# The step that trainers, dashboard, studies and labs share


@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"max_resamples": 2, "num_iterations": 2}])
def test_steps_of_grpo_by_hand_are_its_training(options):
    config = replace(CONFIG, group_size=8, max_steps=3, **options)
    one, two, reference = policy(), policy(), policy(1)
    expected = list(grpo.train(one, TOKENIZER, ROWS, coin, config, reference))
    state = TrainState.start(two.parameters(), config.learning_rate, config.seed)
    for row in expected:
        metrics, batch = grpo.step(two, TOKENIZER, ROWS, coin, config, state, reference)
        assert metrics == row
        assert batch.advantages.shape == (len(batch.rollout.completion_ids),)
        mask = batch.rollout.completion_mask
        assert batch.ref_logprobs.shape == mask.shape and (batch.ref_logprobs[~mask] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_steps_of_ppo_by_hand_are_its_training():
    config = PPOConfig(3, group_size=2, prompts_per_step=4, max_steps=3, value_warmup_steps=1)
    one, two = policy(), policy()
    expected = list(ppo.train(one, TOKENIZER, ROWS, coin, config))
    critic = new_critic(two)
    state = ppo.start(two, critic, config)
    for row in expected:
        metrics, batch = ppo.step(two, TOKENIZER, ROWS, coin, config, state, critic)
        assert str(metrics) == str(row)  # explained_variance may be NaN
        for tensor in (batch.advantages, batch.values, batch.returns):
            assert tensor.shape == batch.rollout.completion_mask.shape
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_part_of_a_batch_has_the_rows_of_its_prompts_without_idle_columns():
    batch, _ = gather(prompts_per_step=4, group_size=4)
    rollout = batch.rollout
    numbers = torch.arange(rollout.completion_mask.numel()).view(rollout.completion_mask.shape)
    whole = replace(batch, advantages=numbers[:, 0], values=numbers, ref_logprobs=numbers)
    part = whole.pick(torch.tensor([2, 0]))
    rows, T = [*range(8, 12), *range(4)], part.rollout.completion_ids.shape[1]
    assert torch.equal(part.advantages, numbers[rows, 0]) and torch.equal(part.values, numbers[rows, :T])
    assert torch.equal(part.ref_logprobs, part.values) and part.returns is None
    assert torch.equal(part.rewards, batch.rewards[[2, 0]])


def test_a_price_for_kl_without_a_reference_is_refused():
    batch, _ = gather()
    with pytest.raises(OptionError, match="beta=0.1 needs a reference"):
        add_reference(batch, None, replace(CONFIG, beta=0.1))


# Divergence


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_weights_that_grow_too_large_end_the_run_at_their_step(method):
    """The row of the step is never given out, so nothing is saved over a good checkpoint."""
    model = policy().float()
    options = {"group_size": 4, "prompts_per_step": 4, "learning_rate": 1e12, "max_steps": 5}
    config = GRPOConfig(3, **options) if method == "grpo" else PPOConfig(3, **options)
    rows = {"grpo": grpo, "ppo": ppo}[method].train(model, TOKENIZER, ROWS, length, config)
    with pytest.raises(NonFiniteError, match="step 1 the model's logits are not finite.* learning rate"):
        list(rows)


def test_an_optimizer_knows_how_long_the_weights_are_that_it_has_moved():
    model = policy().float()
    optimizer = AdamW(model.parameters(), 1e-3)
    assert optimizer.norm == math.inf  # not yet known
    optimizer.step()
    assert optimizer.norm == pytest.approx(torch.cat([p.flatten() for p in model.parameters()]).norm().item())


@pytest.mark.parametrize("moves", ["all", "the critic", "a part"])
def test_logits_are_looked_at_unless_all_weights_are_known_to_be_short(moves):
    model = policy().float()
    params = list(model.parameters())
    kept = {"all": params, "the critic": [torch.zeros(2, requires_grad=True)], "a part": params[:1]}[moves]
    optimizer = AdamW(kept, 1e-3)
    optimizer.step()
    batch, _ = collect(model, TOKENIZER, ROWS, length, CONFIG, torch.Generator().manual_seed(0))
    check_logits(model, batch.rollout, "step 1", [optimizer])
    with torch.no_grad():
        params[-1].fill_(math.inf)
    optimizer.norm = SAFE if moves == "all" else 1.0
    with pytest.raises(NonFiniteError, match="after step 1 the model's logits"):
        check_logits(model, batch.rollout, "step 1", [optimizer])


def test_an_update_that_is_not_finite_is_taken_back():
    model, config = policy().float(), replace(CONFIG, group_size=8, learning_rate=1e30)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(NonFiniteError, match=r"inf after step 1 with learning rate 1e\+30.* as they were"):
        list(grpo.train(model, TOKENIZER, ROWS, length, config))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_rollout_with_a_log_prob_that_is_not_finite_is_no_sample(monkeypatch):
    rollout = gather()[0].rollout
    spoiled = rollout.logprobs.clone()
    spoiled[3, 0] = float("nan")
    monkeypatch.setattr(step, "generate", lambda *_, **__: replace(rollout, logprobs=spoiled))
    with pytest.raises(NonFiniteError, match="weights are broken; go back to the last good checkpoint"):
        sample(policy(), TOKENIZER, ["a"], CONFIG, torch.Generator())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 1.1}, r"delta=1.1 must be above 1 \+ clip_high=1.2"),
        ({"delta": 2.0, "surrogate": "cispo"}, "caps the ratio of surrogate='clip' only"),
        ({"use_bias_correction_kl": True, "kl_in": "reward"}, "a reward has no gradient"),
        ({"use_bias_correction_kl": True, "kl_estimator": "k2"}, "Choose k1 or k3"),
        ({"num_mini_batches": 4}, "num_mini_batches=4 is above prompts_per_step=3"),
        ({"std_eps": -1e-9}, "std_eps=-1e-09 must be at least 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0 must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be a finite number"),
        ({"correction": 2}, "correction=2 must be at most 1"),
    ],
)
def test_options_that_do_not_go_together_say_why(options, message):
    with pytest.raises(OptionError, match=message):
        replace(CONFIG, **options)


def test_rewards_are_added_up_with_their_weights():
    def two(prompts, completions, **columns):
        return [2.0] * len(completions)

    def three(prompts, completions, **columns):
        return [3.0] * len(completions)

    total, parts = rewards_of([two, three], (0.5, 10.0), ROWS[:1], ["a", "b"])
    assert total.tolist() == [[31.0, 31.0]], "the weights of the reward functions"
    assert {name: part.tolist() for name, part in parts.items()} == {
        "two": [[2.0, 2.0]],
        "three": [[3.0, 3.0]],
    }
