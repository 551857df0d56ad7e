"""Advantages and GAE. Names carry the number that an identity has in book/identities.md."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mathcheck import close

from nanogrpo.advantages import (
    SCALES,
    baseline_advantages,
    batch_advantages,
    gae,
    global_advantages,
    group_advantages,
    leave_one_out,
    overlong_penalty,
    token_rewards,
    whiten,
)
from nanogrpo.errors import DTypeError, GroupSizeError, MaskError, NonFiniteError, OptionError, ShapeError

GROUP_WISE = {
    "group": lambda r: group_advantages(r, "group", eps=0.0),
    "group, Bessel": lambda r: group_advantages(r, "group", eps=0.0, correction=1),
    "none": lambda r: group_advantages(r, "none"),
    "leave one out": leave_one_out,
}
ALL = GROUP_WISE | {
    "batch": lambda r: group_advantages(r, "batch", eps=0.0),
    "whole batch": lambda r: batch_advantages(r, eps=0.0),
    "global": lambda r: global_advantages(r, eps=0.0),
}
each = pytest.mark.parametrize("name", ALL)
each_group_wise = pytest.mark.parametrize("name", GROUP_WISE)


@st.composite
def rewards(draw, min_groups=1):
    """(P, G) rewards in tenths: many ties, and numbers that float32 cannot write exactly."""
    P, G = draw(st.integers(min_groups, 4)), draw(st.integers(2, 9))
    tenths = draw(st.lists(st.integers(-30, 30), min_size=P * G, max_size=P * G))
    return torch.tensor(tenths, dtype=torch.float64).view(P, G) / 10


def untied(r):
    return r.amax(1) > r.amin(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-8, 1e-9, 1e-4, 0.0])
def test_2A_04_tied_groups_are_bitwise_zero(dtype, eps):
    """In float32 the mean of equal numbers can be off by one rounding, and a tiny eps makes that huge."""
    tenths = torch.arange(-40, 41, dtype=dtype)[:, None] / 10
    for G in (2, 3, 5, 6, 7, 8, 10, 16, 33, 64):
        tied = tenths.expand(-1, G)  # (81, G)
        mixed = torch.cat([tied, torch.arange(G, dtype=dtype)[None]])  # one group that does differ
        found = {
            "group": group_advantages(mixed, eps=eps),
            "Bessel": group_advantages(mixed, eps=eps, correction=1),
            "none": group_advantages(mixed, "none"),
            "batch": group_advantages(mixed, "batch", eps=eps),
            "leave one out": leave_one_out(mixed),
        }
        for name, advantages in found.items():
            worst = advantages[:-1].abs().max().item()
            mistake = "find ties by max == min, not by a small eps"
            assert worst == 0, f"{name}, G={G}: a group of equal rewards got {worst:.2g}; {mistake}"
            assert advantages[-1].abs().max() > 0, f"{name}: the group that differs got nothing"
        for row in tied:
            assert (batch_advantages(row, eps=eps) == 0).all(), "a batch of equal rewards must get exactly 0"


def test_2A_04_a_tied_group_gives_its_completions_no_gradient():
    from nanogrpo.losses import grpo_loss

    logprobs, mask = torch.full((4, 3), -1.0, requires_grad=True), torch.ones(4, 3, dtype=torch.bool)
    advantages = group_advantages(torch.tensor([[0.3, 0.3], [0.0, 1.0]]), eps=1e-8)
    loss, _ = grpo_loss(logprobs, logprobs.detach(), None, advantages.flatten(), mask)
    loss.backward()
    assert (logprobs.grad[:2] == 0).all(), "a group of equal rewards moved the policy"
    assert (logprobs.grad[2:] != 0).all()


@each_group_wise
@given(r=rewards())
def test_2A_01_advantages_of_each_group_sum_to_zero(name, r):
    close(
        ALL[name](r).sum(1), torch.zeros(len(r)), "a group does not sum to 0: mean over the wrong axis", 1e-9
    )


@pytest.mark.parametrize("name", ["batch", "whole batch", "global"])
@given(r=rewards())
def test_2A_01_advantages_of_the_batch_sum_to_zero(name, r):
    close(ALL[name](r).sum(), 0.0, "the batch does not sum to 0", 1e-9)


@pytest.mark.parametrize("name", ["group", "group, Bessel", "batch", "whole batch", "global"])
@given(r=rewards(), a=st.floats(0.25, 8), b=st.floats(-5, 5))
def test_2A_02_z_scores_do_not_see_the_unit_of_the_reward(name, r, a, b):
    if untied(r).all():
        close(ALL[name](a * r + b), ALL[name](r), "a z-score changed with the unit of the reward", 1e-9)
        close(ALL[name](-a * r + b), -ALL[name](r), "a z-score did not flip with the reward's sign", 1e-9)


@pytest.mark.parametrize("a", [0.01, 1.0, 100.0])
def test_2A_02_eps_shrinks_a_z_score_by_a_known_factor(a):
    r = torch.tensor([[0.0, 1.0, 2.0, 5.0]], dtype=torch.float64)
    sigma = a * r.std(correction=0)
    factor = sigma / (sigma + 1e-4)  # 1e-4 is the default
    close(
        group_advantages(a * r),
        factor * group_advantages(r, eps=0.0),
        "not (r - mean) / (population std + 1e-4)",
    )


@pytest.mark.parametrize("name", ["none", "leave one out"])
@given(r=rewards(), a=st.floats(-8, 8), b=st.floats(-5, 5))
def test_2A_03_without_std_advantages_carry_the_unit_of_the_reward(name, r, a, b):
    close(ALL[name](a * r + b), a * ALL[name](r), "A(a r + b) is not a A(r)", 1e-9)


@each_group_wise
@given(r=rewards(min_groups=2), change=st.floats(-3, 3))
def test_2A_05_other_groups_do_not_matter(name, r, change):
    other = torch.cat([r[:1], r[1:] + change * torch.arange(r.shape[1])])
    same = torch.equal(ALL[name](other)[0], ALL[name](r)[0])
    assert same, "a group changed with another group's rewards: mean over the wrong axis"


def test_2A_05_the_whole_batch_z_score_mixes_the_prompts():
    r = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    close(batch_advantages(r, eps=0.0), 2 * r - 1, "tied groups are compared with the other prompt")
    assert (group_advantages(r, eps=0.0) == 0).all(), "with groups they must be compared with themselves"


@each
@given(r=rewards(), seed=st.integers(0, 99))
def test_2A_06_the_order_of_completions_and_prompts_does_not_matter(name, r, seed):
    g = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(r.shape[0], generator=g), torch.randperm(r.shape[1], generator=g)
    shuffled = ALL[name](r[rows][:, columns])
    close(shuffled, ALL[name](r)[rows][:, columns], "advantages depend on the order of the batch", 1e-9)


@given(r=rewards())
def test_2A_07_leave_one_out_is_the_centered_reward_times_G_over_G_minus_1(r):
    G = r.shape[1]
    others = torch.stack([torch.cat([r[:, :i], r[:, i + 1 :]], 1).mean(1) for i in range(G)], 1)
    close(leave_one_out(r), r - others, "the baseline is not the mean of the OTHER rewards")
    close(leave_one_out(r), G / (G - 1) * group_advantages(r, "none"), "not G/(G-1) times centered")


@pytest.mark.parametrize("correction", [0, 1])
@given(r=rewards())
def test_2A_08_z_scores_are_bounded_and_their_squares_sum_to_G(correction, r):
    G = r.shape[1]
    a = group_advantages(r, eps=0.0, correction=correction)[untied(r)]
    std = {0: "population std (divide by G)", 1: "Bessel's std (divide by G-1)"}[correction]
    close((a**2).sum(1), torch.full((len(a),), float(G - correction)), f"this is not {std}", 1e-9)
    assert (a.abs() <= math.sqrt(G - 1) + 1e-9).all(), f"beyond sqrt(G-1): this is not {std}"


@pytest.mark.parametrize(("G", "k"), [(8, 1), (8, 4), (8, 7), (2, 1), (64, 3)])
def test_2A_09_right_or_wrong_rewards_have_a_closed_form(G, k):
    r = (torch.arange(G) < k)[None].double()
    right, wrong = math.sqrt((G - k) / k), -math.sqrt(k / (G - k))
    expected = torch.tensor([right] * k + [wrong] * (G - k), dtype=torch.float64)[None]
    close(group_advantages(r, eps=0.0), expected, "the default is not the population std (divide by G)")
    bessel = math.sqrt((G - 1) / G)
    found = group_advantages(r, eps=0.0, correction=1)
    close(found, bessel * expected, "correction=1 is not Bessel's std (divide by G-1)")


@given(low=st.floats(-9, 9), gap=st.floats(1e-3, 9))
def test_2A_09_a_pair_forgets_how_far_apart_its_rewards_are(low, gap):
    r = torch.tensor([[low + gap, low]], dtype=torch.float64)
    close(group_advantages(r, eps=0.0), torch.tensor([[1.0, -1.0]]), "a pair's z-score is +1, -1", 1e-9)
    gaps = torch.tensor([[gap, -gap]], dtype=torch.float64)
    close(leave_one_out(r), gaps, "without std the gap stays", 1e-9)


def test_the_batch_scale_is_the_group_mean_and_the_batch_std():
    r = torch.tensor([[0.0, 1.0, 2.0], [10.0, 10.0, 13.0]], dtype=torch.float64)
    centered = r - torch.tensor([[1.0], [11.0]])
    for correction in (0, 1):
        expected = centered / (r.std(correction=correction) + 0.5)
        found = group_advantages(r, "batch", eps=0.5, correction=correction)
        close(found, expected, "not (reward - group mean) / batch std")


def test_2A_04_global_advantages_of_tied_groups():
    all_tied = torch.tensor([[0.3, 0.3, 0.3], [1.3, 1.3, 1.3]])
    assert (global_advantages(all_tied, eps=1e-8) == 0).all(), "a batch of tied groups must get exactly 0"
    one = torch.tensor([[0.3, 0.3, 0.3], [1.0, 2.0, 3.0]])
    close(global_advantages(one)[0], 0.0, "the batch mean of centered rewards is 0 up to rounding", 1e-6)


def test_global_advantages_count_a_completion_once_a_token():
    r = torch.tensor([[0.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    lengths = torch.tensor([[1, 4], [2, 3]])
    tokens = (r - r.mean(1, keepdim=True)).flatten().repeat_interleave(lengths.flatten())
    expected = (r - r.mean(1, keepdim=True) - tokens.mean()) / (tokens.std(correction=0) + 1e-4)
    close(global_advantages(r, lengths), expected, "mean and std are not those over the tokens of the batch")


def random_episode(seed, B=3, T=6):
    g = torch.Generator().manual_seed(seed)
    r, v = torch.randn(2, B, T, generator=g, dtype=torch.float64)
    return r, v, torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g)


def deltas(r, v, mask, gamma):
    """One-step errors, with the value after the last token written out as zero."""
    r, v = r * mask, v * mask
    following = torch.cat([v[:, 1:], torch.zeros_like(v[:, :1])], 1)
    return (r + gamma * following - v) * mask


@given(seed=st.integers(0, 10**6), gamma=st.floats(0, 1))
def test_2A_10_gae_with_lambda_0_is_the_one_step_error(seed, gamma):
    r, v, mask = random_episode(seed)
    mistake = "lambda=0 is not r + gamma V' - V; V' after the last token must be 0 (the 1 - done)"
    close(gae(r, v, mask, gamma, 0.0)[0], deltas(r, v, mask, gamma), mistake)


@given(seed=st.integers(0, 10**6), gamma=st.floats(0, 1))
def test_2A_10_gae_with_lambda_1_is_the_discounted_return_less_the_value(seed, gamma):
    r, v, mask = random_episode(seed)
    B, T = r.shape
    expected = torch.zeros(B, T, dtype=torch.float64)
    for i in range(B):
        for t in range(int(mask[i].sum())):
            expected[i, t] = sum(gamma ** (s - t) * r[i, s] for s in range(t, int(mask[i].sum()))) - v[i, t]
    mistake = "lambda=1 is not return - V: is V taken after the last token (the 1 - done dropped)?"
    close(gae(r, v, mask, gamma, 1.0)[0], expected, mistake)


@given(seed=st.integers(0, 10**6), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_2A_10_gae_is_the_double_sum_of_its_definition(seed, gamma, lam):
    r, v, mask = random_episode(seed)
    delta = deltas(r, v, mask, gamma)
    T = r.shape[1]
    weights = [[(gamma * lam) ** (s - t) if s >= t else 0.0 for s in range(T)] for t in range(T)]
    weights = torch.tensor(weights, dtype=torch.float64)
    advantages, returns = gae(r, v, mask, gamma, lam)
    close(advantages, torch.where(mask, delta @ weights.T, 0.0), "not the sum of (gamma lambda)^l delta")
    close(returns, torch.where(mask, advantages + v, 0.0), "returns are not advantages + values")


def test_2A_10_gae_without_a_critic_discounts_a_final_reward():
    r = torch.tensor([[0.0, 0.0, 0.0, 2.0]], dtype=torch.float64)
    advantages, _ = gae(r, torch.zeros_like(r), torch.ones_like(r, dtype=torch.bool), 0.9, 0.8)
    expected = 2 * (0.9 * 0.8) ** torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    close(advantages, expected, "with V=0 a final reward r is worth (gamma lambda)^(T-1-t) r")


@given(seed=st.integers(0, 10**6), junk=st.sampled_from([math.nan, math.inf, -math.inf, 7.0]))
def test_2A_11_what_stands_after_the_end_changes_nothing(seed, junk):
    r, v, mask = random_episode(seed)
    expected = gae(r * mask, v * mask, mask, 0.9, 0.7)
    found = gae(torch.where(mask, r, junk), torch.where(mask, v, junk), mask, 0.9, 0.7)
    for name, a, b in zip(("advantages", "returns"), found, expected, strict=True):
        close(a, b, f"{name} read a value after the end of the completion (the 1 - done dropped)", 0)
        assert (a[~mask] == 0).all(), f"{name} are not 0 where masked"


def test_gae_gives_no_gradient_to_the_critic():
    r, v, mask = random_episode(0)
    advantages, returns = gae(r, v.requires_grad_(), mask)
    assert not advantages.requires_grad and not returns.requires_grad, "targets must be constants"


@given(seed=st.integers(0, 10**6), beta=st.floats(0, 1))
def test_token_rewards_place_the_score_on_the_last_token_and_charge_kl_for_each(seed, beta):
    kl, _, mask = random_episode(seed)
    scores = torch.arange(1.0, 4.0, dtype=torch.float64)
    found = token_rewards(scores, mask, torch.where(mask, kl, math.nan), beta)
    close(found.sum(1), scores - beta * (kl * mask).sum(1), "the row does not sum to score - beta * KL")
    last = mask.sum(1) - 1
    close((found + beta * kl * mask)[range(3), last], scores, "the score is not on the last token")
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("function", [group_advantages, leave_one_out, global_advantages])
def test_bad_rewards_raise_and_the_message_names_the_place(function):
    with pytest.raises(GroupSizeError, match="group size is 1"):
        function(torch.zeros(4, 1))
    with pytest.raises(ShapeError, match=r"\(4,\), expected \(P, G\)"):
        function(torch.zeros(4))
    with pytest.raises(DTypeError, match="int64"):
        function(torch.zeros(2, 2, dtype=torch.long))
    for bad in (math.nan, math.inf, -math.inf):
        r = torch.zeros(2, 3)
        r[1, 2] = bad
        with pytest.raises(NonFiniteError, match=rf"\(1, 2\) is {bad}"):
            function(r)


def test_bad_options_and_masks_raise():
    with pytest.raises(OptionError, match="scale_rewards='std' is unknown; choose one of 'group'"):
        group_advantages(torch.zeros(2, 2), "std")
    with pytest.raises(GroupSizeError, match="1 reward"):
        batch_advantages(torch.zeros(1))
    with pytest.raises(NonFiniteError):
        batch_advantages(torch.tensor([0.0, math.nan]))
    with pytest.raises(ShapeError, match="lengths"):
        global_advantages(torch.zeros(2, 2), torch.zeros(2))
    ok = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(DTypeError, match="torch.bool"):
        gae(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3))
    with pytest.raises(ShapeError, match="values"):
        gae(torch.zeros(1, 3), torch.zeros(1, 2), ok)
    with pytest.raises(MaskError, match="row 0, column 2"):
        gae(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([[True, False, True]]))
    with pytest.raises(MaskError, match="completion 1 has no token"):
        token_rewards(torch.zeros(2), torch.tensor([[True], [False]]))
    with pytest.raises(ShapeError, match="scores"):
        token_rewards(torch.zeros(2), ok)


# The ladder of baselines, and the fine for length


LADDER = torch.tensor([[1.0, 0.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("baseline", "scale", "first", "tied"),
    [
        ("none", "none", [1, 0, 0, 2], 1),
        ("batch", "none", [0.125, -0.875, -0.875, 1.125], 0.125),
        ("leave_one_out", "none", [1 / 3, -1, -1, 5 / 3], 0),
        ("group", "none", [0.25, -0.75, -0.75, 1.25], 0),
        ("group", "group", [r / 0.6875**0.5 for r in (0.25, -0.75, -0.75, 1.25)], 0),
        ("none", "batch", [1 / 0.359375**0.5, 0, 0, 2 / 0.359375**0.5], 1 / 0.359375**0.5),
        ("group", "batch", [r / 0.359375**0.5 for r in (0.25, -0.75, -0.75, 1.25)], 0),
    ],
)
def test_each_rung_of_the_ladder_by_hand(baseline, scale, first, tied):
    expected = torch.tensor([first, [tied] * 4], dtype=torch.float64)
    close(baseline_advantages(LADDER, baseline, scale, eps=0.0), expected, "another baseline or scale")


@given(rewards(min_groups=2))
def test_the_ladder_agrees_with_the_functions_that_are_named_after_their_methods(r):
    assert torch.equal(baseline_advantages(r), group_advantages(r)), "the default is not GRPO's, to the bit"
    close(baseline_advantages(r, "leave_one_out", "none"), leave_one_out(r), "not RLOO")
    close(baseline_advantages(r, "batch", "batch"), batch_advantages(r), "not the z-score of the batch")
    assert torch.equal(baseline_advantages(r, "none", "none"), r), "REINFORCE has no baseline"
    same = torch.full_like(r, 0.3)
    assert (baseline_advantages(same, "batch", "batch") == 0).all(), "equal rewards teach nothing, exactly"


def test_what_a_ladder_cannot_have_is_an_error():
    for baseline in ("none", "batch"):
        with pytest.raises(OptionError, match="divides groups of equal rewards by eps alone"):
            baseline_advantages(LADDER, baseline, "group")
    with pytest.raises(OptionError, match="baseline='mean' is unknown; choose one of 'group'"):
        baseline_advantages(LADDER, "mean")
    with pytest.raises(OptionError, match="scale_rewards='std' is unknown"):
        baseline_advantages(LADDER, "none", "std")


def test_overlong_completions_are_fined_as_in_DAPO():
    lengths = torch.tensor([1, 80, 85, 90, 100, 120])
    close(overlong_penalty(lengths, 100, 20), [0, 0, -0.25, -0.5, -1, -1], "Eq. 13 of DAPO")
    close(overlong_penalty(torch.tensor([3, 4]), 4, 1), [0, -1], "a buffer of one token is a step")
    for buffer in (0, 101):
        with pytest.raises(OptionError, match=f"buffer of {buffer} tokens"):
            overlong_penalty(lengths, 100, buffer)


# Whitening


def test_whitened_advantages_of_the_unmasked_tokens_have_mean_0_and_std_1():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([[1.0, 2.0, 3.0], [6.0, math.nan, 1e9]], dtype=torch.float64)
    std = 3.5**0.5  # of 1, 2, 3, 6, whose mean is 3
    expected = torch.tensor([[-2 / std, -1 / std, 0], [3 / std, 0, 0]], dtype=torch.float64)
    close(whiten(advantages, mask, eps=0.0), expected, "not the mean and population std over unmasked tokens")
    close(whiten(advantages, mask, eps=1.0), expected * std / (std + 1), "eps is added to the std")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_2A_04_equal_advantages_whiten_to_exactly_zero(dtype):
    mask = torch.arange(7) < torch.tensor([[7], [3], [1]])
    for tenths in range(-40, 41):
        equal = torch.full((3, 7), tenths / 10, dtype=dtype)
        assert (whiten(equal, mask, eps=1e-9) == 0).all(), f"{tenths / 10} in {dtype}"


def test_whitening_needs_a_token_and_a_mask_of_the_same_shape():
    with pytest.raises(MaskError, match="no unmasked token to whiten"):
        whiten(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ShapeError, match="advantages has shape"):
        whiten(torch.ones(1, 3), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(DTypeError, match="mask is torch.int64"):
        whiten(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.long))


@pytest.mark.parametrize("scale_rewards", SCALES)
@pytest.mark.parametrize("size", [1e30, 3e38])
def test_rewards_whose_spread_overflows_do_not_become_advantages_of_zero(scale_rewards, size):
    rewards = torch.tensor([[0.0, size], [size, 0.5 * size]])
    try:
        got = baseline_advantages(rewards, "group", scale_rewards)
    except NonFiniteError as error:
        assert "float64" in str(error)
    else:
        assert got.isfinite().all() and (got != 0).all()
    wide = baseline_advantages(rewards.double(), "group", scale_rewards)
    assert wide.isfinite().all() and (wide != 0).all()


@pytest.mark.parametrize("discounts", [{"gamma": 2.0}, {"gamma": -0.1}, {"lam": 1.5}, {"lam": float("nan")}])
def test_a_discount_that_is_none_is_refused(discounts):
    with pytest.raises(OptionError, match="from 0 to 1"):
        gae(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), **discounts)
