"""The checks: right answers pass however written, usual wrong ones are named, and none can be frozen."""

import copy
import importlib
import inspect
import math
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from labs.solutions import solutions

from nanogrpo import advantages, kl, losses, offpolicy, rollout
from nanogrpo.advantages import group_advantages
from nanogrpo.errors import OptionError
from nanogrpo.losses import clipped_surrogate, value_loss
from nanogrpo.rollout import completion_mask, logprobs_of, sample_token
from nanogrpo.tasks import Addition
from nanogrpo.teach import check, museum
from nanogrpo.teach.check import CheckFailed
from nanogrpo.teach.checks.compare import compare
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import register

grpo_loss = partial(losses.grpo_loss, aggregation="sequence_mean")  # of the paper, which the labs ask for
CHECKS = [name for name in check.__all__ if name.startswith("check_")]


def pick(values, ids):
    return values.gather(2, ids[..., None])[..., 0]


def loop_token_logprobs(model, prompts, lens, ids):
    rows = []
    for i, row in enumerate(ids):
        p = i // (len(ids) // len(prompts))
        text = [*prompts[p, : lens[p]].tolist(), *row.tolist()]
        logprobs = torch.log_softmax(model(torch.tensor([text]))[0], -1)
        rows.append(torch.stack([logprobs[int(lens[p]) + t - 1, row[t]] for t in range(len(row))]))
    return torch.stack(rows)


def loop_sample_token(logits, uniforms, temperature):
    tokens = []
    for row, u in zip(torch.softmax(logits / temperature, -1).tolist(), uniforms.tolist(), strict=True):
        sums = [sum(row[: j + 1]) for j in range(len(row) - 1)]
        tokens.append(sum(total < u for total in sums))
    tokens = torch.tensor(tokens)
    return tokens, logprobs_of(logits, tokens, temperature)


def multinomial(logits, uniforms, temperature):
    logprobs = torch.log_softmax(logits / temperature, -1)
    tokens = torch.multinomial(logprobs.exp(), 1, generator=torch.Generator().manual_seed(1))
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)


def loop_mask(ids, eos):
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(ids.tolist()):
        end = row.index(eos) if eos in row else len(row) - 1
        mask[i, : end + 1] = True
    return mask


def loop_group(rewards, eps=1e-6):
    rows = []
    for row in rewards.tolist():
        mean = sum(row) / len(row)
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / len(row))
        rows.append([(r - mean) / (std + eps) for r in row])
    return torch.tensor(rows)


def loop_loo(rewards):
    rows = rewards.tolist()
    return torch.tensor([[r - (sum(row) - r) / (len(row) - 1) for r in row] for row in rows])


def double_sum_gae(rewards, values, mask, gamma, lam):
    A = torch.zeros_like(values)
    for i in range(len(values)):
        n = int(mask[i].sum())
        v = [*values[i, :n].tolist(), 0.0]
        deltas = [rewards[i, t].item() + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            A[i, t] = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n))
    return A, A + values.masked_fill(~mask, 0)


def loop_token_rewards(scores, mask, kl_, beta):
    out = -beta * kl_.masked_fill(~mask, 0)
    for i in range(len(scores)):
        out[i, int(mask[i].sum()) - 1] += scores[i]
    return out


def where_surrogate(r, A, mask, low, high):
    A = A.detach().unsqueeze(1)
    up, down = torch.where(r > 1 + high, 1 + high, r), torch.where(r < 1 - low, 1 - low, r)
    return (-torch.where(A > 0, up, down) * A).masked_fill(~mask, 0)


def loop_sequence_mean(x, mask):
    means = [row[keep].mean() for row, keep in zip(x, mask, strict=True)]
    return sum(means) / len(means)


def loop_aggregate(x, mask, how, n):
    total = 0.0
    for row, keep in zip(x, mask, strict=True):
        weight = {
            "sequence_mean": 1 / (n.num_sequences * keep.sum()),
            "token_mean": 1 / n.num_tokens,
            "constant": 1 / (n.num_sequences * (n.max_length or 1)),
            "sequence_sum": 1 / n.num_sequences,
        }[how]
        total = total + row[keep].sum() * weight
    return total


def loop_grpo(logprobs, old, ref, A, mask, beta=0.0):
    total = 0.0
    for i in range(len(A)):
        tokens = []
        for t in range(logprobs.shape[1]):
            if mask[i, t]:
                r, d = (logprobs[i, t] - old[i, t]).exp(), ref[i, t].detach() - logprobs[i, t]
                tokens.append(-torch.min(r * A[i], r.clamp(0.8, 1.2) * A[i]) + beta * (d.exp() - 1 - d))
        total = total + sum(tokens) / len(tokens)
    return total / len(A)


def bce(chosen, rejected):
    return F.binary_cross_entropy_with_logits(chosen - rejected, torch.ones_like(chosen), reduction="none")


def loop_value_loss(v, r, mask, old, c):
    r, old = r.detach(), old.detach()
    near = torch.minimum(torch.maximum(v, old - c), old + c)
    far = torch.where((v - r).abs() > (near - r).abs(), v - r, near - r)
    return far.masked_fill(~mask, 0) ** 2 / 2


def kl_div(logits, ref):
    p, q = (F.log_softmax(x, -1) for x in (logits, ref))
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def multiplied_ratio(new, old, mask):
    return ((new - old.detach()) * mask).exp()


# Right answers, written otherwise than the package writes them.
def judged_in_a_loop(reward_fn, rows, completions):
    each, values = len(completions) // len(rows), []
    for row, part in zip(rows, zip(*[iter(completions)] * each, strict=True), strict=True):
        columns = {key: [value] * each for key, value in row.items() if key != "prompt"}
        values += reward_fn(prompts=[row["prompt"]] * each, completions=list(part), **columns)
    return torch.tensor([float(value) for value in values])  # which refuses None


def weighed_in_a_loop(functions, weights, rows, completions):
    found = [judged_in_a_loop(f, rows, completions).view(len(rows), -1) for f in functions]
    total = sum(w * part for w, part in zip(weights, found, strict=True))
    return total, {f.__name__: part for f, part in zip(functions, found, strict=True)}


def oldest_of_the_last(model, config, state):
    state.past = [*state.past, copy.deepcopy(model)][-config.sampler_lag - 1 :]
    return state.past[0]


def looped_ratio(p, q, mask, level):
    rows = [(a - b)[m] for a, b, m in zip(p, q, mask, strict=True)]
    found = torch.ones_like(p)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row.exp() if level == "token" else row.mean().exp()
    return found


def where_dual(r, A, mask, low, high, delta):
    loss = torch.maximum(-r * A[:, None], -r.clamp(1 - low, 1 + high) * A[:, None])
    return loss if delta is None else torch.where(A[:, None] < 0, loss.minimum(-delta * A[:, None]), loss)


def loop_corrected(p, q, ref, A, mask, beta, use_bias_correction_kl=False):
    """One token of the loss with k3, by hand."""
    d, ratio = ref - p, (p - q).exp()
    k3 = d.exp() - 1 - d
    return (beta * (k3 * ratio if use_bias_correction_kl else k3) - ratio * A).mean()


def looped_weights(p, mu, mask, level, rule, high, low=None):
    found = torch.zeros_like(p)
    for i, row in enumerate(mask):
        one = (p - mu)[i, row].exp()
        one = one if level == "token" else one.prod().repeat(len(one))
        if high is not None:
            one = one * ((one >= low) & (one <= high))
        found[i, : len(one)] = one
    return found


RIGHT = [
    ("check_token_logprobs", loop_token_logprobs),
    ("check_logprobs_of", lambda x, ids, T: -F.cross_entropy((x / T).mT, ids, reduction="none")),
    (
        "check_logprobs_of",
        lambda x, ids, T: ((x / T).gather(2, ids[..., None]) - (x / T).logsumexp(2, True))[..., 0],
    ),
    ("check_sample_token", loop_sample_token),
    ("check_completion_mask", loop_mask),
    ("check_completion_mask", lambda ids, eos: F.pad((ids == eos).long().cumsum(1)[:, :-1], (1, 0)) == 0),
    ("check_group_advantages", loop_group),
    ("check_group_advantages", lambda r: ((r.T - r.mean(1)) / (r.var(1, correction=0).sqrt() + 1e-4)).T),
    ("check_tied_groups", lambda r: group_advantages(r.double())),
    ("check_small_spread", lambda r: (r - r.mean(1, True)) / (r.var(1, False, keepdim=True).sqrt() + 1e-4)),
    ("check_leave_one_out", loop_loo),
    ("check_leave_one_out", lambda r: (r - r.mean(1, keepdim=True)) * r.shape[1] / (r.shape[1] - 1)),
    ("check_gae", double_sum_gae),
    ("check_token_rewards", loop_token_rewards),
    ("check_kl_k1", lambda p, q: p - q),
    ("check_kl_k2", lambda p, q: (p - q).square() / 2),
    ("check_kl_k3", lambda p, q: (q - p).exp() - 1 + p - q),
    ("check_kl_k3_precision", lambda p, q: torch.expm1(q - p) + (p - q)),
    ("check_kl_exact", kl_div),
    ("check_entropy", lambda x: torch.distributions.Categorical(logits=x).entropy()),
    ("check_entropy_sampled", lambda p: -p),
    ("check_importance_ratio", multiplied_ratio),
    ("check_importance_ratio", lambda p, q, mask: p.exp() / q.detach().exp()),
    ("check_mask_before_exp", lambda p, q, mask: (p - q).masked_fill(~mask, 0).exp()),
    ("check_clipped_surrogate", where_surrogate),
    ("check_token_mean", lambda x, mask: x[mask].mean()),
    ("check_token_mean", lambda x, mask: (x * mask).sum() / mask.sum()),
    ("check_sequence_mean", loop_sequence_mean),
    ("check_sequence_mean", lambda x, mask: ((x * mask).sum(1) / mask.sum(1)).mean()),
    ("check_constant_mean", lambda x, mask, L: (x * mask).sum(1).mean() / L),
    ("check_microbatches", loop_aggregate),
    ("check_kl_penalty", loop_grpo),
    ("check_grpo_loss", loop_grpo),
    ("check_value_loss", loop_value_loss),
    ("check_bradley_terry", bce),
    ("check_bradley_terry", lambda c, r: F.softplus(r - c)),
    ("check_reward_pooling", lambda x, lens: x[torch.arange(len(x)), lens - 1]),
    (
        "check_reward_pooling",
        lambda x, lens: torch.stack([row[n - 1] for row, n in zip(x, lens, strict=True)]),
    ),
    ("check_reward_columns", judged_in_a_loop),
    ("check_unreadable_reward", judged_in_a_loop),
    ("check_reward_weights", weighed_in_a_loop),
    ("check_task", lambda digits, held_out: Addition(digits, held_out)),
    ("check_sampling_model", oldest_of_the_last),
    ("check_sft_loss", lambda x, y, m: -pick(torch.log_softmax(x, 2), y) * m),
    ("check_sequence_ratio", looped_ratio),
    ("check_cispo", lambda r, p, A, m, lo, hi: -r.detach().clamp(1 - lo, 1 + hi) * A[:, None] * p * m),
    ("check_dual_clip", where_dual),
    ("check_unbiased_kl", loop_corrected),
    ("check_sampler_weights", looped_weights),
    (
        "check_global_advantages",
        lambda r: (r - r.mean(1, True)) / (r - r.mean(1, True)).var(correction=0).sqrt(),
    ),
]


@pytest.mark.parametrize("name, answer", RIGHT, ids=[f"{name}-{i}" for i, (name, _) in enumerate(RIGHT)])
def test_right_answers_pass_however_they_are_written(name, answer):
    for seed in (0, 50, None):
        getattr(check, name)(answer, seed)


def unmasked_gae(rewards, values, mask, gamma, lam):
    return advantages.gae(rewards, values, torch.ones_like(mask), gamma, lam)


class Short(Addition):
    max_new_tokens = 2


def shifted_sft(x, y, mask):
    return losses.sft_loss(x, y.roll(1, 1), mask)


# Wrong answers, beside the pieces of the museum, and what the check must say of them.
WRONG = [
    ("check_sequence_ratio", lambda p, q, m, level: looped_ratio(p, q, m, "token"), "still has its own"),
    (
        "check_sequence_ratio",
        lambda p, q, m, level: (
            (torch.where(m, p - q, 0.0).mean(1, True) + 0 * p).exp()
            if level == "sequence"
            else looped_ratio(p, q, m, level)
        ),
        "padded length",
    ),
    (
        "check_cispo",
        lambda r, p, A, m, lo, hi: -r.clamp(1 - lo, 1 + hi) * A[:, None] * p * m,
        "also runs through the weight",
    ),
    ("check_cispo", lambda r, p, A, m, lo, hi: -r.detach() * A[:, None] * p * m, "no upper bound"),
    ("check_dual_clip", lambda r, A, m, lo, hi, delta: where_dual(r, A, m, lo, hi, None), "bounds nothing"),
    (
        "check_unbiased_kl",
        lambda p, q, ref, A, m, beta, use_bias_correction_kl=False: loop_corrected(
            p, q, ref, A, m, beta * (1 + use_bias_correction_kl)
        ),
        "with the correction",
    ),
    ("check_global_advantages", group_advantages, "the group's deviation"),
    ("check_global_advantages", lambda r: r - r.mean(1, keepdim=True), "do not divide"),
    ("check_sampler_weights", lambda p, mu, *a: looped_weights(mu, p, *a), "upside down"),
    (
        "check_sampler_weights",
        lambda p, mu, m, level, *a: (
            offpolicy.sampler_weights(p, mu, m, level, "truncate", *a[1:])
        ),
        "moved to them",
    ),
    ("check_reward_columns", lambda f, rows, texts: judged_in_a_loop(f, rows[::-1], texts), "expected"),
    (
        "check_unreadable_reward",
        lambda f, rows, texts: torch.tensor([value or 0.0 for value in f(prompts=texts, completions=texts)]),
        "counts as 0",
    ),
    ("check_reward_weights", lambda f, w, *a: weighed_in_a_loop(f, w[::-1], *a), "wrong order"),
    ("check_task", lambda digits, held_out: Short(digits, held_out), "can never be right"),
    ("check_sampling_model", lambda model, config, state: copy.deepcopy(model), "weights of today"),
    ("check_token_logprobs", lambda *a: rollout.token_logprobs(*a).exp(), "probabilities"),
    ("check_token_logprobs", lambda *a: -rollout.token_logprobs(*a), "sign is reversed"),
    ("check_token_logprobs", lambda m, p, n, ids: rollout.token_logprobs(m, p, n * 0 + 4, ids), "column 4"),
    ("check_token_logprobs", lambda *a: pick(rollout.completion_logits(*a), a[3]), "raw logits"),
    (
        "check_token_logprobs",
        lambda m, p, n, ids: loop_token_logprobs(
            m, p.repeat(len(ids) // len(p), 1), n.repeat(len(ids) // len(n)), ids
        ),
        r"row i answers prompt i // G",
    ),
    ("check_logprobs_of", lambda x, ids, T: logprobs_of(x, ids) / T, "divide the logits, before log_softmax"),
    ("check_logprobs_of", lambda x, ids, T: logprobs_of(x, ids, 1 / T), "multiply the logits"),
    ("check_logprobs_of", lambda x, ids, T: logprobs_of(x, ids, T).exp(), "probabilities"),
    ("check_sample_token", multinomial, "do not follow from uniforms"),
    ("check_sample_token", lambda x, u, T: sample_token(x, u, 1.0), "sample at temperature 1"),
    ("check_sample_token", lambda x, u, T: sample_token(x, u, 1 / T), "multiply the logits"),
    ("check_sample_token", lambda x, u, T: (x.argmax(1), torch.zeros(len(x))), "most probable"),
    ("check_sample_token", lambda *of: (sample_token(*of)[0], sample_token(*of)[1].exp()), "logarithm"),
    ("check_sample_token", lambda x, u, T: sample_token(x, u, T)[0], "Return two tensors"),
    ("check_completion_mask", lambda ids, eos: (ids == eos).cumsum(1) == 0, "EOS is left out"),
    ("check_completion_mask", lambda ids, eos: ids != 0, "padding only"),
    ("check_completion_mask", lambda ids, eos: torch.ones_like(ids).bool(), "Nothing is masked"),
    ("check_completion_mask", lambda ids, eos: ~completion_mask(ids, eos), "polarity"),
    ("check_completion_mask", lambda ids, eos: completion_mask(ids, eos).float(), "expected torch.bool"),
    ("check_group_advantages", lambda r: r - r.mean(1, True), "do not divide"),
    ("check_group_advantages", lambda r: (r - r.mean()) / r.std(), "mean and standard deviation is that "
                                                                   "of the whole"),
    ("check_group_advantages", lambda r: -group_advantages(r), "sign is reversed"),
    ("check_group_advantages", lambda r: (r - r.mean(0)) / r.std(0), "wrong axis: mean and"),
    ("check_group_advantages", lambda r: (r - r.mean(1, True)) / r.var(1, False, keepdim=True), "variance"),
    ("check_group_advantages", lambda r: group_advantages(r).flatten(), r"has shape \(\d+,\), expected"),
    ("check_leave_one_out", lambda r: r - (r.sum(1, True) - r) / r.shape[1], "still divide by G"),
    ("check_leave_one_out", lambda r: -advantages.leave_one_out(r), "sign is reversed"),
    ("check_leave_one_out", lambda r: r - (r.sum() - r) / (r.numel() - 1), "whole batch"),
    ("check_leave_one_out", lambda r: (r.sum(1, True) - r) / (r.shape[1] - 1), "baseline itself"),
    ("check_gae", lambda r, v, m, g, lam: advantages.gae(r, v, m, g, 1.0), "Lambda is ignored"),
    ("check_gae", lambda r, v, m, g, lam: advantages.gae(r, v, m, g, 0.0), "one-step error alone"),
    ("check_gae", lambda r, v, m, g, lam: advantages.gae(r, v.roll(-1, 1), m, g, lam), "one token late"),
    ("check_gae", lambda r, v, m, g, lam: advantages.gae(r, 0 * v, m, g, lam), "values are missing"),
    ("check_gae", lambda r, v, m, g, lam: (advantages.gae(r, v, m, g, lam)[0],) * 2, "lack the value"),
    ("check_gae", lambda r, v, m, g, lam: advantages.gae(r, v, m, g, lam)[0], "Return two tensors"),
    ("check_token_rewards", lambda s, m, k, b: advantages.token_rewards(s, m, -k, b), "KL has the wrong "
                                                                                      "sign"),
    ("check_token_rewards", lambda s, m, k, b: advantages.token_rewards(s, m), "KL penalty is missing"),
    ("check_token_rewards", lambda s, m, k, b: (s[:, None] - b * k) * m, "Every token gets the score"),
    (
        "check_token_rewards",
        lambda s, m, k, b: torch.cat([-b * k[:, :-1] * m[:, :-1], s[:, None] - b * k[:, -1:] * m[:, -1:]], 1),
        "last column",
    ),
    ("check_kl_k1", lambda p, q: (q - p).expm1() - (q - p), "This is k3, not k1"),
    ("check_kl_k2", lambda p, q: (q - p) ** 2, "half is missing"),
    ("check_kl_k3", lambda p, q: (q - p).expm1(), "last term is missing"),
    ("check_kl_k3", lambda p, q: (q - p).exp() - (q - p), "The 1 is missing"),
    ("check_kl_k3", lambda p, q: kl.kl_k3(p.detach(), q), "has no gradient"),
    ("check_kl_exact", lambda x, y: kl_div(y, x), "the other order"),
    ("check_kl_exact", lambda x, y: -kl_div(x, y), "sign is reversed"),
    ("check_kl_exact", lambda x, y: (torch.softmax(x, -1) * (x - y)).sum(-1), "raw logits"),
    ("check_entropy", lambda x: -kl.entropy(x), "sign is reversed"),
    ("check_entropy", lambda x: kl.entropy(x) / math.log(2), "bits"),
    ("check_entropy", lambda x: -torch.log_softmax(x, -1).mean(-1), "probabilities are missing"),
    ("check_entropy_sampled", lambda p: p, "sign is reversed"),
    ("check_importance_ratio", lambda p, q, m: (q - p).exp(), "upside down"),
    ("check_importance_ratio", lambda p, q, m: p - q.detach(), "take its exp"),
    ("check_importance_ratio", lambda p, q, m: p / q.detach(), "divide log-probs"),
    ("check_mask_before_exp", lambda p, q, m: (p - q).exp() * m, "ratio infinite or NaN"),
    ("check_mask_before_exp", multiplied_ratio, "do not multiply by the mask"),
    ("check_clipped_surrogate", lambda r, A, m, lo, hi: -r * A[:, None].detach() * m, "Nothing is clipped"),
    ("check_clipped_surrogate", lambda r, A, m, lo, hi: clipped_surrogate(r, A, m, hi, lo), "are swapped"),
    (
        "check_clipped_surrogate",
        lambda r, A, m, lo, hi: clipped_surrogate(r, A, torch.ones_like(m), lo, hi),
        "not zero at padding",
    ),
    (
        "check_clipped_surrogate",
        lambda r, A, m, lo, hi: clipped_surrogate(r.detach(), A, m, lo, hi),
        "has no gradient",
    ),
    (
        "check_clipped_surrogate",
        lambda r, A, m, lo, hi: torch.where(
            A[:, None] < 0,
            -torch.max(r * A[:, None], r.clamp(1 - lo, 1 + hi) * A[:, None]),
            -torch.min(r * A[:, None], r.clamp(1 - lo, 1 + hi) * A[:, None]),
        ) * m,
        "For A < 0 you take the max",
    ),
    ("check_token_mean", lambda x, m: x.mean(), "padding included"),
    ("check_token_mean", lambda x, m: x.sum() / m.sum(), "add up padding too"),
    ("check_token_mean", lambda x, m: ((x * m).sum(1) / m.sum(1)).mean(), "mean over completions"),
    ("check_token_mean", lambda x, m: (x * m).sum(), "divide it"),
    ("check_token_mean", lambda x, m: x[m].mean().item(), "no gradient"),
    ("check_sequence_mean", lambda x, m: x.mean(1).mean(), "padding included"),
    ("check_sequence_mean", lambda x, m: x[m].mean(), "all .* tokens of the batch"),
    ("check_sequence_mean", lambda x, m: (x * m).sum(1).mean(), "number of completions, only"),
    ("check_sequence_mean", lambda x, m: ((x * m).sum(1) / m.sum(1)).sum(), "divide by"),
    ("check_constant_mean", lambda x, m, L: (x * m).sum() / L, "completions, too"),
    ("check_constant_mean", lambda x, m, L: x[m].mean(), "all .* tokens of the batch"),
    ("check_kl_penalty", lambda *a, beta: grpo_loss(*a, beta=beta, kl_estimator="k2")[0], "k2, expected k3"),
    ("check_kl_penalty", lambda *a, beta: grpo_loss(*a, beta=float(beta > 0))[0], "Beta has no influence"),
    ("check_kl_penalty", lambda *a, beta: grpo_loss(*a)[0], "Beta adds nothing"),
    ("check_kl_penalty", lambda p, o, q, A, m, beta: loop_grpo(p, o, 2 * p - q, A, m, beta), "reversed"),
    ("check_grpo_loss", lambda *a: -grpo_loss(*a)[0], "sign is reversed"),
    ("check_grpo_loss", lambda *a: losses.grpo_loss(*a)[0], "all .* tokens"),
    ("check_grpo_loss", lambda *a: grpo_loss(*a, clip_low=9.0, clip_high=9.0)[0], "Nothing is clipped"),
    ("check_grpo_loss", lambda *a: grpo_loss(a[0].detach(), *a[1:])[0], "no gradient"),
    ("check_value_loss", lambda v, r, m, o, c: 2 * value_loss(v, r, m, o, c), "half is missing"),
    ("check_value_loss", lambda v, r, m, o, c: value_loss(v, r, m), "Nothing is clipped"),
    ("check_value_loss", lambda v, r, m, o, c: value_loss(o + (v - o).clamp(-c, c), r, m), "error alone"),
    ("check_value_loss", lambda v, r, m, o, c: value_loss(v, r, torch.ones_like(m), o, c), "at padding"),
    ("check_bradley_terry", lambda c, r: F.logsigmoid(c - r), "sign is reversed"),
    ("check_bradley_terry", lambda c, r: -torch.sigmoid(c - r), "logarithm is missing"),
    ("check_bradley_terry", lambda c, r: losses.bradley_terry_loss(c, r).mean(), "This is the mean"),
    ("check_bradley_terry", lambda c, r: -torch.sigmoid(c - r).log(), "difference of -200"),
    ("check_bradley_terry", lambda c, r: -F.logsigmoid(c) - F.logsigmoid(-r), "each score on its own"),
    ("check_reward_pooling", lambda x, n: x.mean(1), "average over all columns"),
    ("check_reward_pooling", lambda x, n: x[:, 0], "first token"),
    ("check_reward_pooling", lambda x, n: x[torch.arange(len(x)), n], "one token after the end"),
    ("check_sft_loss", shifted_sft, "targets are shifted"),
    ("check_sft_loss", lambda x, y, m: losses.sft_loss(x, y, torch.ones_like(m)), "at padding"),
    ("check_sft_loss", lambda *a: -losses.sft_loss(*a), "sign is reversed"),
]  # fmt: skip
named = [row for row in WRONG if row[2]]


@pytest.mark.parametrize("name, answer, says", named, ids=[f"{row[0]}-{i}" for i, row in enumerate(named)])
def test_wrong_answers_are_named(name, answer, says):
    for seed in (0, 50):
        with pytest.raises(CheckFailed, match=says):
            getattr(check, name)(answer, seed)


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_not_written_yet_fails_and_says_so(name):
    def todo(*arguments, **options):
        raise NotImplementedError

    with pytest.raises(CheckFailed, match="Nothing is written here yet"):
        getattr(check, name)(todo, 0)
    with pytest.raises(CheckFailed, match="returns None: is its return missing"):
        getattr(check, name)(lambda *arguments, **options: None, 0)
    with pytest.raises(CheckFailed, match="It stopped with KeyError: 'oops'. It was called with "):
        getattr(check, name)(lambda *arguments, **options: {}["oops"], 0)


# A check of a step that only the labs have bears the name of that step.
LABS = {f"check_{step}": function for step, function in solutions().items()}
SUBJECTS = {**LABS, **museum.implementations(), "check_grpo_loss": grpo_loss}


# These look for one property and not for numbers; another check compares the numbers of the same function.
ONE_PROPERTY = {
    "check_reference_is_frozen",
    "check_mask_before_exp",
    "check_reference_gets_no_gradient",
    "check_sequence_ratio",
    "check_dual_clip",
    "check_unbiased_kl",
}


@pytest.mark.parametrize("name", sorted(set(CHECKS) - ONE_PROPERTY))
def test_a_frozen_answer_does_not_pass(name):
    """The right answer to one draw, given again to every other."""
    kept = []

    def frozen(*arguments, **options):
        if not kept:
            kept.append(SUBJECTS[name](*arguments, **options))
        return kept[0]

    with pytest.raises(CheckFailed):
        for seed in range(0, 40, 4):
            getattr(check, name)(frozen, seed)


def test_the_seed_in_a_message_draws_the_same_case():
    def wrong_now_and_then(rewards):  # only groups of more than six
        return advantages.leave_one_out(rewards) * (1 if rewards.shape[1] <= 6 else 2)

    for seed in range(0, 400, 4):
        try:
            check.check_leave_one_out(wrong_now_and_then, seed)
        except CheckFailed as failed:
            again = int(str(failed).split("seed=")[1].split(")")[0])
            with pytest.raises(CheckFailed) as second:
                check.check_leave_one_out(wrong_now_and_then, again)
            assert str(second.value) == str(failed)
            return
    pytest.fail("no group of more than six was drawn")


def test_a_check_leaves_arguments_alone_and_says_who_does_not():
    def in_place(rewards):
        rewards -= rewards.mean(1, keepdim=True)
        return rewards

    with pytest.raises(CheckFailed, match="changes its argument 1 in place"):
        check.check_leave_one_out(in_place, 0)


def test_a_check_does_not_disturb_the_reader_s_random_numbers():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    check.check_generate(rollout.generate)
    check.check_group_advantages(advantages.group_advantages)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_checks_work_in_double_precision_and_under_no_grad():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            given = museum.implementations()
            assert museum.failures(given, 7) == {}
    finally:
        torch.set_default_dtype(torch.float32)


def test_two_means_that_are_equal_by_chance_are_told_apart():
    loss = lambda *batch, **how: grpo_loss(*batch, **how)[0]  # noqa: E731
    check.check_penalized_loss(loss, seed=46561099)  # drew a batch of which both means were the same


def test_two_checks_of_one_name_are_refused():
    with pytest.raises(OptionError, match="two checks are called check_kl_k1, in .*checks.kl and in"):

        @register("kl.kl_k1")
        def check_kl_k1(implementation, draw):
            """Another one."""

    assert museum.failures({"check_kl_k1": lambda p, q: q - p}, seed=0), "the first one is kept"


def test_every_check_shows_its_signature_and_says_how_it_calls():
    for name in CHECKS:
        function = getattr(check, name)
        assert list(inspect.signature(function).parameters) == ["implementation", "seed"]
        assert "``f(" in function.__doc__


def test_compare_says_what_it_saw():
    with pytest.raises(CheckFailed, match=r"shape \(2, 2\), is 5 at \[1, 0\], expected 3"):
        compare("the answer", torch.tensor([[1.0, 2.0], [5.0, 4.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(CheckFailed, match="is nan at"):
        compare("the answer", torch.tensor([float("nan"), 1.0]), torch.ones(2))
    with pytest.raises(CheckFailed, match="is a set, expected a tensor"):
        compare("The answer", {1}, torch.ones(2))
    compare("the answer", [1.0, 2.0], torch.tensor([1.0, 2.0]))


def test_masks_that_are_drawn_have_padding_and_a_full_row():
    for seed in range(50):
        mask = Draw(seed).mask(4, 5)
        assert mask.any(1).all() and mask.all(1).any() and not mask.all()
        assert not (mask[:, 1:] & ~mask[:, :-1]).any()


@pytest.mark.parametrize("prefix", [False, True])
def test_the_first_import_of_a_module_may_store_its_byte_code_and_an_answer_may_not_make_a_folder(
    tmp_path, monkeypatch, prefix
):
    """On a new machine Python makes folders for byte code while an answer runs, say by torch.optim.AdamW."""
    name = f"new_here_{prefix}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("X = 1\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "prefix") if prefix else None)

    def imports(rewards):
        importlib.import_module(name)
        return advantages.leave_one_out(rewards)

    def makes(rewards):
        (tmp_path / "own").mkdir()
        return advantages.leave_one_out(rewards)

    check.check_leave_one_out(imports)
    assert list(tmp_path.rglob("__init__.*.pyc"))
    with pytest.raises(CheckFailed, match="changes files, os.mkdir of 'own'"):
        check.check_leave_one_out(makes)
