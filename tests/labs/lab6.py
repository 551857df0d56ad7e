"""Lab 6: answers that students give, wrong and right; where a function was a step of another lab, those."""

from labs import lab1, lab4


def _penalty(delta, value):
    return f"""
def kl_penalty(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta):
    loss, _ = losses.grpo_loss(
        logprobs, old_logprobs, None, advantages, mask, aggregation="sequence_mean"
    )
    delta = torch.where(mask, {delta}, 0.0)
    return {value}
"""


def _ratio(value):
    return f"def importance_ratio(logprobs, old_logprobs, mask):\n    return {value}"


FORWARD = "ref_logprobs.detach() - logprobs"
K3 = "losses.aggregate(torch.expm1(delta) - delta, mask, 'sequence_mean')"

WRONG = {
    "clipped_surrogate": lab4.WRONG["clipped_surrogate"],
    "completion_mask": lab1.WRONG["completion_mask"],
    "logprobs_of": lab1.WRONG["logprobs_of"],
    "kl_penalty": [
        ("as it was", "wrong sign", _penalty(FORWARD, f"loss - beta * {K3}")),
        ("reversed", "k3 is reversed", _penalty("logprobs - ref_logprobs.detach()", f"loss + beta * {K3}")),
        (
            "k1",
            "restrains nothing",
            _penalty(FORWARD, "loss + beta * losses.aggregate(-delta, mask, 'sequence_mean')"),
        ),
        (
            "k2",
            "penalty is k2",
            _penalty(FORWARD, "loss + beta * losses.aggregate(delta**2 / 2, mask, 'sequence_mean')"),
        ),
        ("no beta", "Beta has no influence|Beta adds nothing", _penalty(FORWARD, f"loss + {K3}")),
        ("nothing", "Beta adds nothing", _penalty(FORWARD, "loss")),
        (
            "summed",
            "average them",
            _penalty(FORWARD, "loss + beta * (torch.expm1(delta) - delta).sum(1).mean()"),
        ),
    ],
    "importance_ratio": [
        ("as it was", "always 1", _ratio("torch.where(mask, logprobs - logprobs.detach(), 0.0).exp()")),
        (
            "upside down",
            "upside down",
            _ratio("torch.where(mask, old_logprobs.detach() - logprobs, 0.0).exp()"),
        ),
        ("no exp", "take its exp", _ratio("torch.where(mask, logprobs - old_logprobs.detach(), 0.0)")),
        (
            "log-probs divided",
            "You divide log-probs",
            _ratio("torch.where(mask, logprobs / old_logprobs.detach(), 1.0)"),
        ),
        (
            "old not detached",
            "not detached",
            _ratio("torch.where(mask, logprobs - old_logprobs, 0.0).exp()"),
        ),
        (
            "mask after exp",
            "before exp",
            _ratio("torch.where(mask, (logprobs - old_logprobs.detach()).exp(), 1.0)"),
        ),
    ],
    "token_logprobs": lab1.WRONG["token_logprobs"],
}

RIGHT = {
    "clipped_surrogate": lab4.RIGHT["clipped_surrogate"],
    "completion_mask": lab1.RIGHT["completion_mask"],
    "logprobs_of": lab1.RIGHT["logprobs_of"],
    "kl_penalty": [
        (
            "with the package",
            """
def kl_penalty(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta):
    return losses.grpo_loss(
        logprobs, old_logprobs, ref_logprobs, advantages, mask, beta=beta, aggregation="sequence_mean"
    )[0]
""",
        ),
        (
            "loop",
            """
def kl_penalty(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta):
    loss, _ = losses.grpo_loss(
        logprobs, old_logprobs, None, advantages, mask, aggregation="sequence_mean"
    )
    for new, ref, kept in zip(logprobs, ref_logprobs.detach(), mask):
        delta = (ref - new)[kept]
        loss = loss + beta * (delta.exp() - 1 - delta).mean() / len(mask)
    return loss
""",
        ),
    ],
    "importance_ratio": [
        (
            "masked old",
            _ratio("(torch.where(mask, logprobs, 0) - torch.where(mask, old_logprobs, 0).detach()).exp()"),
        ),
        (
            "filled",
            _ratio("(logprobs - old_logprobs.detach()).masked_fill(~mask, 0.0).exp()"),
        ),
    ],
    "token_logprobs": lab1.RIGHT["token_logprobs"],
}
