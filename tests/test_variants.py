"""Each variant, proven: exact expectations by enumeration in fp64, worked numbers, and runs of the trainers.

The world is that of ``test_exact.py``: three tokens, completions of at most three, 15 of them.
"""

import copy
import json
import math
from dataclasses import fields
from itertools import islice

import pytest
import torch
from mathcheck import close, gradient, random_batch
from test_exact import PROMPT, T, binary, estimator, graded, tiny

from nanogrpo.advantages import baseline_advantages, leave_one_out
from nanogrpo.errors import OptionError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.kl import kl_k3
from nanogrpo.losses import SURROGATES, aggregate, grpo_loss, importance_ratio, reinforce_loss
from nanogrpo.offpolicy import off_policy_mask, sampler_weights
from nanogrpo.rollout import completion_logits
from nanogrpo.selection import clip_cov, covariance, kl_cov, top_entropy
from nanogrpo.surrogates import binary_kl
from nanogrpo.teach.exact import Microscope, pad
from nanogrpo.teach.variants_exact import effect
from nanogrpo.variants import SHAPES, VARIANTS, variant

ALL = pytest.mark.parametrize("name", VARIANTS)


def shaken(amount=0.15, seed=7):
    """The policy with noise on its weights: a sampler that is not the trainer."""
    model = tiny()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(amount * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return model


@pytest.fixture(scope="module")
def scope():
    return Microscope(tiny(), [PROMPT], T, reference=tiny(1))


@pytest.fixture(scope="module")
def mismatch():
    return Microscope(tiny(), [PROMPT], T, old=shaken(), reference=tiny(1))


# Advantages


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_maxrl_weighs_a_prompt_with_a_partial_sum_of_one_over_p(group_size):
    """E[g] = grad p times the sum of (1 - p)^j for j = 0..G-2: G - 1 terms of 1 / p."""
    small = Microscope(tiny(), [PROMPT], 2)
    for rewards in (binary(small), 1 - binary(small)):
        p = small.objective(rewards)

        def maxrl(r):
            return baseline_advantages(r, "group", "mean", eps=0.0)

        found = small.expect(estimator(maxrl, aggregation="sequence_sum"), rewards, group_size)
        weight = sum((1 - p.item()) ** j for j in range(group_size - 1))
        close(found.gradient, -weight * small.gradient(p), "not the first G - 1 terms of 1 / p")


def test_maxrl_worked_numbers():
    r = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = baseline_advantages(r, "group", "mean", eps=0.0)
    close(found, [[1.0, -1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]], "(r - m) / m")
    close(sum(0.95**j for j in range(7)), 6.03, "p = 0.05, G = 8", 5e-3)
    with pytest.raises(OptionError, match="a reward is -1"):
        baseline_advantages(r - 1, "group", "mean")
    with pytest.raises(OptionError, match="by eps alone"):
        baseline_advantages(r, "batch", "mean")


def test_opo_is_the_group_mean_where_lengths_are_equal_and_else_leans():
    r = torch.tensor([[1.0, 0.0, 0.0, 2.0]], dtype=torch.float64)
    equal = baseline_advantages(r, "length", "none", lengths=torch.full((1, 4), 3))
    close(equal, baseline_advantages(r, "group", "none"), "lengths are equal")
    close(equal, baseline_advantages(r, "length", "none"), "without lengths each counts once")
    found = baseline_advantages(r, "length", "none", lengths=torch.tensor([[5, 1, 1, 1]]))
    close(found, r - 7 / 8, "the mean over the tokens of the group")


@pytest.mark.parametrize("rewards", [binary, graded])
def test_opo_is_biased_by_its_own_reward_in_its_baseline(scope, rewards):
    """The bias is -E[b grad log p], by a sum over all ordered pairs that knows nothing of the estimator."""
    r = rewards(scope)
    lengths, p = scope.mask.sum(1).double(), scope.probabilities[0].detach()

    def loss(s):
        A = baseline_advantages(s.rewards, "length", "none", lengths=s.mask.sum(1).view_as(s.rewards))
        return aggregate(reinforce_loss(s.logprobs, A.flatten(), s.mask), s.mask, "sequence_sum")

    found = -scope.expect(loss, r, 2).gradient
    l1, l2, r1, r2 = lengths[:, None], lengths[None], r[:, None], r[None]
    baseline = ((l1 * r1 + l2 * r2) / (l1 + l2) * p[None]).sum(1)  # (N,), the mean over the other one
    exact = scope.gradient(scope.objective(r)) - scope.gradient(scope.objective(baseline))
    close(found, exact, "E[g] is not grad J - E[b grad log p]")
    truth = scope.gradient(scope.objective(r))
    assert torch.cosine_similarity(found, truth, dim=0) < 1 - 1e-4


def test_bessel_s_deviation_of_all_tokens():
    r, lengths = torch.tensor([[1.0, 0.0], [4.0, 0.0]], dtype=torch.float64), torch.tensor([[1, 3], [2, 2]])
    found = baseline_advantages(r, "group", "global", 0.0, 1, lengths)
    each = (r - r.mean(1, keepdim=True)).flatten().repeat_interleave(lengths.flatten())
    close(
        found.flatten().repeat_interleave(lengths.flatten()),
        (each - each.mean()) / each.std(),
        "n - 1 tokens",
    )


# Surrogates


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("how", ["sequence_mean", "token_mean", "sequence_sum"])
def test_2C_20_every_surrogate_is_reinforce_on_policy(surrogate, how):
    for seed in range(5):
        logprobs, _, _, advantages, mask = random_batch(seed)
        loss, _ = grpo_loss(
            logprobs, logprobs.detach(), None, advantages, mask, surrogate=surrogate, aggregation=how
        )
        plain = aggregate(reinforce_loss(logprobs, advantages, mask), mask, how)
        found, expected = gradient(loss, logprobs), gradient(plain, logprobs)
        close(found, expected, f"{surrogate} at ratio 1 is not -A grad log p")


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate_is_linear_in_the_size_of_the_advantage(surrogate):
    """So a weight of a token, at least 0, may stand on its advantage."""
    logprobs, old, _, advantages, mask = random_batch(21)
    options = {"surrogate": surrogate, "aggregation": "sequence_sum"}
    for factor in (0.0, 0.3, 4.0):
        once, _ = grpo_loss(logprobs, old, None, advantages, mask, **options)
        more, _ = grpo_loss(logprobs, old, None, factor * advantages, mask, **options)
        close(more, factor * once, "not linear")
        close(gradient(more, logprobs), factor * gradient(once, logprobs), "nor is its gradient")


JUNK = [math.nan, math.inf, -math.inf, 1e6]


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_2C_25_padding_reaches_no_surrogate(surrogate, junk):
    logprobs, old, _, advantages, mask = random_batch(5)
    clean, _ = grpo_loss(logprobs, old, None, advantages, mask, surrogate=surrogate)
    for spoiled in range(2):
        inputs = [x.detach().clone() for x in (logprobs, old)]
        inputs[spoiled][~mask] = junk
        inputs[0].requires_grad_()
        loss, _ = grpo_loss(*inputs, None, advantages, mask, surrogate=surrogate)
        slope = gradient(loss, inputs[0])
        assert torch.equal(loss, clean) and slope.isfinite().all() and (slope[~mask] == 0).all()


@pytest.mark.parametrize("gap", [-1000.0, -100.0, 100.0, 1000.0])
@pytest.mark.parametrize("surrogate", ["sapo", "dppo_tv", "dppo_kl", "gmpo", "vespo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ratio_that_over_or_underflows_leaves_no_nan(surrogate, gap, dtype):
    mask = torch.tensor([[True, True, False]])
    for A in (1.0, -1.0, 0.0):
        leaf = torch.tensor([[-1.0 + min(gap, 0.0), -2.0, 0.0]], dtype=dtype).requires_grad_()
        old = leaf.detach() - torch.tensor([[gap, 0.0, 0.0]], dtype=dtype)
        options = {"surrogate": surrogate, "delta": 20.0 if "dppo" in surrogate else None}
        loss, _ = grpo_loss(leaf, old, None, torch.tensor([A], dtype=dtype), mask, **options)
        assert loss.isfinite() and gradient(loss, leaf).isfinite().all(), f"A={A}"


def test_dppo_drops_by_probability_and_the_clip_by_ratio():
    """A rare token may triple, a frequent one may not; and a token that comes back is never dropped."""
    new = torch.tensor([[0.003, 0.9, 0.3]], dtype=torch.float64).log().requires_grad_()
    old = torch.tensor([[0.001, 0.3, 0.9]], dtype=torch.float64).log()
    mask, A = torch.ones(1, 3, dtype=torch.bool), torch.tensor([1.0], dtype=torch.float64)
    how = {"aggregation": "sequence_sum"}
    for surrogate in ("dppo_tv", "dppo_kl"):
        slope = gradient(grpo_loss(new, old, None, A, mask, surrogate=surrogate, **how)[0], new)
        close(slope, [[-3.0, 0.0, -1 / 3]], "the second has moved 0.6, upward, with A > 0")
    slope = gradient(grpo_loss(new, old, None, A, mask, **how)[0], new)
    close(slope, [[0.0, 0.0, -1 / 3]], "the clip stops both that went up")


def test_a_coin_s_kl_is_that_of_the_full_sum():
    p, q = torch.rand(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    full = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    close(binary_kl(p, q), full, "not the KL of two coins")
    assert binary_kl(torch.tensor([0.5]), torch.tensor([1.0])).isinf() and (full >= 0).all()


# A sampler that is not the trainer


def weighed(level, rule, high, low=None, advantages=lambda r: r):
    def loss(s):
        w = sampler_weights(s.logprobs, s.old_logprobs, s.mask, level, rule, high, low)
        A = advantages(s.rewards).reshape(-1, 1) * w
        return aggregate(reinforce_loss(s.logprobs, A, s.mask), s.mask, "sequence_sum")

    return loss


@pytest.mark.parametrize("rewards", [binary, graded])
@pytest.mark.parametrize("advantages", [lambda r: r, leave_one_out], ids=["none", "leave_one_out"])
def test_the_weight_of_the_sequence_is_unbiased_whoever_has_sampled(mismatch, rewards, advantages):
    r = rewards(mismatch)
    found = mismatch.expect(weighed("sequence", "truncate", None, advantages=advantages), r, 2)
    close(found.gradient, -mismatch.gradient(mismatch.objective(r)), "E_mu[w A grad log p] is not grad J")


def test_the_weight_of_a_token_leaves_the_prefix_to_the_sampler(mismatch):
    """Its mean is the gradient with prefixes as the sampler visits them, and so not the gradient; for
    completions of one token the two are the same."""
    r = binary(mismatch)
    found = mismatch.expect(weighed("token", "truncate", None), r, 1).gradient
    mu, new = mismatch.old_logprobs[0], mismatch.logprobs[0]
    slope = (mu.sum(1).exp()[:, None] * (new.detach() - mu).exp() * mismatch.mask * new).sum(1)
    expected = torch.autograd.grad((slope * r).sum(), mismatch.parameters, retain_graph=True)
    close(found, -torch.cat([g.flatten() for g in expected]), "not sum_y mu(y) sum_t w_t r grad log p")
    truth = mismatch.gradient(mismatch.objective(r))
    assert (found + truth).norm() > 0.02 * truth.norm()
    short = Microscope(tiny(), [PROMPT], 1, old=shaken())
    r = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    one = short.expect(weighed("token", "truncate", None), r, 2).gradient
    close(one, -short.gradient(short.objective(r)), "one token has no prefix")


def test_bounds_buy_less_variance_with_bias(mismatch):
    r, truth = graded(mismatch), mismatch.gradient(mismatch.objective(graded(mismatch)))

    def moments(*how):
        found = mismatch.expect(weighed(*how, advantages=leave_one_out), r, 2)
        return (found.gradient + truth).norm().item(), found.variance.item()

    free = moments("sequence", "truncate", None)
    cut, masked = moments("sequence", "truncate", 1.2), moments("sequence", "mask", 1.2)
    assert free[0] < 1e-12 < cut[0] < masked[0] and masked[1] < cut[1] < free[1]


def test_icepop_without_bounds_is_the_weight_of_a_token_and_with_them_drops_both_ends():
    _, old, mu, _, mask = random_batch(3)
    plain = sampler_weights(old, mu, mask, "token", "truncate", None)
    close(sampler_weights(old, mu, mask, "token", "mask", None), plain, "nothing is out of no bounds")
    pop = sampler_weights(old, mu, mask, "token", "mask", 1.2, 0.8)
    inside = (plain >= 0.8) & (plain <= 1.2) & mask
    close(pop, plain.where(inside, 0.0), "weights inside are kept as they are, others are 0")
    assert inside.any() and (mask & ~inside).any()
    for bad in ((0.0, None), (1.0, 1.0), (1.0, 2.0), (None, -1.0)):
        with pytest.raises(OptionError, match="quotient of probabilities"):
            sampler_weights(old, mu, mask, "token", "mask", *bad)


def test_weights_are_1_where_the_policy_itself_has_sampled(scope):
    w = sampler_weights(scope.logprobs[0], scope.logprobs[0], scope.mask, "sequence", "mask", 1.5, 0.5)
    close(w, scope.mask.double(), "the policy's own samples need no correction")
    near = off_policy_mask(scope.logprobs[0], scope.logprobs[0], -torch.ones(15).double(), scope.mask, 0.0)
    assert torch.equal(near, scope.mask)


def test_the_kl_with_the_ratio_of_the_token_is_that_of_each_prefix_and_with_the_completion_s_is_not(mismatch):
    """TRL multiplies with the completion's ratio there; by enumeration the token's is right."""

    def penalty(level):
        def loss(s):
            ratio = importance_ratio(s.logprobs, s.old_logprobs, s.mask, level)
            return (ratio * kl_k3(s.logprobs, s.ref_logprobs, s.mask)).sum() / len(s.mask)

        return loss

    zero, policy = torch.zeros(15, dtype=torch.float64), tiny()
    p, q = (completion_logits(m, *pad([PROMPT]), mismatch.ids).log_softmax(-1) for m in (policy, tiny(1)))
    each = (p.exp() * (p - q.detach())).sum(-1) * mismatch.mask  # (N, T), exact KL at each prefix
    visited = (mismatch.old_logprobs[0].sum(1).exp() * each.sum(1)).sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(visited, list(policy.parameters()))])
    token = mismatch.expect(penalty("token"), zero, 1).gradient
    close(
        token, exact, "not the gradient of KL(policy || reference) at the prefixes that were visited", 1e-10
    )
    whole = mismatch.expect(penalty("sequence"), zero, 1).gradient
    assert (whole - exact).norm() > 0.05 * exact.norm()


# Selections


def test_the_covariance_adds_up_to_what_it_is_called():
    logprobs, _, _, advantages, mask = random_batch(8)
    found = covariance(logprobs, advantages, mask)
    A = advantages[:, None].expand(mask.shape)[mask]
    expected = torch.cov(torch.stack([A, logprobs.detach()[mask]]), correction=0)[0, 1]
    close(found.sum() / mask.sum(), expected, "its mean is the covariance")
    assert (found[~mask] == 0).all()


def test_what_is_selected():
    logprobs, _, _, advantages, mask = random_batch(9)
    cov = covariance(logprobs, advantages, mask)
    H = torch.rand(mask.shape, dtype=torch.float64)
    forks = top_entropy(H, mask, 0.3)
    n = int(mask.sum())
    assert forks.sum() == n - math.ceil(0.7 * (n - 1)) and H[forks].min() > H[mask & ~forks].max()
    assert torch.equal(top_entropy(H, mask, 1.0), mask)
    kept = clip_cov(cov, mask, torch.Generator().manual_seed(1), 1.0, 0.01, 5.0)
    assert torch.equal(kept, mask & ~((cov > 0.01) & (cov < 5.0)))
    some = clip_cov(cov, mask, torch.Generator().manual_seed(1), 2 / n + 1e-9, 0.01, 5.0)
    assert (mask & ~some).sum() == 2 and not (kept & ~some).any()
    pay = kl_cov(cov, mask, 0.25)
    assert pay.sum() == int(0.25 * n) and cov[pay].min() >= cov[mask & ~pay].max()


def test_kl_cov_does_nothing_on_the_first_update(scope):
    plain = effect({"clip_low": 1e6, "clip_high": 1e6}, tiny(), binary(scope), 2)
    assert effect(variant("kl_cov"), tiny(), binary(scope), 2) == pytest.approx(plain, rel=1e-12)


# Rows of the table


@ALL
def test_a_variant_is_options_of_the_config_that_are_not_its_defaults_and_is_reachable_by_name(name):
    options, usual = variant(name), {f.name: f.default for f in fields(GRPOConfig)}
    config = GRPOConfig(max_new_tokens=4, **options)
    assert options and all(getattr(config, k) == v and usual[k] != v for k, v in options.items())
    options["seed"] = 1
    assert "seed" not in VARIANTS[name], "a caller's change is not the table's"


def test_options_that_do_not_go_together_are_named():
    for options, match in (
        ({"surrogate": "vespo", "importance_sampling_level": "sequence"}, "starts from the ratios of single"),
        ({"sampler_correction": "ratio"}, "the policy itself samples"),
        ({"sampler": "noise"}, "one needs the other"),
        ({"sampler_noise": 0.1}, "one needs the other"),
        ({"sampler_clip_min": 3.0}, "quotient of probabilities"),
        ({"entropy_coef_min": 2.0}, "above entropy_coef_max"),
        ({"delta": 2.0, "surrogate": "sapo"}, "choose that"),
        ({"baseline": "batch", "scale_rewards": "mean"}, "by eps alone"),
    ):
        with pytest.raises(OptionError, match=match):
            GRPOConfig(max_new_tokens=4, **options)
    assert set(SHAPES) <= set(SURROGATES)
    with pytest.raises(OptionError, match="variant='foo' is unknown"):
        variant("foo")


@pytest.mark.parametrize("lag", [1, 3])
def test_a_stale_sampler_is_as_old_as_it_should_be_and_no_older(lag):
    from nanogrpo.sampler import sampling_model
    from nanogrpo.state import TrainState

    model, config, past = tiny(), GRPOConfig(max_new_tokens=T, sampler_lag=lag), []
    state = TrainState.start(model.parameters(), 1e-3, seed=0)
    for step in range(6):
        past.append(copy.deepcopy(model.head.weight.data))
        found = sampling_model(model, config, state).head.weight
        assert torch.equal(found, past[max(0, step - lag)]), f"weights of the sampler in step {step}"
        with torch.no_grad():
            model.head.weight.add_(1.0)


def test_a_run_with_a_stale_sampler_goes_on_to_the_bit():
    """What the sampler needs of the past, and the price of entropy, are part of the state."""
    from nanogrpo import grpo
    from nanogrpo.state import TrainState
    from nanogrpo.tokenizer import CharTokenizer

    tokenizer = CharTokenizer("a")
    config = GRPOConfig(
        max_new_tokens=T, group_size=4, prompts_per_step=4, learning_rate=0.02, sampler_lag=2, sampler="int8",
        sampler_correction="sequence_mask", use_adaptive_entropy=True, entropy_target=5.0, max_steps=6,
    )  # fmt: skip

    def reward(prompts, completions, **columns):
        return [float(c.endswith("a")) for c in completions]

    def run(model, state, steps):
        rows = grpo.train(model, tokenizer, [{"prompt": "a"}] * 4, reward, config, state=state)
        return list(islice(rows, steps))

    whole = tiny().float()
    state = TrainState.start(whole.parameters(), config.learning_rate, config.seed)
    expected = run(whole, state, 6)
    assert expected[-1]["sampling/kl"] > 0 and expected[-1]["entropy_coef"] == pytest.approx(0.03)
    first = tiny().float()
    state = TrainState.start(first.parameters(), config.learning_rate, config.seed)
    rows = run(first, state, 3)
    saved = {name: value.clone() for name, value in state.tensors().items()}
    second = copy.deepcopy(first)
    later = TrainState.start(second.parameters(), config.learning_rate, config.seed)
    later.restore(saved)
    assert [*rows, *run(second, later, 3)] == expected


@pytest.mark.slow
def test_a_variant_on_the_command_line_gives_its_options_unless_others_are_given(tmp_path, monkeypatch):
    from nanogrpo.__main__ import main

    monkeypatch.chdir(tmp_path)
    short = "--max-steps 1 --prompts-per-step 2 --group-size 2 --device cpu --model addition --out run"
    main(["grpo", *short.split(), "--variant", "gspo", "--clip-high", "0.5"])
    said = json.loads((tmp_path / "run" / "config.json").read_text())
    expected = variant("gspo") | {"clip_high": 0.5, "variant": "gspo"}
    assert expected.items() <= said.items()


def test_a_sampler_at_another_temperature_is_scored_by_both():
    """It draws and scores at its own temperature; what the trainer believes is at the trainer's."""
    from nanogrpo import grpo
    from nanogrpo.rollout import token_logprobs
    from nanogrpo.state import TrainState
    from nanogrpo.tokenizer import CharTokenizer

    def batch(**options):
        model, tokenizer = tiny(), CharTokenizer("a")
        config = GRPOConfig(
            max_new_tokens=T, group_size=64, prompts_per_step=1, learning_rate=0.0, **options
        )  # fmt: skip
        state = TrainState.start(model.parameters(), config.learning_rate, config.seed)

        def reward(prompts, completions, **columns):
            return [float(c.endswith("a")) for c in completions]

        return model, grpo.step(model, tokenizer, [{"prompt": "a"}], reward, config, state)

    model, (metrics, cold) = batch(sampler_temperature=0.5)
    r = cold.rollout
    for temperature, logprobs in ((0.5, cold.sampler_logprobs), (1.0, r.logprobs)):
        expected = token_logprobs(model, r.prompt_ids, r.prompt_lens, r.completion_ids, temperature)
        close(logprobs, expected.where(r.completion_mask, 0.0), f"not scored at {temperature}", 1e-12)
    assert metrics["sampling/kl"] > 0
    same = batch()[1][1]
    assert batch(sampler_temperature=1.0)[1][1].sampler_logprobs is None is same.sampler_logprobs
    weighed = batch(sampler_temperature=0.5, sampler_correction="token_truncate")[1][0]
    assert weighed["sampling/importance_sampling_ratio/max"] > 1
    other = batch(temperature=0.5)[1][1]
    assert torch.equal(r.completion_ids, other.rollout.completion_ids), "it draws at its own temperature"
    with pytest.raises(OptionError, match="nothing to correct"):
        GRPOConfig(max_new_tokens=T, sampler_temperature=1.0, sampler_correction="ratio")
