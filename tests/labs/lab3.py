"""Lab 3: answers that students give, wrong and right."""


def _loss(value):
    return f"def reinforce_loss(logprobs, advantages, mask):\n    A = advantages.detach()\n    return {value}"


def _of_rewards(value):
    before = "    P, G = rewards.shape\n    total = rewards.sum(1, keepdim=True)\n"
    return f"def leave_one_out(rewards):\n{before}    return {value}"


def _exact(value):
    return f"def exact_gradient(probs, rewards, scores):\n    return {value}"


def _pairs(value):
    before = "    N, p = len(probs), probs[:, None] * probs\n"
    return f"def expected_estimate(probs, estimates):\n{before}    return {value}"


def _baseline(value):
    return f"def best_baseline(probs, rewards, scores):\n    n = scores.norm(dim=1)\n    return {value}"


def _error(value):
    return f"def mean_and_error(estimates):\n    M, D = estimates.shape\n    return {value}"


WRONG = {
    "reinforce_loss": [
        ("sign", "sign is reversed", _loss("(A * (logprobs * mask).sum(1)).mean()")),
        ("padding", "Padding gets a gradient", _loss("-(A * logprobs.sum(1)).mean()")),
        ("sum over rows", "take their mean", _loss("-(A * (logprobs * mask).sum(1)).sum()")),
        (
            "divided by the length",
            "divide each row by its length",
            _loss("-(A * (logprobs * mask).sum(1) / mask.sum(1)).mean()"),
        ),
        ("token mean", "tokens of the batch", _loss("-(A[:, None] * logprobs * mask).sum() / mask.sum()")),
        ("mean over all places", "padding included", _loss("-(A[:, None] * logprobs * mask).mean()")),
        ("probabilities", "drawn with it", _loss("-(A[:, None] * logprobs.exp() * mask).sum(1).mean()")),
        (
            "advantages not detached",
            "constants here, so detach",
            "def reinforce_loss(logprobs, advantages, mask):\n"
            "    return -(advantages * (logprobs * mask).sum(1)).mean()",
        ),
        ("log-probs detached", "no gradient", _loss("-(A * (logprobs.detach() * mask).sum(1)).mean()")),
        ("one number a row", "take the mean over rows", _loss("-A * (logprobs * mask).sum(1)")),
    ],
    "exact_gradient": [
        ("all alike", "count alike", _exact("(rewards[:, None] * scores).mean(0)")),
        ("no probabilities", "probabilities are missing", _exact("rewards @ scores")),
        (
            "a mean of what is weighed",
            "sum to 1 already",
            _exact("((probs * rewards)[:, None] * scores).mean(0)"),
        ),
        ("no rewards", "mean score", _exact("probs @ scores")),
        ("probability twice", "in there twice", _exact("(probs**2 * rewards) @ scores")),
        ("product of sums", "product of sums", _exact("(probs * rewards).sum() * scores.sum(0)")),
        ("not summed", "axis 0", _exact("(probs * rewards)[:, None] * scores")),
    ],
    "leave_one_out": [
        ("own reward in the mean", "the own one included", _of_rewards("rewards - total / G")),
        ("divided by G", "still divide by G", _of_rewards("rewards - (total - rewards) / G")),
        (
            "over prompts",
            "axis",
            _of_rewards("rewards - (rewards.sum(0) - rewards) / (P - 1)"),
        ),
        (
            "over the batch",
            "batch|all prompts|whole",
            _of_rewards("rewards - (rewards.sum() - rewards) / (P * G - 1)"),
        ),
        ("sign", "sign is reversed", _of_rewards("(total - rewards) / (G - 1) - rewards")),
        ("the baseline itself", "subtract it", _of_rewards("(total - rewards) / (G - 1)")),
    ],
    "expected_estimate": [
        ("all pairs alike", "pairs count alike", _pairs("estimates.mean((0, 1))")),
        (
            "no repeats",
            "drawn twice",
            _pairs("(p * (1 - torch.eye(N)))[..., None].mul(estimates).sum((0, 1))"),
        ),
        ("each pair once", "whatever its order", _pairs("p.triu()[..., None].mul(estimates).sum((0, 1))")),
        (
            "combinations",
            "all N x N draws",
            _pairs("sum(p[i, j] * estimates[i, j] for i in range(N) for j in range(i + 1, N))"),
        ),
        ("diagonal", "both draws are free", _pairs("probs @ estimates[range(N), range(N)]")),
        ("second draw unweighed", "second draw counts all", _pairs("probs @ estimates.mean(1)")),
        ("one probability", "second draw is missing", _pairs("probs @ estimates.sum(1)")),
        ("halved", "divide by 2", _pairs("torch.einsum('ij,ijd->d', p, estimates) / 2")),
    ],
    "best_baseline": [
        ("mean reward", "mean reward: a good baseline", _baseline("(probs * rewards).sum()")),
        ("plain mean", "plain mean", _baseline("rewards.mean()")),
        (
            "length, not its square",
            "take its square",
            _baseline("(probs * rewards * n).sum() / (probs * n).sum()"),
        ),
        (
            "no probabilities",
            "missing, above and below",
            _baseline("(rewards * n**2).sum() / (n**2).sum()"),
        ),
        ("no denominator", "denominator is missing", _baseline("(probs * rewards * n**2).sum()")),
        (
            "upside down",
            "upside down",
            _baseline("(probs * n**2).sum() / (probs * rewards * n**2).sum()"),
        ),
    ],
    "mean_and_error": [
        ("spread of one", "spread of one estimate", _error("estimates.mean(0), estimates.std(0)")),
        (
            "population",
            "spread of a sample needs",
            _error("estimates.mean(0), estimates.std(0, correction=0) / M**0.5"),
        ),
        ("divided by M", "square root of M", _error("estimates.mean(0), estimates.std(0) / M")),
        ("variance", "take its square root", _error("estimates.mean(0), estimates.var(0) / M")),
        (
            "root of D",
            "number of estimates that counts",
            _error("estimates.mean(0), estimates.std(0) / D**0.5"),
        ),
        ("corrected twice", "correct once", _error("estimates.mean(0), estimates.std(0) / (M - 1) ** 0.5")),
        ("wrong axis", "axis 0", _error("estimates.mean(1), estimates.std(1) / M**0.5")),
        ("one number", "is a gradient", _error("estimates.mean(), estimates.std() / M**0.5")),
    ],
}

RIGHT = {
    "reinforce_loss": [
        (
            "loop",
            """
def reinforce_loss(logprobs, advantages, mask):
    total = 0.0
    for row, A, kept in zip(logprobs, advantages.tolist(), mask):
        total = total - A * row[kept].sum()
    return total / len(logprobs)
""",
        ),
        (
            "by the ratio",
            _loss("-(A * torch.where(mask, logprobs - logprobs.detach(), 0).sum(1).exp()).mean()"),
        ),
        (
            "with the package",
            _loss("losses.aggregate(losses.reinforce_loss(logprobs, A, mask), mask, 'sequence_sum')"),
        ),
    ],
    "exact_gradient": [
        ("loop", _exact("sum(p * r * s for p, r, s in zip(probs, rewards, scores))")),
        ("with a baseline", _exact("(probs * (rewards - probs @ rewards)) @ scores")),
    ],
    "leave_one_out": [
        (
            "loop",
            """
def leave_one_out(rewards):
    result = torch.empty_like(rewards)
    for p, row in enumerate(rewards):
        for i in range(len(row)):
            result[p, i] = row[i] - torch.cat([row[:i], row[i + 1 :]]).mean()
    return result
""",
        ),
        ("scaled", _of_rewards("(rewards - total / G) * G / (G - 1)")),
    ],
    "expected_estimate": [
        ("loop", _pairs("sum(probs[i] * probs[j] * estimates[i, j] for i in range(N) for j in range(N))")),
        ("one draw after the other", _pairs("probs @ (probs @ estimates)")),
    ],
    "best_baseline": [
        (
            "loop",
            """
def best_baseline(probs, rewards, scores):
    above = below = 0.0
    for p, r, s in zip(probs, rewards, scores):
        above, below = above + p * r * (s @ s), below + p * (s @ s)
    return above / below
""",
        ),
        (
            "a number",
            """
def best_baseline(probs, rewards, scores):
    weights = [float(p * (s**2).sum()) for p, s in zip(probs, scores)]
    return sum(w * float(r) for w, r in zip(weights, rewards)) / sum(weights)
""",
        ),
    ],
    "mean_and_error": [
        (
            "by hand",
            """
def mean_and_error(estimates):
    M = len(estimates)
    mean = sum(estimates) / M
    square = sum((g - mean) ** 2 for g in estimates) / (M - 1)
    return mean, (square / M).sqrt()
""",
        ),
        ("by the variance", _error("estimates.mean(0), (estimates.var(0) / M).sqrt()")),
    ],
}
