"""The clip on coins: its weights are the gradient of the package's own loss, and its sums are sums."""

import pytest
import torch

from nanogrpo.advantages import group_advantages
from nanogrpo.kl import entropy
from nanogrpo.losses import clipped_surrogate
from nanogrpo.teach.clipping import CLIPS, CONTROLS, NONE, coin_runs, entropy_change, passes, weights


def logits_of(share, size=4):
    rest = (1 - share) / (size - 1)
    return torch.tensor([share, *[rest] * (size - 1)], dtype=torch.float64).log()


@pytest.mark.parametrize("name", CLIPS)
def test_one_pass_is_a_step_along_the_gradient_of_the_surrogate(name):
    chance, clip = torch.Generator().manual_seed(0), CLIPS[name]
    start = torch.randn(6, 4, generator=chance, dtype=torch.float64)
    drawn = torch.randint(0, 4, (6, 8), generator=chance)
    coins = torch.randint(0, 2, (6, 8), generator=chance).double()
    bounds = (1e9 if bound is None else bound for bound in (clip.low, clip.high))
    bounds = dict(zip(("clip_low", "clip_high"), bounds, strict=True))
    logits, old = start.clone(), start.log_softmax(1).gather(1, drawn)
    for _ in range(4):
        z = logits.clone().requires_grad_()
        ratio = (z.log_softmax(1).gather(1, drawn) - old).exp()
        mask = torch.ones_like(ratio, dtype=torch.bool)
        loss = clipped_surrogate(ratio, group_advantages(coins), mask, **bounds).mean(1).sum()
        logits = logits - 3.0 * torch.autograd.grad(loss, z)[0]
    found, cut = passes(start, drawn, coins, clip, step=3.0)
    assert torch.allclose(found, logits, atol=1e-12)
    assert (cut.max() > 0) == (name != "no clip")


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_takes_as_much_of_each_sign_and_from_all_alike(name):
    chance, clip = torch.Generator().manual_seed(1), CONTROLS[name]
    ratio = torch.rand(5, 8, generator=chance, dtype=torch.float64) * 2
    advantages = torch.randn(5, 8, generator=chance, dtype=torch.float64)
    picked, alike = (weights(ratio, advantages, c) for c in (clip._replace(blind=False), clip))
    assert not torch.allclose(picked, alike)
    for same in (advantages > 0, advantages < 0):
        assert torch.allclose((picked * same).sum(1), (alike * same).sum(1))
        left = (alike / (ratio * advantages)).masked_fill(~same, 0.0)
        assert torch.allclose(left[same], left.max(1, keepdim=True).values.expand_as(left)[same])


def test_the_exact_change_is_the_mean_of_many_runs():
    start = logits_of(0.7)
    for clip in (NONE, CLIPS["clip-high only"]):
        (after, _), *_ = coin_runs(start, clip, seed=0, steps=1, prompts=40_000, group_size=4)
        assert after - entropy(start).item() == pytest.approx(entropy_change(start, clip), abs=0.01)


def test_a_run_is_fixed_by_its_seed():
    first, again, other = (
        list(coin_runs(logits_of(0.6), CLIPS["both"], seed, steps=3)) for seed in (0, 0, 1)
    )
    assert first == again != other
