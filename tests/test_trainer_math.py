"""The trainer's own update, over every group that can be drawn: what it ascends, exactly.

``test_exact.py`` proves the loss; here the same sums run through ``nanogrpo.step.update``, so a reference
that is not frozen, a shifted target or a wrong denominator in the trainer has nowhere to hide.
"""

from functools import partial
from itertools import product

import pytest
import torch
from mathcheck import Recorder, close
from test_exact import EOS, PAD, PROMPT, T, binary, per_token_kl_gradient, tiny

from nanogrpo import grpo, packed, rollout, step
from nanogrpo.rollout import Rollout
from nanogrpo.teach.exact import Microscope, pad


def test_the_trainer_samples_and_scores_with_the_functions_proven_here():
    """The fast path may stand in for the simple one only while it gives the same numbers."""
    uniforms = rollout.draw_uniforms(60, T, torch.Generator().manual_seed(0), tiny().head.weight)
    arguments = (tiny(), *pad([PROMPT, [2, 0, 2]]))
    options = {"group_size": 30, "max_new_tokens": T, "eos_id": EOS, "pad_id": PAD, "uniforms": uniforms}
    simple, used = rollout.generate(*arguments, **options), step.generate(*arguments, **options)
    same = torch.equal(simple.completion_ids, used.completion_ids)
    same = same and torch.equal(simple.completion_mask, used.completion_mask)
    assert same, "the fast path samples otherwise: is EOS left out of the mask?"
    a = rollout.completion_logits(*arguments, simple.completion_ids)
    b = packed.completion_logits(*arguments, simple.completion_ids)
    mask = simple.completion_mask[..., None]
    close(b.where(mask, 0), a.where(mask, 0), "the fast path's logits differ: a shift by one?", 1e-10)


def expected_update(beta, rewards, **options):
    """Sum of the trainer's gradients over all 15 * 15 pairs, each weighed with its probability."""
    options = {"scale_rewards": "none"} | options
    model, reference = tiny(), tiny(1).requires_grad_(False)
    scope = Microscope(model, [PROMPT], T)
    p, table, recorder, total = (
        scope.probabilities[0].detach(),
        scope.logprobs[0].detach(),
        Recorder(model),
        0.0,
    )
    config = grpo.GRPOConfig(max_new_tokens=T, group_size=2, beta=beta, max_grad_norm=1e9, **options)
    truncated = scope.mask.all(1) & (scope.ids[:, -1] != EOS)
    for i, j in product(range(15), repeat=2):
        pair = [i, j]
        drawn = Rollout(*pad([PROMPT]), scope.ids[pair], scope.mask[pair], table[pair], truncated[pair], 2)
        batch = step.Batch(drawn, rewards[pair][None], {})
        batch, _ = step.add_reference(batch, reference if beta else None, config)
        batch, _ = grpo.compute_advantages(batch, config)
        step.update(batch, partial(grpo.compute_loss, model, config), [recorder], config, "here")
        total = total + p[i] * p[j] * recorder.gradient
    for p in reference.parameters():
        assert p.grad is None, "the reference got a gradient: it is not detached"
    return scope, total


def test_2B_18_the_trainer_ascends_the_mean_reward():
    rewards = binary(Microscope(tiny(), [PROMPT], T))
    scope, found = expected_update(0.0, rewards, aggregation="constant")
    expected = -scope.gradient(scope.objective(rewards)) / 2 / T  # (G-1)/G, and the constant length
    close(found, expected, "the trainer's mean update is not (G-1)/G of the exact gradient")


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_2B_18_the_trainer_s_penalty_descends_the_kl_to_the_reference(beta):
    scope, found = expected_update(beta, torch.zeros(15, dtype=torch.float64), aggregation="constant")
    expected = beta * per_token_kl_gradient(scope, reverse=False) / T
    close(
        found, expected, "the penalty's mean update is not grad KL(reference || policy): sign, or reference?"
    )


ZERO = torch.zeros(15, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["group", "leave_one_out", "none"])
def test_2D_33_k1_in_the_reward_descends_the_kl_of_whole_completions(baseline):
    """Unlike the KL in the loss, it also counts which prefixes the policy visits."""
    options = {"kl_in": "reward", "aggregation": "sequence_sum", "baseline": baseline}
    scope, found = expected_update(0.5, ZERO, **options)
    shrink = 0.5 if baseline == "group" else 1.0  # (G-1)/G: the group's mean contains the completion itself
    whole = Microscope(tiny(), [PROMPT], T, reference=tiny(1))
    expected = 0.5 * shrink * whole.gradient(whole.kl())
    close(found, expected, "k1 in the reward does not descend KL(policy || reference): its sign?", 1e-10)
    assert (found - 0.5 * shrink * per_token_kl_gradient(scope, reverse=True)).norm() > 0.01 * found.norm()


@pytest.mark.slow
def test_2D_33_k3_in_the_reward_does_not():
    _, found = expected_update(
        0.5, ZERO, kl_in="reward", kl_estimator="k3", aggregation="sequence_sum", baseline="none"
    )
    whole = Microscope(tiny(), [PROMPT], T, reference=tiny(1))
    expected = 0.5 * whole.gradient(whole.kl())
    assert (found - expected).norm() > 0.05 * expected.norm()


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_2B_12_reinforce_and_leave_one_out_ascend_the_exact_gradient(baseline):
    rewards = binary(Microscope(tiny(), [PROMPT], T))
    scope, found = expected_update(0.0, rewards, aggregation="sequence_sum", baseline=baseline)
    close(found, -scope.gradient(scope.objective(rewards)), "the mean update is not the policy gradient")


@pytest.mark.slow
def test_the_entropy_bonus_ascends_the_entropy_of_each_token():
    scope, found = expected_update(0.0, ZERO, aggregation="sequence_sum", entropy_coef=0.5)
    logits = rollout.completion_logits(model := tiny(), *pad([PROMPT]), scope.ids)  # (N, T, V)
    p = logits.softmax(-1)
    values = -(p * logits.log_softmax(-1)).sum(-1) * scope.mask  # (N, T)
    scalar = (scope.probabilities[0].detach() * values.sum(1)).sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(model.parameters()))])
    close(found, -0.5 * exact, "the bonus must raise the entropy, by entropy_coef", 1e-10)


def test_the_reference_of_the_trainer_is_a_frozen_copy():
    """With a reference that moves with the policy the KL stays 0 for ever, and restrains nothing."""
    from nanogrpo.tokenizer import CharTokenizer

    torch.manual_seed(0)
    model = tiny().float()
    config = grpo.GRPOConfig(
        max_new_tokens=T, group_size=4, prompts_per_step=4, learning_rate=0.05, max_steps=4, beta=0.01
    )

    def reward(prompts, completions, **columns):
        return [float(completion.endswith("a")) for completion in completions]

    rows = list(grpo.train(model, CharTokenizer("a"), [{"prompt": "a"}] * 4, reward, config))
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6), "at the start policy and reference are the same"
    assert rows[-1]["kl"] > 1e-3, (
        "the KL does not grow: the reference moves with the policy, it is not detached"
    )
