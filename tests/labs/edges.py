"""Wrong answers that are right in the middle and wrong at an edge, where a class meets it first.

An end in the last column, one row alone, rewards that are equal, a number near 1, a group that is tied, a
list where a tensor is asked for. A row is (step, what is wrong, the answer).
"""

from types import SimpleNamespace

import torch

from nanogrpo import rollout
from nanogrpo.advantages import group_advantages
from nanogrpo.rollout import token_logprobs
from nanogrpo.step import sample
from nanogrpo.tasks import call_reward

from .solutions import solutions

S = SimpleNamespace(**solutions())


def squeezed(step):
    """Axes of length 1 are dropped, also the one of the rows."""

    def answer(*arguments):
        result = getattr(S, step)(*arguments)
        return tuple(x.squeeze() for x in result) if isinstance(result, tuple) else result.squeeze()

    return answer


def listed(step):
    """Lists where tensors are asked for."""

    def answer(*arguments):
        result = getattr(S, step)(*arguments)
        return tuple(x.tolist() for x in result) if isinstance(result, tuple) else result.tolist()

    return answer


def last_column_mask(ids, eos_id):
    mask = S.completion_mask(ids, eos_id)
    mask[:, -1] &= ids[:, -1] != eos_id
    return mask


def chosen_by(tokens_of):
    def sample_token(logits, uniforms, temperature=1.0):
        probs = torch.softmax(logits / temperature, -1)
        tokens = tokens_of(probs, uniforms[:, None])[:, 0].clamp(max=logits.shape[1] - 1)
        return tokens, S.logprobs_of(logits[:, None], tokens[:, None], temperature)[:, 0]

    return sample_token


def strictly(probs, u):
    return torch.searchsorted(probs.cumsum(-1), u, right=True)


def cut_number(probs, u):
    return torch.searchsorted(probs.cumsum(-1), u.clamp(max=0.99))


def near_one_is_last(probs, u):
    return torch.where(u > 0.99, probs.shape[1] - 1, torch.searchsorted(probs.cumsum(-1), u))


def end_anywhere(model, prompt, uniforms, eos_id):
    """Looks for the end in the whole text, the prompt included."""
    text, logprobs = prompt, []
    for u in uniforms:
        token, logprob = rollout.sample_token(model(text[None])[:, -1], u[None])
        text = torch.cat([text, token])
        logprobs.append(logprob)
        if eos_id in text:
            break
    return text[len(prompt) :], torch.cat(logprobs)


def shares_of_exp(a, b, temperature):
    a, b = (a / temperature).exp(), (b / temperature).exp()
    return a / (a + b)


def close_is_tied(chosen, rejected):
    tie = torch.isclose(chosen, rejected)
    return ((chosen > rejected) & ~tie).float().mean() + tie.float().mean() / 2


def counted_rows(logprobs, advantages, mask):
    """Rows without an advantage are not counted."""
    advantages = advantages.detach()
    total = (torch.where(mask, logprobs, 0.0).sum(1) * advantages).sum()
    return -total / (advantages != 0).sum()


def other_values(rewards):
    """The mean of the others that differ."""
    others = rewards[:, None, :] != rewards[:, :, None]
    total = (others * rewards[:, None, :]).sum(2)
    return rewards - total / others.sum(2).clamp(min=1)


def tied_if(tied):
    def answer(rewards):
        right = group_advantages(rewards)
        return torch.where(tied(rewards), 0.0, right)

    return answer


def with_metrics(logprobs, old, ref, advantages, mask, beta=0.0):
    return S.grpo_loss(logprobs, old, ref, advantages, mask, beta), {"kl": 0.0}


def overwriting(policy, reference, optimizer, rollout, advantages, beta, num_updates):
    found = S.update(policy, reference, optimizer, rollout, advantages, beta, num_updates)
    ids = (rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
    rollout.logprobs.copy_(token_logprobs(policy, *ids).detach())
    return found


def looping(generator_of=lambda generator, step: generator, skip=lambda advantages: False):
    """``train`` with other parts."""

    def train(policy, tokenizer, problems, reward_fn, update, config, generator):
        means = []
        for step in range(config.max_steps):
            picked = torch.randperm(len(problems), generator=generator)[: config.prompts_per_step]
            rows = [problems[i] for i in picked.tolist()]
            prompts = [row["prompt"] for row in rows]
            drawn = sample(policy, tokenizer, prompts, config, generator_of(generator, step))
            rewards = call_reward(reward_fn, rows, tokenizer.decode_batch(drawn.completion_ids))
            advantages = group_advantages(rewards.view(len(rows), -1)).flatten()
            if not skip(advantages):
                update(drawn, advantages)
            means.append(rewards.mean().item())
        return means

    return train


def numbered(generator, step):
    return torch.Generator().manual_seed(step)


def shared_state(logits, uniforms, temperature=1.0):
    torch.manual_seed(1234)
    return S.sample_token(logits, uniforms, temperature)


def log_of(probs):
    def logprobs_of(logits, ids, temperature=1.0):
        return probs(logits / temperature).log().gather(-1, ids[..., None]).squeeze(-1)

    return logprobs_of


def shares(z):
    return z.exp() / z.exp().sum(-1, keepdim=True)


def shares_chosen(logits, uniforms, temperature=1.0):
    p = shares(logits / temperature)
    ids = (p.cumsum(-1)[:, :-1] < uniforms[:, None]).sum(-1)
    return ids, p.gather(-1, ids[:, None]).squeeze(-1).log()


def odds(a, b, temperature):
    of = ((a - b) / temperature).exp()
    return of / (1 + of)


def row_zero_first(rewards, values, mask, gamma, lam):
    """The loop begins where the first row ends."""
    mask = mask & (torch.arange(mask.shape[1]) < mask[0].sum())
    return S.gae(rewards, values, mask, gamma, lam)


def silent_batch(ratio, advantages, mask, low, high):
    loss = S.clipped_surrogate(ratio, advantages, mask, low, high)
    return loss if (advantages != 0).all() else 0 * loss


def dual_clip(ratio, advantages, mask, low, high):
    A = advantages.detach()[:, None]
    loss = S.clipped_surrogate(ratio, advantages, mask, low, high)
    return torch.where(mask & (A < 0), torch.minimum(loss, -3 * A), loss)


def capped_policy_loss(p, old, A, mask, low, high):
    old = old.detach()
    return S.policy_loss(torch.where(mask, old + (p - old).clamp(-1, 1), p), old, A, mask, low, high)


def capped_ratio(p, old, mask):
    return torch.where(mask, (p - old.detach()).clamp(-1, 1), 0.0).exp()


def lost_slope(p, q):
    delta = q.detach() - p
    right = S.kl_k3(p, q)
    return torch.where(delta.abs() < 1e-3, right.detach(), right)


def small_beta_is_none(p, old, ref, A, mask, beta=0.0):
    return S.grpo_loss(p, old, ref, A, mask, beta if beta > 0.3 else 0.0)


def small_beta_is_no_penalty(p, old, ref, A, mask, beta):
    return S.kl_penalty(p, old, ref, A, mask, beta if beta > 0.3 else 0.0)


def sorting(policy, tokenizer, problems, reward_fn, update, config, generator):
    problems.sort(key=lambda row: row["prompt"])
    return S.train(policy, tokenizer, problems, reward_fn, update, config, generator)


def some_only(policy, tokenizer, problems, reward_fn, update, config, generator):
    problems = problems[: config.prompts_per_step + 1]
    return S.train(policy, tokenizer, problems, reward_fn, update, config, generator)


ONE_ROW = ["logprobs_of", "sample_token", "perplexity", "bradley_terry", "preference_probs", "reward_pooling",
           "token_rewards", "gae", "whiten", "clipped_surrogate", "value_loss", "leave_one_out",
           "group_advantages", "policy_loss", "kl_k3", "importance_ratio"]  # fmt: skip
WRONG = [
    *[(step, "one row alone loses its axis", squeezed(step)) for step in ONE_ROW],
    *[(step, "lists for tensors", listed(step))
      for step in ("completion_mask", "sample_token", "complete", "gae", "mean_and_error")],
    ("completion_mask", "PAD is no token", lambda ids, eos: S.completion_mask(ids, eos) & (ids != 0)),
    ("logprobs_of", "the log of a softmax", log_of(lambda z: z.softmax(-1))),
    ("logprobs_of", "exp without the maximum", log_of(shares)),
    ("logprobs_of", "none below -20", lambda z, ids, tau=1.0: S.logprobs_of(z, ids, tau).clamp(min=-20)),
    ("sample_token", "exp without the maximum", shares_chosen),
    ("sample_token", "torch's own numbers are seeded", shared_state),
    ("preference_probs", "odds overflow", odds),
    ("noise_ceiling", "a coin counts nothing",
     lambda p: torch.where(p == 0.5, 0.0, torch.maximum(p, 1 - p)).mean()),
    ("pair_accuracy", "all tied is all wrong",
     lambda a, b: 0.0 if (a == b).all() else S.pair_accuracy(a, b)),
    ("gae", "only as far as the first row goes", row_zero_first),
    ("clipped_surrogate", "one advantage of 0 silences all", silent_batch),
    ("clipped_surrogate", "a third bound", dual_clip),
    ("policy_loss", "the log-ratio is cut off at 1", capped_policy_loss),
    ("importance_ratio", "the log-ratio is cut off at 1", capped_ratio),
    ("group_advantages", "tied by isclose",
     tied_if(lambda r: torch.isclose(r.amax(1, keepdim=True), r.amin(1, keepdim=True)))),
    ("group_advantages", "tied below 1e-6", tied_if(lambda r: r.std(1, correction=0, keepdim=True) < 1e-6)),
    ("kl_k3", "cut off at 2", lambda p, q: S.kl_k3(q.detach() - (q.detach() - p).clamp(-2, 2), q)),
    ("kl_k3", "no gradient where the two are close", lost_slope),
    ("grpo_loss", "a small beta is none", small_beta_is_none),
    ("kl_penalty", "a small beta is none", small_beta_is_no_penalty),
    ("train", "the problems are sorted in place", sorting),
    ("train", "the first problems only", some_only),
    ("completion_mask", "an end in the last column is left out", last_column_mask),
    ("sample_token", "the sum must exceed u", chosen_by(strictly)),
    ("sample_token", "numbers cut at 0.99", chosen_by(cut_number)),
    ("sample_token", "the last token from 0.99 on", chosen_by(near_one_is_last)),
    ("complete", "an end in the prompt stops it", end_anywhere),
    ("preference_probs", "no temperature below 0.1", lambda a, b, t: S.preference_probs(a, b, max(t, 0.1))),
    ("preference_probs", "exp overflows at a low temperature", shares_of_exp),
    ("pair_accuracy", "close scores are ties", close_is_tied),
    ("reinforce_loss", "rows without an advantage are not counted", counted_rows),
    ("leave_one_out", "equal others are left out", other_values),
    ("group_advantages", "tied if the first two are", tied_if(lambda r: r[:, :1] == r[:, 1:2])),
    ("group_advantages", "tied if nearly so", tied_if(lambda r: r.std(1, keepdim=True) < 2e-5)),
    ("grpo_loss", "a loss and its metrics", with_metrics),
    ("kl_penalty", "a loss and its metrics", with_metrics),
    ("update", "old log-probs overwritten", overwriting),
    ("train", "samples with numbers of its own", looping(numbered)),
    ("train", "no update of a step of tied groups", looping(skip=lambda A: not A.abs().sum())),
]  # fmt: skip
