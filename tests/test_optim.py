"""AdamW against PyTorch's, and the clipping of gradients."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogrpo.errors import CheckpointError, NonFiniteError, OptionError
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.optim import NEAR, AdamW, clip_grad_norm


def tiny(seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(5, block_size=6, n_layer=1, n_head=1, n_embd=8)).double()


def test_ten_steps_equal_those_of_torch():
    ours, theirs = tiny(), tiny()
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    others = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    oracle = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    optimizer = AdamW(ours.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    idx = torch.randint(5, (4, 6))
    for _ in range(10):
        for model, opt in ((ours, optimizer), (theirs, oracle)):
            opt.zero_grad()
            model(idx).square().sum().backward()
            opt.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_saved_state_continues_bit_for_bit():
    model = tiny()
    optimizer = AdamW(model.parameters(), lr=1e-2)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.tensor([[1, 2, 3]])).square().sum().backward()
        optimizer.step()

    step(model, optimizer)
    twin = copy.deepcopy(model)
    resumed = AdamW(twin.parameters(), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer)
    step(twin, resumed)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_model_is_refused():
    other = GPT(GPTConfig(5, block_size=6, n_layer=1, n_head=1, n_embd=16))
    with pytest.raises(CheckpointError, match="another shape"):
        AdamW(tiny().parameters(), lr=1.0).load_state_dict(AdamW(other.parameters(), lr=1.0).state_dict())


@pytest.mark.parametrize(("max_norm", "expected"), [(10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])])
def test_clipping_scales_all_gradients_together(max_norm, expected):
    params = [torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)]
    params[0].grad, params[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_grad_norm(params, max_norm, "here") == 5.0
    assert [round(p.grad.item(), 6) for p in params] == expected


def test_a_gradient_that_is_not_finite_is_refused_with_its_place():
    p = torch.zeros(2, requires_grad=True)
    p.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(NonFiniteError, match="norm is nan at GRPO step 7"):
        clip_grad_norm([p], 1.0, "GRPO step 7")


@pytest.mark.parametrize("max_norm", [-1.0, -1e-9, float("nan")])
def test_a_length_below_zero_is_refused_since_it_would_train_backwards(max_norm):
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.tensor([3.0, 4.0])
    with pytest.raises(OptionError, match="max_norm"):
        clip_grad_norm([p], max_norm, "a test")
    assert p.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("max_norm", [0, 0.0, None])
def test_zero_or_none_scales_nothing_and_still_measures(max_norm):
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.tensor([3.0, 4.0])
    assert clip_grad_norm([p], max_norm, "a test") == 5.0
    assert p.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("rate", [1e25, 1e38, 1.7e308])
def test_a_step_to_weights_that_are_not_finite_is_taken_back(rate):
    weight = torch.ones(1, 3, requires_grad=True)
    weight.grad = torch.tensor([[1.0, -2.0, 0.0]])
    optimizer = AdamW([weight], lr=rate, weight_decay=0.1)
    with pytest.raises(NonFiniteError, match="norm would be (inf|nan) after step 7 with learning rate"):
        optimizer.step("step 7")
    assert weight.tolist() == [[1.0, 1.0, 1.0]]


@given(st.lists(st.floats(-18, 12), min_size=1, max_size=40), st.floats(0.5, 0.95), st.floats(0.98, 0.9999))
def test_a_step_moves_the_weights_no_farther_than_its_bound(sizes, beta1, beta2):
    weight = torch.zeros(5, requires_grad=True)
    optimizer = AdamW([weight], lr=0.01, betas=(beta1, beta2))
    signs = torch.tensor([1.0, -1.0, 1.0, 0.5, 0.0])
    for step, size in enumerate(sizes, 1):
        before = weight.detach().clone()
        weight.grad = signs * 10.0**size
        optimizer.step("this step", 1.0)
        reach = optimizer._reach(optimizer.lr / (1 - beta1**step), 1.0)
        assert (weight - before).norm() <= reach * 1.001
        assert weight.norm() <= optimizer.norm * 1.001


def test_weights_that_have_grown_long_are_measured_again():
    weight = torch.zeros(4, requires_grad=True)
    optimizer, seen = AdamW([weight], lr=0.5), []
    for step in range(300):
        weight.grad = torch.full((4,), 1.0 if step % 2 else -1.0)
        optimizer.step("this step", 1.0)
        seen.append(optimizer.norm)
        assert weight.norm() <= optimizer.norm
    assert max(seen) <= NEAR and min(seen[1:]) < 10, "the bound grows, and is brought down by a measurement"


def test_without_the_length_of_its_gradient_a_step_is_looked_at():
    weight = torch.ones(3, requires_grad=True)
    optimizer = AdamW([weight], lr=0.1)
    for gradient in (1.0, float("nan")):
        weight.grad = torch.full((3,), gradient)
        if gradient == 1.0:
            optimizer.step()
    before = weight.detach().clone()
    with pytest.raises(NonFiniteError):
        optimizer.step()
    assert torch.equal(weight, before)
