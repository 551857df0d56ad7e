"""Ratio, clip, aggregation and the GRPO loss. Names carry the numbers of book/identities.md."""

import ast
import inspect
import math
import re
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from mathcheck import close, gradient, random_batch

from nanogrpo import kl, losses
from nanogrpo.errors import DTypeError, MaskError, OptionError, ShapeError
from nanogrpo.losses import (
    AGGREGATIONS,
    SURROGATES,
    Denominators,
    aggregate,
    bradley_terry_loss,
    cispo_surrogate,
    clip_fractions,
    clipped_surrogate,
    grpo_loss,
    importance_ratio,
    reinforce_loss,
    sft_loss,
    value_loss,
)
from nanogrpo.surrogates import dppo_surrogate, gmpo_surrogate, sapo_surrogate, vespo_surrogate

LEVELS = ("token", "sequence", "sequence_token")
seeds = st.integers(0, 10**6)
each_aggregation = pytest.mark.parametrize("how", AGGREGATIONS)
each_level = pytest.mark.parametrize("level", LEVELS)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def one_token(ratio, advantage, **options):
    """Loss and its gradient with respect to the log-prob of a single token."""
    logprob = tensor([math.log(ratio)]).requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    ratio = importance_ratio(logprob, torch.zeros(1, 1, dtype=torch.float64), mask)
    loss = clipped_surrogate(ratio, tensor(advantage), mask, **options)
    return loss.item(), gradient(loss.sum(), logprob).item()


def cispo(logprobs, old, advantages, mask, **bounds):
    return cispo_surrogate(importance_ratio(logprobs, old, mask), logprobs, advantages, mask, **bounds)


@each_aggregation
@each_level
@given(seed=seeds)
def test_2C_20_on_policy_the_gradient_is_that_of_reinforce(level, how, seed):
    logprobs, _, _, advantages, mask = random_batch(seed)
    n = Denominators.of(mask, max_length=5)
    loss, _ = grpo_loss(
        logprobs, logprobs.detach(), None, advantages, mask,
        importance_sampling_level=level, aggregation=how, denominators=n,
    )  # fmt: skip
    assert loss.requires_grad, "no gradient reaches the new log-probs: the ratio is detached on both sides"
    plain = aggregate(reinforce_loss(logprobs, advantages, mask), mask, how, n)
    close(gradient(loss, logprobs), gradient(plain, logprobs), "at ratio 1 the gradient is not -A grad log p")


@each_aggregation
def test_2C_20_clipped_and_weighted_losses_agree_on_policy(how):
    logprobs, _, _, advantages, mask = random_batch(1)
    n = Denominators.of(mask, max_length=5)
    weighted = aggregate(cispo(logprobs, logprobs.detach(), advantages, mask), mask, how, n)
    plain = aggregate(reinforce_loss(logprobs, advantages, mask), mask, how, n)
    close(gradient(weighted, logprobs), gradient(plain, logprobs), "CISPO at ratio 1 is not REINFORCE")


def test_2C_21_on_policy_the_loss_is_zero_and_its_gradient_is_not():
    from nanogrpo.advantages import group_advantages

    logprobs, _, _, _, mask = random_batch(2, rows=8)
    advantages = group_advantages(torch.arange(8, dtype=torch.float64).view(2, 4) ** 2).flatten()
    loss, _ = grpo_loss(logprobs, logprobs.detach(), None, advantages, mask, aggregation="sequence_mean")
    close(loss, 0.0, "not 0 on policy, where group advantages sum to 0: padding in a mean?")
    assert gradient(loss, logprobs).abs().max() > 0.01, "a loss of 0 must not mean that nothing is learned"


@given(
    ratio=st.floats(0.05, 6),
    advantage=st.floats(-4, 4).filter(lambda a: abs(a) > 0.01),
    low=st.floats(0, 0.9),
    high=st.floats(0, 3),
)
def test_2C_22_the_clip_stops_the_gradient_exactly_where_it_should(ratio, advantage, low, high):
    assume(abs(ratio - (1 - low)) > 1e-6 and abs(ratio - (1 + high)) > 1e-6)
    loss, slope = one_token(ratio, advantage, clip_low=low, clip_high=high)
    stopped = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)
    case = f"A={advantage:g}, ratio={ratio:g}, clip {1 - low:g} to {1 + high:g}"
    if stopped:
        close(slope, 0.0, f"{case}: the clip must stop the gradient here; is its min a max?")
    else:
        close(slope, -advantage * ratio, f"{case}: the clip must not touch this; is its min a max?", 1e-9)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [(1.0, 1.5, -1.2, 0.0), (1.0, 0.5, -0.5, -0.5), (-1.0, 1.5, 1.5, 1.5), (-1.0, 0.5, 0.8, 0.0)],
)
def test_2C_22_worked_numbers(advantage, ratio, loss, slope):
    found = one_token(ratio, advantage)
    mistake = f"A={advantage:g}, ratio={ratio:g}: not min(ratio A, clip(ratio) A); a min turned into a max?"
    close(tensor(*found), tensor(loss, slope), mistake)


@given(ratio=st.floats(0.05, 6), advantage=st.floats(-4, 4), low=st.floats(0, 0.9), high=st.floats(0, 3))
def test_2C_23_the_clipped_objective_never_exceeds_the_unclipped(ratio, advantage, low, high):
    loss, _ = one_token(ratio, advantage, clip_low=low, clip_high=high)
    assert -loss <= ratio * advantage + 1e-12, "the clip promises more than it has; is its min a max?"


@given(ratio=st.floats(0.05, 6), advantage=st.floats(-4, 4))
def test_2C_23_without_bounds_it_is_the_importance_weighted_gradient(ratio, advantage):
    loss, slope = one_token(ratio, advantage, clip_low=1e9, clip_high=1e9)
    expected = -ratio * advantage
    close(tensor(loss, slope), tensor(expected, expected), "unclipped, loss and slope are -A ratio", 1e-9)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [(-1.0, 3.0, 3.0, 3.0), (-1.0, 5.0, 4.0, 0.0), (1.0, 5.0, -1.2, 0.0), (-1.0, 0.5, 0.8, 0.0)],
)
def test_the_two_sided_cap_bounds_a_bad_token_that_became_likely(advantage, ratio, loss, slope):
    found = one_token(ratio, advantage, delta=4.0)
    close(tensor(*found), tensor(loss, slope), "delta must cap the ratio for A < 0, and change nothing else")


@each_level
def test_2C_24_advantages_old_and_reference_get_no_gradient(level):
    logprobs, old, ref, advantages, mask = random_batch(3)
    constants = {"old_logprobs": old, "ref_logprobs": ref, "advantages": advantages}
    for name, constant in constants.items():
        constant.requires_grad_()
        assert constant.grad is None, name
    loss, _ = grpo_loss(logprobs, old, ref, advantages, mask, beta=0.1, importance_sampling_level=level)
    loss = loss + cispo(logprobs, old, advantages, mask).sum()
    loss = loss + reinforce_loss(logprobs, advantages, mask).sum()
    loss.backward()
    for name, constant in constants.items():
        assert constant.grad is None, f"{name} got a gradient: it is not detached"
    assert logprobs.grad is not None


def test_2C_24_targets_and_old_values_get_no_gradient():
    values, old, returns, _, mask = random_batch(4)
    returns.requires_grad_(), old.requires_grad_()
    value_loss(values, returns, mask, old, 0.2).sum().backward()
    assert returns.grad is None and old.grad is None, "the critic's targets are not detached"
    assert values.grad is not None


PER_TOKEN = {
    "reinforce_loss": lambda x, y, z, a, m: reinforce_loss(x, a, m),
    "cispo_surrogate": lambda x, y, z, a, m: cispo(x, y, a, m),
    "value_loss": lambda x, y, z, a, m: value_loss(x, y, m),
    "value_loss, clipped": lambda x, y, z, a, m: value_loss(x, y, m, z, 0.2),
    "kl_k1": lambda x, y, z, a, m: kl.kl_k1(x, y, m),
    "kl_k2": lambda x, y, z, a, m: kl.kl_k2(x, y, m),
    "kl_k3": lambda x, y, z, a, m: kl.kl_k3(x, y, m),
    "entropy_sampled": lambda x, y, z, a, m: kl.entropy_sampled(x, m),
    "entropy_proxy": lambda x, y, z, a, m: kl.entropy_proxy(x, m),
} | {
    f"clipped_surrogate, {level}": lambda x, y, z, a, m, level=level: clipped_surrogate(
        importance_ratio(x, y, m, level), a, m, delta=4.0
    )
    for level in LEVELS
}
junk = pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e6, -1e6])
AFTER_EXP = "what stands at masked places reached the {}; a log-ratio must be masked before exp, not after"


@junk
@pytest.mark.parametrize("name", PER_TOKEN)
def test_2C_25_masked_places_reach_neither_value_nor_gradient(name, junk):
    logprobs, old, ref, advantages, mask = random_batch(5)
    clean = PER_TOKEN[name](logprobs, old, ref, advantages, mask)
    for spoiled in range(3):  # the policy's, the old, the reference's
        inputs = [x.detach().clone() for x in (logprobs, old, ref)]
        inputs[spoiled][~mask] = junk
        inputs[0].requires_grad_()
        found = PER_TOKEN[name](*inputs, advantages[:, None].expand(mask.shape).where(mask, junk), mask)
        assert torch.equal(found, clean), AFTER_EXP.format("loss")
        assert (found[~mask] == 0).all(), "a masked place has a loss"
        slope = gradient(found.sum(), inputs[0])
        assert slope.isfinite().all(), AFTER_EXP.format("gradient")
        assert (slope[~mask] == 0).all(), "a masked place has a gradient"
        close(slope, gradient(PER_TOKEN[name](logprobs, old, ref, advantages, mask).sum(), logprobs), name, 0)


@junk
@each_aggregation
def test_2C_25_masked_places_do_not_reach_the_grpo_loss(how, junk):
    logprobs, old, ref, advantages, mask = random_batch(6)
    options = {"beta": 0.1, "aggregation": how, "denominators": Denominators.of(mask, max_length=5)}
    for level in LEVELS:
        for corrected in (False, True):
            options |= {"importance_sampling_level": level, "use_bias_correction_kl": corrected}
            clean, clean_metrics = grpo_loss(logprobs, old, ref, advantages, mask, **options)
            expected = gradient(clean, logprobs)
            spoiled = [x.detach().masked_fill(~mask, junk) for x in (logprobs, old, ref)]
            spoiled[0].requires_grad_()
            loss, metrics = grpo_loss(*spoiled, advantages, mask, **options)
            assert loss == clean, AFTER_EXP.format("loss")
            assert metrics == clean_metrics, AFTER_EXP.format("metrics")
            assert torch.equal(gradient(loss, spoiled[0]), expected), AFTER_EXP.format("gradient")


@junk
@pytest.mark.parametrize("name", ["sft_loss", "kl_exact", "entropy"])
def test_2C_25_masked_logits_reach_neither_value_nor_gradient(name, junk):
    g = torch.Generator().manual_seed(7)
    logits, other = torch.randn(2, 4, 5, 3, generator=g, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[1], [3], [5], [2]])
    targets = torch.where(mask, torch.randint(3, (4, 5), generator=g), -100)
    functions = {
        "sft_loss": lambda x, y: sft_loss(x, targets, mask),
        "kl_exact": lambda x, y: kl.kl_exact(x, y, mask),
        "entropy": lambda x, y: kl.entropy(x, mask),
    }
    clean = logits.clone().requires_grad_()
    spoiled = logits.masked_fill(~mask[..., None], junk).requires_grad_()
    expected = functions[name](clean, other)
    found = functions[name](spoiled, other.masked_fill(~mask[..., None], junk))
    assert torch.equal(found, expected) and (found[~mask] == 0).all(), "masked logits reached the value"
    slope = gradient(found.sum(), spoiled)
    close(slope, gradient(expected.sum(), clean), "masked logits reached the gradient", 0)


def grpo_options(mask, how, level="token"):
    n = Denominators.of(mask, max_length=9)
    return {"beta": 0.1, "aggregation": how, "importance_sampling_level": level, "denominators": n}


@each_aggregation
@each_level
@given(seed=seeds, extra=st.integers(1, 4))
def test_2C_26_padding_changes_neither_loss_nor_gradient(level, how, seed, extra):
    logprobs, old, ref, advantages, mask = random_batch(seed)
    loss, _ = grpo_loss(logprobs, old, ref, advantages, mask, **grpo_options(mask, how, level))
    wide = [F.pad(x.detach(), (0, extra), value=-0.7) for x in (logprobs, old, ref)]
    wide[0].requires_grad_()
    wide_mask = F.pad(mask, (0, extra))
    padded, _ = grpo_loss(*wide, advantages, wide_mask, **grpo_options(wide_mask, how, level))
    close(padded, loss, "the loss depends on how far the batch is padded")
    slope = gradient(padded, wide[0])
    close(slope[:, : mask.shape[1]], gradient(loss, logprobs), "the gradient depends on the padding")


@each_aggregation
@given(seed=seeds)
def test_2C_27_the_order_of_the_rows_does_not_matter(how, seed):
    batch = random_batch(seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    shuffled = [x.detach()[order] for x in batch]
    shuffled[0].requires_grad_()
    loss, metrics = grpo_loss(*batch, **grpo_options(batch[-1], how))
    found, found_metrics = grpo_loss(*shuffled, **grpo_options(batch[-1], how))
    close(found, loss, "the loss depends on the order of the rows")
    close(
        gradient(found, shuffled[0]), gradient(loss, batch[0])[order], "the gradient does not follow the rows"
    )
    for name in metrics:
        close(found_metrics[name], metrics[name], f"{name} depends on the order of the rows")


@each_aggregation
@each_level
@given(seed=seeds, part=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_2C_28_microbatches_sum_to_the_whole_batch(level, how, seed, part):
    batch = random_batch(seed)
    options, part = grpo_options(batch[-1], how, level), torch.tensor(part)
    whole, whole_metrics = grpo_loss(*batch, **options)
    pieces = [grpo_loss(*(x[part == i] for x in batch), **options) for i in part.unique()]
    mistake = f"{how}: the denominators are those of the microbatch, not of the whole batch"
    close(sum(loss for loss, _ in pieces), whole, mistake)
    close(sum(gradient(loss, batch[0]) for loss, _ in pieces), gradient(whole, batch[0]), mistake)
    for name in whole_metrics:
        close(sum(metrics[name] for _, metrics in pieces), whole_metrics[name], f"{name}: {mistake}")


@each_aggregation
@given(seed=seeds, part=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_2C_28_microbatches_of_any_per_token_loss_sum_to_the_whole(how, seed, part):
    values, returns, old, _, mask = random_batch(seed)
    n, part = Denominators.of(mask, max_length=9), torch.tensor(part)
    whole = gradient(aggregate(value_loss(values, returns, mask, old, 0.2), mask, how, n), values)
    summed = torch.zeros_like(whole)
    for i in part.unique():
        v, r, o, m = (x[part == i] for x in (values, returns, old, mask))
        summed += gradient(aggregate(value_loss(v, r, m, o, 0.2), m, how, n), values)
    close(summed, whole, f"{how}: the denominators are those of the microbatch")


def token_weights(mask, how, max_length=7):
    weights = torch.ones(mask.shape, dtype=torch.float64, requires_grad=True)
    return gradient(aggregate(weights, mask, how, Denominators.of(mask, max_length)), weights)


@pytest.mark.parametrize(
    ("how", "short", "long"),
    [
        ("sequence_mean", 1 / 8, 1 / 14),
        ("token_mean", 1 / 11, 1 / 11),
        ("constant", 1 / 14, 1 / 14),
        ("sequence_sum", 1 / 2, 1 / 2),
    ],
)
def test_2C_29_weights_of_the_tokens_of_completions_of_4_and_7(how, short, long):
    mask = torch.arange(9) < torch.tensor([[4], [7]])
    expected = torch.where(mask, tensor([short], [long]), 0.0)
    close(token_weights(mask, how), expected, f"{how} does not weigh a token as its definition says")


@given(length=st.integers(1, 6), rows=st.integers(1, 5))
def test_2C_29_equal_lengths_make_sequence_mean_and_token_mean_the_same(length, rows):
    mask = (torch.arange(6) < length).expand(rows, 6)
    close(
        token_weights(mask, "sequence_mean"),
        token_weights(mask, "token_mean"),
        "equal lengths, unequal means",
    )


@each_aggregation
def test_2C_30_a_row_without_tokens_adds_nothing(how):
    logprobs, old, ref, advantages, mask = random_batch(8)
    mask[2] = False
    options = grpo_options(mask, how)
    loss, _ = grpo_loss(logprobs, old, ref, advantages, mask, **options)
    keep = torch.arange(6) != 2
    without, _ = grpo_loss(*(x[keep] for x in (logprobs, old, ref, advantages, mask)), **options)
    close(loss, without, "an empty row changed the loss")
    slope = gradient(loss, logprobs)
    assert slope.isfinite().all() and (slope[2] == 0).all(), "an empty row divides by its length of 0"


def test_the_sequence_ratio_is_the_geometric_mean_of_the_token_ratios():
    logprobs = tensor([1.1, 0.9, 1.5, 7.0]).log().requires_grad_()
    mask = torch.tensor([[True, True, True, False]])
    ratio = importance_ratio(logprobs, torch.zeros(1, 4, dtype=torch.float64), mask, "sequence")
    s = (1.1 * 0.9 * 1.5) ** (1 / 3)
    close(ratio[0, 0], s, "not the geometric mean over the unmasked tokens")
    share = tensor([s / 3, s / 3, s / 3, 0.0])
    close(gradient(ratio[0, 0], logprobs), share, "each token's log-prob moves s by s / length")


def test_gspo_token_has_the_value_of_the_sequence_and_the_gradient_of_the_token():
    logprobs = tensor([1.1, 0.9, 1.5]).log().requires_grad_()
    old, mask = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    ratio = importance_ratio(logprobs, old, mask, "sequence_token")
    s = importance_ratio(logprobs, old, mask, "sequence")
    close(ratio, s.detach(), "the value is not that of the sequence ratio")
    expected = torch.zeros(1, 3, dtype=torch.float64)
    expected[0, 1] = s[0, 1].item()
    close(gradient(ratio[0, 1], logprobs), expected, "the gradient must run through the token alone")


def test_cispo_bounds_the_weight_and_never_stops_the_gradient():
    logprobs = tensor([8.0, 1.5, 0.1]).log().requires_grad_()
    old, mask = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    for advantage in (1.0, -2.0):
        loss = cispo(logprobs, old, tensor(advantage), mask, clip_low=0.5, clip_high=4.0)
        expected = -advantage * tensor([5.0, 1.5, 0.5])
        close(gradient(loss.sum(), logprobs), expected, "not -clip(ratio) A grad log p")


def test_clip_fractions_count_the_tokens_whose_gradient_is_stopped():
    logprobs, old, _, advantages, mask = random_batch(9, rows=40, spread=0.5)
    ratio = importance_ratio(logprobs, old, mask)
    found = clip_fractions(ratio, advantages, mask, 0.2, 0.3)
    slope = gradient(clipped_surrogate(ratio, advantages, mask, 0.2, 0.3).sum(), logprobs)
    stopped = (slope == 0) & mask
    up = advantages[:, None] > 0
    assert 0 < stopped.sum() < mask.sum()
    close(
        found["clip_ratio/high_mean"], (stopped & up).sum() / mask.sum().double(), "high counts other tokens"
    )
    close(
        found["clip_ratio/low_mean"], (stopped & ~up).sum() / mask.sum().double(), "low counts other tokens"
    )
    close(found["clip_ratio/region_mean"], stopped.sum() / mask.sum().double(), "region is not low + high")


@pytest.mark.parametrize(
    ("estimator", "corrected"), [("k1", False), ("k1", True), ("k2", False), ("k3", False), ("k3", True)]
)
def test_the_grpo_loss_is_its_equation_written_out_in_loops(estimator, corrected):
    logprobs, old, ref, advantages, mask = random_batch(10)
    beta, low, high = 0.3, 0.1, 0.15
    total, kl_sum = 0.0, 0.0  # sums of Python floats: nothing here is the package's
    for i in range(6):
        row = 0.0
        for t in range(int(mask[i].sum())):
            p, q, r = logprobs[i, t].item(), old[i, t].item(), ref[i, t].item()
            a, rho, d = advantages[i].item(), math.exp(p - q), r - p
            k = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - 1 - d}[estimator]
            kl_sum += k
            penalty = beta * k * (rho if corrected else 1)
            row += min(rho * a, min(max(rho, 1 - low), 1 + high) * a) - penalty
        total += row / int(mask[i].sum())
    options = {"clip_low": low, "clip_high": high, "beta": beta, "kl_estimator": estimator}
    options |= {"use_bias_correction_kl": corrected, "aggregation": "sequence_mean"}
    loss, metrics = grpo_loss(logprobs, old, ref, advantages, mask, **options)
    close(loss, -total / 6, "not the equation of the docstring: a sign, a min, or a mean is wrong")
    close(metrics["kl"], kl_sum / int(mask.sum()), "the metric kl is not the mean over tokens")


@pytest.mark.parametrize("surrogate", SURROGATES)
@each_level
def test_every_surrogate_goes_with_every_ratio(surrogate, level):
    """The loss is put together from its parts, and so is its gradient."""
    logprobs, old, _, advantages, mask = random_batch(14)
    ratio = importance_ratio(logprobs, old, mask, level)
    per_token = {
        "clip": lambda: clipped_surrogate(ratio, advantages, mask, 0.1, 0.3),
        "cispo": lambda: cispo_surrogate(ratio, logprobs, advantages, mask, 0.1, 0.3),
        "sapo": lambda: sapo_surrogate(ratio, advantages, mask),
        "dppo_tv": lambda: dppo_surrogate(ratio, logprobs, advantages, mask, 0.1, 0.3, divergence="tv"),
        "dppo_kl": lambda: dppo_surrogate(ratio, logprobs, advantages, mask, 0.1, 0.3, divergence="kl"),
        "gmpo": lambda: gmpo_surrogate(ratio, advantages, mask, 0.1, 0.3),
        "vespo": lambda: vespo_surrogate(ratio, logprobs, advantages, mask),
    }[surrogate]()
    expected = aggregate(per_token, mask, "token_mean")
    loss, _ = grpo_loss(
        logprobs, old, None, advantages, mask, surrogate=surrogate, importance_sampling_level=level,
        clip_low=0.1, clip_high=0.3,
    )  # fmt: skip
    close(loss, expected, "the loss is not that of its parts")
    close(gradient(loss, logprobs), gradient(expected, logprobs), "nor is its gradient")


@each_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [-1000.0, -100.0, 100.0, 1000.0])
@pytest.mark.parametrize("options", [{}, {"delta": 2.0}, {"surrogate": "cispo"}])
def test_a_ratio_that_over_or_underflows_leaves_a_gradient_of_0_where_the_clip_binds(
    level, dtype, gap, options
):
    """0 times infinity is NaN: the gradient of exp must not be asked where none comes back."""
    mask = torch.tensor([[True, True, False]])
    for advantage in (1.0, 0.0, -1.0):
        logprobs = torch.full((1, 3), -1.0, dtype=dtype, requires_grad=True)
        old = torch.full((1, 3), -1.0 - gap, dtype=dtype)
        loss, _ = grpo_loss(
            logprobs, old, None, torch.tensor([advantage]), mask, importance_sampling_level=level, **options
        )
        slope = gradient(loss, logprobs)
        assert slope[0, 2] == 0, "padding got a gradient"
        if options.get("surrogate") == "cispo":
            expected = -advantage * torch.tensor(gap, dtype=dtype).exp().clamp(0.8, 1.2) / 2
            close(slope[0, :2], expected, "not -clip(ratio) A grad log p")
        elif advantage * gap > 0 or advantage == 0 or "delta" in options:
            binds = advantage * gap > 0 or advantage == 0 or gap > 0
            expected = 0.0 if binds else -advantage * math.exp(gap) / 2
            close(slope[0, :2], expected, "the clip binds, so nothing may move", 1e-30)
            assert loss.isfinite()
        else:  # a ratio that nothing bounds: as large as it is, infinite where it overflows, never NaN
            ratio = torch.tensor(gap, dtype=dtype).exp()
            assert torch.equal(slope[0, :2], (-advantage * ratio / 2).expand(2)) and not loss.isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_probs_in_half_precision_are_taken_in_float32(dtype):
    """The difference of two such numbers has few digits; no further ones may be lost on the way."""
    logprobs, old, ref, advantages, mask = random_batch(15)
    options = {"beta": 0.1, "use_bias_correction_kl": True}
    half = [x.detach().to(dtype) for x in (logprobs, old, ref)]
    exact = [x.double() for x in half]
    loss, metrics = grpo_loss(half[0].requires_grad_(), *half[1:], advantages, mask, **options)
    expected, _ = grpo_loss(exact[0].requires_grad_(), *exact[1:], advantages, mask, **options)
    assert loss.dtype in (torch.float32, torch.float64) and metrics["kl"].dtype == torch.float32
    close(loss, expected, "computed in half precision", 1e-6)
    assert kl.entropy(torch.randn(2, 5).to(dtype)).dtype == torch.float32


def test_the_core_loss_reads_on_one_screen():
    function = ast.parse(inspect.getsource(grpo_loss)).body[0]
    docstring = function.body[0]
    lines = function.end_lineno - function.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1)
    assert lines <= 40, f"grpo_loss has {lines} lines without its docstring"


def test_value_loss_without_clipping_is_half_the_squared_error():
    values, returns, _, _, mask = random_batch(11)
    close(value_loss(values, returns, mask), mask * (values - returns) ** 2 / 2, "not (V - R)^2 / 2")
    slope = gradient(value_loss(values, returns, mask).sum(), values)
    close(slope, (mask * (values - returns)).detach(), "the slope is not V - R")


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (1.0, 0.0, 2.0, 1.62, 0.0),  # moved far toward the target: no more reason to move
        (1.0, 0.5, 0.0, 0.5, 1.0),  # moved away from the target: full slope back
        (1.0, 0.9, 2.0, 0.5, -1.0),  # inside the range: plain
    ],
)
def test_value_clipping_takes_the_larger_error(value, old, target, loss, slope):
    v = tensor([value]).requires_grad_()
    found = value_loss(v, tensor([target]), torch.tensor([[True]]), tensor([old]), 0.2)
    mistake = "not max(plain error, clipped error) / 2; a max turned into a min?"
    close(found.item(), loss, mistake)
    close(gradient(found.sum(), v).item(), slope, mistake)


@given(chosen=st.floats(-20, 20), rejected=st.floats(-20, 20), shift=st.floats(-5, 5))
def test_2E_41_bradley_terry_identities(chosen, rejected, shift):
    c, r = tensor(chosen).requires_grad_(), tensor(rejected).requires_grad_()
    loss, gap = bradley_terry_loss(c, r), chosen - rejected
    wrong = torch.sigmoid(tensor(-gap))
    close(gradient(loss.sum(), c), -wrong, "not -sigmoid(-gap): chosen and rejected swapped?")
    close(gradient(bradley_terry_loss(c, r).sum(), r), wrong, "dL/drejected is not +sigmoid(-gap)")
    close(bradley_terry_loss(c + shift, r + shift), loss, "a common shift changed the loss", 1e-9)
    close(loss - bradley_terry_loss(r, c), -gap, "L(gap) - L(-gap) is not -gap", 1e-9)
    close(bradley_terry_loss(c, c), math.log(2), "the loss of a tie is not log 2")


def test_sft_loss_is_cross_entropy_on_completion_tokens():
    g = torch.Generator().manual_seed(12)
    logits = torch.randn(3, 5, 7, generator=g, dtype=torch.float64)
    targets, mask = torch.randint(7, (3, 5), generator=g), torch.arange(5) < torch.tensor([[2], [5], [1]])
    expected = F.cross_entropy(logits.flatten(0, 1), targets.where(mask, -100).flatten(), ignore_index=-100)
    found = aggregate(sft_loss(logits, targets, mask), mask, "token_mean")
    close(found, expected, "not cross-entropy: targets shifted?")


def test_bad_inputs_raise_and_say_what_they_got():
    logprobs, old, ref, advantages, mask = random_batch(13)
    with pytest.raises(OptionError, match="beta=0.1 needs ref_logprobs"):
        grpo_loss(logprobs, old, None, advantages, mask, beta=0.1)
    with pytest.raises(OptionError, match="kl_estimator='kl' is unknown; choose one of 'k1', 'k2', 'k3'"):
        grpo_loss(logprobs, old, ref, advantages, mask, kl_estimator="kl")
    with pytest.raises(OptionError, match="importance_sampling_level='word'"):
        grpo_loss(logprobs, old, ref, advantages, mask, importance_sampling_level="word")
    with pytest.raises(OptionError, match="aggregation='mean' is unknown"):
        aggregate(logprobs, mask, "mean")
    with pytest.raises(OptionError, match="max_length"):
        aggregate(logprobs, mask, "constant")
    with pytest.raises(OptionError, match="count 2 sequences, this part has 6"):
        aggregate(logprobs, mask, "token_mean", Denominators.of(mask[:2]))
    with pytest.raises(MaskError, match="no unmasked token"):
        aggregate(logprobs, torch.zeros_like(mask))
    with pytest.raises(DTypeError, match="torch.int64"):
        aggregate(logprobs, mask.long())
    with pytest.raises(ShapeError, match=r"old_logprobs has shape \(6, 4\), expected \(6, 5\)"):
        grpo_loss(logprobs, old[:, :4], None, advantages, mask)
    with pytest.raises(ShapeError, match=r"advantages has shape \(2, 3\).*flatten"):
        grpo_loss(logprobs, old, None, advantages.view(2, 3), mask)
    with pytest.raises(ShapeError, match="advantages"):
        grpo_loss(logprobs[:5], old[:5], None, torch.zeros(6), mask[:5])
    with pytest.raises(OptionError, match="clip_low=-0.1"):
        grpo_loss(logprobs, old, None, advantages, mask, clip_low=-0.1)
    with pytest.raises(OptionError, match="delta=1.1"):
        grpo_loss(logprobs, old, None, advantages, mask, delta=1.1)
    with pytest.raises(OptionError, match="clip_range=None and old_values"):
        value_loss(logprobs, old, mask, old_values=ref)
    with pytest.raises(ShapeError, match="rejected"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ShapeError, match="logits"):
        sft_loss(torch.zeros(6, 4, 9), torch.zeros(6, 5, dtype=torch.long), mask)


def test_the_estimators_of_the_loss_are_all_those_of_the_kl_module():
    found = {name[3:]: value for name, value in vars(kl).items() if re.fullmatch(r"kl_k\d+", name)}
    assert losses.KL_ESTIMATORS == found and len(found) >= 3
    assert set(found) == set(get_args(kl.KLEstimator)), "the choices of the options are others"


def test_an_advantage_of_0_is_never_counted_as_clipped():
    """Its gradient is 0 with and without the clip, so no ratio is stopped by it."""
    ratio, mask = torch.tensor([[0.1, 5.0], [0.1, 5.0]]), torch.ones(2, 2, dtype=torch.bool)
    found = clip_fractions(ratio, torch.tensor([0.0, 1.0]), mask)
    assert [found[f"clip_ratio/{k}_mean"].item() for k in ("low", "high", "region")] == [0.0, 0.25, 0.25]
