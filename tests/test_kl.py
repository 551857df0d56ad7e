"""KL estimators and entropies against full sums over a small vocabulary. Numbers: book/identities.md."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mathcheck import close, gradient

from nanogrpo.errors import DTypeError, ShapeError
from nanogrpo.kl import entropy, entropy_proxy, entropy_sampled, kl_exact, kl_k1, kl_k2, kl_k3

V = 6
seeds = st.integers(0, 10**6)
estimators = pytest.mark.parametrize("k", [kl_k1, kl_k2, kl_k3])


def two_policies(seed, spread=1.0):
    """Logits of a policy (with gradient) and of a reference over V tokens, fp64."""
    g = torch.Generator().manual_seed(seed)
    logits, ref = spread * torch.randn(2, V, generator=g, dtype=torch.float64)
    return logits.requires_grad_(), ref


def log_softmaxes(logits, ref):
    return logits.log_softmax(-1), ref.log_softmax(-1)


def expected(values, logp):
    """Expectation over tokens sampled from the policy; the samples themselves have no gradient."""
    return (logp.detach().exp() * values).sum()


def divergence(p, q):
    return (p.exp() * (p - q)).sum()


@given(seed=seeds)
def test_2D_31_k2_and_k3_are_never_negative(seed):
    p, q = log_softmaxes(*two_policies(seed, 3.0))
    assert (kl_k2(p, q) >= 0).all() and (kl_k3(p, q) >= 0).all()


@estimators
def test_2D_31_all_are_zero_where_the_two_agree(k):
    p = torch.linspace(-9, -0.01, 50, dtype=torch.float64)
    assert (k(p, p) == 0).all(), "equal log-probs must give 0"


def test_2D_31_single_values_of_k1_may_be_negative_and_carry_the_sign():
    surer, less_sure = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert kl_k1(surer, less_sure) > 0 > kl_k1(less_sure, surer), (
        "k1 is log p - log ref; its sign is reversed"
    )


def test_2D_31_worked_numbers():
    close(
        kl_k1(torch.tensor([-1.0]), torch.tensor([-2.0])),
        [1.0],
        "k1 is log p - log ref; its sign is reversed",
    )
    close(kl_k2(torch.tensor([-1.0]), torch.tensor([-3.0])), [2.0], "k2 is half the squared gap")
    values = kl_k3(
        torch.tensor([0.0, 0.0], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    )
    mistake = "k3 at log ref - log p = 1, -1 is e - 2, 1/e; its sign is reversed"
    close(values, [math.e - 2, 1 / math.e], mistake, 1e-7)


@pytest.mark.parametrize("k", [kl_k1, kl_k3])
@given(seed=seeds)
def test_2D_32_k1_and_k3_are_unbiased(k, seed):
    p, q = log_softmaxes(*two_policies(seed))
    mistake = f"E[{k.__name__}] is not KL(policy || reference); is its sign reversed?"
    close(expected(k(p, q), p), divergence(p, q), mistake)


def test_2D_32_k2_is_biased_but_close_where_the_two_are():
    p, q = log_softmaxes(*two_policies(0))
    assert abs(expected(kl_k2(p, q), p) / divergence(p, q) - 1) > 0.01, (
        "k2 is biased, this looks like k1 or k3"
    )
    near = log_softmaxes(*two_policies(0, spread=1e-3))
    assert abs(expected(kl_k2(*near), near[0]) / divergence(*near) - 1) < 0.01


def test_2D_32_a_reversed_k3_would_be_chi_square_minus_kl():
    """The mistake of several published codes: still positive, still delta^2 / 2 near 0, and not the KL."""
    p, q = log_softmaxes(*two_policies(1))
    chi_square = ((p.exp() - q.exp()) ** 2 / q.exp()).sum()
    reversed_k3 = torch.expm1(p - q) - (p - q)
    close(expected(reversed_k3, p), chi_square - divergence(p, q), "the reversed k3 has this mean")
    assert abs(expected(kl_k3(p, q), p) - expected(reversed_k3, p)) > 0.1, "k3's sign is reversed"


@pytest.mark.parametrize("k", [kl_k1, kl_k3])
def test_2D_32_the_same_by_sampling(k):
    """The reader's version: 20,000 samples, and the truth within four standard errors (fails 1 in 16,000)."""
    p, q = log_softmaxes(*two_policies(2))
    tokens = torch.multinomial(p.exp().detach(), 20_000, True, generator=torch.Generator().manual_seed(0))
    values = k(p.detach(), q)[tokens]
    error = (values.mean() - divergence(p, q).detach()).abs() / (values.std() / 20_000**0.5)
    assert error < 4, f"{k.__name__} misses the KL by {error:.1f} standard errors"


def kl_gradients(logits, ref):
    """Gradients of KL(policy || reference) and of KL(reference || policy)."""
    p, q = log_softmaxes(logits, ref)
    reverse = gradient(divergence(p, q), logits)
    p, q = log_softmaxes(logits, ref)
    return reverse, gradient(divergence(q, p), logits)


@given(seed=seeds)
def test_2D_33_k1_in_the_loss_has_no_expected_gradient(seed):
    logits, ref = two_policies(seed)
    p, q = log_softmaxes(logits, ref)
    close(gradient(expected(kl_k1(p, q), p), logits), torch.zeros(V), "E grad k1 = E grad log p = 0")


@given(seed=seeds)
def test_2D_33_k2_in_the_loss_follows_the_kl_from_the_policy(seed):
    logits, ref = two_policies(seed)
    p, q = log_softmaxes(logits, ref)
    found = gradient(expected(kl_k2(p, q), p), logits)
    close(found, kl_gradients(logits, ref)[0], "E grad k2 is not grad KL(policy || reference)")


@given(seed=seeds)
def test_2D_33_k3_in_the_loss_follows_the_kl_from_the_reference(seed):
    logits, ref = two_policies(seed)
    p, q = log_softmaxes(logits, ref)
    found = gradient(expected(kl_k3(p, q), p), logits)
    close(found, kl_gradients(logits, ref)[1], "E grad k3 is not grad KL(reference || policy)")


@pytest.mark.parametrize("k", [kl_k1, kl_k3])
@given(seed=seeds)
def test_2D_33_times_the_ratio_k1_and_k3_follow_the_kl_from_the_policy(k, seed):
    logits, ref = two_policies(seed)
    p, q = log_softmaxes(logits, ref)
    ratio = (p - p.detach()).exp()
    found = gradient(expected(ratio * k(p, q), p), logits)
    close(found, kl_gradients(logits, ref)[0], "E grad (ratio * k) is not grad KL(policy || reference)")


@given(seed=seeds)
def test_2D_33_k1_in_the_reward_follows_the_kl_and_k3_does_not(seed):
    logits, ref = two_policies(seed)
    p, q = log_softmaxes(logits, ref)
    found = gradient(expected(kl_k1(p, q).detach() * p, p), logits)
    close(found, kl_gradients(logits, ref)[0], "E k1 grad log p is not grad KL(policy || reference)")
    p, q = log_softmaxes(logits, ref)
    biased = gradient(expected(kl_k3(p, q).detach() * p, p), logits)
    reverse, forward = kl_gradients(logits, ref)
    assert (biased - reverse).abs().max() > 1e-4 and (biased - forward).abs().max() > 1e-4


@estimators
def test_the_reference_gets_no_gradient(k):
    logits, ref = two_policies(3)
    p, q = log_softmaxes(logits, ref.requires_grad_())
    k(p, q).sum().backward()
    assert ref.grad is None, "the reference is not detached"
    kl_exact(logits, ref).backward()
    assert ref.grad is None, "the reference is not detached"


@pytest.mark.parametrize("delta", [1e-4, -1e-4, 1e-3])
def test_2D_34_k3_keeps_its_digits_for_small_gaps_in_float32(delta):
    found = kl_k3(torch.tensor([0.0]), torch.tensor([delta])).item()
    error = abs(found / (delta**2 / 2) - 1)
    assert error < 0.05, f"relative error {error:.0%} at {delta}: use expm1, exp(x) - 1 loses the digits"


@given(seed=seeds)
def test_kl_exact_is_the_sum_over_the_vocabulary(seed):
    logits, ref = two_policies(seed)
    p, q = log_softmaxes(logits, ref)
    close(kl_exact(logits, ref), divergence(p, q), "not sum p (log p - log ref); are the two swapped?")
    found = gradient(kl_exact(logits, ref), logits)
    close(found, kl_gradients(logits, ref)[0], "its gradient is not that of KL(policy || reference)")


@given(seed=seeds, spread=st.floats(0, 20))
def test_2D_35_entropy_lies_between_zero_and_log_V(seed, spread):
    logits, _ = two_policies(seed, spread)
    assert -1e-12 <= entropy(logits) <= math.log(V) + 1e-12


def test_2D_35_entropy_of_known_distributions():
    close(entropy(torch.zeros(65, dtype=torch.float64)), math.log(65), "uniform: log V")
    close(entropy(torch.tensor([200.0, 0.0, 0.0], dtype=torch.float64)), 0.0, "certain: 0")
    half = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    close(entropy(half + 3.0), 1.5 * math.log(2), "1/2, 1/4, 1/4: 1.5 log 2, whatever is added to the logits")


@given(seed=seeds)
def test_2D_35_minus_log_p_is_unbiased_for_the_entropy_and_the_proxy_is_not(seed):
    logits, _ = two_policies(seed)
    p, _ = log_softmaxes(logits, logits)
    close(expected(entropy_sampled(p), p), entropy(logits), "E[-log p] is not the entropy")
    proxy = expected(entropy_proxy(p), p)
    close(proxy, -(p.exp() ** 2 * p).sum(), "the proxy's mean is not -sum p^2 log p")
    assert proxy < entropy(logits), "the proxy is below the entropy"
    assert (entropy_proxy(p) <= 1 / math.e + 1e-12).all()


@given(seed=seeds)
def test_2D_35_minus_log_p_as_a_loss_has_no_expected_gradient(seed):
    logits, _ = two_policies(seed)
    p, _ = log_softmaxes(logits, logits)
    close(gradient(expected(entropy_sampled(p), p), logits), torch.zeros(V), "E grad log p = 0")


def test_the_proxy_rises_while_the_policy_collapses():
    def one_likely(p):
        return torch.tensor([p] + [(1 - p) / 64] * 64, dtype=torch.float64).log()

    before, after = one_likely(1 / 65), one_likely(0.6)
    assert entropy(after) < 0.6 * entropy(before), "true entropy falls from 4.17 to 2.34 nats"
    assert expected(entropy_proxy(after), after) > 3 * expected(entropy_proxy(before), before)


def test_bad_inputs_raise():
    with pytest.raises(ShapeError, match="ref_logprobs"):
        kl_k3(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ShapeError, match="mask"):
        entropy(torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(DTypeError, match="use mask.bool"):
        kl_k1(torch.zeros(2), torch.zeros(2), torch.ones(2))
    with pytest.raises(ShapeError, match="ref_logits"):
        kl_exact(torch.zeros(2, 3), torch.zeros(2, 4))
