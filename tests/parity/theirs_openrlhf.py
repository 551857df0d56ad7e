"""OpenRLHF's own functions on our batches, without the engine, the cluster and the kernels that they import.

Their packages import all of that when they are loaded. Here each package is an empty one that knows its
folder, so that the files with the mathematics load alone; these are unmodified.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch
from cases import GROUP, Case
from torch import Tensor

for name in ("ray", "deepspeed"):
    try:
        __import__(name)
    except ImportError:
        sys.modules[name] = MagicMock()

ROOT = Path(find_spec("openrlhf").submodule_search_locations[0])
for name in ("models", "trainer", "trainer.ppo_utils", "trainer.ray", "utils"):
    package = ModuleType(f"openrlhf.{name}")
    package.__path__ = [str(ROOT / name.replace(".", "/"))]
    sys.modules[package.__name__] = package
sys.modules["openrlhf.trainer.ray.launcher"] = MagicMock()

from openrlhf.models.loss import PolicyLoss, ValueLoss, aggregate_loss  # noqa: E402
from openrlhf.models.utils import compute_approx_kl  # noqa: E402
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402


def defaults() -> dict[str, object]:
    """What the loss does where nothing is said."""
    loss = PolicyLoss()
    names = "clip_eps_low clip_eps_high dual_clip token_level_loss policy_loss_type is_correction_level "
    names += "is_correction_mode is_correction_gating is_correction_threshold"
    found = {f"PolicyLoss.{name}": getattr(loss, name) for name in names.split()}
    found["PolicyLoss.is_correction_threshold"] = list(loss.is_correction_threshold)
    kl = compute_approx_kl.__defaults__
    return found | {"compute_approx_kl.kl_estimator": kl[1], "compute_approx_kl.unbiased_gradient": kl[2]}


def theirs(case: Case, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What OpenRLHF gives: a loss and its gradient, or values (B, T)."""
    options, mask, leaf = dict(case.theirs), batch["mask"], batch["logprobs"].clone().requires_grad_()
    if case.kind == "advantages":
        return {"value": advantages(options["estimator"], batch)}
    if case.kind == "kl":
        return slope((compute_approx_kl(leaf, batch["ref"], kl_estimator=options["kl"]) * mask).sum(), leaf)
    if case.kind == "value":
        loss = ValueLoss(**options)(leaf, batch["old"], batch["ref"], mask)
        return slope(loss, leaf)
    beta, sampler = options.pop("beta", 0.0), batch["sampler"] if "is_correction_level" in options else None
    penalty = {name: options.pop(name) for name in ("kl_estimator", "unbiased_gradient") if name in options}
    A = batch["advantages"].unsqueeze(1) * mask
    loss, clipped, *_ = PolicyLoss(**options)(leaf, batch["old"], A, mask, sampler)
    if beta:
        kl = compute_approx_kl(leaf, batch["ref"], batch["old"], **penalty)
        loss = loss + beta * aggregate_loss(kl, mask, options.get("token_level_loss", True))
    found = slope(loss, leaf)
    if case.mine.get("gradient_only"):
        found.pop("loss")
    elif "dual_clip" not in options and sampler is None:
        found["clipped"] = clipped
    return found


def advantages(estimator: str, batch: dict[str, Tensor]) -> Tensor:
    """(B, T) of their trainer's own method; of a trainer that has nothing but its options."""
    choices = SimpleNamespace(estimator=estimator, gamma=1.0, lambd=1.0, no_std_norm=False)
    maker = object.__new__(RemoteExperienceMaker)
    maker.advantage_estimator, maker.kl_ctl = estimator, SimpleNamespace(value=0.0)
    maker.strategy = SimpleNamespace(args=SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=GROUP), reward=SimpleNamespace(clip_range=None),
        algo=SimpleNamespace(advantage=choices),
    ))  # fmt: skip
    zeros = torch.zeros_like(batch["mask"])
    rows = SimpleNamespace(
        index=list(range(len(zeros))), rewards=batch["rewards"], action_mask=batch["mask"], kl=zeros, info={},
    )  # fmt: skip
    return maker.compute_advantages_and_returns([rows])[0].advantages * batch["mask"]


def slope(loss: Tensor, leaf: Tensor) -> dict[str, Tensor]:
    return {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, leaf)[0]}
