"""Lab 4: answers that students give, wrong and right."""


def _rewards(column, penalty="torch.where(mask, -beta * kl, 0.0)"):
    return (
        "def token_rewards(scores, mask, kl, beta):\n"
        "    T, n = mask.shape[1], mask.sum(1, keepdim=True)\n"
        f"    return ({penalty}).scatter_add(1, {column}, scores[:, None])"
    )


def _gae(
    delta="r[t] + gamma * v[t + 1] - v[t]", decay="gamma * lam", values="v[:n] + [0.0]", back="(A, A + V)"
):
    return f"""
def gae(rewards, values, mask, gamma, lam):
    A, V = torch.zeros_like(values), values.masked_fill(~mask, 0.0)
    for i, n in enumerate(mask.sum(1).tolist()):
        r, v, carried = rewards[i].tolist(), values[i].tolist() + [0.0], 0.0
        v = {values}
        for t in reversed(range(n)):
            carried = {delta} + {decay} * carried
            A[i, t] = carried
    return {back}
"""


def _white(value):
    return (
        f"def whiten(advantages, mask, eps):\n    A, kept = advantages, advantages[mask]\n    return {value}"
    )


def _clip(value):
    return (
        "def clipped_surrogate(ratio, advantages, mask, clip_low, clip_high):\n"
        "    A = advantages.detach()[:, None]\n    near = ratio.clamp(1 - clip_low, 1 + clip_high)\n"
        f"    return torch.where(mask, {value}, 0.0)"
    )


def _critic(value):
    return (
        "def value_loss(values, returns, mask, old_values, clip_range):\n"
        "    R, old = returns.detach(), old_values.detach()\n"
        "    near = old + (values - old).clamp(-clip_range, clip_range)\n"
        f"    return mask * ({value})"
    )


def _explained(value):
    return (
        "def explained_variance(values, returns, mask):\n    V, R = values[mask], returns[mask]\n"
        f"    return {value}"
    )


WRONG = {
    "token_rewards": [
        ("one token late", "one token after the end", _rewards("n.clamp(max=T - 1)")),
        ("last column", "last column|column", _rewards("torch.full_like(n, T - 1)")),
        ("first token", "known only after the last", _rewards("torch.zeros_like(n)")),
        ("sign of the KL", "wrong sign", _rewards("n - 1", "torch.where(mask, beta * kl, 0.0)")),
        ("padding pays", "Padding pays KL", _rewards("n - 1", "-beta * kl")),
        ("no KL", "KL penalty is missing", _rewards("n - 1", "torch.zeros_like(kl)")),
        (
            "every token gets the score",
            "only the last one does",
            "def token_rewards(scores, mask, kl, beta):\n"
            "    return torch.where(mask, scores[:, None] - beta * kl, 0.0)",
        ),
    ],
    "gae": [
        ("reads past the end", "Nothing follows the end", _gae(values="v")),
        ("no lambda", "Lambda is ignored", _gae(decay="gamma")),
        ("no gamma in the sum", "Gamma is missing from the sum", _gae(decay="lam")),
        ("one step", "one-step error alone", _gae(decay="0.0")),
        ("no values", "values are missing", _gae(delta="r[t]", back="(A, A)")),
        ("sign", "sign is reversed", _gae(delta="v[t] - r[t] - gamma * v[t + 1]")),
        ("targets without the value", "lack the value", _gae(back="(A, A)")),
        ("returns for advantages", "returns less the values", _gae(back="((A + V), A + V)")),
        ("one tensor", "Return two tensors", _gae(back="A")),
    ],
    "whiten": [
        ("over padding", "run over padding", _white("mask * ((A - A.mean()) / (A.std(correction=0) + eps))")),
        (
            "padding as zeros",
            "Padding counts as zeros",
            _white("mask * ((A - (A * mask).mean()) / ((A * mask).std(correction=0) + eps))"),
        ),
        (
            "sample deviation",
            "population's deviation",
            _white("mask * ((A - kept.mean()) / (kept.std() + eps))"),
        ),
        (
            "by row",
            "whitened by itself",
            """
def whiten(advantages, mask, eps):
    rows = torch.zeros_like(advantages)
    for i, m in enumerate(mask):
        kept = advantages[i, m]
        rows[i, m] = (kept - kept.mean()) / (kept.std(correction=0) + eps)
    return rows
""",
        ),
        ("no deviation", "deviation is missing", _white("mask * (A - kept.mean())")),
        ("no mean", "mean is not taken off", _white("mask * (A / (kept.std(correction=0) + eps))")),
        ("variance", "square root", _white("mask * ((A - kept.mean()) / (kept.var(correction=0) + eps))")),
        (
            "padding kept",
            "not zero at padding",
            _white("(A - kept.mean()) / (kept.std(correction=0) + eps)"),
        ),
    ],
    "clipped_surrogate": [
        ("max", "min is a max", _clip("-torch.maximum(ratio * A, near * A)")),
        ("an objective", "sign is reversed", _clip("torch.minimum(ratio * A, near * A)")),
        ("no min", "min is missing", _clip("-near * A")),
        ("no clip", "Nothing is clipped", _clip("-ratio * A")),
        (
            "bounds swapped",
            "bounds are swapped",
            _clip("-torch.minimum(ratio * A, ratio.clamp(1 - clip_high, 1 + clip_low) * A)"),
        ),
        (
            "advantages not detached",
            "not detached",
            "def clipped_surrogate(ratio, advantages, mask, clip_low, clip_high):\n"
            "    A = advantages[:, None]\n"
            "    near = ratio.clamp(1 - clip_low, 1 + clip_high)\n"
            "    return mask * -torch.minimum(ratio * A, near * A)",
        ),
        (
            "padding",
            "not zero at padding",
            _clip("-torch.minimum(ratio * A, near * A)").replace("where(mask,", "where(ratio > 0,"),
        ),
    ],
    "value_loss": [
        ("min", "max is a min", _critic("0.5 * torch.minimum((values - R) ** 2, (near - R) ** 2)")),
        ("no half", "half is missing", _critic("torch.maximum((values - R) ** 2, (near - R) ** 2)")),
        ("clipped alone", "clipped error alone", _critic("0.5 * (near - R) ** 2")),
        ("no clip", "Nothing is clipped", _critic("0.5 * (values - R) ** 2")),
        (
            "returns not detached",
            "returns: they are not detached",
            _critic("0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)"),
        ),
    ],
    "explained_variance": [
        (
            "padding",
            "Padding counts",
            "def explained_variance(values, returns, mask):\n"
            "    return 1 - (returns - values).var() / returns.var()",
        ),
        ("mean square", "constant error", _explained("1 - ((R - V) ** 2).mean() / R.var(correction=0)")),
        ("unexplained", "NOT explained", _explained("(R - V).var() / R.var()")),
        ("of the values", "returns' variance", _explained("1 - (R - V).var() / V.var()")),
        ("deviations", "standard deviations", _explained("1 - (R - V).std() / R.std()")),
        ("spreads", "pure noise", _explained("V.var() / R.var()")),
        ("correlation", "squared correlation", _explained("torch.corrcoef(torch.stack([V, R]))[0, 1] ** 2")),
    ],
}

RIGHT = {
    "token_rewards": [
        (
            "loop",
            """
def token_rewards(scores, mask, kl, beta):
    result = torch.zeros_like(kl)
    for i, n in enumerate(mask.sum(1).tolist()):
        result[i, :n] = -beta * kl[i, :n]
        result[i, n - 1] += scores[i]
    return result
""",
        ),
        (
            "by comparing",
            """
def token_rewards(scores, mask, kl, beta):
    last = torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1
    return last * scores[:, None] - beta * kl.masked_fill(~mask, 0.0)
""",
        ),
    ],
    "gae": [
        ("row by row", _gae()),
        (
            "a matrix of weights",
            """
def gae(rewards, values, mask, gamma, lam):
    V, T = values.masked_fill(~mask, 0.0), values.shape[1]
    after = torch.cat([V[:, 1:], torch.zeros(len(V), 1)], 1)
    delta = (rewards + gamma * after - V).masked_fill(~mask, 0.0)
    away = torch.arange(T)[:, None] - torch.arange(T)
    A = delta @ torch.where(away >= 0, (gamma * lam) ** away.clamp(min=0), 0.0) * mask
    return A, A + V
""",
        ),
    ],
    "whiten": [
        (
            "sums",
            """
def whiten(advantages, mask, eps):
    n, A = mask.sum(), advantages.masked_fill(~mask, 0.0)
    mean = A.sum() / n
    square = (((A - mean) * mask) ** 2).sum() / n
    return (A - mean) / (square.sqrt() + eps) * mask
""",
        ),
        ("with the package", _white("reference.whiten(A, mask, eps)")),
    ],
    "clipped_surrogate": [
        ("a max of losses", _clip("torch.maximum(-ratio * A, -near * A)")),
        (
            "case by case",
            """
def clipped_surrogate(ratio, advantages, mask, clip_low, clip_high):
    A = advantages.detach()[:, None].expand_as(ratio)
    too_far = torch.where(A > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
    held = torch.where(A > 0, 1 + clip_high, 1 - clip_low)
    return -torch.where(mask, torch.where(too_far, held, ratio), 0.0) * A
""",
        ),
    ],
    "value_loss": [
        (
            "squares last",
            """
def value_loss(values, returns, mask, old_values, clip_range):
    R, old = returns.detach(), old_values.detach()
    near = torch.clamp(values, old - clip_range, old + clip_range)
    larger = torch.maximum((values - R).abs(), (near - R).abs())
    return 0.5 * larger.masked_fill(~mask, 0.0) ** 2
""",
        ),
        (
            "masked with where",
            _critic("torch.where(mask, torch.stack([(values - R) ** 2, (near - R) ** 2]).amax(0) / 2, 0.0)"),
        ),
    ],
    "explained_variance": [
        ("population", _explained("1 - (R - V).var(correction=0) / R.var(correction=0)")),
        (
            "sums",
            """
def explained_variance(values, returns, mask):
    R, E = returns[mask], (returns - values)[mask]
    return 1 - ((E - E.mean()) ** 2).sum() / ((R - R.mean()) ** 2).sum()
""",
        ),
    ],
}
