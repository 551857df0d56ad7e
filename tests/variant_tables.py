"""Write the tables of the page on variants: names, what is equal, what is on by default, what each does.

``python tests/variant_tables.py`` writes them into ``book/variants.md``, between the comments that name them.
A test holds the page to what is written here, so no number of the page is typed by hand.
"""

import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "parity")]
from cases import CASES, Case  # noqa: E402
from draw import GOLDEN  # noqa: E402

from nanogrpo.grpo import GRPOConfig  # noqa: E402
from nanogrpo.model import GPT, GPTConfig  # noqa: E402
from nanogrpo.teach.exact import Microscope  # noqa: E402
from nanogrpo.teach.variants_exact import Effect, effect  # noqa: E402
from nanogrpo.variants import VARIANTS  # noqa: E402

PAGE = Path(__file__).parents[1] / "book" / "variants.md"
PROMPT, T, GROUP = [2], 3, 3

# Name: paper, options of TRL 1.16.0, of verl 0.9.1, and how the cases of tests/parity begin that compare it.
DICTIONARY = {
    "grpo": ("2402.03300", "`loss_type=\"grpo\"`", "`loss_agg_mode=\"seq-mean-token-mean\"`", "trl: grpo, token"),
    "dapo": ("2503.14476", "`loss_type=\"dapo\"`, `epsilon_high=0.28`", "`clip_ratio_high=0.28`", "trl: dapo, token"),
    "dr_grpo": ("2503.20783", "`loss_type=\"dr_grpo\"`, `scale_rewards=\"none\"`",
                "`\"seq-mean-token-sum-norm\"`, `norm_adv_by_std_in_grpo=False`", "trl: dr_grpo, token"),
    "rloo": ("2402.14740", "another trainer", "`adv_estimator=\"rloo\"`", "verl: advantages: rloo"),
    "reinforce_pp": ("2501.03262", "none", "`\"reinforce_plus_plus\"`", "verl: advantages: reinforce_plus_plus"),
    "reinforce_pp_baseline": ("2501.03262", "none", "`\"reinforce_plus_plus_baseline\"`",
                              "verl: advantages: reinforce_plus_plus_baseline"),
    "opo": ("2505.23585", "none", "`adv_estimator=\"opo\"`", "verl: advantages: opo"),
    "maxrl": ("2602.02710", "none", "none", ""),
    "gspo": ("2507.18071", "`importance_sampling_level=\"sequence\"`, `loss_type=\"grpo\"`",
             "`loss_mode=\"gspo\"`", "trl: grpo, sequence"),
    "luspo": ("2602.05261", "`loss_type=\"luspo\"`, `\"sequence\"`", "none", "trl: luspo, sequence"),
    "cispo": ("2506.13585", "`loss_type=\"cispo\"`; `epsilon_high` is the bound itself, 5.0",
              "`loss_mode=\"cispo\"`", "trl: cispo"),
    "sapo": ("2511.20347", "`loss_type=\"sapo\"`", "`loss_mode=\"sapo\"`, `tau_pos`, `tau_neg`", "trl: sapo"),
    "gmpo": ("2507.20673", "`trl.experimental.gmpo`", "`loss_mode=\"geo_mean\"`", "trl: gmpo"),
    "vespo": ("2602.10693", "`loss_type=\"vespo\"`", "none", "trl: vespo"),
    "dppo_tv": ("2602.04879", "none", "`loss_mode=\"dppo_tv\"`", "verl: dppo_tv"),
    "dppo_kl": ("2602.04879", "none", "`loss_mode=\"dppo_kl\"`", "verl: dppo_kl"),
    "dual_clip": ("1912.09729", "`delta`", "`clip_ratio_c`", "verl: vanilla, dual clip"),
    "top_entropy": ("2506.01939", "`top_entropy_quantile`", "none", "trl: top entropy"),
    "clip_cov": ("2505.22617", "none", "`loss_mode=\"clip_cov\"`", "verl: clip_cov"),
    "kl_cov": ("2505.22617", "none", "`loss_mode=\"kl_cov\"`", "verl: kl_cov"),
    "adaptive_entropy": ("2505.22312", "`use_adaptive_entropy`", "none", "trl: adaptive entropy"),
    "opsm": ("2512.02556", "`off_policy_mask_threshold`", "near: `rollout_rs=\"seq_mean_k1\"`",
             "trl: off-policy mask"),
    "unbiased_kl": ("2512.02556", "`use_bias_correction_kl`", "near: `kl_loss_type=\"k3+\"`",
                    "trl: dapo, token, beta, use_bias_correction_kl"),
}  # fmt: skip

# Options of OpenRLHF 0.11.2 (without `--algo.` and `--actor.`), and how the cases that compare them begin.
OPENRLHF = {
    "grpo": ('`advantage.estimator="group_norm"`', "openrlhf: advantages: group_norm"),
    "dapo": ("`eps_clip_low_high=(0.2, 0.28)`", "openrlhf: ppo, token_mean"),
    "dr_grpo": ('`advantage.estimator="dr_grpo"`', "openrlhf: advantages: dr_grpo"),
    "rloo": ('`advantage.estimator="rloo"`', "openrlhf: advantages: rloo"),
    "reinforce_pp": ('`advantage.estimator="reinforce"`', "openrlhf: advantages: reinforce"),
    "reinforce_pp_baseline": (
        '`advantage.estimator="reinforce_baseline"`', "openrlhf: advantages: reinforce_baseline",
    ),
    "gspo": ('`policy_loss_type="gspo"`', "openrlhf: gspo"),
    "dual_clip": ("`dual_clip`", "openrlhf: ppo, dual clip"),
    "unbiased_kl": ("`kl.unbiased_gradient`", "openrlhf: unbiased gradient"),
}  # fmt: skip

# Cases of verl's own function, where TRL's are named above.
VERL = {"gspo": "verl: gspo", "cispo": "verl: cispo", "sapo": "verl: sapo", "gmpo": "verl: geo_mean"}

# What ours is called: option of the config, option of TRL, option of verl.
DEFAULTS = [
    ("clip_low", "epsilon", "ActorConfig.clip_ratio"),
    ("clip_high", "epsilon_high", "ActorConfig.clip_ratio_high"),
    ("delta", "delta", "ActorConfig.clip_ratio_c"),
    ("aggregation", "loss_type", "ActorConfig.loss_agg_mode"),
    ("importance_sampling_level", "importance_sampling_level", ""),
    ("beta", "beta", "ActorConfig.kl_loss_coef"),
    ("use_bias_correction_kl", "use_bias_correction_kl", ""),
    ("scale_rewards", "scale_rewards", ""),
    ("entropy_coef", "entropy_coef", "ActorConfig.entropy_coeff"),
    ("sampler_correction", "vllm_importance_sampling_mode", "RolloutCorrectionConfig.rollout_is"),
    ("sampler_clip_max", "vllm_importance_sampling_clip_max", "RolloutCorrectionConfig.rollout_is_threshold"),
    ("sapo_temperature_pos", "sapo_temperature_pos", "ActorConfig.tau_pos"),
    ("sapo_temperature_neg", "sapo_temperature_neg", "ActorConfig.tau_neg"),
    ("clip_cov_ratio", "", "PolicyLossConfig.clip_cov_ratio"),
    ("kl_cov_ratio", "", "PolicyLossConfig.kl_cov_ratio"),
    ("top_entropy_quantile", "top_entropy_quantile", ""),
    ("off_policy_mask_threshold", "off_policy_mask_threshold", ""),
    ("entropy_target", "entropy_target", ""),
    ("group_size", "num_generations", ""),
]

OPENRLHF_DEFAULTS = {
    "clip_low": "PolicyLoss.clip_eps_low",
    "clip_high": "PolicyLoss.clip_eps_high",
    "delta": "PolicyLoss.dual_clip",
    "aggregation": "PolicyLoss.token_level_loss",
    "importance_sampling_level": "PolicyLoss.policy_loss_type",
    "use_bias_correction_kl": "compute_approx_kl.unbiased_gradient",
    "sampler_correction": "PolicyLoss.is_correction_level",
    "sampler_clip_max": "PolicyLoss.is_correction_threshold",
}

# A museum's piece for the typical mistake of a variant, and the thread where it was seen ("" if in none we know).
MISTAKES = {
    "grpo": ("std of the batch where the group's is meant", "XU-YIJIE/grpo-flat/issues/2"),
    "dapo": ("normalized by the microbatch", "huggingface/trl/issues/3021"),
    "dr_grpo": ("constant length is the padded length", ""),
    "rloo": ("own reward in the leave-one-out baseline", ""),
    "reinforce_pp_baseline": ("divided by two deviations", "axon-rl/gem/pull/113"),
    "gspo": ("GSPO's ratio without its root", "huggingface/trl/issues/5814"),
    "luspo": ("GSPO's ratio without its root", ""),
    "cispo": ("CISPO trains the clipped ratio", "allenai/open-instruct/pull/1269"),
    "dual_clip": ("dual clip at both signs", "thu-ml/tianshou/issues/433"),
    "adaptive_entropy": ("entropy averaged over the vocabulary", ""),
    "unbiased_kl": ("ratio before the KL detached", "NVIDIA-NeMo/RL/pull/2506"),
}

# Options that go with any variant: what is summed exactly, cases, a piece, a thread.
WITH_ANY = {
    'sampler_correction="token_truncate"': ("corrections", (
        "trl: weights in the loss, token_truncate", "verl: rollout_is: token, truncate",
        "openrlhf: token weight, clip"), "none", ""),
    'sampler_correction="token_mask"': ("corrections", (
        "trl: weights in the loss, token_mask", "verl: rollout_is: token, mask", "openrlhf: token weight, mask",
        ), "none", ""),
    'sampler_correction="sequence_truncate"': ("corrections", (
        "trl: weights in the loss, sequence_truncate", "verl: rollout_is: sequence, truncate"),
        "mean in the sampler's sequence weight", "huggingface/trl/issues/5814"),
    'sampler_correction="sequence_mask"': ("corrections", (
        "trl: weights in the loss, sequence_mask", "verl: rollout_is: sequence, mask"),
        "mean in the sampler's sequence weight", "huggingface/trl/issues/5814"),
    "correction=1": ("as `grpo`, shorter", ("verl: advantages: grpo", "openrlhf: advantages: group_norm"),
        "population std where Bessel is meant", ""),
}  # fmt: skip

CORRECTIONS = {
    "none": {"sampler_correction": "token_truncate", "sampler_clip_min": 1 - 1e-15, "sampler_clip_max": 1.0},
    "in the ratio, clip 0.2": {"sampler_correction": "ratio", "clip_low": 0.2, "clip_high": 0.2},
    "TIS, token, at most 2": {"sampler_correction": "token_truncate"},
    "IcePop, 0.5 to 2": {"sampler_correction": "token_mask", "sampler_clip_min": 0.5},
    "sequence, no bound": {"sampler_correction": "sequence_truncate", "sampler_clip_max": None},
    "TIS, sequence, at most 2": {"sampler_correction": "sequence_truncate"},
    "MIS, sequence, at most 3": {"sampler_correction": "sequence_mask", "sampler_clip_max": 3.0},
}
SHAKES = (0.05, 0.15, 0.4)


def tiny(noise: float = 0.0) -> GPT:
    """The policy of the exact tests: three tokens, far from uniform; with noise on its weights, a sampler."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(3, 6, n_layer=1, n_head=1, n_embd=4)).double()
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn_like(p))
        for p in model.parameters():
            p.add_(noise * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return model


def right(scope: Microscope) -> torch.Tensor:
    """1 for a completion whose last token, but for the EOS, is 2."""
    rows = [ids[mask].tolist() for ids, mask in zip(scope.ids, scope.mask, strict=True)]
    return torch.tensor([float([t for t in row if t != 1][-1:] == [2]) for row in rows], dtype=torch.float64)


def exact(name: str, shake: float = 0.0) -> Effect:
    """The effect of a variant; shares that are too small for a batch of nine tokens are made larger."""
    options = {k: v for k, v in VARIANTS[name].items() if k not in ("use_adaptive_entropy", "max_resamples")}
    options |= {"clip_cov": {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.2}, "kl_cov": {"kl_cov_ratio": 0.2}}.get(
        name, {}
    )
    options.pop("beta", None)  # the KL has a gradient of its own
    return measured(options, shake)


def corrected(name: str, shake: float) -> Effect:
    """The effect of a correction on leave-one-out without a clip."""
    plain = {"baseline": "leave_one_out", "scale_rewards": "none", "aggregation": "sequence_sum"}
    return measured(plain | {"clip_low": 1e6, "clip_high": 1e6} | CORRECTIONS[name], shake)


def measured(options: dict, shake: float) -> Effect:
    rewards = right(Microscope(tiny(), [PROMPT], T))
    return effect(options, tiny(), rewards, GROUP, sampler=tiny(shake) if shake else None)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def names() -> str:
    rows = []
    for name, (paper, trl, verl, start) in DICTIONARY.items():
        options = ", ".join(f"`{k}={v!r}`" for k, v in VARIANTS[name].items()).replace("'", '"')
        found = cases_of(start) if start else []
        worst = max((case.tolerance for case in found if not case.differs), default=None)
        equal = "not compared" if worst is None else f"equal, {worst:.0e}".replace("e-0", "e-")
        link, openrlhf = f"[{paper}](https://arxiv.org/abs/{paper})", OPENRLHF.get(name, ("none", ""))[0]
        rows.append([f"`{name}`", options, link, trl, verl, openrlhf, equal])
    head = ["name", "options here", "paper", "TRL 1.16.0", "verl 0.9.1", "OpenRLHF 0.11.2", "numbers"]
    return table(head, rows)


def defaults() -> str:
    theirs = json.loads(GOLDEN.read_text(encoding="utf-8"))["defaults"]
    usual = {f.name: f.default for f in fields(GRPOConfig)}

    def said(side: str, name: str) -> str:
        return f"`{name.split('.')[-1]}={theirs[side][name]!r}`".replace("'", '"') if name else ""

    rows = [
        [
            f"`{own}={usual[own]!r}`".replace("'", '"'), said("trl", trl), said("verl", verl),
            said("openrlhf", OPENRLHF_DEFAULTS.get(own, "")),
        ]
        for own, trl, verl in DEFAULTS
    ]  # fmt: skip
    return table(["here", "TRL 1.16.0", "verl 0.9.1", "OpenRLHF 0.11.2"], rows)


def cases_of(start: str) -> list[Case]:
    """The cases of this name, and those that add an option to it."""
    names = {f"{case.side}: {case.name}": case for case in CASES}
    return [case for name, case in names.items() if name == start or name.startswith(f"{start},")]


def tests() -> str:
    """What holds each variant: the exact sums, the cases of the frameworks, a planted mistake."""
    rows = []
    held = {
        name: ("row above", (start, VERL.get(name, ""), OPENRLHF.get(name, ("", ""))[1]),
               *MISTAKES.get(name, ("none", "")))
        for name, (*_, start) in DICTIONARY.items()
    }  # fmt: skip
    for name, (summed, starts, piece, thread) in (held | WITH_ANY).items():
        count = sum(len(cases_of(start)) for start in starts if start)
        label = " ".join(thread.split("/")[1::2])
        seen = f"[{label}](https://github.com/{thread})" if thread else "not seen"
        rows.append([f"`{name}`", summed, str(count or "none has it"), piece, seen])
    return table(["name", "exact sums", "cases of frameworks", "museum's piece", "in the wild"], rows)


def effects() -> str:
    rows = []
    for name in DICTIONARY:
        on, off = exact(name), exact(name, 0.15)
        numbers = [on.cosine, on.noise, on.entropy, on.tokens, off.cosine, off.noise]
        rows.append([f"`{name}`", *(f"{x:.2f}" for x in numbers)])
    head = ["name", "cosine", "noise", "entropy", "length", "cosine, other sampler", "noise, other sampler"]
    return table(head, rows)


def corrections() -> str:
    rows = [
        [name, *(f"{bias(e):.2f}, {e.noise * e.length:.2f}" for e in (corrected(name, s) for s in SHAKES))]
        for name in CORRECTIONS
    ]
    return table(["correction", *(f"{kl(s):.3f} nats" for s in SHAKES)], rows)


def bias(e: Effect) -> float:
    """Length of (mean update - gradient), in lengths of the gradient."""
    return max(e.length**2 - 2 * e.length * e.cosine + 1, 0.0) ** 0.5


def kl(shake: float) -> float:
    """KL(sampler || policy) of whole completions, nats."""
    return Microscope(tiny(shake), [PROMPT], T, reference=tiny()).kl().item()


TABLES = {
    "names": names,
    "defaults": defaults,
    "effects": effects,
    "corrections": corrections,
    "tests": tests,
}


def parts(text: str) -> dict[str, str]:
    """The tables of a page by name."""
    return dict(re.findall(r"<!-- table: (\w+) -->\n\n(.*?)\n\n<!-- end -->", text, flags=re.DOTALL))


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, made in TABLES.items():
        before, rest = text.split(f"<!-- table: {name} -->")
        text = (
            f"{before}<!-- table: {name} -->\n\n{made()}\n\n<!-- end -->" + rest.split("<!-- end -->", 1)[1]
        )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
