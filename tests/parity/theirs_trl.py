"""TRL's own functions on our batches: ``_compute_loss`` of a trainer that is nothing but its options."""

from types import SimpleNamespace

import torch
from cases import MAX_LENGTH, Case
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer

from nanogrpo.offpolicy import sampler_weights


class Accelerator:
    """One process: what is gathered is what there is."""

    num_processes, sync_gradients = 1, True

    def gather(self, tensor):
        return tensor

    def reduce(self, tensor, reduction="sum"):
        return tensor

    def pad_across_processes(self, tensor, **options):
        return tensor


def defaults() -> dict[str, object]:
    """Each option of GRPOConfig that a row of the dictionary speaks of."""
    names = (
        "loss_type importance_sampling_level epsilon epsilon_high delta beta "
        "use_bias_correction_kl scale_rewards top_entropy_quantile off_policy_mask_threshold "
        "sapo_temperature_pos sapo_temperature_neg vespo_k_pos vespo_lambda_pos vespo_k_neg "
        "vespo_lambda_neg use_adaptive_entropy entropy_coef entropy_coef_min entropy_coef_max "
        "entropy_coef_delta entropy_target vllm_importance_sampling_correction "
        "vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
        "vllm_importance_sampling_clip_min num_generations num_iterations "
        "mask_truncated_completions temperature "
    ).split()
    known = GRPOConfig.__dataclass_fields__
    return {name: known[name].default for name in names}


def theirs(case: Case, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What TRL gives: a loss, its gradient by the log-probs, and the share of clipped tokens."""
    leaf = batch["logprobs"].clone().requires_grad_()
    given = {"beta": 0.0, "use_bias_correction_kl": False, "delta": None} | case.theirs
    weights = given.pop("weights", None)
    usual = defaults()
    args = SimpleNamespace(**{**usual, **given, "steps_per_generation": 1})
    trainer = SimpleNamespace(
        args=args, accelerator=Accelerator(), aux_loss_enabled=False, use_vllm=weights is not None,
        vllm_importance_sampling_correction=True, loss_type=args.loss_type, beta=args.beta,
        importance_sampling_level=args.importance_sampling_level,
        epsilon_low=args.epsilon, epsilon_high=args.epsilon_high or args.epsilon,
        max_completion_length=MAX_LENGTH, current_gradient_accumulation_steps=1,
        top_entropy_quantile=args.top_entropy_quantile,
        off_policy_mask_threshold=args.off_policy_mask_threshold,
        use_adaptive_entropy=case.kind == "controller", entropy_coef=0.1, _last_world_entropy=9.0,
        _entropy_bonus_enabled=case.kind == "controller", _entropy_window_stats=None,
        _metrics=(metrics := {"train": Log()}), model=SimpleNamespace(training=True),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask, get_gamma_weights=GRPOTrainer.get_gamma_weights,
    )  # fmt: skip
    trainer.get_high_entropy_mask = lambda *a: GRPOTrainer.get_high_entropy_mask(trainer, *a)
    entropies = batch["entropies"]
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (leaf, entropies, None)
    nothing = torch.zeros(len(leaf), 1, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing, "prompt_mask": nothing, "completion_mask": batch["mask"],
        "completion_ids": torch.zeros(leaf.shape, dtype=torch.long), "advantages": batch["advantages"],
        "old_per_token_logps": batch["old"], "ref_per_token_logps": batch["ref"],
        "num_items_in_batch": batch["mask"].sum(),
    }  # fmt: skip
    if weights:
        level, rule, high = weights
        inputs["importance_sampling_ratio"] = sampler_weights(
            batch["old"], batch["sampler"], batch["mask"].bool(), level, rule, high
        )
    if case.kind == "controller":
        coefs = []
        for entropy in batch["entropies"].flatten().tolist():
            entropies.fill_(entropy)
            GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
            coefs.append(trainer.entropy_coef)
        return {"value": torch.tensor(coefs, dtype=torch.float64)}
    owner = GMPOTrainer if case.kind == "gmpo" else GRPOTrainer
    loss = owner._compute_loss(trainer, trainer.model, inputs)
    found = {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, leaf)[0]}
    clipped = metrics["train"]["clip_ratio/region_mean"]
    if (
        clipped
        and args.loss_type in ("dapo", "bnpo", "grpo")
        and case.kind == "loss"
        and "delta" not in case.theirs
    ):
        if args.importance_sampling_level == "token" and not set(case.mine) & {"select"}:
            found["clipped"] = torch.tensor(clipped[0], dtype=torch.float64)
    return found


class Log(dict):
    def __missing__(self, name):
        return self.setdefault(name, [])
