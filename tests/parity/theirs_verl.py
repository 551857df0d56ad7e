"""verl's own functions on our batches; ray, which they import and never call here, may be missing."""

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
from cases import GROUP, MAX_LENGTH, Case
from torch import Tensor

for name in ("ray", "ray.util", "ray.experimental", "ray.experimental.state", "ray.experimental.state.api"):
    try:
        __import__(name)
    except ImportError:
        sys.modules[name] = MagicMock()

from verl.trainer.config.algorithm import RolloutCorrectionConfig  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights  # noqa: E402
from verl.workers.config import ActorConfig  # noqa: E402
from verl.workers.config.actor import PolicyLossConfig  # noqa: E402


def defaults() -> dict[str, object]:
    """Each option of verl's configs that a row of the dictionary speaks of."""
    chosen = {
        ActorConfig: "clip_ratio clip_ratio_low clip_ratio_high clip_ratio_c tau_pos tau_neg loss_agg_mode "
        "entropy_coeff use_kl_loss kl_loss_coef kl_loss_type",
        PolicyLossConfig: "loss_mode clip_cov_ratio clip_cov_lb clip_cov_ub kl_cov_ratio ppo_kl_coef",
        RolloutCorrectionConfig: "rollout_is rollout_is_threshold rollout_rs rollout_rs_threshold",
    }
    found = {}
    for config, names in chosen.items():
        for name in names.split():
            if name in config.__dataclass_fields__:
                found[f"{config.__name__}.{name}"] = config.__dataclass_fields__[name].default
    return found


def config_of(options: dict) -> object:
    """An ActorConfig, as ``isinstance`` wants it, with nothing but what the losses read."""
    config = object.__new__(ActorConfig)
    usual = {name: f.default for name, f in ActorConfig.__dataclass_fields__.items()}
    cov = {name: f.default for name, f in PolicyLossConfig.__dataclass_fields__.items()}
    values = usual | {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2} | options
    policy = SimpleNamespace(**(cov | {k: v for k, v in options.items() if k in cov}))
    values |= {"policy_loss": policy, "global_batch_info": {}}
    for name, value in values.items():
        object.__setattr__(config, name, value)
    return config


def theirs(case: Case, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What verl gives: a loss and its gradient, or values (B, T)."""
    options, mask, leaf = dict(case.theirs), batch["mask"], batch["logprobs"].clone().requires_grad_()
    if case.kind == "advantages":
        return {"value": advantages(options["estimator"], batch)}
    if case.kind == "weights":
        gap = torch.where(mask.bool(), batch["logprobs"] - batch["sampler"], 0.0)
        return {"value": compute_rollout_correction_weights(gap, mask, **options)[0]}
    if case.kind == "kl":
        estimate = core_algos.kl_penalty(leaf, batch["ref"], options["kl"]) * mask
        return slope(estimate.sum(), leaf)
    loss = core_algos.get_policy_loss_fn(options.pop("loss"))
    mode, on_policy = options.pop("loss_agg_mode", "token-mean"), options.pop("on_policy", False)
    if mode == "seq-mean-token-sum-norm":
        assert mask.shape[1] == MAX_LENGTH  # its default divisor is the padded length
    old = leaf.detach() if on_policy else batch["old"]
    A = batch["advantages"].unsqueeze(1) * mask
    found, metrics = loss(old, leaf, A, mask, mode, config_of(options))
    result = slope(found, leaf)
    if case.mine.get("gradient_only"):
        result.pop("loss")
    elif case.name.startswith("vanilla"):
        result["clipped"] = torch.tensor(metrics["actor/pg_clipfrac"], dtype=torch.float64)
    return result


def advantages(name: str, batch: dict[str, Tensor]) -> Tensor:
    """(B, T) of verl's estimator, which wants the reward on the last token, and the prompt of each row."""
    mask, plain = batch["mask"], name.split(",")[0]
    last = mask.sum(1, keepdim=True).long() - 1
    rewards = torch.zeros_like(mask).scatter(1, last, batch["rewards"].unsqueeze(1))
    index = np.arange(len(mask)) // GROUP
    more = {"norm_adv_by_std_in_grpo": False} if "no std" in name else {}
    function = core_algos.get_adv_estimator_fn(plain)
    more |= {"config": SimpleNamespace(gamma=1.0)} if plain == "reinforce_plus_plus" else {"index": index}
    return function(token_level_rewards=rewards, response_mask=mask, **more)[0]


def slope(loss: Tensor, leaf: Tensor) -> dict[str, Tensor]:
    return {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, leaf)[0]}
