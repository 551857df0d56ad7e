"""nanogrpo: GRPO from scratch, one small file for each step of the flow.

    prompt -> rollout -> reward -> advantage -> loss -> step -> log -> plot

The names that a reader uses most can be had from here, ``from nanogrpo import GPT, GRPOConfig``. Each is
loaded from its own module when it is first asked for, so that ``import nanogrpo`` loads nothing.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "tokenizer": ["CharTokenizer"],
    "model": ["GPT", "GPTConfig"],
    "rollout": ["Rollout", "token_logprobs"],
    "packed": ["generate"],
    "tasks": ["Addition", "exact_match"],
    "weights": ["load"],
    "sft": ["SFTConfig"],
    "reward_model": ["RewardModel", "RewardModelConfig", "Preference"],
    "grpo": ["GRPOConfig"],
    "ppo": ["PPOConfig"],
    "step": ["Batch"],
    "advantages": ["group_advantages", "leave_one_out", "gae"],
    "losses": ["grpo_loss", "clipped_surrogate", "importance_ratio", "aggregate"],
    "kl": ["kl_k1", "kl_k3", "kl_exact", "entropy"],
    "evaluate": ["success_probability"],
    "errors": ["NanoGRPOError"],
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = ["__version__", *_MODULE]


def __getattr__(name: str):
    if name not in _MODULE:
        raise AttributeError(f"module 'nanogrpo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"nanogrpo.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
