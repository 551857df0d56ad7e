"""Which function of the package each check is given, when the package itself is checked."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

from nanogrpo import rollout


def _the(function: str) -> Callable[[ModuleType], Callable]:
    return lambda module: getattr(module, function)


def _aggregate(how: str) -> Callable[[ModuleType], Callable]:
    return lambda module: lambda per_token, mask: module.aggregate(per_token, mask, how)


def _constant_mean(module: ModuleType) -> Callable:
    def mean(per_token, mask, max_length):
        return module.aggregate(per_token, mask, "constant", module.Denominators.of(mask, max_length))

    return mean


def _packed_logprobs(module: ModuleType) -> Callable:
    def token_logprobs(model, prompt_ids, prompt_lens, ids):
        return rollout.logprobs_of(module.completion_logits(model, prompt_ids, prompt_lens, ids), ids)

    return token_logprobs


def _pooling(module: ModuleType) -> Callable:
    outputs_as_they_are = SimpleNamespace(gpt=lambda outputs: outputs.unsqueeze(2), pool="last")
    return lambda outputs, lens: module.RewardModel.forward(outputs_as_they_are, outputs, lens)


# What each check takes, by the file that it may come from; the first file is the one to use by default.
SUBJECTS: dict[str, dict[str, Callable[[ModuleType], Callable]]] = {
    "check_encode_completions": {"tokenizer.py": _the("CharTokenizer")},
    "check_token_logprobs": {"rollout.py": _the("token_logprobs"), "packed.py": _packed_logprobs},
    "check_logprobs_of": {"rollout.py": _the("logprobs_of")},
    "check_choose": {"rollout.py": _the("choose")},
    "check_completion_mask": {"rollout.py": _the("completion_mask")},
    "check_generate": {"rollout.py": _the("generate"), "packed.py": _the("generate")},
    **{
        f"check_{name}": {"advantages.py": _the(name)}
        for name in ("group_advantages", "leave_one_out", "gae", "token_rewards")
    },
    "check_bessel": {"advantages.py": _the("group_advantages")},
    "check_tied_groups": {"advantages.py": _the("group_advantages")},
    **{
        f"check_{name}": {"kl.py": _the(name)}
        for name in ("kl_k1", "kl_k2", "kl_k3", "kl_exact", "entropy", "entropy_sampled")
    },
    "check_kl_k3_precision": {"kl.py": _the("kl_k3")},
    "check_reference_gets_no_gradient": {"kl.py": _the("kl_k3")},
    "check_reference_is_frozen": {"grpo.py": _the("train")},
    "check_importance_ratio": {"losses.py": _the("importance_ratio")},
    "check_mask_before_exp": {"losses.py": _the("importance_ratio")},
    "check_clipped_surrogate": {"losses.py": _the("clipped_surrogate")},
    "check_token_mean": {"losses.py": _aggregate("token_mean")},
    "check_sequence_mean": {"losses.py": _aggregate("sequence_mean")},
    "check_constant_mean": {"losses.py": _constant_mean},
    "check_microbatches": {"losses.py": _the("aggregate")},
    "check_kl_penalty": {"losses.py": _the("grpo_loss")},
    "check_value_loss": {"losses.py": _the("value_loss")},
    "check_values_of": {"critic.py": _the("values_of")},
    "check_bradley_terry": {"losses.py": _the("bradley_terry_loss")},
    "check_reward_pooling": {"reward_model.py": _pooling},
    "check_sft_loss": {"losses.py": _the("sft_loss")},
}
