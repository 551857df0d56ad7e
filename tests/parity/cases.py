"""What is compared with TRL, verl and OpenRLHF: batches, and for each case their options and ours.

A case names a function of a framework, the options that it is called with, and the keywords of ours that
mean the same. ``ours`` gives our numbers; :mod:`theirs_trl`, :mod:`theirs_verl` and :mod:`theirs_openrlhf` give
theirs. Everything is in float64, but for what a framework itself puts into float32.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nanogrpo import kl
from nanogrpo.advantages import baseline_advantages
from nanogrpo.losses import Denominators, grpo_loss, value_loss
from nanogrpo.offpolicy import off_policy_mask, sampler_weights
from nanogrpo.selection import clip_cov, covariance, kl_cov, next_entropy_coef, top_entropy
from nanogrpo.surrogates import per_token

MAX_LENGTH = 6
SEEDS = range(5)
ODD = 4  # of these: holes in its mask, an answer without tokens, an advantage of 0, no answer of full length
GROUP = 4  # rows of one prompt
EXACT, NEARLY = 1e-12, 1e-6
ADDED = "verl adds 1e-8 to a count, or to a variance, so the last digits differ"
ROUNDED = "verl adds 1e-8 to a count; TRL and this package round the temperature of 1.05 to float32"
SMALL = "OpenRLHF adds 1e-8 to the count of a completion's tokens, so the last digits differ"
SINGLE = "OpenRLHF puts these numbers into float32"


@dataclass(frozen=True)
class Case:
    """One comparison, over all batches.

    Attributes:
        name: stands in the table of the dictionary.
        side: ``trl``, ``verl`` or ``openrlhf``.
        kind: which function, see ``ours``.
        theirs: options of theirs.
        mine: keywords of ours.
        tolerance: of loss and gradient.
        why: the reason, where the tolerance is not 1e-12, or where the two differ by design.
        differs: true if the two must differ.
    """

    name: str
    side: str
    kind: str
    theirs: dict[str, Any] = field(default_factory=dict)
    mine: dict[str, Any] = field(default_factory=dict)
    tolerance: float = EXACT
    why: str = ""
    differs: bool = False


def batches_of(case: Case, batches: list) -> list:
    """Those that a side can take. An answer without tokens has no last one, where verl and OpenRLHF want the reward;
    in TRL's GMPO it adds minus its advantage to the value (and nothing to the gradient), here 0, as in verl."""
    return batches if case.side == "trl" and case.kind != "gmpo" else batches[:ODD]


def draw_batch(seed: int) -> dict[str, Tensor]:
    """Log-probs of four policies, entropies, rewards of 1 or 0 and others, in rows of mixed lengths."""
    g = torch.Generator().manual_seed(1000 + seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    B, T = 2 * GROUP, MAX_LENGTH - (seed == ODD)
    logprobs = -normal(B, T).abs() - 0.05
    lengths = torch.randint(1, T + 1, (B, 1), generator=g)
    rewards = torch.rand(B, generator=g, dtype=torch.float64)
    batch = {
        "logprobs": logprobs,
        "old": torch.minimum(logprobs + 0.5 * normal(B, T), torch.tensor(-0.01, dtype=torch.float64)),
        "sampler": torch.minimum(logprobs + 0.5 * normal(B, T), torch.tensor(-0.01, dtype=torch.float64)),
        "ref": logprobs + 0.3 * normal(B, T),
        "entropies": 2 * torch.rand(B, T, generator=g, dtype=torch.float64),
        "advantages": normal(B),
        "rewards": rewards,
        "mask": (torch.arange(T) < lengths).double(),
    }
    if seed == ODD:
        batch["mask"] *= torch.rand(B, T, generator=g) < 0.8
        batch["mask"][3], batch["advantages"][5] = 0.0, 0.0
    return batch


def ours(case: Case, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What our functions give: a loss and its gradient, or values (B, T)."""
    batch = {name: value.clone() for name, value in batch.items()}
    mask = batch["mask"].bool()
    if case.kind == "advantages":
        found = _advantages(batch, mask, **case.mine)
        return {"value": per_token(found.flatten(), mask)}
    if case.kind == "weights":
        return {"value": sampler_weights(batch["logprobs"], batch["sampler"], mask, **case.mine)}
    if case.kind == "kl":
        leaf = batch["logprobs"].requires_grad_()
        return _slope(getattr(kl, case.mine["estimator"])(leaf, batch["ref"], mask).sum(), leaf)
    if case.kind == "value":
        leaf, old = batch["logprobs"].requires_grad_(), batch["old"] if case.mine else None
        error = value_loss(leaf, batch["ref"], mask, old, **case.mine)
        return _slope(error.sum() / mask.sum(), leaf)
    if case.kind == "controller":
        coefs, coef = [], 0.1
        for entropy in batch["entropies"].flatten().tolist():
            coef = next_entropy_coef(coef, entropy, **case.mine)
            coefs.append(coef)
        return {"value": torch.tensor(coefs, dtype=torch.float64)}
    return _loss(batch, mask, **case.mine)


def _advantages(batch: dict[str, Tensor], mask: Tensor, binary: bool = False, **options: Any) -> Tensor:
    rewards = batch["rewards"].view(-1, GROUP)
    rewards = (rewards > 0.5).double() if binary else rewards
    return baseline_advantages(rewards, lengths=mask.sum(1).view(-1, GROUP), **options)


def _loss(
    batch: dict[str, Tensor], mask: Tensor, *, select: str = "", on_policy: bool = False,
    ref: bool = False, coef: float = 0.0, gradient_only: bool = False, **options: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """``grpo_loss`` with a weight on the advantages, as the trainer puts it there."""
    leaf = batch["logprobs"].requires_grad_()
    old = leaf.detach() if on_policy else batch["old"]
    advantages, penalty, share = batch["advantages"], 0.0, options.pop("share", None)
    cov = covariance(leaf, advantages, mask)
    if select == "off_policy":
        advantages = per_token(advantages, mask) * off_policy_mask(leaf, old, advantages, mask, share)
    if select == "top_entropy":
        advantages = per_token(advantages, mask) * top_entropy(batch["entropies"], mask, share)
    if select == "sampler":
        advantages = per_token(advantages, mask) * sampler_weights(old, batch["sampler"], mask, *share)
    if select == "clip_cov":
        kept = clip_cov(cov, mask, torch.Generator().manual_seed(0), 1.0, *share)
        advantages = per_token(advantages, mask) * kept
    if select == "kl_cov":
        penalty = (coef * (leaf - old).abs() * kl_cov(cov, mask, share)).sum() / mask.sum()
    n = Denominators.of(mask, MAX_LENGTH)
    reference = batch["ref"] if ref else None
    loss, metrics = grpo_loss(leaf, old, reference, advantages, mask, denominators=n, **options)
    found = _slope(loss + penalty, leaf)
    if gradient_only:
        found.pop("loss")
    if options.get("surrogate", "clip") == "clip" and not select and not gradient_only:
        found["clipped"] = metrics["clip_ratio/region_mean"]
    return found


def _slope(loss: Tensor, leaf: Tensor) -> dict[str, Tensor]:
    return {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, leaf)[0]}


WIDE = {"clip_low": 1e9, "clip_high": 1e9}
TRL_AGGREGATION = {
    "grpo": "sequence_mean",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "dr_grpo": "constant",
    "luspo": "sequence_sum",
}
VERL_AGGREGATION = {
    "seq-mean-token-mean": "sequence_mean",
    "token-mean": "token_mean",
    "seq-mean-token-sum-norm": "constant",
    "seq-mean-token-sum": "sequence_sum",
}


def trl_cases() -> list[Case]:
    """TRL's loss for every loss_type, both ratio levels, KL, delta, and what it masks with."""
    cases = []
    for loss_type, how in TRL_AGGREGATION.items():
        for level in ("token", "sequence"):
            for more in ({}, {"delta": 1.6}, {"beta": 0.3}, {"beta": 0.3, "use_bias_correction_kl": True}):
                mine = {"aggregation": how, "importance_sampling_level": level, "clip_high": 0.28, **more}
                differs = level == "sequence" and "use_bias_correction_kl" in more
                name = f"{loss_type}, {level}" + "".join(f", {key}" for key in more)
                theirs = {"loss_type": loss_type, "importance_sampling_level": level, **more}
                theirs |= {"epsilon_high": 0.28}
                why = (
                    "TRL multiplies each token's KL with the ratio of the completion; ours is that of the token"
                    if differs
                    else ""
                )
                cases.append(
                    Case(
                        name, "trl", "loss", theirs, {"ref": "beta" in more, **mine}, why=why, differs=differs
                    )
                )
    bounds = {"clip_low": 1.0, "clip_high": 0.5, "aggregation": "token_mean"}
    sapo = {"surrogate": "sapo", "aggregation": "sequence_mean"}
    vespo = {"surrogate": "vespo", "aggregation": "token_mean"}
    clip = {"aggregation": "token_mean", "clip_high": 0.2}
    cases += [
        Case("cispo", "trl", "loss", {"loss_type": "cispo", "epsilon_high": 1.5}, {"surrogate": "cispo", **bounds}),
        Case("sapo", "trl", "loss", {"loss_type": "sapo"}, sapo),
        Case(
            "sapo, sequence", "trl", "loss", {"loss_type": "sapo", "importance_sampling_level": "sequence"},
            {**sapo, "importance_sampling_level": "sequence"},
        ),
        Case(
            "sapo, other temperatures", "trl", "loss",
            {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 5.0},
            {**sapo, "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 5.0},
        ),
        Case("sapo, beta", "trl", "loss", {"loss_type": "sapo", "beta": 0.3}, {**sapo, "beta": 0.3, "ref": True}),
        Case("vespo", "trl", "loss", {"loss_type": "vespo"}, vespo),
        Case(
            "vespo, other shape", "trl", "loss",
            {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 0.5, "vespo_k_neg": 0.0},
            {**vespo, "vespo_k_pos": 1.0, "vespo_lambda_pos": 0.5, "vespo_k_neg": 0.0},
        ),
        Case("gmpo", "trl", "gmpo", {"epsilon": 0.4, "epsilon_high": 0.4}, {
            "surrogate": "gmpo", "aggregation": "sequence_mean", "clip_low": 0.4, "clip_high": 0.4,
        }),
        Case("gmpo, two bounds", "trl", "gmpo", {"epsilon": 0.2, "epsilon_high": 0.5}, {
            "surrogate": "gmpo", "aggregation": "sequence_mean", "clip_low": 0.2, "clip_high": 0.5,
        }),
        Case(
            "off-policy mask", "trl", "loss", {"loss_type": "dapo", "off_policy_mask_threshold": 0.05},
            {"select": "off_policy", "share": 0.05, **clip},
        ),
        Case(
            "off-policy mask, wider", "trl", "loss", {"loss_type": "dapo", "off_policy_mask_threshold": 0.15},
            {"select": "off_policy", "share": 0.15, **clip},
        ),
        Case(
            "top entropy", "trl", "loss", {"loss_type": "dapo", "top_entropy_quantile": 0.33},
            {"select": "top_entropy", "share": 0.33, **clip},
        ),
        Case(
            "adaptive entropy", "trl", "controller",
            {"entropy_target": 1.0, "entropy_coef_delta": 0.05, "entropy_coef_max": 0.2},
            {"entropy_target": 1.0, "entropy_coef_delta": 0.05, "entropy_coef_max": 0.2},
        ),
    ]  # fmt: skip
    for level in ("token", "sequence"):
        for rule in ("truncate", "mask"):
            theirs = {"loss_type": "dapo", "weights": (level, rule, 1.5)}
            mine = {"select": "sampler", "share": (level, rule, 1.5), **clip}
            cases.append(Case(f"weights in the loss, {level}_{rule}", "trl", "loss", theirs, mine))
    return cases


def verl_cases() -> list[Case]:
    """verl's policy losses, aggregations, advantages, KL estimates and weights of the sampler."""
    cases, small = [], {"tolerance": NEARLY, "why": ADDED}
    for mode, how in VERL_AGGREGATION.items():
        for name, theirs, mine in (
            ("vanilla, dual clip", {"clip_ratio_c": 1.6}, {"delta": 1.6}),
            ("gspo", {}, {"importance_sampling_level": "sequence_token"}),
            ("cispo", {"clip_ratio_low": 0.2}, {"surrogate": "cispo"}),
        ):
            loss = name.split(",")[0]
            theirs = {"loss": loss, "loss_agg_mode": mode, **theirs}
            case = Case(f"{name}, {mode}", "verl", "loss", theirs, {"aggregation": how, **mine}, **small)
            cases.append(case)
    dppo = {"clip_ratio_c": 1.5, "clip_ratio_low": 0.05, "clip_ratio_high": 0.1}
    mine = {"delta": 1.5, "clip_low": 0.05, "clip_high": 0.1}
    sums = {"aggregation": "sequence_mean"}
    cases += [
        Case("dppo_tv", "verl", "loss", {"loss": "dppo_tv", **dppo}, {"surrogate": "dppo_tv", **mine}),
        Case("dppo_kl", "verl", "loss", {"loss": "dppo_kl", **dppo}, {"surrogate": "dppo_kl", **mine}),
        Case("sapo", "verl", "loss", {"loss": "sapo"}, {"surrogate": "sapo", **sums}, NEARLY, ROUNDED),
        Case("geo_mean", "verl", "loss", {"loss": "geo_mean"}, {"surrogate": "gmpo", "clip_low": 0.2,
             "clip_high": 0.2, **sums}, **small),
        Case("clip_cov", "verl", "loss", {"loss": "clip_cov", "clip_cov_ratio": 1.0, "clip_cov_lb": 0.1,
             "clip_cov_ub": 5.0}, {"select": "clip_cov", "share": (0.1, 5.0), "gradient_only": True}, **small),
        Case("clip_cov, bounds", "verl", "loss", {"loss": "clip_cov", "clip_cov_ratio": 1.0,
             "clip_cov_lb": 0.1, "clip_cov_ub": 0.5, "on_policy": True},
             {"select": "clip_cov", "share": (0.1, 0.5), "on_policy": True}, **small),
        Case("clip_cov, on policy", "verl", "loss", {"loss": "clip_cov", "clip_cov_ratio": 1.0,
             "clip_cov_lb": 0.1, "clip_cov_ub": 5.0, "on_policy": True},
             {"select": "clip_cov", "share": (0.1, 5.0), "on_policy": True}, **small),
        Case("kl_cov", "verl", "loss", {"loss": "kl_cov", "kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7},
             {"select": "kl_cov", "share": 0.2, "coef": 0.7, **WIDE}, **small),
        Case("gpg", "verl", "loss", {"loss": "gpg"}, {"surrogate": "cispo", "on_policy": True}),
    ]  # fmt: skip
    for name, mine in {
        "grpo": {"correction": 1, "eps": 1e-6},
        "grpo, no std": {"scale_rewards": "none"},
        "rloo": {"baseline": "leave_one_out", "scale_rewards": "none"},
        "opo": {"baseline": "length", "scale_rewards": "none"},
        "reinforce_plus_plus_baseline": {"scale_rewards": "global", "correction": 1, "eps": 0.0},
        "reinforce_plus_plus": {"baseline": "batch", "scale_rewards": "global", "correction": 1, "eps": 0.0},
    }.items():
        more = small if "plus" in name else {}
        cases.append(Case(f"advantages: {name}", "verl", "advantages", {"estimator": name}, mine, **more))
    for estimator in ("k1", "k2", "k3"):
        cases.append(
            Case(f"KL: {estimator}", "verl", "kl", {"kl": estimator}, {"estimator": f"kl_{estimator}"})
        )
    for level in ("token", "sequence"):
        for rule, threshold in (("truncate", 1.5), ("mask", "0.5_1.5")):
            mine = {"level": level, "rule": rule, "sampler_clip_max": 1.5}
            mine |= {"sampler_clip_min": 0.5} if rule == "mask" else {}
            theirs = {"rollout_is": level, "rollout_is_threshold": threshold}
            cases.append(Case(f"rollout_is: {level}, {rule}", "verl", "weights", theirs, mine))
    return cases


def openrlhf_cases() -> list[Case]:
    """OpenRLHF's policy loss, its KL in the loss, its weights of the sampler, its advantages and its loss of values."""
    cases, single = [], {"tolerance": NEARLY, "why": SINGLE}
    for level, how in ((True, "token_mean"), (False, "sequence_mean")):
        more = {} if level else {"tolerance": NEARLY, "why": SMALL}
        for name, theirs, mine in (
            ("ppo", {"clip_eps_high": 0.28}, {"clip_high": 0.28}),
            ("ppo, dual clip", {"dual_clip": 1.6}, {"delta": 1.6}),
            ("token weight, clip", {"is_correction_level": "token", "is_correction_mode": "clip",
             "is_correction_threshold": (0.0, 1.5)}, {"select": "sampler", "share": ("token", "truncate", 1.5)}),
            ("token weight, mask", {"is_correction_level": "token", "is_correction_threshold": (0.5, 1.5)},
             {"select": "sampler", "share": ("token", "mask", 1.5, 0.5)}),
        ):  # fmt: skip
            theirs = {"token_level_loss": level, **theirs}
            cases.append(
                Case(f"{name}, {how}", "openrlhf", "loss", theirs, {"aggregation": how, **mine}, **more)
            )
        for estimator in ("k1", "k2", "k3"):
            theirs = {"token_level_loss": level, "beta": 0.3, "kl_estimator": estimator}
            mine = {"aggregation": how, "ref": True, "beta": 0.3, "kl_estimator": estimator}
            cases.append(Case(f"ppo, beta, {estimator}, {how}", "openrlhf", "loss", theirs, mine, **single))
            theirs = theirs | {"unbiased_gradient": True}
            mine = {"aggregation": how, "ref": True, "beta": 0.3, "use_bias_correction_kl": True}
            mine |= {"gradient_only": True}
            cases.append(
                Case(f"unbiased gradient, {estimator}, {how}", "openrlhf", "loss", theirs, mine, **single)
            )
    gspo = {"importance_sampling_level": "sequence", "aggregation": "sequence_mean"}
    cases.append(
        Case("gspo", "openrlhf", "loss", {"policy_loss_type": "gspo"}, gspo, tolerance=NEARLY, why=SMALL)
    )
    for estimator in ("k1", "k2", "k3"):
        mine = {"estimator": f"kl_{estimator}"}
        cases.append(Case(f"KL: {estimator}", "openrlhf", "kl", {"kl": estimator}, mine, **single))
    tokens = {"scale_rewards": "global", "correction": 0, "eps": 0.0}
    for name, mine in {
        "rloo": {"baseline": "leave_one_out", "scale_rewards": "none"},
        "dr_grpo": {"scale_rewards": "none"},
        "group_norm": {"correction": 1, "eps": 1e-9},
        "flash_reinforce": {"baseline": "batch", "scale_rewards": "none"},
        "reinforce_baseline": tokens,
        "reinforce": {"baseline": "batch", **tokens},
    }.items():
        more = single if name in ("reinforce", "reinforce_baseline") else {}
        theirs = {"estimator": name}
        cases.append(Case(f"advantages: {name}", "openrlhf", "advantages", theirs, mine, **more))
    cases.append(Case("values", "openrlhf", "value", {}, {}))
    cases.append(Case("values, clipped", "openrlhf", "value", {"clip_eps": 0.2}, {"clip_range": 0.2}))
    return cases


CASES = trl_cases() + verl_cases() + openrlhf_cases()
