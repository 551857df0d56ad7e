"""Wrong answers, written from the labs' texts alone: each breaks one promise that a text makes.

A row is (step, what is wrong, the answer). ``S`` holds the labs' own solutions, so that it shows what is
changed and nothing else.
"""

import copy
import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from nanogrpo import losses, rollout
from nanogrpo.advantages import group_advantages as package_advantages
from nanogrpo.kl import kl_k3
from nanogrpo.losses import aggregate, clipped_surrogate, importance_ratio
from nanogrpo.rollout import token_logprobs
from nanogrpo.step import sample
from nanogrpo.tasks import call_reward

from .solutions import solutions

S = SimpleNamespace(**solutions())


def last_only(mask):
    return mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))


def without_last(mask):
    return mask & ~last_only(mask)


def with_gradient_to(result, leaf):
    """The same numbers, with a gradient into something that is to be a constant."""
    return result + 0.3 * (leaf - leaf.detach()).sum()


def frozen_model(model):
    return copy.deepcopy(model).requires_grad_(False)


# ---- lab 1


def parity_mask(ids, eos_id):
    ends = ids == eos_id
    return (ends.cumsum(1) - ends.long()) % 2 == 0


def argmax_mask(ids, eos_id):
    first = (ids == eos_id).int().argmax(1, keepdim=True)  # 0 where there is none
    return torch.arange(ids.shape[1]) <= first


def last_end_mask(ids, eos_id):
    behind = (ids == eos_id).flip(1).cumsum(1).flip(1) > 0
    return behind | ~(ids == eos_id).any(1, keepdim=True)


def first_row_mask(ids, eos_id):
    return S.completion_mask(ids[:1], eos_id).expand_as(ids)


def uncut_mask(ids, eos_id):
    return S.completion_mask(ids, eos_id) & (ids == eos_id).any(1, keepdim=True)


def wiped_mask(ids, eos_id):
    mask = S.completion_mask(ids, eos_id)
    ids[~mask] = 0
    return mask


def first_prompt(model, prompts, lens, ids):
    return token_logprobs(model, prompts[:1], lens[:1], ids)


def truncated_context(model, prompts, lens, ids):
    return token_logprobs(model, prompts[torch.arange(len(prompts)), lens - 1][:, None], lens * 0 + 1, ids)


def last_token_repeated(model, prompts, lens, ids):
    logprobs = token_logprobs(model, prompts, lens, ids).clone()
    logprobs[:, 0] = logprobs[:, -1]
    return logprobs


def unconditional(model, prompts, lens, ids):
    """Without what stands before it in the completion."""
    return torch.cat(
        [token_logprobs(model, prompts, lens, ids[:, t : t + 1]) for t in range(ids.shape[1])], 1
    )


def multinomial(logits, uniforms, temperature=1.0):
    tokens = torch.multinomial(torch.softmax(logits / temperature, -1), 1)[:, 0]
    return tokens, S.logprobs_of(logits[:, None], tokens[:, None], temperature)[:, 0]


def sorted_choice(logits, uniforms, temperature=1.0):
    probs, order = torch.softmax(logits / temperature, -1).sort(-1, descending=True)
    at = (probs.cumsum(-1) < uniforms[:, None]).sum(-1).clamp(max=logits.shape[1] - 1)
    tokens = order[torch.arange(len(order)), at]
    return tokens, probs[torch.arange(len(order)), at].log()


def unguarded(logits, uniforms, temperature=1.0):
    """Sums that miss 1 give the token V."""
    probs = torch.softmax(logits / temperature, -1)
    tokens = (probs.cumsum(-1) * (1 - 1e-6) < uniforms[:, None]).sum(-1)
    return tokens, probs.clamp(min=1e-30).log().gather(1, tokens[:, None] % probs.shape[1])[:, 0]


def unguarded_search(logits, uniforms, temperature=1.0):
    logprobs = torch.log_softmax(logits / temperature, -1)
    tokens = torch.searchsorted(logprobs.exp().cumsum(-1) * (1 - 1e-7), uniforms[:, None])
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]


def argmax_of_truth(logits, uniforms, temperature=1.0):
    """The first true of none is 0."""
    probs = torch.softmax(logits / temperature, -1)
    tokens = (probs.cumsum(-1) * (1 - 1e-6) >= uniforms[:, None]).int().argmax(-1)
    return tokens, probs[torch.arange(len(probs)), tokens].log()


def gumbel(logits, uniforms, temperature=1.0):
    noise = -torch.log(-torch.log(torch.rand_like(logits)))
    tokens = (logits / temperature + noise).argmax(-1)
    return tokens, torch.log_softmax(logits / temperature, -1).gather(1, tokens[:, None])[:, 0]


def reseeded(logits, uniforms, temperature=1.0):
    generator = torch.Generator().manual_seed(int(uniforms.sum() * 1e4))
    return rollout.sample_token(logits, 1 - torch.rand(len(uniforms), generator=generator), temperature)


def tokens_of(change):
    """A ``sample_token`` whose tokens are changed, with log-probs that belong to them."""

    def sample_token(logits, uniforms, temperature=1.0):
        tokens = change(rollout.sample_token(logits, uniforms, temperature)[0], logits)
        return tokens, S.logprobs_of(logits[:, None], tokens[:, None], temperature)[:, 0]

    return sample_token


def completing(
    stop=lambda token, eos, t: token == eos, number=lambda u, t: u[t], read=lambda text: text, last=0
):
    """``complete`` with other parts."""

    @torch.no_grad()
    def complete(model, prompt, uniforms, eos_id):
        text, logprobs = prompt, []
        for t in range(len(uniforms) - last):
            token, logprob = rollout.sample_token(model(read(text)[None])[:, -1], number(uniforms, t)[None])
            text = torch.cat([text, token])
            logprobs.append(logprob)
            if stop(int(token), eos_id, t):
                break
        return text[len(prompt) :], torch.cat(logprobs)

    return complete


def late_logprobs(model, prompt, uniforms, eos_id):
    ids, logprobs = S.complete(model, prompt, uniforms, eos_id)
    return ids, logprobs.roll(1, 0)


def hot_logprobs(model, prompt, uniforms, eos_id):
    ids, _ = S.complete(model, prompt, uniforms, eos_id)
    return ids, token_logprobs(model, prompt[None], torch.tensor([len(prompt)]), ids[None], 1.5)[0]


LAB1 = [
    ("completion_mask", "ends counted in pairs", parity_mask),
    ("completion_mask", "no end taken for an end at 0", argmax_mask),
    ("completion_mask", "up to the last end", last_end_mask),
    ("completion_mask", "the end is 1", lambda ids, eos: S.completion_mask(ids, 1)),
    ("completion_mask", "lengths of the first row", first_row_mask),
    ("completion_mask", "rows that were cut off are dropped", uncut_mask),
    ("completion_mask", "clears the padding", wiped_mask),
    ("completion_mask", "0 and 1", lambda ids, eos: S.completion_mask(ids, eos).to(torch.uint8)),
    (
        "completion_mask",
        "the last column always",
        lambda ids, eos: S.completion_mask(ids, eos) | (torch.arange(ids.shape[1]) == ids.shape[1] - 1),
    ),
    ("logprobs_of", "log of base 2", lambda z, ids, T=1.0: S.logprobs_of(z, ids, T) / math.log(2)),
    ("logprobs_of", "of the next token", lambda z, ids, T=1.0: S.logprobs_of(z, ids.roll(-1, 1), T)),
    ("logprobs_of", "of the best token", lambda z, ids, T=1.0: S.logprobs_of(z, z.argmax(-1), T)),
    ("logprobs_of", "of the whole vocabulary", lambda z, ids, T=1.0: torch.log_softmax(z / T, -1)),
    ("logprobs_of", "surprise", lambda z, ids, T=1.0: -S.logprobs_of(z, ids, T)),
    ("logprobs_of", "a sum over tokens", lambda z, ids, T=1.0: S.logprobs_of(z, ids, T).sum(1)),
    ("logprobs_of", "root of the temperature", lambda z, ids, T=1.0: S.logprobs_of(z, ids, T**0.5)),
    (
        "logprobs_of",
        "best logit subtracted, not normalized",
        lambda z, ids, T=1.0: (z / T).gather(2, ids[..., None])[..., 0] - (z / T).amax(2),
    ),
    (
        "logprobs_of",
        "axis of the batch",
        lambda z, ids, T=1.0: torch.log_softmax(z / T, 0).gather(2, ids[..., None])[..., 0],
    ),
    ("logprobs_of", "first row's tokens", lambda z, ids, T=1.0: S.logprobs_of(z, ids[:1].expand_as(ids), T)),
    ("token_logprobs", "first prompt for all", first_prompt),
    ("token_logprobs", "last token of the prompt alone", truncated_context),
    ("token_logprobs", "first number from the last", last_token_repeated),
    ("token_logprobs", "tokens before it forgotten", unconditional),
    (
        "token_logprobs",
        "all prompts of full length",
        lambda m, p, n, ids: token_logprobs(m, p, n * 0 + p.shape[1], ids),
    ),
    (
        "token_logprobs",
        "one token of the prompt missing",
        lambda m, p, n, ids: token_logprobs(m, p, (n - 1).clamp(min=1), ids),
    ),
    ("token_logprobs", "temperature 2", lambda m, p, n, ids: token_logprobs(m, p, n, ids, 2.0)),
    ("token_logprobs", "averages over the prefix", lambda *a: token_logprobs(*a).cumsum(1)),
    ("sample_token", "its own random numbers", multinomial),
    ("sample_token", "Gumbel noise of its own", gumbel),
    ("sample_token", "other numbers from these", reseeded),
    ("sample_token", "from the top", lambda z, u, T=1.0: rollout.sample_token(z, 1 - u, T)),
    (
        "sample_token",
        "vocabulary backwards",
        lambda z, u, T=1.0: [(z.shape[1] - 1 - t, p) for t, p in [rollout.sample_token(z.flip(1), u, T)]][0],
    ),
    ("sample_token", "sorted by probability", sorted_choice),
    ("sample_token", "first row for all", lambda z, u, T=1.0: rollout.sample_token(z[:1].expand_as(z), u, T)),
    (
        "sample_token",
        "first number for all",
        lambda z, u, T=1.0: rollout.sample_token(z, u[:1].expand_as(u), T),
    ),
    ("sample_token", "numbers of other rows", lambda z, u, T=1.0: rollout.sample_token(z, u.roll(1), T)),
    ("sample_token", "no guard at 1", unguarded),
    ("sample_token", "no guard in the search", unguarded_search),
    ("sample_token", "the first of none", argmax_of_truth),
    ("sample_token", "one token early", tokens_of(lambda t, z: (t - 1).clamp(min=0))),
    ("sample_token", "one token late", tokens_of(lambda t, z: (t + 1).clamp(max=z.shape[1] - 1))),
    ("sample_token", "never the last token", tokens_of(lambda t, z: t.clamp(max=z.shape[1] - 2))),
    (
        "sample_token",
        "numbers, not ids",
        lambda z, u, T=1.0: [(t.float(), p) for t, p in [rollout.sample_token(z, u, T)]][0],
    ),
    (
        "sample_token",
        "log-prob of the best token",
        lambda z, u, T=1.0: (rollout.sample_token(z, u, T)[0], torch.log_softmax(z / T, -1).amax(-1)),
    ),
    ("sample_token", "numbers squared", lambda z, u, T=1.0: rollout.sample_token(z, u**2, T)),
    ("complete", "the end is 1", completing(stop=lambda token, eos, t: token == 1)),
    ("complete", "one token short", completing(last=1)),
    ("complete", "never stops at the first token", completing(stop=lambda token, eos, t: t and token == eos)),
    ("complete", "stops two tokens after the end", completing(stop=lambda token, eos, t: False)),
    ("complete", "first number for all", completing(number=lambda u, t: u[0])),
    ("complete", "numbers from the back", completing(number=lambda u, t: u[-1 - t])),
    ("complete", "numbers one late", completing(number=lambda u, t: u[(t + 1) % len(u)])),
    ("complete", "its own random numbers", completing(number=lambda u, t: torch.rand(()))),
    ("complete", "reads the last four tokens", completing(read=lambda text: text[-4:])),
    (
        "complete",
        "leaves the first token out",
        completing(read=lambda text: text[1:] if len(text) > 1 else text),
    ),
    ("complete", "log-probs one late", late_logprobs),
    ("complete", "log-probs of another temperature", hot_logprobs),
    ("complete", "greedy", completing(number=lambda u, t: torch.tensor(0.5))),
    ("perplexity", "inverse", lambda p, m: 1 / S.perplexity(p, m)),
    ("perplexity", "surprise, no exp", lambda p, m: S.perplexity(p, m).log()),
    (
        "perplexity",
        "mean of inverse probabilities",
        lambda p, m: (torch.where(m, (-p).exp(), 0.0).sum(1)) / m.sum(1),
    ),
    (
        "perplexity",
        "one token too many in the divisor",
        lambda p, m: (-torch.where(m, p, 0.0).sum(1) / (m.sum(1) + 1)).exp(),
    ),
    (
        "perplexity",
        "Bessel",
        lambda p, m: (-torch.where(m, p, 0.0).sum(1) / (m.sum(1) - 1).clamp(min=1)).exp(),
    ),
    (
        "perplexity",
        "first token left out",
        lambda p, m: (-torch.where(m, p, 0.0)[:, 1:].sum(1) / m[:, 1:].sum(1).clamp(min=1)).exp(),
    ),
    (
        "perplexity",
        "lengths of the first row",
        lambda p, m: (-torch.where(m, p, 0.0).sum(1) / m[0].sum()).exp(),
    ),
    (
        "perplexity",
        "mean of the batch's lengths",
        lambda p, m: (-torch.where(m, p, 0.0).sum(1) / m.sum(1).float().mean()).exp(),
    ),
    ("perplexity", "capped at 10", lambda p, m: S.perplexity(p, m).clamp(max=10.0)),
]

# ---- lab 2


def far_clamped(chosen, rejected):
    return -F.logsigmoid((chosen - rejected).clamp(-20, 20))


def far_eps(chosen, rejected):
    return -(torch.sigmoid(chosen - rejected) + 1e-12).log()


def far_nan(chosen, rejected):
    """The branch that is not taken overflows, and its gradient is NaN."""
    gap = rejected - chosen
    return torch.where(gap > 30, gap, torch.log1p(gap.exp()))


def margin_loss(chosen, rejected):
    return (1 - (chosen - rejected)).clamp(min=0)


def close_ties(chosen, rejected):
    gap = chosen - rejected
    return torch.where(gap.abs() < 0.05, 0.5, (gap > 0).float()).mean()


def monte_carlo(scores, values, n):
    picks = torch.stack([torch.randperm(len(scores))[:n] for _ in range(2000)])
    return values[picks[torch.arange(2000), scores[picks].argmax(1)]].mean()


def ranked(shift=0, power=False):
    def best_of_n(scores, values, n):
        N = len(scores)
        if power:
            weights = [((i + 1) / N) ** n - (i / N) ** n for i in range(N)]
        else:
            weights = [math.comb(max(i + shift, 0), n - 1) / math.comb(N, n) for i in range(N)]
        return (values[scores.argsort()] * torch.tensor(weights)).sum()

    return best_of_n


LAB2 = [
    ("preference_probs", "capped", lambda a, b, T: S.preference_probs(a, b, T).clamp(0.05, 0.95)),
    ("preference_probs", "the gap's size alone", lambda a, b, T: torch.sigmoid((a - b).abs() / T)),
    ("preference_probs", "shares of the points", lambda a, b, T: a.abs() / (a.abs() + b.abs())),
    ("preference_probs", "normal law", lambda a, b, T: 0.5 * (1 + torch.erf((a - b) / T / 2**0.5))),
    ("preference_probs", "temperature on one text", lambda a, b, T: torch.sigmoid(a / T - b)),
    ("preference_probs", "temperature squared", lambda a, b, T: torch.sigmoid((a - b) / T**2)),
    ("preference_probs", "over the batch", lambda a, b, T: torch.softmax((a - b) / T, 0)),
    (
        "preference_probs",
        "the first pair for all",
        lambda a, b, T: S.preference_probs(a, b, T)[:1].expand_as(a),
    ),
    (
        "preference_probs",
        "a draw",
        lambda a, b, T: (torch.rand_like(a) < S.preference_probs(a, b, T)).float(),
    ),
    ("preference_probs", "tanh", lambda a, b, T: torch.tanh((a - b) / T)),
    ("preference_probs", "sum of the points", lambda a, b, T: torch.sigmoid((a + b) / T)),
    ("noise_ceiling", "the worst pair", lambda p: torch.maximum(p, 1 - p).min()),
    ("noise_ceiling", "the median pair", lambda p: torch.maximum(p, 1 - p).median()),
    ("noise_ceiling", "first half", lambda p: torch.maximum(p, 1 - p)[: len(p) // 2].mean()),
    ("noise_ceiling", "a sum", lambda p: torch.maximum(p, 1 - p).sum()),
    ("noise_ceiling", "distance from a coin", lambda p: (p - 0.5).abs().mean()),
    ("noise_ceiling", "at least the coin", lambda p: p.clamp(min=0.5).mean()),
    ("noise_ceiling", "a percentage", lambda p: 100 * S.noise_ceiling(p)),
    ("noise_ceiling", "entropy", lambda p: torch.special.entr(p).mean()),
    ("bradley_terry", "cut off far out", far_clamped),
    ("bradley_terry", "a small number in the logarithm", far_eps),
    ("bradley_terry", "NaN from the branch not taken", far_nan),
    ("bradley_terry", "hinge", margin_loss),
    ("bradley_terry", "squared", lambda c, r: S.bradley_terry(c, r) ** 2),
    ("bradley_terry", "bits", lambda c, r: S.bradley_terry(c, r) / math.log(2)),
    ("bradley_terry", "rejected is a constant", lambda c, r: S.bradley_terry(c, r.detach())),
    ("bradley_terry", "chosen is a constant", lambda c, r: S.bradley_terry(c.detach(), r)),
    ("bradley_terry", "a sum", lambda c, r: S.bradley_terry(c, r).sum()),
    ("bradley_terry", "against the mean of the batch", lambda c, r: -F.logsigmoid(c - r.mean())),
    ("bradley_terry", "pairs mixed", lambda c, r: -F.logsigmoid(c - r.roll(1))),
    (
        "bradley_terry",
        "finite numbers, no gradient far out",
        lambda c, r: torch.nan_to_num(-torch.sigmoid(c - r).log(), posinf=100.0),
    ),
    ("reward_pooling", "length of the first text", lambda x, n: x[:, n[0] - 1]),
    ("reward_pooling", "the token before", lambda x, n: x.gather(1, (n[:, None] - 2).clamp(min=0))[:, 0]),
    ("reward_pooling", "counted from the end", lambda x, n: x.gather(1, x.shape[1] - n[:, None])[:, 0]),
    ("reward_pooling", "sum of the text", lambda x, n: (x * (torch.arange(x.shape[1]) < n[:, None])).sum(1)),
    (
        "reward_pooling",
        "largest of the text",
        lambda x, n: x.masked_fill(torch.arange(x.shape[1]) >= n[:, None], -1e9).amax(1),
    ),
    (
        "reward_pooling",
        "last number that is not 0",
        lambda x, n: torch.stack([row[row != 0][-1] for row in x]),
    ),
    ("reward_pooling", "rows mixed", lambda x, n: S.reward_pooling(x.roll(1, 0), n)),
    ("reward_pooling", "lengths of other rows", lambda x, n: S.reward_pooling(x, n.roll(1))),
    ("reward_pooling", "column kept", lambda x, n: x.gather(1, n[:, None] - 1)),
    ("reward_pooling", "by tokens of the first row", lambda x, n: x[0][n - 1]),
    ("pair_accuracy", "near ties are ties", close_ties),
    ("pair_accuracy", "soft", lambda c, r: torch.sigmoid(c - r).mean()),
    ("pair_accuracy", "percent", lambda c, r: 100 * S.pair_accuracy(c, r)),
    ("pair_accuracy", "sign", lambda c, r: torch.sign(c - r).mean()),
    ("pair_accuracy", "one a pair", lambda c, r: (c > r).float() + 0.5 * (c == r)),
    ("pair_accuracy", "by the mean", lambda c, r: (c > r.mean()).float().mean()),
    ("pair_accuracy", "positive", lambda c, r: (c > 0).float().mean()),
    ("pair_accuracy", "ties a quarter", lambda c, r: ((c > r).float() + 0.25 * (c == r)).mean()),
    (
        "pair_accuracy",
        "all against all",
        lambda c, r: ((c[:, None] > r).float() + 0.5 * (c[:, None] == r)).mean(),
    ),
    ("best_of_n", "rank one too low", ranked(-1)),
    ("best_of_n", "rank one too high", ranked(1)),
    ("best_of_n", "with replacement", ranked(power=True)),
    ("best_of_n", "from samples", monte_carlo),
    ("best_of_n", "the median of the best", lambda s, v, n: v[s.argsort()][-n:].median()),
    ("best_of_n", "mean of the best n", lambda s, v, n: v[s.argsort()][-n:].mean()),
    ("best_of_n", "best of two always", lambda s, v, n: S.best_of_n(s, v, min(2, len(s)))),
    ("best_of_n", "one too few", lambda s, v, n: S.best_of_n(s, v, max(n - 1, 1))),
    ("best_of_n", "the worst of n", lambda s, v, n: S.best_of_n(-s, v, n)),
    ("best_of_n", "places, not ranks", lambda s, v, n: S.best_of_n(torch.arange(len(s)).float(), v, n)),
    ("best_of_n", "ranks for an order", lambda s, v, n: S.best_of_n(s.argsort().float(), v, n)),
]

# ---- lab 3


def running_mean(estimates):
    return estimates.median(0).values, estimates.std(0) / len(estimates) ** 0.5


LAB3 = [
    ("reinforce_loss", "batch mean subtracted", lambda p, A, m: S.reinforce_loss(p, A - A.mean(), m)),
    ("reinforce_loss", "advantages normalized", lambda p, A, m: S.reinforce_loss(p, A / A.std(), m)),
    ("reinforce_loss", "no advantages", lambda p, A, m: S.reinforce_loss(p, torch.ones_like(A), m)),
    ("reinforce_loss", "size of the advantage", lambda p, A, m: S.reinforce_loss(p, A.abs(), m)),
    ("reinforce_loss", "positive ones only", lambda p, A, m: S.reinforce_loss(p, A.clamp(min=0), m)),
    ("reinforce_loss", "advantages of other rows", lambda p, A, m: S.reinforce_loss(p, A.roll(1), m)),
    ("reinforce_loss", "last token only", lambda p, A, m: S.reinforce_loss(p, A, last_only(m))),
    ("reinforce_loss", "without the last token", lambda p, A, m: S.reinforce_loss(p, A, without_last(m))),
    (
        "reinforce_loss",
        "lengths of the first row",
        lambda p, A, m: S.reinforce_loss(p, A, m[:1].expand_as(m)),
    ),
    ("reinforce_loss", "a probability", lambda p, A, m: S.reinforce_loss(p.exp(), A, m)),
    (
        "reinforce_loss",
        "gradient into the advantages",
        lambda p, A, m: with_gradient_to(S.reinforce_loss(p, A, m), A),
    ),
    (
        "reinforce_loss",
        "half of the gradient",
        lambda p, A, m: (S.reinforce_loss(p, A, m) + S.reinforce_loss(p.detach(), A, m)) / 2,
    ),
    (
        "reinforce_loss",
        "gradient of the padding",
        lambda p, A, m: with_gradient_to(S.reinforce_loss(p, A, m), p * ~m),
    ),
    ("exact_gradient", "better than the mean only", lambda p, r, s: (p * (r - r.mean()).clamp(min=0)) @ s),
    ("exact_gradient", "minus", lambda p, r, s: -S.exact_gradient(p, r, s)),
    ("exact_gradient", "probabilities of other rows", lambda p, r, s: (p.roll(1) * r) @ s),
    ("exact_gradient", "rewards of other rows", lambda p, r, s: (p * r.roll(1)) @ s),
    ("exact_gradient", "the likeliest alone", lambda p, r, s: p.max() * r[p.argmax()] * s[p.argmax()]),
    ("exact_gradient", "the best alone", lambda p, r, s: p[r.argmax()] * r.max() * s[r.argmax()]),
    ("exact_gradient", "log-probabilities", lambda p, r, s: (p.log() * r) @ s),
    ("exact_gradient", "a sample", lambda p, r, s: r[torch.multinomial(p, 1)] @ s[torch.multinomial(p, 1)]),
    ("exact_gradient", "normalized", lambda p, r, s: F.normalize(S.exact_gradient(p, r, s), dim=0)),
    ("exact_gradient", "one number", lambda p, r, s: S.exact_gradient(p, r, s).norm()),
    ("leave_one_out", "divided by the deviation", lambda r: S.leave_one_out(r) / r.std(1, keepdim=True)),
    ("leave_one_out", "the next one only", lambda r: r - r.roll(1, 1)),
    (
        "leave_one_out",
        "best of the others",
        lambda r: (
            r - torch.stack([torch.cat([r[:, :i], r[:, i + 1 :]], 1).amax(1) for i in range(r.shape[1])], 1)
        ),
    ),
    ("leave_one_out", "median", lambda r: r - r.median(1, True).values),
    (
        "leave_one_out",
        "rows before it",
        lambda r: r - (r.cumsum(1) - r) / torch.arange(r.shape[1]).clamp(min=1),
    ),
    ("leave_one_out", "others of all prompts", lambda r: r - (r.sum() - r) / (r.numel() - 1)),
    (
        "leave_one_out",
        "groups across",
        lambda r: S.leave_one_out(r.reshape(r.shape[1], r.shape[0])).reshape(r.shape),
    ),
    ("leave_one_out", "of the first group for all", lambda r: S.leave_one_out(r[:1].expand_as(r))),
    ("leave_one_out", "flat", lambda r: S.leave_one_out(r).flatten()),
    ("leave_one_out", "in place", lambda r: r.sub_((r.sum(1, True) - r) / (r.shape[1] - 1))),
    ("expected_estimate", "first draw unweighed", lambda p, g: torch.einsum("j,ijd->d", p, g) / len(p)),
    (
        "expected_estimate",
        "first half of the pairs",
        lambda p, g: torch.einsum(
            "i,j,ijd->d", p, p, g.triu(0) if g.ndim == 2 else g * torch.ones(len(p), len(p)).triu()[..., None]
        ),
    ),
    ("expected_estimate", "probabilities squared", lambda p, g: torch.einsum("i,j,ijd->d", p**2, p**2, g)),
    (
        "expected_estimate",
        "root of the probabilities",
        lambda p, g: torch.einsum("i,j,ijd->d", p**0.5, p**0.5, g),
    ),
    (
        "expected_estimate",
        "sum of the probabilities",
        lambda p, g: ((p[:, None] + p)[..., None] * g).sum((0, 1)),
    ),
    ("expected_estimate", "numbers mixed", lambda p, g: S.expected_estimate(p, g).roll(1)),
    ("expected_estimate", "not summed", lambda p, g: p[:, None, None] * p[:, None] * g),
    (
        "expected_estimate",
        "draws in another order of p",
        lambda p, g: torch.einsum("i,j,ijd->d", p, p.flip(0), g),
    ),
    ("expected_estimate", "likeliest pair", lambda p, g: g[p.argmax(), p.argmax()]),
    ("best_baseline", "of the likeliest", lambda p, r, s: r[p.argmax()]),
    ("best_baseline", "sums of the scores", lambda p, r, s: (p * r * s.sum(1)).sum() / (p * s.sum(1)).sum()),
    (
        "best_baseline",
        "fourth power",
        lambda p, r, s: (p * r * s.square().sum(1) ** 2).sum() / (p * s.square().sum(1) ** 2).sum(),
    ),
    (
        "best_baseline",
        "denominator without p",
        lambda p, r, s: (p * r * s.square().sum(1)).sum() / s.square().sum(),
    ),
    ("best_baseline", "sizes of the rewards", lambda p, r, s: S.best_baseline(p, r.abs(), s)),
    ("best_baseline", "sign", lambda p, r, s: -S.best_baseline(p, r, s)),
    ("best_baseline", "one for each parameter", lambda p, r, s: ((p * r) @ s**2) / (p @ s**2)),
    ("best_baseline", "first parameter", lambda p, r, s: S.best_baseline(p, r, s[:, :1])),
    ("best_baseline", "rewards of other rows", lambda p, r, s: S.best_baseline(p, r.roll(1), s)),
    ("best_baseline", "squared gradient", lambda p, r, s: (p * r) @ s @ ((p @ s) if False else s.mean(0))),
    ("mean_and_error", "median", running_mean),
    ("mean_and_error", "the other order", lambda g: S.mean_and_error(g)[::-1]),
    ("mean_and_error", "twice the error", lambda g: (g.mean(0), 2 * S.mean_and_error(g)[1])),
    (
        "mean_and_error",
        "mean absolute deviation",
        lambda g: (g.mean(0), (g - g.mean(0)).abs().mean(0) / len(g) ** 0.5),
    ),
    ("mean_and_error", "mean of the squares", lambda g: (g.mean(0), (g**2).mean(0).sqrt() / len(g) ** 0.5)),
    ("mean_and_error", "a sum", lambda g: (g.sum(0), S.mean_and_error(g)[1])),
    ("mean_and_error", "error of the sum", lambda g: (g.mean(0), g.std(0) * len(g) ** 0.5)),
    ("mean_and_error", "the first half", lambda g: S.mean_and_error(g[: len(g) // 2 + 1])),
    ("mean_and_error", "stacked", lambda g: torch.stack([g, g]).mean(1)[0]),
]

# ---- labs 4 and 6


def token_rewards_at(place):
    def token_rewards(scores, mask, kl, beta):
        return torch.where(mask, -beta * kl, 0.0).scatter_add(1, place(mask), scores[:, None])

    return token_rewards


def replaced(scores, mask, kl, beta):
    return torch.where(last_only(mask), scores[:, None], torch.where(mask, -beta * kl, 0.0))


def gae_with(stop=True, discount=lambda gamma, lam: gamma * lam, first=lambda mask: mask):
    def gae(rewards, values, mask, gamma, lam):
        advantages = torch.zeros_like(values)
        next_value = next_advantage = torch.zeros(len(values))
        for t in reversed(range(values.shape[1])):
            on = first(mask)[:, t]
            delta = rewards[:, t] + gamma * next_value - values[:, t]
            next_advantage = torch.where(on, delta + discount(gamma, lam) * next_advantage, 0.0)
            next_value = torch.where(on, values[:, t], 0.0) if stop else values[:, t]
            advantages[:, t] = next_advantage
        return advantages, torch.where(mask, advantages + values, 0.0)

    return gae


def bootstrapped(rewards, values, mask, gamma, lam):
    """The last token is followed by its own value."""
    return S.gae(rewards + gamma * values * last_only(mask), values, mask, gamma, lam)


def gae_padded(which):
    def gae(rewards, values, mask, gamma, lam):
        found = list(S.gae(rewards, values, mask, gamma, lam))
        found[which] = torch.where(mask, found[which], values if which else 0.1)
        return tuple(found)

    return gae


def capped_whiten(advantages, mask, eps):
    return S.whiten(advantages, mask, eps).clamp(-1.5, 1.5)


LAB4 = [
    ("token_rewards", "replaces the last token's KL", replaced),
    (
        "token_rewards",
        "token before the last",
        token_rewards_at(lambda m: (m.sum(1, keepdim=True) - 2).clamp(min=0)),
    ),
    (
        "token_rewards",
        "last token of the first row",
        token_rewards_at(lambda m: m[:1].sum(1, keepdim=True).expand(len(m), 1) - 1),
    ),
    (
        "token_rewards",
        "score shared by the tokens",
        lambda s, m, k, b: torch.where(m, s[:, None] / m.sum(1, keepdim=True) - b * k, 0.0),
    ),
    ("token_rewards", "beta is 0.1", lambda s, m, k, b: S.token_rewards(s, m, k, 0.1)),
    ("token_rewards", "beta on the score", lambda s, m, k, b: S.token_rewards(b * s, m, k, b)),
    (
        "token_rewards",
        "mean KL",
        lambda s, m, k, b: S.token_rewards(
            s, m, torch.where(m, k, 0.0).sum(1, keepdim=True) / m.sum(1, keepdim=True) * torch.ones_like(k), b
        ),
    ),
    (
        "token_rewards",
        "KL of the whole on the last",
        lambda s, m, k, b: S.token_rewards(s - b * torch.where(m, k, 0.0).sum(1), m, 0 * k, b),
    ),
    ("token_rewards", "size of the KL", lambda s, m, k, b: S.token_rewards(s, m, k.abs(), b)),
    ("token_rewards", "minus", lambda s, m, k, b: -S.token_rewards(s, m, k, b)),
    ("token_rewards", "scores of other rows", lambda s, m, k, b: S.token_rewards(s.roll(1), m, k, b)),
    ("token_rewards", "KL of other rows", lambda s, m, k, b: S.token_rewards(s, m, k.roll(1, 0), b)),
    ("token_rewards", "writes into the KL", lambda s, m, k, b: S.token_rewards(s, m, k.mul_(1.5) / 1.5, b)),
    ("token_rewards", "one number a row", lambda s, m, k, b: S.token_rewards(s, m, k, b).sum(1)),
    ("gae", "reads past the end", gae_with(stop=False, first=lambda mask: mask)),
    ("gae", "mask ignored", gae_with(first=torch.ones_like)),
    ("gae", "gamma and lambda in turn", lambda r, v, m, g, lam: S.gae(r, v, m, lam, g)),
    ("gae", "gamma squared", gae_with(discount=lambda gamma, lam: gamma * gamma * lam)),
    ("gae", "gamma is 1", lambda r, v, m, g, lam: S.gae(r, v, m, 1.0, lam)),
    ("gae", "lambda is 0.95", lambda r, v, m, g, lam: S.gae(r, v, m, g, 0.95)),
    ("gae", "value of the last token goes on", bootstrapped),
    ("gae", "advantages at padding", gae_padded(0)),
    ("gae", "targets at padding", gae_padded(1)),
    (
        "gae",
        "whitened",
        lambda r, v, m, g, lam: (S.whiten(S.gae(r, v, m, g, lam)[0], m, 1e-6), S.gae(r, v, m, g, lam)[1]),
    ),
    (
        "gae",
        "targets are sums of rewards",
        lambda r, v, m, g, lam: (S.gae(r, v, m, g, lam)[0], S.gae(r, 0 * v, m, g, 1.0)[0]),
    ),
    ("gae", "the other order", lambda *a: S.gae(*a)[::-1]),
    ("gae", "lengths of the first row", lambda r, v, m, g, lam: S.gae(r, v, m[:1].expand_as(m), g, lam)),
    ("gae", "one reward late", lambda r, v, m, g, lam: S.gae(r.roll(1, 1), v, m, g, lam)),
    ("gae", "clears the padding", lambda r, v, m, g, lam: S.gae(r, v.mul_(m), m, g, lam)),
    ("whiten", "eps is 1e-8", lambda A, m, e: S.whiten(A, m, 1e-8)),
    (
        "whiten",
        "eps in the root",
        lambda A, m, e: torch.where(m, (A - A[m].mean()) / (A[m].var(correction=0) + e).sqrt(), 0.0),
    ),
    (
        "whiten",
        "eps as a floor",
        lambda A, m, e: torch.where(m, (A - A[m].mean()) / A[m].std(correction=0).clamp(min=e), 0.0),
    ),
    (
        "whiten",
        "mean square",
        lambda A, m, e: torch.where(m, (A - A[m].mean()) / ((A[m] ** 2).mean().sqrt() + e), 0.0),
    ),
    (
        "whiten",
        "of the first row",
        lambda A, m, e: torch.where(m, (A - A[0][m[0]].mean()) / (A[0][m[0]].std(correction=0) + e), 0.0),
    ),
    ("whiten", "capped", capped_whiten),
    ("whiten", "sign", lambda A, m, e: -S.whiten(A, m, e)),
    (
        "whiten",
        "mean of row means",
        lambda A, m, e: torch.where(
            m, (A - (torch.where(m, A, 0.0).sum(1) / m.sum(1)).mean()) / (A[m].std(correction=0) + e), 0.0
        ),
    ),
    ("whiten", "a list of the tokens", lambda A, m, e: S.whiten(A, m, e)[m]),
    ("whiten", "mean of the padding", lambda A, m, e: torch.where(m, S.whiten(A, m, e), -A[m].mean() + 1)),
    ("clipped_surrogate", "clip is 0.2", lambda r, A, m, lo, hi: S.clipped_surrogate(r, A, m, 0.2, 0.2)),
    ("clipped_surrogate", "one bound for both", lambda r, A, m, lo, hi: S.clipped_surrogate(r, A, m, lo, lo)),
    (
        "clipped_surrogate",
        "log of the ratio",
        lambda r, A, m, lo, hi: S.clipped_surrogate(r.log(), A, m, lo, hi),
    ),
    (
        "clipped_surrogate",
        "advantages of other rows",
        lambda r, A, m, lo, hi: S.clipped_surrogate(r, A.roll(1), m, lo, hi),
    ),
    (
        "clipped_surrogate",
        "size of the advantage",
        lambda r, A, m, lo, hi: S.clipped_surrogate(r, A.abs(), m, lo, hi),
    ),
    (
        "clipped_surrogate",
        "no advantages",
        lambda r, A, m, lo, hi: S.clipped_surrogate(r, torch.ones_like(A), m, lo, hi),
    ),
    (
        "clipped_surrogate",
        "gradient through the clip",
        lambda r, A, m, lo, hi: (
            S.clipped_surrogate(r.detach(), A, m, lo, hi)
            - torch.where(m, (r - r.detach()) * A.detach()[:, None], 0.0)
        ),
    ),
    (
        "clipped_surrogate",
        "no gradient where A < 0",
        lambda r, A, m, lo, hi: S.clipped_surrogate(torch.where(A[:, None] < 0, r.detach(), r), A, m, lo, hi),
    ),
    ("clipped_surrogate", "mean of the tokens", lambda *a: S.clipped_surrogate(*a).mean()),
    (
        "clipped_surrogate",
        "divided by the length",
        lambda r, A, m, lo, hi: S.clipped_surrogate(r, A, m, lo, hi) / m.sum(1, keepdim=True),
    ),
    (
        "clipped_surrogate",
        "lengths of the first row",
        lambda r, A, m, lo, hi: S.clipped_surrogate(r, A, m[:1].expand_as(m), lo, hi),
    ),
    (
        "clipped_surrogate",
        "clips at minus the bound",
        lambda r, A, m, lo, hi: torch.where(
            m, -torch.minimum(r * A.detach()[:, None], r.clamp(-lo, 1 + hi) * A.detach()[:, None]), 0.0
        ),
    ),
    ("value_loss", "range is 0.2", lambda v, R, m, o, c: S.value_loss(v, R, m, o, 0.2)),
    (
        "value_loss",
        "old values not detached",
        lambda v, R, m, o, c: S.value_loss(v, R, m, SimpleNamespace(detach=lambda: o), c),
    ),
    (
        "value_loss",
        "gradient into the returns",
        lambda v, R, m, o, c: with_gradient_to(S.value_loss(v, R, m, o, c), R),
    ),
    (
        "value_loss",
        "gradient into the old values",
        lambda v, R, m, o, c: with_gradient_to(S.value_loss(v, R, m, o, c), o),
    ),
    (
        "value_loss",
        "absolute error",
        lambda v, R, m, o, c: (2 * S.value_loss(v, R, m, o, c) + 1e-12).sqrt() * m,
    ),
    ("value_loss", "clipped around the return", lambda v, R, m, o, c: S.value_loss(v, R, m, R, c)),
    (
        "value_loss",
        "no gradient where it is clipped",
        lambda v, R, m, o, c: S.value_loss(torch.where((v - o).abs() > c, v.detach(), v), R, m, o, c),
    ),
    ("value_loss", "values detached", lambda v, R, m, o, c: S.value_loss(v.detach(), R, m, o, c)),
    ("value_loss", "mean of the tokens", lambda *a: S.value_loss(*a).mean()),
    ("value_loss", "returns of other rows", lambda v, R, m, o, c: S.value_loss(v, R.roll(1, 0), m, o, c)),
    ("value_loss", "padding", lambda v, R, m, o, c: S.value_loss(v, R, torch.ones_like(m), o, c)),
    (
        "value_loss",
        "sum of both errors",
        lambda v, R, m, o, c: (
            S.value_loss(v, R, m, o, c) + S.value_loss(o + (v - o).clamp(-c, c), R, m, o, c)
        ),
    ),
    (
        "value_loss",
        "clip below only",
        lambda v, R, m, o, c: torch.where(
            m,
            0.5
            * torch.maximum(
                (v - R.detach()) ** 2, (o.detach() + (v - o.detach()).clamp(min=-c) - R.detach()) ** 2
            ),
            0.0,
        ),
    ),
    ("explained_variance", "never below 0", lambda v, R, m: S.explained_variance(v, R, m).clamp(min=0)),
    ("explained_variance", "the other way round", lambda v, R, m: S.explained_variance(R, v, m)),
    ("explained_variance", "root", lambda v, R, m: 1 - (R - v)[m].std() / R[m].std()),
    (
        "explained_variance",
        "correlation squared",
        lambda v, R, m: torch.corrcoef(torch.stack([v[m], R[m]]))[0, 1] ** 2,
    ),
    (
        "explained_variance",
        "mean of rows",
        lambda v, R, m: torch.stack(
            [
                1 - (R - v)[i][m[i]].var(correction=0) / R[i][m[i]].var(correction=0).clamp(min=1e-6)
                for i in range(len(v))
            ]
        ).mean(),
    ),
    (
        "explained_variance",
        "sum of squares of the returns",
        lambda v, R, m: 1 - ((R - v)[m] ** 2).sum() / (R[m] ** 2).sum(),
    ),
    ("explained_variance", "full rows", lambda v, R, m: S.explained_variance(v[:1], R[:1], m[:1])),
    ("explained_variance", "percent", lambda v, R, m: 100 * S.explained_variance(v, R, m)),
    ("explained_variance", "padding counts as 0", lambda v, R, m: 1 - ((R - v) * m).var() / (R * m).var()),
    ("explained_variance", "capped at -1", lambda v, R, m: S.explained_variance(v, R, m).clamp(min=-1)),
]

# ---- lab 5


def surrogate(logprobs, old, advantages, mask, lo=0.2, hi=0.2):
    return clipped_surrogate(importance_ratio(logprobs, old, mask), advantages, mask, lo, hi)


def per_sequence(per_token, mask):
    return (per_token.sum(1) / mask.sum(1)).mean()


def loss_with(beta_term=lambda p, q, m: kl_k3(p, q, m), A=lambda A: A, factor=1.0, mean=per_sequence):
    def grpo_loss(p, o, q, advantages, mask, beta=0.0):
        per_token = factor * surrogate(p, o, A(advantages), mask) + beta * beta_term(p, q, mask)
        return mean(per_token, mask)

    return grpo_loss


def undivided(p, o, q, A, mask, beta=0.0):
    """The KL is summed, not averaged over the tokens of a completion."""
    return per_sequence(surrogate(p, o, A, mask), mask) + beta * kl_k3(p, q, mask).sum(1).mean()


def unmasked_penalty(p, o, q, A, mask, beta=0.0):
    return per_sequence(surrogate(p, o, A, mask), mask) + beta * S.kl_k3(p, q).mean()


def padding_penalty(p, o, q, A, mask, beta=0.0):
    return per_sequence(surrogate(p, o, A, mask), mask) + beta * (S.kl_k3(p, q).sum(1) / mask.sum(1)).mean()


def token_mean_penalty(p, o, q, A, mask, beta=0.0):
    return per_sequence(surrogate(p, o, A, mask), mask) + beta * aggregate(
        kl_k3(p, q, mask), mask, "token_mean"
    )


def live_reference(p, o, q, A, mask, beta=0.0):
    delta = torch.where(mask, q - p, 0.0)
    return S.grpo_loss(p, o, q, A, mask, 0.0) + beta * per_sequence(torch.expm1(delta) - delta, mask)


def shared_loss(name, change):
    """The same mistake in the whole loss of lab 5 and in the penalty of lab 6."""
    return [(step, name, change) for step in ("grpo_loss", "kl_penalty")]


def updating(
    updates=lambda n: n,
    ref=lambda policy, reference: reference,
    old=None,
    beta=lambda b: b,
    after=lambda losses: losses,
    clear=True,
    stop=None,
    policy_of=lambda policy: policy,
):
    def update(policy, reference, optimizer, rollout, advantages, beta_, num_updates):
        batch = (rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
        mask, found = rollout.completion_mask, []
        model = policy_of(policy)
        with torch.no_grad():
            ref_logprobs = token_logprobs(ref(policy, reference), *batch)
        for i in range(updates(num_updates)):
            logprobs = token_logprobs(model, *batch)
            before = rollout.logprobs if old is None else old(logprobs)
            loss, _ = losses.grpo_loss(logprobs, before, ref_logprobs, advantages, mask, beta=beta(beta_))
            if clear or i == 0:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
            if stop and stop(found):
                break
        return after(found)

    return update


def reference_moves(policy, reference, optimizer, rollout, advantages, beta, num_updates):
    found = S.update(policy, reference, optimizer, rollout, advantages, beta, num_updates)
    reference.load_state_dict(policy.state_dict())
    return found


def new_optimizer(policy, reference, optimizer, rollout, advantages, beta, num_updates):
    return S.update(
        policy, reference, torch.optim.SGD(policy.parameters(), 0.1), rollout, advantages, beta, num_updates
    )


def normalized(policy, reference, optimizer, rollout, advantages, beta, num_updates):
    return S.update(policy, reference, optimizer, rollout, advantages - 0.3, beta, num_updates)


def clipped_gradient(policy, reference, optimizer, rollout, advantages, beta, num_updates):
    step = optimizer.step

    class Clipping:
        zero_grad = staticmethod(optimizer.zero_grad)

        @staticmethod
        def step():
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1e-3)
            step()

    return S.update(policy, reference, Clipping, rollout, advantages, beta, num_updates)


def looping(rows=None, group=None, advantages=None, steps=lambda n: n, reward=None, mean=None, texts=None):
    """``train`` with other parts."""

    def train(policy, tokenizer, problems, reward_fn, update, config, generator):
        P, G, means = config.prompts_per_step, config.group_size, []
        for step in range(steps(config.max_steps)):
            order = torch.randperm(len(problems), generator=generator).tolist()[:P]
            if rows:
                order = rows(order, len(problems), generator, step)
            chosen = [problems[i] for i in order]
            samples = sample(policy, tokenizer, [row["prompt"] for row in chosen], config, generator)
            found = tokenizer.decode_batch(samples.completion_ids)
            found = texts(found) if texts else found
            rewards = call_reward(reward_fn, chosen, found).view(P, G)
            rewards = reward(rewards) if reward else rewards
            A = (advantages or package_advantages)(rewards).flatten()
            update(samples, group(A) if group else A)
            means.append(mean(rewards) if mean else rewards.mean().item())
        return means

    return train


def update_twice(policy, tokenizer, problems, reward_fn, update, config, generator):
    def twice(*arguments):
        update(*arguments)
        update(*arguments)

    return S.train(policy, tokenizer, problems, reward_fn, twice, config, generator)


def on_a_copy(policy, tokenizer, problems, reward_fn, update, config, generator):
    return S.train(copy.deepcopy(policy), tokenizer, problems, reward_fn, update, config, generator)


def after_all(policy, tokenizer, problems, reward_fn, update, config, generator):
    """Samples everything first, and updates afterwards."""
    kept = []
    means = S.train(policy, tokenizer, problems, reward_fn, lambda *a: kept.append(a), config, generator)
    for arguments in kept:
        update(*arguments)
    return means


def with_replacement(order, n, generator, step):
    return torch.randint(n, (len(order),), generator=generator).tolist()


LAB5 = [
    (
        "group_advantages",
        "ties by a threshold",
        lambda r: torch.where(r.std(1, keepdim=True, correction=0) < 1e-3, 0.0, S.group_advantages(r)),
    ),
    (
        "group_advantages",
        "ties not quite 0",
        lambda r: torch.where(r.amax(1, True) == r.amin(1, True), 6e-4, S.group_advantages(r)),
    ),
    (
        "group_advantages",
        "NaN in a tied group",
        lambda r: torch.where(r.amax(1, True) == r.amin(1, True), float("nan"), S.group_advantages(r)),
    ),
    (
        "group_advantages",
        "no eps",
        lambda r: (
            torch.nan_to_num((r - r.mean(1, True)) / r.std(1, keepdim=True, correction=0))
            * (r.amax(1, True) != r.amin(1, True))
        ),
    ),
    (
        "group_advantages",
        "eps is 1e-2",
        lambda r: (
            (r - r.mean(1, True))
            / (r.std(1, keepdim=True, correction=0) + 1e-2)
            * (r.amax(1, True) != r.amin(1, True))
        ),
    ),
    (
        "group_advantages",
        "eps in the root",
        lambda r: (
            (r - r.mean(1, True))
            / (r.var(1, keepdim=True, correction=0) + 1e-4).sqrt()
            * (r.amax(1, True) != r.amin(1, True))
        ),
    ),
    (
        "group_advantages",
        "tied groups drop the batch",
        lambda r: S.group_advantages(r) * (r.amax(1) != r.amin(1)).all(),
    ),
    (
        "group_advantages",
        "ties of 0 only",
        lambda r: torch.where(
            (r == 0).all(1, True),
            0.0,
            (r - r.mean(1, True)) / (r.std(1, keepdim=True, correction=0) + 1e-4) + 1e-4,
        ),
    ),
    ("group_advantages", "capped", lambda r: S.group_advantages(r).clamp(-1, 1)),
    ("group_advantages", "ranks", lambda r: S.group_advantages(r.argsort(1).argsort(1).float())),
    (
        "group_advantages",
        "the first group's deviation",
        lambda r: torch.where(
            r.amax(1, True) == r.amin(1, True),
            0.0,
            (r - r.mean(1, True)) / (r[:1].std(1, keepdim=True, correction=0) + 1e-4),
        ),
    ),
    ("group_advantages", "in place", lambda r: r.copy_(S.group_advantages(r))),
    ("policy_loss", "clip is 0.2", lambda p, o, A, m, lo, hi: S.policy_loss(p, o, A, m, 0.2, 0.2)),
    (
        "policy_loss",
        "clip before exp",
        lambda p, o, A, m, lo, hi: S.policy_loss(
            torch.where(m, p - o, 0.0).clamp(-lo, hi), torch.zeros_like(o), A, m, 9.0, 9.0
        ),
    ),
    (
        "policy_loss",
        "advantages of other rows",
        lambda p, o, A, m, lo, hi: S.policy_loss(p, o, A.roll(1), m, lo, hi),
    ),
    (
        "policy_loss",
        "whole completions",
        lambda p, o, A, m, lo, hi: S.policy_loss(
            torch.where(m, p - o, 0.0).sum(1, True).expand_as(p), torch.zeros_like(o), A, m, lo, hi
        ),
    ),
    (
        "policy_loss",
        "gradient into the old",
        lambda p, o, A, m, lo, hi: with_gradient_to(
            S.policy_loss(p, o, A, m, lo, hi), torch.where(m, o, 0.0)
        ),
    ),
    (
        "policy_loss",
        "gradient into the advantages",
        lambda p, o, A, m, lo, hi: with_gradient_to(S.policy_loss(p, o, A, m, lo, hi), A),
    ),
    ("policy_loss", "one number", lambda *a: S.policy_loss(*a).sum()),
    (
        "policy_loss",
        "size of the advantage",
        lambda p, o, A, m, lo, hi: S.policy_loss(p, o, A.abs(), m, lo, hi),
    ),
    (
        "policy_loss",
        "no gradient where A < 0",
        lambda p, o, A, m, lo, hi: S.policy_loss(torch.where(A[:, None] < 0, p.detach(), p), o, A, m, lo, hi),
    ),
    (
        "policy_loss",
        "without the last token",
        lambda p, o, A, m, lo, hi: S.policy_loss(p, o, A, without_last(m), lo, hi),
    ),
    ("kl_k3", "absolute", lambda p, q: (S.kl_k3(p, q)).abs() + (p - p.detach())),
    (
        "kl_k3",
        "clipped delta",
        lambda p, q: torch.expm1((q.detach() - p).clamp(-1, 1)) - (q.detach() - p).clamp(-1, 1),
    ),
    ("kl_k3", "mean", lambda p, q: S.kl_k3(p, q).mean()),
    ("kl_k3", "exp without expm1", lambda p, q: (q.detach() - p).exp() - 1 - (q.detach() - p)),
    ("kl_k3", "policy detached", lambda p, q: S.kl_k3(p.detach(), q)),
    (
        "kl_k3",
        "gradient of k2",
        lambda p, q: (
            S.kl_k3(p, q).detach() + 0.5 * ((p - q.detach()) ** 2) - 0.5 * ((p - q.detach()) ** 2).detach()
        ),
    ),
    (
        "kl_k3",
        "two dimensions only",
        lambda p, q: (
            torch.stack([S.kl_k3(a, b) for a, b in zip(p, q, strict=True)])
            if p.ndim == 2
            else S.kl_k3(p, q).flatten()
        ),
    ),
    ("kl_k3", "half", lambda p, q: 0.5 * S.kl_k3(p, q)),
    ("kl_k3", "probabilities", lambda p, q: S.kl_k3(p.exp(), q.exp())),
    ("kl_k3", "never below 1e-3", lambda p, q: S.kl_k3(p, q).clamp(min=1e-3)),
    *shared_loss("policy loss forgotten", loss_with(factor=0.0)),
    *shared_loss("policy loss reversed", loss_with(factor=-1.0)),
    *shared_loss("no advantages", loss_with(A=torch.zeros_like)),
    *shared_loss("ones for advantages", loss_with(A=torch.ones_like)),
    *shared_loss("KL not divided by the length", undivided),
    *shared_loss("KL over padding", unmasked_penalty),
    *shared_loss("padding in the sum of the KL", padding_penalty),
    *shared_loss("KL over all tokens", token_mean_penalty),
    ("kl_penalty", "reference gets gradients", live_reference),
    *shared_loss("KL without gradient", loss_with(beta_term=lambda p, q, m: kl_k3(p.detach(), q, m))),
    *shared_loss("KL of the policy to itself", loss_with(beta_term=lambda p, q, m: kl_k3(p, p.detach(), m))),
    *shared_loss("advantages of other rows", loss_with(A=lambda A: A.roll(1))),
    (
        "kl_penalty",
        "gradient into the reference",
        lambda p, o, q, A, m, beta=0.0: with_gradient_to(S.grpo_loss(p, o, q, A, m, beta), q),
    ),
    *shared_loss("beta is 0.1", lambda p, o, q, A, m, beta=0.0: S.grpo_loss(p, o, q, A, m, 0.1)),
    *shared_loss("beta squared", lambda p, o, q, A, m, beta=0.0: S.grpo_loss(p, o, q, A, m, beta**2)),
    *shared_loss("ratio always 1", lambda p, o, q, A, m, beta=0.0: S.grpo_loss(p, p.detach(), q, A, m, beta)),
    *shared_loss("KL to the old policy", lambda p, o, q, A, m, beta=0.0: S.grpo_loss(p, o, o, A, m, beta)),
    *shared_loss("a number", lambda p, o, q, A, m, beta=0.0: float(S.grpo_loss(p, o, q, A, m, beta))),
    *shared_loss(
        "one a completion",
        lambda p, o, q, A, m, beta=0.0: torch.stack(
            [S.grpo_loss(*(x[i : i + 1] for x in (p, o, q, A, m)), beta) for i in range(len(p))]
        ),
    ),
    ("update", "one update too many", updating(updates=lambda n: n + 1)),
    ("update", "one update too few", updating(updates=lambda n: n - 1)),
    ("update", "two updates always", updating(updates=lambda n: 2)),
    (
        "update",
        "stops when the loss rises",
        updating(stop=lambda found: len(found) > 1 and found[-1] > found[-2]),
    ),
    (
        "update",
        "stops when the loss falls",
        updating(stop=lambda found: len(found) > 1 and found[-1] < found[-2]),
    ),
    ("update", "KL to the policy itself", updating(ref=lambda policy, reference: copy.deepcopy(policy))),
    ("update", "old log-probs of now", updating(old=lambda logprobs: logprobs.detach())),
    ("update", "beta is 0.1", updating(beta=lambda b: 0.1)),
    ("update", "losses in another order", updating(after=lambda found: found[::-1])),
    ("update", "mean of the losses", updating(after=lambda found: sum(found) / len(found))),
    ("update", "gradients add up", updating(clear=False)),
    ("update", "trains a copy", updating(policy_of=copy.deepcopy)),
    ("update", "the reference follows", reference_moves),
    ("update", "an optimizer of its own", new_optimizer),
    ("update", "advantages shifted", normalized),
    ("update", "gradient clipped", clipped_gradient),
    ("train", "with replacement", looping(rows=with_replacement)),
    ("train", "first rows", looping(rows=lambda order, n, g, step: list(range(len(order))))),
    (
        "train",
        "in order",
        looping(rows=lambda order, n, g, step: [(step * len(order) + i) % n for i in range(len(order))]),
    ),
    ("train", "one problem for all", looping(rows=lambda order, n, g, step: order[:1] * len(order))),
    (
        "train",
        "global random numbers",
        looping(rows=lambda order, n, g, step: torch.randperm(n).tolist()[: len(order)]),
    ),
    ("train", "one step too few", looping(steps=lambda n: n - 1)),
    ("train", "one step too many", looping(steps=lambda n: n + 1)),
    ("train", "sum of the rewards", looping(mean=lambda r: r.sum().item())),
    ("train", "best reward", looping(mean=lambda r: r.max().item())),
    ("train", "rewards of the other groups", looping(reward=lambda r: r.roll(1, 0))),
    ("train", "advantages in another order", looping(group=lambda A: A.flip(0))),
    ("train", "advantages of half size", looping(group=lambda A: A / 2)),
    ("train", "no baseline", looping(advantages=lambda r: r)),
    ("train", "RLOO", looping(advantages=S.leave_one_out)),
    ("train", "batch baseline", looping(advantages=lambda r: (r - r.mean()) / (r.std() + 1e-4))),
    ("train", "updates twice", update_twice),
    ("train", "trains a copy", on_a_copy),
    ("train", "updates at the end", after_all),
    ("train", "texts with a space", looping(texts=lambda found: [text + " " for text in found])),
]

LAB6 = [
    ("importance_ratio", "capped", lambda p, o, m: S.importance_ratio(p, o, m).clamp(max=2.0)),
    (
        "importance_ratio",
        "new over old of other rows",
        lambda p, o, m: S.importance_ratio(p, o.roll(1, 0), m),
    ),
    (
        "importance_ratio",
        "of the whole completion",
        lambda p, o, m: torch.where(m, p - o.detach(), 0.0).sum(1, True).exp().expand_as(p),
    ),
    ("importance_ratio", "detached", lambda p, o, m: S.importance_ratio(p.detach(), o, m)),
    (
        "importance_ratio",
        "gradient into the old",
        lambda p, o, m: with_gradient_to(S.importance_ratio(p, o, m), o),
    ),
    ("importance_ratio", "NaN at padding", lambda p, o, m: torch.where(m, (p - o.detach()).exp(), 1.0)),
    ("importance_ratio", "log of base 2", lambda p, o, m: torch.where(m, p - o.detach(), 0.0).exp2()),
    ("importance_ratio", "first order", lambda p, o, m: 1 + torch.where(m, p - o.detach(), 0.0)),
    ("importance_ratio", "a mean", lambda p, o, m: S.importance_ratio(p, o, m)[m].mean()),
    (
        "importance_ratio",
        "half of the gradient",
        lambda p, o, m: (S.importance_ratio(p, o, m) + S.importance_ratio(p.detach(), o, m)) / 2,
    ),
]

WRONG = [*LAB1, *LAB2, *LAB3, *LAB4, *LAB5, *LAB6]
