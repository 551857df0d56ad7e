"""Lab 2: answers that students give, wrong and right."""


def _probs(value):
    head = "def preference_probs(scores_a, scores_b, temperature):\n    gap = scores_a - scores_b\n"
    return f"{head}    return {value}"


def _ceiling(value):
    return f"def noise_ceiling(probs):\n    return {value}"


def _loss(value):
    return f"def bradley_terry(chosen, rejected):\n    gap = chosen - rejected\n    return {value}"


def _pool(value):
    return f"def reward_pooling(outputs, lens):\n    rows = torch.arange(len(lens))\n    return {value}"


def _accuracy(value):
    return (
        "def pair_accuracy(chosen, rejected):\n"
        "    above, ties = (chosen > rejected).float(), (chosen == rejected).float()\n"
        f"    return {value}"
    )


def _best(value):
    return f"""
def best_of_n(scores, values, n):
    N, order = len(scores), scores.argsort()
    weights = torch.tensor([math.comb(i, n - 1) / math.comb(N, n) for i in range(N)])
    return {value}
"""


WRONG = {
    "preference_probs": [
        ("reversed", "difference is reversed", _probs("torch.sigmoid(-gap / temperature)")),
        ("no temperature", "is ignored: divide", _probs("torch.sigmoid(gap)")),
        ("multiplied", "multiply by the temperature", _probs("torch.sigmoid(gap * temperature)")),
        ("log-odds", "log-odds", _probs("gap / temperature")),
        ("log", "log-probability", _probs("torch.nn.functional.logsigmoid(gap / temperature)")),
        ("no noise", "makes no mistakes", _probs("(gap > 0).float()")),
    ],
    "noise_ceiling": [
        ("mean", "how often a is preferred", _ceiling("probs.mean()")),
        ("share", "share of pairs in which a is better", _ceiling("(probs > 0.5).float().mean()")),
        ("one a pair", "take the mean", _ceiling("torch.maximum(probs, 1 - probs)")),
        ("errors", "labels that the judge gets wrong", _ceiling("torch.minimum(probs, 1 - probs).mean()")),
        ("agreement", "two noisy labels agree", _ceiling("(probs**2 + (1 - probs) ** 2).mean()")),
        ("mean first", "mean comes too early", _ceiling("torch.maximum(probs.mean(), 1 - probs.mean())")),
    ],
    "bradley_terry": [
        ("reversed", "prefers what was rejected", _loss("-torch.nn.functional.logsigmoid(-gap)")),
        ("sign", "sign is reversed", _loss("torch.nn.functional.logsigmoid(gap)")),
        ("no logarithm", "logarithm is missing", _loss("torch.sigmoid(-gap)")),
        ("difference alone", "log-sigmoid is missing", _loss("-gap")),
        ("overflow", "Use logsigmoid", _loss("-torch.sigmoid(gap).log()")),
        ("mean", "one number a pair", _loss("-torch.nn.functional.logsigmoid(gap).mean()")),
        (
            "each on its own",
            "on its own",
            _loss("-torch.nn.functional.logsigmoid(chosen) - torch.nn.functional.logsigmoid(-rejected)"),
        ),
        ("detached", "no gradient", _loss("-torch.nn.functional.logsigmoid(gap.detach())")),
    ],
    "reward_pooling": [
        ("last column", "at the padding", _pool("outputs[:, -1]")),
        ("one late", "one token after the end", _pool("outputs[rows, lens]")),
        ("first", "first token", _pool("outputs[:, 0]")),
        ("mean", "padding included", _pool("outputs.mean(1)")),
        (
            "mean of the text",
            "average over the text",
            _pool("torch.stack([row[:n].mean() for row, n in zip(outputs, lens)])"),
        ),
    ],
    "pair_accuracy": [
        ("ties wrong", "tie counts as wrong", _accuracy("above.mean()")),
        ("ties right", "tie counts as right", _accuracy("(above + ties).mean()")),
        ("ties left out", "leave ties out", _accuracy("above.sum() / (1 - ties).sum()")),
        ("reversed", "order is reversed", _accuracy("1 - above.mean() - ties.mean() / 2")),
        ("margin", "mean margin", _accuracy("(chosen - rejected).mean()")),
        ("a number of pairs", "divide by N", _accuracy("above.sum() + ties.sum() / 2")),
    ],
    "best_of_n": [
        ("scores", "score of the best", _best("scores[order] @ weights")),
        ("sorted by value", "You sort by value", _best("values.sort().values @ weights")),
        ("best first", "order is reversed", _best("values[order.flip(0)] @ weights")),
        ("not sorted", "not sorted", _best("values @ weights")),
        ("best of all", "best of the whole pool", _best("values[order[-1]]")),
        ("first n", "best of the first n", _best("values[scores[:n].argmax()]")),
        ("mean of n", "mean of the n best", _best("values[order[-n:]].mean()")),
        (
            "with replacement",
            "draws with replacement",
            _best("values[order] @ torch.tensor([((i + 1) / N) ** n - (i / N) ** n for i in range(N)])"),
        ),
        ("no choice", "best of 1", _best("values.mean()")),
    ],
}

RIGHT = {
    "preference_probs": [
        ("exp", _probs("1 / (1 + torch.exp(-gap / temperature))")),
        (
            "softmax",
            "def preference_probs(scores_a, scores_b, temperature):\n"
            "    return (torch.stack([scores_a, scores_b]) / temperature).softmax(0)[0]",
        ),
    ],
    "noise_ceiling": [
        ("distance", _ceiling("0.5 + (probs - 0.5).abs().mean()")),
        ("loop", _ceiling("sum(max(p, 1 - p) for p in probs.tolist()) / len(probs)")),
    ],
    "bradley_terry": [
        ("softplus", _loss("torch.nn.functional.softplus(-gap)")),
        ("loop", _loss("torch.stack([torch.logaddexp(torch.zeros(()), -d) for d in gap])")),
    ],
    "reward_pooling": [
        ("indices", _pool("outputs[rows, lens - 1]")),
        ("loop", _pool("torch.stack([row[n - 1] for row, n in zip(outputs, lens.tolist())])")),
    ],
    "pair_accuracy": [
        ("sign", _accuracy("(1 + torch.sign(chosen - rejected)).mean() / 2")),
        (
            "loop",
            _accuracy(
                "sum(1.0 if c > r else 0.5 * (c == r) for c, r in zip(chosen, rejected)) / len(chosen)"
            ),
        ),
    ],
    "best_of_n": [
        (
            "all subsets",
            """
def best_of_n(scores, values, n):
    from itertools import combinations

    found = [values[max(s, key=lambda i: scores[i])] for s in combinations(range(len(scores)), n)]
    return sum(found) / len(found)
""",
        ),
        (
            "step by step",
            """
def best_of_n(scores, values, n):
    N, total = len(scores), 0.0
    for i, value in enumerate(values[scores.argsort()].tolist(), start=1):
        total += math.comb(i - 1, n - 1) * value
    return total / math.comb(N, n)
""",
        ),
    ],
}
