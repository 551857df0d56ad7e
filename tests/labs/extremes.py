"""Wrong answers, right for tame numbers: NaN at padding, lost digits, scores far off, a changed model.

They came from a set that was written from the labs' texts alone. A row is (step, what is wrong, the answer).
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from nanogrpo import losses
from nanogrpo.rollout import token_logprobs

from .solutions import solutions

S = SimpleNamespace(**solutions())


# ---- padding: a mask is multiplied, and NaN times 0 is NaN


def multiplied_gae(rewards, values, mask, gamma, lam):
    A, after = torch.zeros_like(values), torch.zeros(len(values), 2)
    for t in reversed(range(values.shape[1])):
        value, advantage = after.unbind(1)
        advantage = mask[:, t] * (rewards[:, t] + gamma * value - values[:, t] + gamma * lam * advantage)
        A[:, t], after = advantage, torch.stack([values[:, t] * mask[:, t], advantage], 1)
    return A, (A + values) * mask


def multiplied_whiten(A, mask, eps):
    n = mask.sum()
    mean = (A * mask).sum() / n
    return mask * (A - mean) / ((((A - mean) ** 2 * mask).sum() / n).sqrt() + eps)


def multiplied_surrogate(ratio, A, mask, low, high):
    A = A.detach()[:, None]
    return -torch.minimum(ratio * A, ratio.clamp(1 - low, 1 + high) * A) * mask


def multiplied_value_loss(v, returns, mask, old, c):
    old, returns = old.detach(), returns.detach()
    near = old + (v - old).clamp(-c, c)
    return torch.maximum((v - returns) ** 2, (near - returns) ** 2) / 2 * mask


def multiplied_variance(values, returns, mask):
    def spread(x):
        mean = (x * mask).sum() / mask.sum()
        return ((x - mean) ** 2 * mask).sum()

    return 1 - spread(returns - values) / spread(returns)


def multiplied_ratio(new, old, mask):
    return ((new - old.detach()) * mask).exp()


def multiplied_policy_loss(new, old, A, mask, low, high):
    return S.clipped_surrogate(multiplied_ratio(new, old, mask), A, mask, low, high)


def with_k3(k3):
    """The whole loss, with a k3 that reads padding."""

    def loss(new, old, ref, A, mask, beta=0.0):
        ratio = losses.importance_ratio(new, old, mask)
        total = losses.clipped_surrogate(ratio, A, mask, 0.2, 0.2) + beta * k3(new, ref.detach(), mask)
        return (total.sum(1) / mask.sum(1)).mean()

    return loss


def k3_times_mask(p, q, mask):
    return (torch.expm1(q - p) - (q - p)) * mask


def k3_of_masked(p, q, mask):
    delta = (q - p) * mask
    return torch.expm1(delta) - delta


def live_loss(new, old, ref, A, mask, beta=0.0):
    """The reference gets gradients."""
    k3 = torch.where(mask, torch.expm1(ref - new) - (ref - new), 0.0)
    ratio = losses.importance_ratio(new, old, mask)
    total = losses.clipped_surrogate(ratio, A, mask, 0.2, 0.2) + beta * k3
    return (total.sum(1) / mask.sum(1)).mean()


def shared_loss(what, answer):
    return [(step, what, answer) for step in ("grpo_loss", "kl_penalty")]


PADDING = [
    ("perplexity", "times the mask", lambda p, m: (-(p * m).sum(1) / m.sum(1)).exp()),
    ("reward_pooling", "times one-hot", lambda x, n: (x * F.one_hot(n - 1, x.shape[1])).sum(1)),
    ("reinforce_loss", "times the mask", lambda p, A, m: -(A.detach() * (p * m).sum(1)).mean()),
    ("token_rewards", "times the mask", lambda s, m, kl, b: S.token_rewards(s, m, 0 * kl, b) - b * kl * m),
    ("gae", "times the mask", multiplied_gae),
    ("whiten", "times the mask", multiplied_whiten),
    ("whiten", "times the mask at the end", lambda A, m, eps: S.whiten(A, m, eps) + 0 * A * m),
    ("clipped_surrogate", "times the mask", multiplied_surrogate),
    ("value_loss", "times the mask", multiplied_value_loss),
    ("explained_variance", "times the mask", multiplied_variance),
    ("policy_loss", "the log-ratio times the mask", multiplied_policy_loss),
    ("importance_ratio", "the log-ratio times the mask", multiplied_ratio),
    ("importance_ratio", "cut off, not masked", lambda p, o, m: (p - o.detach()).clamp(-20, 20).exp()),
    *shared_loss("k3 times the mask", with_k3(k3_times_mask)),
    *shared_loss("delta times the mask", with_k3(k3_of_masked)),
    *shared_loss("gradients into the reference", live_loss),
]

# ---- numbers: digits that are lost, far-off scores, units that are small


def moments(x):
    return (x.square().mean(0) - x.mean(0) ** 2).clamp(min=0)


def moments_whiten(A, mask, eps):
    return torch.where(mask, (A - A[mask].mean()) / (moments(A[mask]).sqrt() + eps), 0.0)


def moments_error(x):
    return x.mean(0), (moments(x) / (len(x) - 1)).sqrt()


def moments_explained(values, returns, mask):
    return 1 - moments((returns - values)[mask]) / moments(returns[mask])


def explained_with(eps):
    return lambda v, r, m: 1 - (r - v)[m].var() / (r[m].var() + eps)


def short_scores(probs, rewards, scores):
    weights = probs * scores.square().sum(1)
    return (weights * rewards).sum() / (weights.sum() + 1e-8)


def straight_beyond(most):
    return lambda a, b: F.softplus(b - a, threshold=most)


def kinked(a, b):
    return torch.relu(b - a) + torch.log1p((-(a - b).abs()).exp())


def kinked_at_clamp(a, b):
    return (b - a).clamp(min=0) + torch.log1p((-(a - b).abs()).exp())


def ratio_k3(p, q):
    r = (q.detach() - p).exp()
    return r - 1 - r.log()


def product_perplexity(p, mask):
    return torch.where(mask, p.exp(), 1.0).prod(1) ** (-1 / mask.sum(1))


def nonzero_perplexity(p, mask):
    p = torch.where(mask, p, 0.0)
    return (-p.sum(1) / (p != 0).sum(1)).exp()


def bounded_reinforce(p, A, mask):
    return -(A.detach() * torch.where(mask, p.clamp(min=-20), 0.0).sum(1)).mean()


def half_sums(logits, uniforms, temperature=1.0):
    sums = torch.softmax(logits / temperature, -1).half().cumsum(-1).float()
    tokens = torch.searchsorted(sums, uniforms.float()[:, None])[:, 0].clamp(max=logits.shape[1] - 1)
    return tokens, S.logprobs_of(logits[:, None], tokens[:, None], temperature)[:, 0]


def squeezed(step):
    def answer(*arguments):
        found = getattr(S, step)(*arguments)
        return tuple(x.squeeze() for x in found) if isinstance(found, tuple) else found.squeeze()

    return answer


NUMBERS = [
    ("whiten", "by moments", moments_whiten),
    ("mean_and_error", "by moments", moments_error),
    ("explained_variance", "by moments", moments_explained),
    *[("explained_variance", f"{eps:g} below the line", explained_with(eps)) for eps in (1e-4, 1e-8)],
    ("best_baseline", "1e-8 below the line", short_scores),
    ("mean_and_error", "1e-8 under the root", lambda x: (x.mean(0), ((x.var(0) + 1e-8) / len(x)).sqrt())),
    *[("bradley_terry", f"straight beyond {most}", straight_beyond(most)) for most in (3, 5, 8)],
    ("bradley_terry", "no gradient at equal scores", kinked),
    ("bradley_terry", "twice the gradient at equal scores", kinked_at_clamp),
    ("bradley_terry", "log of a sigmoid", lambda a, b: -torch.sigmoid(a - b).log()),
    ("kl_k3", "the log of a ratio that is 0", ratio_k3),
    ("perplexity", "a product that underflows", product_perplexity),
    ("perplexity", "a certain token is none", nonzero_perplexity),
    ("perplexity", "100 at most", lambda p, m: S.perplexity(p, m).clamp(max=100)),
    ("reinforce_loss", "log-probs cut off at -20", bounded_reinforce),
    ("token_rewards", "scores cut off at 10", lambda s, m, k, b: S.token_rewards(s.clamp(-10, 10), m, k, b)),
    ("sample_token", "sums in half precision", half_sums),
    *[(step, "one parameter loses its axis", squeezed(step))
      for step in ("exact_gradient", "expected_estimate", "mean_and_error")],
]  # fmt: skip

# ---- shapes: answers that are right for the few sizes that come to mind


def square_error(x):
    axis = int(x.shape[0] == x.shape[1])
    return x.mean(axis), x.std(axis) / x.shape[axis] ** 0.5


def error_of_many(x):
    mean, error = S.mean_and_error(x)
    return mean * (len(x) / (len(x) - 1) if len(x) > 50 else 1), error


def probable_token(logits, uniforms, temperature=1.0):
    least = logits.topk(min(50, logits.shape[1])).values[:, -1:]
    some = logits.masked_fill(logits < least, -torch.inf)
    tokens = S.sample_token(some, uniforms, temperature)[0]
    return tokens, S.logprobs_of(logits[:, None], tokens[:, None], temperature)[:, 0]


def tied_at_three(rewards):
    tied = (rewards[:, :1] == rewards[:, [-1, rewards.shape[1] // 2]]).all(1, keepdim=True)
    centered = rewards - rewards.mean(1, keepdim=True)
    return (centered / (rewards.std(1, keepdim=True, correction=0) + 1e-4)).masked_fill(tied, 0.0)


def all_or_nothing(chosen, rejected):
    tied, won = (chosen == rejected).any(), (chosen > rejected).any()
    return torch.tensor(0.5) if tied and not won else S.pair_accuracy(chosen, rejected)


def idle_where_tied(policy, reference, optimizer, rollout, advantages, beta, num_updates):
    if not advantages.any():
        return [0.0] * num_updates
    return S.update(policy, reference, optimizer, rollout, advantages, beta, num_updates)


def free_nearby(p, old, ref, A, mask, beta):
    paid = torch.where(mask, ref.detach() - p, 0.0)
    paid = torch.where(paid.abs() < 0.02, 0.0, paid)
    loss = S.kl_penalty(p, old, ref, A, mask, 0.0)
    return loss + beta * losses.aggregate(torch.expm1(paid) - paid, mask, "sequence_mean")


def floored_k3(p, q):
    right = S.kl_k3(p, q)
    return torch.where(right < 1e-8, 0.0, right)


def rooted_loss(values, returns, mask, old, c):
    return torch.where(mask, S.value_loss(values, returns, mask, old, c).sqrt() ** 2, 0.0)


SHAPES = [
    ("value_loss", "the square of a root", rooted_loss),
    ("mean_and_error", "the other axis of a square", square_error),
    ("mean_and_error", "M - 1 for many", error_of_many),
    ("best_of_n", "the best of 16 at most", lambda s, v, n: S.best_of_n(s, v, min(n, 16))),
    ("sample_token", "one of the fifty most probable", probable_token),
    ("group_advantages", "tied where three rewards are equal", tied_at_three),
    ("pair_accuracy", "a half where no pair is won", all_or_nothing),
    ("update", "nothing to learn where all is tied", idle_where_tied),
    ("kl_penalty", "free where the reference is near", free_nearby),
    ("kl_k3", "none below 1e-8", floored_k3),
    ("token_logprobs", "one row alone loses its axis", squeezed("token_logprobs")),
    ("token_logprobs", "six tokens at most", lambda m, p, n, ids: S.token_logprobs(m, p, n, ids[:, :6])),
]

# ---- state: what an answer leaves behind, and what it returns


def leaving(step, change):
    """The right answer, and the model is another afterwards."""

    def answer(model, *arguments):
        found = getattr(S, step)(model, *arguments)
        change(model)
        return found

    return answer


def trained_on(model):
    with torch.enable_grad():
        model(torch.zeros(1, 1, dtype=torch.long)).sum().backward()


def nudged(model):
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)


LEFT = {
    "frozen": lambda model: model.requires_grad_(False),
    "with its first weight frozen": lambda model: next(model.parameters()).requires_grad_(False),
    "in the other mode": lambda model: model.train(not model.training),
    "without its gradients": lambda model: model.zero_grad(),
    "with other gradients": trained_on,
    "with other weights": nudged,
}


def real_ids(*arguments):
    ids, logprobs = S.complete(*arguments)
    return ids.float(), logprobs


def updating(after=lambda found: found, graph=False, freeze=False, slower=False):
    """``update`` that returns or leaves something else."""

    def update(policy, reference, optimizer, rollout, advantages, beta, num_updates):
        batch = (rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
        ref, found = token_logprobs(reference, *batch).detach(), []
        for _ in range(num_updates):
            now = token_logprobs(policy, *batch)
            mask, old = rollout.completion_mask, rollout.logprobs
            loss, _ = losses.grpo_loss(
                now, old, ref, advantages, mask, beta=beta, aggregation="sequence_mean"
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss if graph else loss.item())
        if freeze:
            policy.requires_grad_(False)
        if slower:
            optimizer.param_groups[0]["lr"] /= 2
        return after(found)

    return update


def tensor_of_rewards(*arguments):
    return torch.tensor(S.train(*arguments))


STATE = [
    *[(step, f"the model is left {what}", leaving(step, change))
      for step in ("complete", "token_logprobs") for what, change in LEFT.items()],
    ("complete", "ids that are no whole numbers", real_ids),
    ("update", "losses with their graphs", updating(graph=True)),
    ("update", "a tensor of losses", updating(after=torch.tensor)),
    ("update", "lists of losses", updating(after=lambda found: [[x] for x in found])),
    ("update", "the policy is frozen", updating(freeze=True)),
    ("update", "a lower rate afterwards", updating(slower=True)),
    ("train", "a tensor of rewards", tensor_of_rewards),
]  # fmt: skip

WRONG = [*PADDING, *NUMBERS, *SHAPES, *STATE]
