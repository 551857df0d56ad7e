"""Worked numbers for the mistakes that were seen in the wild in codes of the variants."""

import pytest
import torch
from mathcheck import close

from nanogrpo.advantages import global_advantages
from nanogrpo.losses import cispo_surrogate, clipped_surrogate, grpo_loss, importance_ratio
from nanogrpo.offpolicy import sampler_weights


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_gspo_s_ratio_is_the_same_for_an_answer_that_is_twice_as_long():
    mask = torch.tensor([[True] * 2 + [False] * 2, [True] * 4])
    new, old = row(1.1, 1.2, 9.0, 9.0).log().repeat(2, 1), torch.zeros(2, 4, dtype=torch.float64)
    new[1, 2:] = row(1.1, 1.2).log()
    found = importance_ratio(new, old, mask, "sequence")[:, 0]
    close(found, [(1.1 * 1.2) ** 0.5] * 2, "not the geometric mean of the tokens' ratios")


def test_cispo_s_gradient_is_that_of_the_log_prob_with_a_weight_that_is_bounded():
    old = row(0.1, 0.2, 0.2).log()
    new = row(0.3, 0.2, 0.1).log().requires_grad_()
    mask, A = torch.ones(1, 3, dtype=torch.bool), torch.tensor([2.0], dtype=torch.float64)
    loss = cispo_surrogate((new - old).exp(), new, A, mask, 1.0, 0.5).sum()
    slope = torch.autograd.grad(loss, new)[0]
    close(slope, [[-3.0, -2.0, -1.0]], "CISPO's gradient reaches every token, the first with weight 1.5")


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.5])
def test_dual_clip_is_for_negative_advantages(ratio):
    mask, A = torch.ones(2, 1, dtype=torch.bool), torch.tensor([1.0, -1.0], dtype=torch.float64)
    r = torch.full((2, 1), ratio, dtype=torch.float64)
    plain, dual = clipped_surrogate(r, A, mask), clipped_surrogate(r, A, mask, delta=3.0)
    close(dual, plain, "A > 0 knows no delta, and below delta A < 0 does not either")
    far = clipped_surrogate(2 + r, A, mask, delta=2.0)
    close(far, [[-1.2], [2.0]], "beyond delta A < 0 costs delta, and no more")


def test_the_corrected_kl_has_the_gradient_of_the_reverse_kl():
    logits, ref = row(0.3, -0.8, 0.1)[0].requires_grad_(), row(-0.5, 0.4, 0.6)[0].log_softmax(0)
    lp, mask = logits.log_softmax(0), torch.ones(3, 1, dtype=torch.bool)
    p, zero = lp.exp().detach(), torch.zeros(3, dtype=torch.float64)
    total = 0.0
    for i in range(3):  # the expectation over the three tokens
        batch = (lp[i : i + 1, None], lp[i : i + 1, None].detach(), ref[i : i + 1, None], zero[:1], mask[:1])
        total = total + p[i] * grpo_loss(*batch, beta=1.0, use_bias_correction_kl=True)[0]
    found = torch.autograd.grad(total, logits, retain_graph=True)[0]
    exact = torch.autograd.grad((lp.exp() * (lp - ref)).sum(), logits)[0]
    close(found, exact, "not the gradient of the reverse KL")


def test_the_sampler_s_weight_of_a_completion_has_mean_1_over_its_samples():
    """Two tokens of two kinds each: the sum of mu(y) w(y) over the four completions is that of pi(y)."""
    p, mu = torch.tensor([0.7, 0.3]).double(), torch.tensor([0.4, 0.6]).double()
    mask, total = torch.ones(1, 2, dtype=torch.bool), 0.0
    for i in (0, 1):
        for j in (0, 1):
            w = sampler_weights(
                row(p[i], p[j]).log(), row(mu[i], mu[j]).log(), mask, "sequence", "truncate", None
            )
            close(w[0, 0], (p[i] / mu[i] * p[j] / mu[j]), "the weight of a completion is a product")
            total += mu[i] * mu[j] * w[0, 0]
    close(total, 1.0, "its mean over the sampler's own samples is not 1")


def test_a_group_of_four_times_the_spread_has_four_times_the_advantages():
    r = torch.tensor([[1.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    root = ((0.5**2 + 2**2) / 2) ** 0.5
    expected = torch.tensor([[0.5, -0.5], [2.0, -2.0]], dtype=torch.float64) / root
    close(global_advantages(r, eps=0.0), expected, "not one deviation, that of the batch")
