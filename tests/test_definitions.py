"""Each function of the mathematics is its formula, written out in plain numbers.

``test_formula_of_NAME`` proves the formula that the page of identities has for ``NAME``. Here are loops,
Python's floats and :mod:`math`, and nothing that the package computes with.
"""

import math
from statistics import fmean, pstdev, stdev

import pytest
import torch
from mathcheck import close

from nanogrpo import advantages, kl, losses, offpolicy, selection, surrogates

MASK = torch.arange(4) < torch.tensor([[4], [2], [3], [1]])  # four completions of different lengths
ROWS = [list(range(n)) for n in (4, 2, 3, 1)]  # the places of their tokens
REWARDS = [[1.0, 0.0, 0.5, 2.0], [0.25, 3.0, -1.0, 0.0]]  # two groups of four
A = [0.75, -1.25, 0.5, -0.5]  # one advantage a completion


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def logprobs(seed, shift=0.0):
    """(4, 4) log-probs of tokens, the same every time."""
    return -numbers(4, 4, seed=seed).abs() * 0.4 - 0.05 + shift


def each(entry):
    """(4, 4) of what ``entry(i, t)`` gives for each token, zero where there is none."""
    return tensor([[entry(i, t) if t in ROWS[i] else 0.0 for t in range(4)] for i in range(4)])


NEW, OLD, REF = (logprobs(seed) for seed in (1, 2, 3))
POLICY, BEFORE, REFERENCE = (x.tolist() for x in (NEW, OLD, REF))
RHO = [[math.exp(POLICY[i][t] - BEFORE[i][t]) for t in range(4)] for i in range(4)]
RATIO = tensor(RHO)


def clip(x, low, high):
    return max(low, min(x, high))


def repeated(rows, lengths):
    """Each number of the rows as often as its completion has tokens, in one list."""
    pairs = zip(sum(rows, []), sum(lengths, []), strict=True)
    return [value for value, length in pairs for _ in range(length)]


def gradient_of(loss, leaf):
    return torch.autograd.grad(loss.sum(), leaf)[0]


# Advantages


def test_formula_of_group_advantages():
    right = [[(r - fmean(group)) / (pstdev(group) + 1e-4) for r in group] for group in REWARDS]
    close(advantages.group_advantages(tensor(REWARDS)), tensor(right), "the group advantage")
    bessel = [[(r - fmean(group)) / stdev(group) for r in group] for group in REWARDS]
    close(advantages.group_advantages(tensor(REWARDS), eps=0.0, correction=1), tensor(bessel), "Bessel")
    plain = [[r - fmean(group) for r in group] for group in REWARDS]
    close(advantages.group_advantages(tensor(REWARDS), "none"), tensor(plain), "Dr. GRPO")


def test_formula_of_leave_one_out():
    right = [[r - fmean(group[:i] + group[i + 1 :]) for i, r in enumerate(group)] for group in REWARDS]
    close(advantages.leave_one_out(tensor(REWARDS)), tensor(right), "less the mean of the others")


def test_formula_of_batch_advantages():
    flat = sum(REWARDS, [])
    right = [[(r - fmean(flat)) / (pstdev(flat) + 1e-4) for r in group] for group in REWARDS]
    close(advantages.batch_advantages(tensor(REWARDS)), tensor(right), "over the whole batch")


def test_formula_of_global_advantages():
    lengths = [[4, 2, 3, 1], [1, 1, 5, 2]]
    less = [[r - fmean(group) for r in group] for group in REWARDS]
    tokens = repeated(less, lengths)
    right = [[(a - fmean(tokens)) / (pstdev(tokens) + 1e-4) for a in group] for group in less]
    close(advantages.global_advantages(tensor(REWARDS), tensor(lengths)), tensor(right), "over all tokens")


PAIRS = [
    (baseline, scale)
    for baseline in advantages.BASELINES
    for scale in advantages.SCALES
    if scale not in ("group", "mean") or baseline not in ("none", "batch")  # those do not go together
]


@pytest.mark.parametrize(("baseline", "scale"), PAIRS)
def test_formula_of_baseline_advantages(baseline, scale):
    rewards, lengths = [[1.0, 0.0, 0.5, 2.0], [0.25, 3.0, 0.0, 0.0]], [[4, 2, 3, 1], [1, 1, 5, 2]]
    flat = sum(rewards, [])

    def less(group, ns, i):
        others = group[:i] + group[i + 1 :]
        means = {"none": 0.0, "batch": fmean(flat), "leave_one_out": fmean(others), "group": fmean(group)}
        return group[i] - (means | {"length": fmean(repeated([group], [ns]))})[baseline]

    left = [[less(group, ns, i) for i in range(4)] for group, ns in zip(rewards, lengths, strict=True)]
    tokens = repeated(left, lengths)
    scales = {"batch": pstdev(flat), "global": pstdev(tokens)}
    shift = fmean(tokens) if scale == "global" else 0.0

    def scaled(group, row):
        by = {"none": 1.0, "group": pstdev(group), "mean": fmean(group)} | scales
        return [(a - shift) / by[scale] for a in row]

    right = [scaled(group, row) for group, row in zip(rewards, left, strict=True)]
    found = advantages.baseline_advantages(tensor(rewards), baseline, scale, 0.0, lengths=tensor(lengths))
    close(found, tensor(right), f"{baseline} and {scale}")


def test_formula_of_overlong_penalty():
    lengths, L, c = [70, 80, 81, 90, 100, 101, 140], 100, 20
    right = [0.0 if n <= L - c else ((L - c) - n) / c if n <= L else -1.0 for n in lengths]
    assert advantages.overlong_penalty(torch.tensor(lengths), L, c).tolist() == pytest.approx(right)


def test_formula_of_gae():
    gamma, lam, r, v = 0.9, 0.7, numbers(4, 4, seed=4), numbers(4, 4, seed=5)

    def delta(i, t):
        return float(r[i, t]) + gamma * (float(v[i, t + 1]) if t + 1 in ROWS[i] else 0.0) - float(v[i, t])

    def advantage(i, t):
        return sum((gamma * lam) ** (s - t) * delta(i, s) for s in ROWS[i] if s >= t)

    found, returns = advantages.gae(r, v, MASK, gamma, lam)
    close(found, each(advantage), "advantages")
    close(returns, each(lambda i, t: advantage(i, t) + float(v[i, t])), "targets of the critic")


def test_formula_of_token_rewards():
    charged = numbers(4, 4, seed=6)
    right = each(lambda i, t: -0.3 * float(charged[i, t]) + (A[i] if t == ROWS[i][-1] else 0.0))
    close(advantages.token_rewards(tensor(A), MASK, charged, 0.3), right, "rewards of tokens")


def test_formula_of_whiten():
    values = numbers(4, 4, seed=7)
    kept = [float(values[i, t]) for i in range(4) for t in ROWS[i]]
    right = each(lambda i, t: (float(values[i, t]) - fmean(kept)) / (pstdev(kept) + 1e-4))
    close(advantages.whiten(values, MASK), right, "mean 0 and deviation 1")


# KL divergence and entropy


def delta(i, t):
    """Log-prob of the reference less that of the policy."""
    return REFERENCE[i][t] - POLICY[i][t]


def test_formula_of_kl_k1():
    close(kl.kl_k1(NEW, REF, MASK), each(lambda i, t: -delta(i, t)), "k1")


def test_formula_of_kl_k2():
    close(kl.kl_k2(NEW, REF, MASK), each(lambda i, t: delta(i, t) ** 2 / 2), "k2")


def test_formula_of_kl_k3():
    close(kl.kl_k3(NEW, REF, MASK), each(lambda i, t: math.exp(delta(i, t)) - 1 - delta(i, t)), "k3")


def probabilities(logits):
    """Softmax, number by number."""
    powers = [math.exp(z) for z in logits.tolist()]
    return [power / sum(powers) for power in powers]


def test_formula_of_kl_exact():
    policy, reference = numbers(2, 5, seed=8), numbers(2, 5, seed=9)
    pairs = [(probabilities(p), probabilities(q)) for p, q in zip(policy, reference, strict=True)]
    right = [sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)) for p, q in pairs]
    close(kl.kl_exact(policy, reference), tensor(right), "the sum over the vocabulary")


def test_formula_of_entropy():
    logits = numbers(3, 5, seed=8)
    right = [-sum(p * math.log(p) for p in probabilities(row)) for row in logits]
    close(kl.entropy(logits), tensor(right), "entropy")
    assert all(0 <= value <= math.log(5) for value in right)


def test_formula_of_entropy_sampled():
    close(kl.entropy_sampled(NEW, MASK), each(lambda i, t: -POLICY[i][t]), "surprise")
    p = probabilities(numbers(5, seed=8))
    mean = sum(a * kl.entropy_sampled(tensor(math.log(a))) for a in p)
    close(mean, kl.entropy(tensor(p).log()), "its mean is the entropy")


def test_formula_of_entropy_proxy():
    close(kl.entropy_proxy(NEW, MASK), each(lambda i, t: -math.exp(POLICY[i][t]) * POLICY[i][t]), "the proxy")


# Losses


def test_formula_of_importance_ratio():
    close(losses.importance_ratio(NEW, OLD, MASK)[MASK], RATIO[MASK], "of a token")
    means = [math.exp(fmean([math.log(RHO[i][t]) for t in ROWS[i]])) for i in range(4)]
    for level in ("sequence", "sequence_token"):
        found = losses.importance_ratio(NEW, OLD, MASK, level)
        close(found[MASK], each(lambda i, t: means[i])[MASK], level)


def clipped(i, t):
    return -min(RHO[i][t] * A[i], clip(RHO[i][t], 0.8, 1.3) * A[i])


def test_formula_of_clipped_surrogate():
    close(losses.clipped_surrogate(RATIO, tensor(A), MASK, 0.2, 0.3), each(clipped), "the smaller objective")
    capped = each(lambda i, t: -min(min(RHO[i][t], 1.35) * A[i], clip(RHO[i][t], 0.8, 1.3) * A[i]))
    close(losses.clipped_surrogate(RATIO, tensor(A), MASK, 0.2, 0.3, 1.35), capped, "with a cap")


WEIGHTS = {  # of a token of completion i; there are four completions, and ten tokens
    "sequence_mean": lambda i: 1 / (4 * len(ROWS[i])),
    "token_mean": lambda i: 1 / 10,
    "constant": lambda i: 1 / (4 * 6),
    "sequence_sum": lambda i: 1 / 4,
}


@pytest.mark.parametrize("how", losses.AGGREGATIONS)
def test_formula_of_aggregate(how):
    values, n = numbers(4, 4, seed=10), losses.Denominators.of(MASK, 6)
    right = sum(WEIGHTS[how](i) * float(values[i, t]) for i in range(4) for t in ROWS[i])
    close(losses.aggregate(values, MASK, how, n), tensor(right), how)


@pytest.mark.parametrize("how", losses.AGGREGATIONS)
def test_formula_of_grpo_loss(how):
    def loss(i, t):
        return clipped(i, t) + 0.3 * (math.exp(delta(i, t)) - 1 - delta(i, t))

    options = {"clip_low": 0.2, "clip_high": 0.3, "beta": 0.3, "aggregation": how}
    n = losses.Denominators.of(MASK, 6)
    found, _ = losses.grpo_loss(NEW, OLD, REF, tensor(A), MASK, denominators=n, **options)
    right = sum(WEIGHTS[how](i) * loss(i, t) for i in range(4) for t in ROWS[i])
    close(found, tensor(right), how)


def test_formula_of_reinforce_loss():
    close(losses.reinforce_loss(NEW, tensor(A), MASK), each(lambda i, t: -A[i] * POLICY[i][t]), "-A log pi")


def test_formula_of_cispo_surrogate():
    leaf = NEW.clone().requires_grad_()
    found = losses.cispo_surrogate(RATIO, leaf, tensor(A), MASK, 0.1, 0.2)
    right = each(lambda i, t: -clip(RHO[i][t], 0.9, 1.2) * A[i])
    close(gradient_of(found, leaf), right, "its gradient")


def test_formula_of_clip_fractions():
    seen = set()
    for sign in (1, -1):
        found = losses.clip_fractions(RATIO, sign * tensor(A), MASK, 0.1, 0.1)
        tokens = [(RHO[i][t], sign * A[i]) for i in range(4) for t in ROWS[i]]
        low = sum(rho < 0.9 and a < 0 for rho, a in tokens) / len(tokens)
        high = sum(rho > 1.1 and a > 0 for rho, a in tokens) / len(tokens)
        right = {"low_mean": low, "high_mean": high, "region_mean": low + high}
        assert {name.split("/")[1]: x.item() for name, x in found.items()} == pytest.approx(right)
        seen |= {name for name, share in right.items() if share}
    assert len(seen) == 3, "the cases show both ends"


def test_formula_of_value_loss():
    value, target, old = (numbers(4, 4, seed=seed) for seed in (11, 12, 13))

    def error(i, t, held=None):
        v, r, o = (float(x[i, t]) for x in (value, target, old))
        errors = [(v - r) ** 2] + ([] if held is None else [(o + clip(v - o, -held, held) - r) ** 2])
        return max(errors) / 2

    close(losses.value_loss(value, target, MASK), each(error), "half the squared error")
    held = losses.value_loss(value, target, MASK, old, 0.3)
    close(held, each(lambda i, t: error(i, t, 0.3)), "the larger of two errors")


def test_formula_of_bradley_terry_loss():
    right = [-math.log(1 / (1 + math.exp(-(a - b)))) for a, b in zip(A, A[::-1], strict=True)]
    close(losses.bradley_terry_loss(tensor(A), tensor(A[::-1])), tensor(right), "surprise at a preference")


def test_formula_of_sft_loss():
    logits, targets = numbers(4, 4, 5, seed=14), torch.randint(5, (4, 4), generator=torch.Generator())
    right = each(lambda i, t: -math.log(probabilities(logits[i, t])[targets[i, t]]))
    close(losses.sft_loss(logits, targets, MASK), right, "surprise at a token")


# What else is made of the ratio


def test_formula_of_sapo_surrogate():
    leaf = NEW.clone().requires_grad_()
    taus = [2.0 if a > 0 else 3.0 for a in A]

    def gate(i, t):
        return 1 / (1 + math.exp(-taus[i] * (RHO[i][t] - 1)))

    found = surrogates.sapo_surrogate((leaf - OLD).exp(), tensor(A), MASK, 2.0, 3.0)
    close(found, each(lambda i, t: -4 / taus[i] * gate(i, t) * A[i]), "its value")
    slope = each(lambda i, t: -4 * gate(i, t) * (1 - gate(i, t)) * RHO[i][t] * A[i])
    close(gradient_of(found, leaf), slope, "its gradient")


@pytest.mark.parametrize("divergence", ["tv", "kl"])
def test_formula_of_dppo_surrogate(divergence):
    bounds = {"clip_low": 0.03, "clip_high": 0.02, "delta": 1.2}

    def distance(i, t):
        p, q = math.exp(BEFORE[i][t]), math.exp(POLICY[i][t])
        coins = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        return abs(p - q) if divergence == "tv" else coins

    def kept(i, t):
        up = A[i] > 0 and POLICY[i][t] > BEFORE[i][t] and distance(i, t) > bounds["clip_high"]
        down = A[i] <= 0 and POLICY[i][t] < BEFORE[i][t] and distance(i, t) > bounds["clip_low"]
        return not (up or down)

    leaf = NEW.clone().requires_grad_()
    found = surrogates.dppo_surrogate(RATIO, leaf, tensor(A), MASK, **bounds, divergence=divergence)
    right = each(lambda i, t: -min(RHO[i][t], 1.2) * A[i] * kept(i, t))
    assert 0 < sum(kept(i, t) for i in range(4) for t in ROWS[i]) < 10, "the case shows both"
    close(gradient_of(found, leaf), right, "its gradient")


def test_formula_of_binary_kl():
    pairs = [(0.5, 0.25), (0.2, 0.2), (0.9, 0.1)]
    right = [p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) for p, q in pairs]
    found = surrogates.binary_kl(tensor([p for p, _ in pairs]), tensor([q for _, q in pairs]))
    close(found, tensor(right), "the KL of two coins")


def test_formula_of_gmpo_surrogate():
    def loss(i, t):
        sign, logs = math.copysign(1, A[i]), [math.log(RHO[i][s]) for s in ROWS[i]]
        smaller = [min(sign * x, sign * clip(x, -0.1, 0.2)) for x in logs]
        return -A[i] * math.exp(sign / len(ROWS[i]) * sum(smaller))

    close(surrogates.gmpo_surrogate(RATIO, tensor(A), MASK, 0.1, 0.2), each(loss), "a geometric mean")


def test_formula_of_vespo_surrogate():
    def weight(i, t):
        w = math.prod(RHO[i][s] for s in ROWS[i])
        k, fall = (1.5, 2.5) if A[i] >= 0 else (3.5, 2.0)
        return w**k * math.exp(fall * (1 - w))

    leaf = NEW.clone().requires_grad_()
    found = surrogates.vespo_surrogate(RATIO, leaf, tensor(A), MASK, 1.5, 2.5, 3.5, 2.0)
    close(gradient_of(found, leaf), each(lambda i, t: -weight(i, t) * A[i]), "its gradient")


# Weights for samples of another policy, and which tokens count


@pytest.mark.parametrize("rule", offpolicy.RULES)
@pytest.mark.parametrize("level", offpolicy.LEVELS)
def test_formula_of_sampler_weights(level, rule):
    def weight(i, t):
        w = RHO[i][t] if level == "token" else math.prod(RHO[i][s] for s in ROWS[i])
        return clip(w, 0.9, 1.1) if rule == "truncate" else w * (0.9 <= w <= 1.1)

    found = offpolicy.sampler_weights(NEW, OLD, MASK, level, rule, 1.1, 0.9)
    close(found, each(weight), f"{level}, {rule}")


def test_formula_of_off_policy_mask():
    gaps = [fmean([BEFORE[i][t] - POLICY[i][t] for t in ROWS[i]]) for i in range(4)]
    for bound in (-1.0, fmean(sorted(gaps[1::2])), 1.0):
        right = each(lambda i, t, bound=bound: float(not (A[i] < 0 and gaps[i] > bound)))
        found = offpolicy.off_policy_mask(NEW, OLD, tensor(A), MASK, bound)
        assert found.double().equal(right)


def test_formula_of_top_entropy():
    values = numbers(4, 4, seed=15).abs()
    ordered = sorted(float(values[i, t]) for i in range(4) for t in ROWS[i])
    at = 0.7 * (len(ordered) - 1)  # the quantile lies between two of them
    bound = ordered[int(at)] + (at - int(at)) * (ordered[int(at) + 1] - ordered[int(at)])
    found = selection.top_entropy(values, MASK, 0.3)
    assert found.double().equal(each(lambda i, t: float(values[i, t] >= bound))) and found.sum() == 3


def shares():
    tokens = [(A[i], POLICY[i][t]) for i in range(4) for t in ROWS[i]]
    mean_A, mean = (fmean(column) for column in zip(*tokens, strict=True))
    return each(lambda i, t: (A[i] - mean_A) * (POLICY[i][t] - mean))


def test_formula_of_covariance():
    close(selection.covariance(NEW, tensor(A), MASK), shares(), "a token's share")


def test_formula_of_clip_cov():
    between = MASK & (shares() > -0.05) & (shares() < 0.05)
    drawn = torch.Generator().manual_seed(0)
    found = selection.clip_cov(shares(), MASK, drawn, 0.2, -0.05, 0.05)
    out = MASK & ~found
    assert not (found & ~MASK).any() and not (out & ~between).any(), "one beyond the bounds is left out"
    assert out.sum() == max(1, int(0.2 * 10)) < between.sum()


def test_formula_of_kl_cov():
    values = shares()
    largest = sorted((float(values[i, t]) for i in range(4) for t in ROWS[i]), reverse=True)[:3]
    right = each(lambda i, t: float(float(values[i, t]) in largest))
    assert selection.kl_cov(values, MASK, 0.3).double().equal(right)


def test_formula_of_next_entropy_coef():
    for entropy, right in ((0.1, 0.4 + 0.05), (0.2, 0.4 + 0.05), (0.3, 0.4 - 0.05)):
        assert selection.next_entropy_coef(0.4, entropy, 0.2, 0.05) == pytest.approx(right)
    assert selection.next_entropy_coef(0.4, 0.1, 0.2, 0.5, 0.3, 0.6) == 0.6, "at most"
    assert selection.next_entropy_coef(0.4, 0.3, 0.2, 0.5, 0.3, 0.6) == 0.3, "at least"
