"""Every variant of the loss as a row of a table: options that are put together, and no code of its own.

A variant of GRPO is a choice for each of a few parts that do not know of each other:

- whose ratio (``importance_sampling_level``) and what is made of it (``surrogate``, its bounds);
- which tokens count, and how much (``sampler_correction``, ``off_policy_mask_threshold``,
  ``top_entropy_quantile``, ``clip_cov_ratio``, ``kl_cov_ratio``);
- how they are averaged (``aggregation``);
- what a reward is compared with, and in which unit (``baseline``, ``scale_rewards``, ``correction``);
- where the KL is charged, and by which estimate (``kl_in``, ``kl_estimator``, ``use_bias_correction_kl``).

What it leaves out, and why: defaults of other packages that are not part of the variant, as learning rates.
"""

from dataclasses import dataclass
from typing import Any, Literal

from nanogrpo.errors import OptionError, check_choice
from nanogrpo.offpolicy import check_bounds
from nanogrpo.options import option
from nanogrpo.selection import check_covariances
from nanogrpo.step import StepConfig
from nanogrpo.surrogates import SHAPES

TOKEN_ONLY = ("dppo_tv", "dppo_kl", "gmpo", "vespo")  # surrogates that make their own of single ratios

CORRECTED = "sampler_correction=token_truncate|token_mask|sequence_truncate|sequence_mask"  # and not "none"


@dataclass(frozen=True)
class VariantConfig(StepConfig):
    """Options of the variants, which GRPO and PPO share; all are off, or without effect, by default."""

    sapo_temperature_pos: float = option(
        1.0,
        help="of SAPO's gate where the advantage is positive, see :mod:`nanogrpo.surrogates`.",
        above=0,
        needs="surrogate=sapo",
    )
    sapo_temperature_neg: float = option(
        1.05, help="of SAPO's gate elsewhere.", above=0, needs="surrogate=sapo"
    )
    vespo_k_pos: float = option(
        2.0, help="power of VESPO's weight where the advantage is at least 0.", low=0, needs="surrogate=vespo"
    )
    vespo_lambda_pos: float = option(
        3.0, help="how fast that weight dies out.", above=0, needs="surrogate=vespo"
    )
    vespo_k_neg: float = option(
        3.0, help="power of VESPO's weight where the advantage is negative.", low=0, needs="surrogate=vespo"
    )
    vespo_lambda_neg: float = option(
        2.0, help="how fast that weight dies out.", above=0, needs="surrogate=vespo"
    )
    off_policy_mask_threshold: float | None = option(
        None,
        help="nats a token from which on a bad completion is left out, see "
        ":func:`~nanogrpo.offpolicy.off_policy_mask`; None: never.",
    )
    top_entropy_quantile: float = option(
        1.0,
        help="share of the tokens that count, those of most entropy, see "
        ":func:`~nanogrpo.selection.top_entropy`.",
        above=0,
        high=1,
    )
    clip_cov_ratio: float = option(
        0.0,
        help="share of the tokens that Clip-Cov leaves out, see :func:`~nanogrpo.selection.clip_cov`; "
        "0 for none.",
        low=0,
        high=1,
    )
    clip_cov_lb: float = option(
        1.0, help="least covariance of a token that is left out.", needs="clip_cov_ratio"
    )
    clip_cov_ub: float = option(
        5.0, help="greatest covariance of a token that is left out.", needs="clip_cov_ratio"
    )
    kl_cov_ratio: float = option(
        0.0,
        help="share of the tokens that pay for moving, see :func:`~nanogrpo.selection.kl_cov`; 0 for none.",
        low=0,
        high=1,
    )
    kl_cov_coef: float = option(
        1.0, help="what they pay for a nat (verl: ``ppo_kl_coef``).", low=0, needs="kl_cov_ratio"
    )
    use_adaptive_entropy: bool = option(
        False,
        help="move ``entropy_coef`` after each step, see :func:`~nanogrpo.selection.next_entropy_coef`.",
    )
    entropy_target: float = option(
        0.2, help="nats a token; above it no bonus is paid.", low=0, needs="use_adaptive_entropy"
    )
    entropy_coef_delta: float = option(
        0.005, help="how far one step moves the price.", low=0, needs="use_adaptive_entropy"
    )
    entropy_coef_min: float = option(0.0, help="the least price.", needs="use_adaptive_entropy")
    entropy_coef_max: float = option(1.0, help="the greatest price.", needs="use_adaptive_entropy")
    sampler: Literal["policy", "bfloat16", "float16", "int8", "noise"] = option(
        "policy",
        help="what samples: the policy itself, or a copy of it in another precision, see "
        ":func:`~nanogrpo.sampler.sampling_model`.",
    )
    sampler_lag: int = option(0, help="how many steps old the weights are that sample.", low=0)
    sampler_noise: float = option(
        0.0, help="standard deviation of what ``noise`` adds to each weight.", low=0
    )
    sampler_temperature: float | None = option(
        None,
        help="temperature at which it samples; None: ``temperature``, at which the trainer scores.",
        above=0,
    )
    sampler_correction: Literal[
        "none", "ratio", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = option(
        "none",
        help="for a sampler that is not the policy: ``none`` takes its samples for the policy's own, "
        "``ratio`` puts its log-probs into the ratio of the loss, the others are weights, see "
        ":func:`~nanogrpo.offpolicy.sampler_weights` (TRL: ``vllm_importance_sampling_mode``).",
    )
    sampler_clip_max: float | None = option(
        2.0,
        help="largest weight; None: no bound.",
        above=0,
        needs=CORRECTED,
    )
    sampler_clip_min: float | None = option(
        None,
        help="smallest weight; None: no bound.",
        low=0,
        needs=CORRECTED,
    )

    def check(self) -> None:
        """What options must say of each other."""
        super().check()
        check_bounds(self.sampler_clip_min, self.sampler_clip_max)
        if self.surrogate in TOKEN_ONLY and self.importance_sampling_level != "token":
            raise OptionError(
                f"surrogate={self.surrogate!r} starts from the ratios of single tokens; "
                f"importance_sampling_level={self.importance_sampling_level!r} does not go with it"
            )
        if self.own_sampler is False and self.sampler_correction != "none":
            raise OptionError(
                f"sampler_correction={self.sampler_correction!r}, but the policy itself samples: there is "
                "nothing to correct. Choose a sampler, a sampler_lag or a sampler_temperature"
            )
        if (self.sampler == "noise") != bool(self.sampler_noise):
            raise OptionError(
                f"sampler={self.sampler!r} with sampler_noise={self.sampler_noise}: one needs the other"
            )
        check_covariances(self.clip_cov_lb, self.clip_cov_ub)
        if self.entropy_coef_min > self.entropy_coef_max:
            raise OptionError(
                f"entropy_coef_min={self.entropy_coef_min} is above entropy_coef_max={self.entropy_coef_max}"
            )

    @property
    def own_sampler(self) -> bool:
        """Whether something else than the policy samples."""
        hotter = self.sampler_temperature not in (None, self.temperature)
        return self.sampler != "policy" or self.sampler_lag > 0 or hotter

    @property
    def shape(self) -> dict[str, float]:
        """Options of the surrogate that no other has."""
        return {name: getattr(self, name) for name in SHAPES.get(self.surrogate, ())}


VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {"aggregation": "sequence_mean"},
    "dapo": {"clip_high": 0.28, "max_resamples": 3},
    "dr_grpo": {"aggregation": "constant", "scale_rewards": "none"},
    "rloo": {"baseline": "leave_one_out", "scale_rewards": "none", "aggregation": "sequence_sum"},
    "reinforce_pp": {"baseline": "batch", "scale_rewards": "global", "correction": 1},
    "reinforce_pp_baseline": {"scale_rewards": "global", "correction": 1},
    "opo": {"baseline": "length", "scale_rewards": "none"},
    "maxrl": {"scale_rewards": "mean"},
    "gspo": {
        "importance_sampling_level": "sequence", "aggregation": "sequence_mean",
        "clip_low": 3e-4, "clip_high": 4e-4,
    },
    "luspo": {
        "importance_sampling_level": "sequence", "aggregation": "sequence_sum",
        "clip_low": 2e-3, "clip_high": 2.5e-3,
    },
    "cispo": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0},
    "sapo": {"surrogate": "sapo", "aggregation": "sequence_mean"},
    "gmpo": {"surrogate": "gmpo", "aggregation": "sequence_mean", "clip_low": 0.4, "clip_high": 0.4},
    "vespo": {"surrogate": "vespo"},
    "dppo_tv": {"surrogate": "dppo_tv", "delta": 20.0},
    "dppo_kl": {"surrogate": "dppo_kl", "delta": 20.0, "clip_low": 0.05, "clip_high": 0.05},
    "dual_clip": {"delta": 3.0},
    "top_entropy": {"top_entropy_quantile": 0.2},
    "clip_cov": {"clip_cov_ratio": 2e-4},
    "kl_cov": {"kl_cov_ratio": 2e-3, "clip_low": 1e6, "clip_high": 1e6},
    "adaptive_entropy": {"use_adaptive_entropy": True},
    "opsm": {"off_policy_mask_threshold": 0.1},
    "unbiased_kl": {"beta": 0.04, "use_bias_correction_kl": True},
}  # fmt: skip
"""Options of each variant by its name; what a row does not say is the default of the config."""


def variant(name: str) -> dict[str, Any]:
    """The options of a variant, to be handed to ``GRPOConfig``.

    Raises:
        OptionError: there is no variant of this name.

    >>> variant("cispo")
    {'surrogate': 'cispo', 'clip_low': 1.0, 'clip_high': 4.0}
    """
    check_choice("variant", name, VARIANTS)
    return dict(VARIANTS[name])
