"""What a function of the mathematics is told, and cannot mean anything: an error, and no number."""

import math

import pytest
import torch

from nanogrpo import advantages, losses, offpolicy, selection, surrogates
from nanogrpo.errors import MaskError, NonFiniteError, OptionError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.losses import Denominators

M, Z, A = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3), torch.tensor([1.0, -1.0])
R = torch.tensor([[1.0, 0.0], [0.5, 0.2]])


def lost(**options):
    return losses.grpo_loss(Z, Z, Z, A, M, **options)


def drawn(*options):
    return selection.clip_cov(Z, M, torch.Generator(), *options)


REFUSED = {  # what was taken in silence, or ended in an error of Python's own
    "price of KL below 0": lambda: lost(beta=-0.1),
    "price of KL NaN": lambda: lost(beta=math.nan),
    "option of another surrogate": lambda: lost(sapo_temperature_pos=2.0),
    "length below 0 turns the gradient": lambda: losses.aggregate(Z, M, "constant", Denominators.of(M, -4)),
    "fewer tokens than there are": lambda: losses.aggregate(Z, M, "token_mean", Denominators(2, 1)),
    "range of values below 0": lambda: losses.value_loss(Z, Z, M, Z, -0.2),
    "range of values NaN": lambda: losses.value_loss(Z, Z, M, Z, math.nan),
    "vespo's power NaN": lambda: surrogates.vespo_surrogate(Z + 1, Z, A, M, math.nan),
    "vespo's lambda NaN": lambda: surrogates.vespo_surrogate(Z + 1, Z, A, M, vespo_lambda_neg=math.nan),
    "a divergence that is none": lambda: surrogates.dppo_surrogate(Z + 1, Z - 1, A, M, divergence="TV"),
    "threshold NaN": lambda: offpolicy.off_policy_mask(Z, Z, A, M, math.nan),
    "share NaN": lambda: drawn(math.nan),
    "share below 0": lambda: drawn(-0.1),
    "share above 1": lambda: selection.kl_cov(Z, M, 2.0),
    "share of KL-Cov NaN": lambda: selection.kl_cov(Z, M, math.nan),
    "bounds of a covariance that are crossed": lambda: drawn(0.5, 5.0, 1.0),
    "a bound of a covariance that is NaN": lambda: drawn(0.5, math.nan),
    "crossed bounds in a config": lambda: GRPOConfig(max_new_tokens=3, clip_cov_lb=9.0),
    "a step of the price backwards": lambda: selection.next_entropy_coef(0.1, 0.1, entropy_coef_delta=-1.0),
    "eps below 0 turns the advantages": lambda: advantages.group_advantages(R, eps=-1.0),
    "eps NaN": lambda: advantages.group_advantages(R, eps=math.nan),
    "eps of whitening": lambda: advantages.whiten(Z, M, eps=-1.0),
    "a correction that is none": lambda: advantages.group_advantages(R, correction=2),
    "lengths below 0": lambda: advantages.baseline_advantages(R, "length", "none", lengths=-R),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_out_of_its_range_is_refused(name):
    with pytest.raises(OptionError):
        REFUSED[name]()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_chosen_by_size_is_not_chosen_among_numbers_that_have_none(broken):
    for call in (
        lambda: selection.top_entropy(Z + broken, M),
        lambda: selection.covariance(Z - broken, A, M),
        lambda: selection.next_entropy_coef(0.1, broken),
    ):
        with pytest.raises(NonFiniteError):
            call()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("surrogate", losses.SURROGATES)
def test_an_advantage_that_is_no_number_is_refused_where_it_counts_and_harmless_where_it_does_not(
    surrogate, broken
):
    logprobs, mask = (Z - 1).requires_grad_(), torch.tensor([[True, True, False], [False, False, False]])
    with pytest.raises(NonFiniteError, match="advantage"):
        losses.grpo_loss(logprobs, Z - 1, None, torch.tensor([broken, 0.0]), mask, surrogate=surrogate)
    per_token = torch.tensor([[1.0, -1.0, broken], [broken] * 3])
    for harmless in (torch.tensor([1.0, broken]), per_token):
        loss, _ = losses.grpo_loss(logprobs, Z - 1, None, harmless, mask, surrogate=surrogate)
        (grad,) = torch.autograd.grad(loss, logprobs)
        assert loss.isfinite() and grad.isfinite().all()


def test_nothing_is_selected_among_no_tokens():
    for select in (lambda: selection.kl_cov(Z, ~M), lambda: selection.clip_cov(Z, ~M, torch.Generator())):
        with pytest.raises(MaskError, match="no unmasked token"):
            select()
