"""What a public loss, advantage or KL function can be told, config, command line and `train` can say."""

import argparse
import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest
import torch

from nanogrpo import advantages, grpo, kl, losses, offpolicy, ppo, selection, surrogates
from nanogrpo.advantages import BASELINES, SCALES
from nanogrpo.grpo import GRPOConfig
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.options import add_options
from nanogrpo.ppo import PPOConfig
from nanogrpo.tokenizer import CharTokenizer

# Tensors and counts of a batch: what a step computes, and nobody sets.
DATA = set(
    "logprobs old_logprobs ref_logprobs logits ref_logits mask completion_mask ratio per_token targets "
    "denominators advantages rewards values returns old_values scores lengths kl chosen rejected "
    "sampler_logprobs entropies cov generator p q".split()
)
OPTION = {  # of a keyword that has a longer name in a config
    "eps": "std_eps",
    "level": "importance_sampling_level",
    "how": "aggregation",
    "clip_range": "cliprange_value",
    "max_length": "max_new_tokens",
    "buffer": "overlong_buffer",
    "shape": "surrogate",  # the options that only one of them has; they are keywords of its function
    "divergence": "surrogate",
    "rule": "sampler_correction",
    "coef": "entropy_coef",
    "entropy": "use_adaptive_entropy",
}
OPTION_OF = {("sampler_weights", "level"): "sampler_correction"}
VALUES = {  # of each option, one that is not its default
    "importance_sampling_level": "sequence",
    "surrogate": "cispo",
    "clip_low": 0.05,
    "clip_high": 0.07,
    "delta": 1.3,
    "beta": 0.7,
    "kl_estimator": "k2",
    "use_bias_correction_kl": True,
    "aggregation": "sequence_sum",
    "std_eps": 0.5,
    "baseline": "leave_one_out",
    "scale_rewards": "global",
    "correction": 1,
    "overlong_buffer": 2,
    "gamma": 0.5,
    "lam": 0.3,
    "cliprange_value": 0.001,
    "max_new_tokens": 3,
    "sapo_temperature_pos": 3.0,
    "sapo_temperature_neg": 3.0,
    "vespo_k_pos": 1.0,
    "vespo_lambda_pos": 1.0,
    "vespo_k_neg": 1.0,
    "vespo_lambda_neg": 1.0,
    "sampler_correction": "sequence_mask",
    "sampler_clip_max": 1.01,
    "sampler_clip_min": 0.99,
    "off_policy_mask_threshold": 0.0,
    "top_entropy_quantile": 0.4,
    "clip_cov_ratio": 0.3,
    "clip_cov_lb": 0.5,
    "clip_cov_ub": 0.5,
    "kl_cov_ratio": 0.3,
    "use_adaptive_entropy": True,
    "entropy_coef": 0.1,
    "entropy_target": 0.0,
    "entropy_coef_delta": 0.5,
    "entropy_coef_min": 0.3,
    "entropy_coef_max": 0.01,
}
OTHERS = {  # options of the trainers, no function's keyword
    "kl_cov_coef": 9.0,
    "sampler": "bfloat16",
    "sampler_lag": 1,
    "sampler_noise": 0.4,
    "sampler_temperature": 0.5,
}
ALL = VALUES | OTHERS
NOISE = {"sampler": "noise", "sampler_noise": 0.3}
WEIGHED = NOISE | {"sampler_correction": "token_truncate"}
ADAPTIVE = {"use_adaptive_entropy": True, "entropy_target": 5.0}
WITH = {  # what has to be on for it to mean anything
    "use_bias_correction_kl": {"beta": 0.5, "kl_in": "loss"},
    "kl_estimator": {"beta": 0.5},
    "max_new_tokens": {"aggregation": "constant"},
    "sampler_correction": NOISE,
    "sampler_clip_max": WEIGHED,
    "sampler_clip_min": WEIGHED,
    "clip_cov_lb": {"clip_cov_ratio": 0.3, "clip_cov_lb": 0.1},
    "clip_cov_ub": {"clip_cov_ratio": 0.3, "clip_cov_lb": 0.1},
    "clip_cov_ratio": {"clip_cov_lb": 0.1},
    "kl_cov_coef": {"kl_cov_ratio": 0.3},
    "sampler_noise": NOISE,
    "entropy_target": ADAPTIVE,
    "entropy_coef_delta": ADAPTIVE,
    "entropy_coef_min": ADAPTIVE | {"entropy_target": 0.95},  # above it at first, then below
    "entropy_coef_max": ADAPTIVE | {"entropy_coef_delta": 0.1},
    "use_adaptive_entropy": {"entropy_target": 5.0},
    **{f"sapo_temperature_{sign}": {"surrogate": "sapo"} for sign in ("pos", "neg")},
    **{f"vespo_{name}_{sign}": {"surrogate": "vespo"} for name in ("k", "lambda") for sign in ("pos", "neg")},
}
TOKENIZER = CharTokenizer("ab")
ROWS = [{"prompt": "a"}, {"prompt": "ab"}, {"prompt": "bba"}, {"prompt": "b"}]


def keywords():
    """Every (function, keyword) of the mathematics that is no tensor of the batch."""
    for module in (advantages, losses, kl, offpolicy, selection, surrogates):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith(("_", "check_")):
                for keyword in inspect.signature(function).parameters:
                    if keyword not in DATA:
                        yield name, keyword


def option_of(function, keyword):
    return OPTION_OF.get((function, keyword), OPTION.get(keyword, keyword))


OPTIONS = sorted({option_of(*pair) for pair in keywords()})
CONFIGS = {"grpo": GRPOConfig, "ppo": PPOConfig}


def of(config):
    return {f.name for f in fields(config)}


def test_there_is_something_to_reach():
    assert len(OPTIONS) >= 39 and set(OPTIONS) == set(VALUES), set(OPTIONS) ^ set(VALUES)


@pytest.mark.parametrize(("function", "keyword"), list(keywords()))
def test_a_keyword_is_an_option_of_a_config(function, keyword):
    name = option_of(function, keyword)
    assert name in of(GRPOConfig) | of(PPOConfig), f"{function}({keyword}=...) can be reached from no config"


def test_every_name_of_a_table_is_a_choice():
    hints = get_type_hints(GRPOConfig)
    for option, table in (
        ("surrogate", losses.SURROGATES), ("aggregation", losses.AGGREGATIONS), ("baseline", BASELINES),
        ("scale_rewards", SCALES), ("kl_estimator", [*losses.KL_ESTIMATORS, None]),
    ):  # fmt: skip
        chosen = hints[option]
        found = {v for part in (getattr(chosen, "__args__", ())) for v in getattr(part, "__args__", (part,))}
        assert found - {type(None)} == set(table) - {None}, option


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("name", ALL)
def test_an_option_is_on_the_command_line(method, name):
    if name not in of(CONFIGS[method]):
        return
    parser = argparse.ArgumentParser()
    add_options(parser, CONFIGS[method])
    flag, value = "--" + name.replace("_", "-"), ALL[name]
    said = [flag] if value is True else [flag, str(value)]
    assert getattr(parser.parse_args(said), name) == value


def weights_after(method, **options):
    """The weights after two steps of some updates each."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(TOKENIZER.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=16)).double()
    torch.manual_seed(1)
    reference = GPT(model.config).double().requires_grad_(False)
    passes = {"num_iterations": 3} if method == "grpo" else {"num_ppo_epochs": 3}
    settings = {
        "max_new_tokens": 4,
        "group_size": 4,
        "prompts_per_step": 4,
        "max_steps": 3,
        "learning_rate": 0.03,
    }
    config = CONFIGS[method](**settings | passes | options)
    trainer = {"grpo": grpo, "ppo": ppo}[method]

    def reward(prompts, completions, **columns):
        return [text.count("b") + 0.1 * len(text) for text in completions]

    for _ in trainer.train(model, TOKENIZER, ROWS, reward, config, reference=reference):
        pass
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("name", ALL)
def test_an_option_reaches_what_train_does(method, name):
    """Not one of them is accepted and ignored."""
    if name not in of(CONFIGS[method]):
        return
    others = WITH.get(name, {})
    plain, turned = (weights_after(method, **others | given) for given in ({}, {name: ALL[name]}))
    assert not torch.equal(plain, turned), f"{name}={ALL[name]!r} changes nothing in a run of {method}"
    assert turned.isfinite().all()
