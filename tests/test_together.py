"""What a trainer is given must belong together, or it would train nothing, or something else, in silence."""

import copy
import math
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
import torch

from nanogrpo import evaluate, grpo, ppo, pretrain, reward_model, sft
from nanogrpo.critic import new_critic
from nanogrpo.errors import DeviceError, DTypeError, NanoGRPOError, NonFiniteError, OptionError, TextError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.optim import AdamW
from nanogrpo.ppo import PPOConfig
from nanogrpo.pretrain import PretrainConfig
from nanogrpo.reward_model import Preference, RewardModel, RewardModelConfig
from nanogrpo.sft import SFTConfig
from nanogrpo.state import TrainState
from nanogrpo.tasks import Addition
from nanogrpo.tokenizer import CharTokenizer
from nanogrpo.variants import VARIANTS

TASK = Addition(digits=1, held_out=20)
TOKENIZER, PROBLEMS = TASK.tokenizer, TASK.split()[0]
PAIRS = [Preference("1+1=", "2", "3")] * 4
IDS = torch.arange(2, 12).repeat(20)
SMALL = {"max_new_tokens": 3, "group_size": 4, "prompts_per_step": 2, "max_steps": 2}
CONFIGS = {
    "grpo": GRPOConfig(**SMALL),
    "ppo": PPOConfig(**SMALL),
    "sft": SFTConfig(max_steps=2, batch_size=2),
    "rm": RewardModelConfig(max_steps=2, batch_size=2),
    "pretrain": PretrainConfig(max_steps=2, batch_size=2),
}


def policy(seed=0, vocab_size=TOKENIZER.vocab_size):
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size, 12, n_layer=1, n_head=2, n_embd=16))


def lengths(completions, **columns):
    return [float(len(text)) for text in completions]


def train(name, model, config=None, tokenizer=TOKENIZER, **more):
    """The rows of one of the five trainers, as a generator."""
    config = config or CONFIGS[name]
    if name in ("grpo", "ppo"):
        module = {"grpo": grpo, "ppo": ppo}[name]
        return module.train(model, tokenizer, PROBLEMS, lengths, config, **more)
    if name == "sft":
        return sft.train(model, tokenizer, TASK.examples(), config, **more)
    if name == "rm":
        return reward_model.train(RewardModel(model, tokenizer), PAIRS, config, **more)
    return pretrain.train(model, IDS, config)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_frozen_model_is_not_trained_in_silence(name):
    frozen = policy().requires_grad_(False)
    if name == "rm":  # it trains a copy, as a critic does
        next(train(name, frozen))
        assert not any(p.requires_grad for p in frozen.parameters())
        assert all(p.requires_grad for p in RewardModel(frozen, TOKENIZER).parameters())
        return
    with pytest.raises(OptionError, match="requires_grad"):
        next(train(name, frozen))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_trained_and_that_is_said(name, mode):
    rows = train(name, policy())
    next(rows)
    with mode(), pytest.raises(OptionError, match="no_grad"):
        next(rows)
    with mode(), pytest.raises(OptionError, match="no_grad"):
        next(train(name, policy()))


def test_a_reward_function_that_turns_gradients_off_is_found():
    def reward(completions, **columns):
        torch.set_grad_enabled(False)
        return lengths(completions)

    try:
        with pytest.raises(OptionError, match="no_grad"):
            next(grpo.train(policy(), TOKENIZER, PROBLEMS, reward, CONFIGS["grpo"]))
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_of_several_types_are_not_trained(name):
    mixed = policy()
    mixed.head = mixed.head.double()
    if name == "rm":
        mixed.norm = mixed.norm.double()
    with pytest.raises(DTypeError, match="float64"):
        next(train(name, mixed))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_without_numbers_is_not_trained(name):
    with pytest.raises(DeviceError, match="meta"):
        next(train(name, policy().to("meta")))


@pytest.mark.parametrize("name", ["grpo", "ppo", "sft", "rm"])
def test_the_state_of_another_model_trains_nothing_and_that_is_said(name):
    model, other = policy(), policy(1)
    if name == "ppo":
        more = {"critic": new_critic(model)}
        more["state"] = ppo.start(other, more["critic"], CONFIGS["ppo"])
    else:
        more = {"state": TrainState.start(other.parameters(), 1e-3, 0)}
    with pytest.raises(OptionError, match="another model"):
        next(train(name, model, **more))


def test_the_state_of_another_critic_is_refused():
    model = policy()
    state = ppo.start(model, new_critic(model), CONFIGS["ppo"])
    with pytest.raises(OptionError, match="another model"):
        next(train("ppo", model, critic=new_critic(model), state=state))


@pytest.mark.parametrize("name", ["grpo", "ppo"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_policy_is_no_reference_of_itself(name, beta):
    model, config = policy(), type(CONFIGS[name])(**SMALL, beta=beta)
    with pytest.raises(OptionError, match="copy"):
        next(train(name, model, config, reference=model))


@pytest.mark.parametrize("name", ["grpo", "ppo"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_reference_that_cannot_be_one_is_named(name, beta):
    config = type(CONFIGS[name])(**SMALL, beta=beta)
    with pytest.raises(OptionError, match="vocabulary"):
        next(train(name, policy(), config, reference=policy(vocab_size=30)))
    broken = policy()
    broken.blocks[0].up.weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="reference"):
        next(train(name, policy(), config, reference=broken))
    with pytest.raises(OptionError, match="reference"):
        next(train(name, policy(), config, reference=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_reference_may_have_another_type(dtype):
    config = GRPOConfig(**SMALL, beta=0.1)
    row = next(train("grpo", policy(), config, reference=copy.deepcopy(policy()).to(dtype)))
    assert 0 <= row["kl"] < 1e-3


@pytest.mark.parametrize("name", ["grpo", "ppo", "sft", "rm"])
@pytest.mark.parametrize("chars", ["0123456789+=abc", "01+="])
def test_a_tokenizer_of_another_vocabulary_is_refused(name, chars):
    with pytest.raises(OptionError, match="vocabulary"):
        next(train(name, policy(), tokenizer=CharTokenizer(chars)))


def test_nor_is_anything_measured_with_one():
    other = CharTokenizer("0123456789+=abc")
    with pytest.raises(OptionError, match="vocabulary"):
        evaluate.success_probability(policy(), other, PROBLEMS)
    with pytest.raises(OptionError, match="vocabulary"):
        evaluate.sample_texts(policy(), other, ["1+1="], max_new_tokens=3)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_options_of_another_trainer_are_refused(name):
    others = [config for other, config in CONFIGS.items() if other != name]
    for odd in (*others, None, SMALL, type(CONFIGS[name])):
        with pytest.raises(OptionError, match=type(CONFIGS[name]).__name__):
            if name in ("grpo", "ppo"):
                next({"grpo": grpo, "ppo": ppo}[name].train(policy(), TOKENIZER, PROBLEMS, lengths, odd))
            elif name == "sft":
                next(sft.train(policy(), TOKENIZER, TASK.examples(), odd))
            elif name == "rm":
                next(reward_model.train(RewardModel(policy(), TOKENIZER), PAIRS, odd))
            else:
                next(pretrain.train(policy(), IDS, odd))


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0}, {"lr": math.nan}, {"lr": "1e-3"}, {"lr": True}, {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)}, {"betas": (0.9, 0.99, 0.5)}, {"betas": 0.9}, {"eps": -1.0}, {"eps": math.inf},
        {"weight_decay": -1.0}, {"weight_decay": math.nan},
    ],
    ids=str,
)  # fmt: skip
def test_an_optimizer_has_ranges_as_options_have(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        AdamW(policy().parameters(), **{"lr": 1e-3, **options})


@pytest.mark.parametrize("lr", [-1e-3, math.nan])
def test_a_learning_rate_that_is_changed_is_checked_before_the_step(lr):
    model = policy()
    optimizer, before = AdamW(model.parameters(), 1e-3), copy.deepcopy(model.state_dict())
    model(IDS[:5][None]).sum().backward()
    optimizer.lr = lr
    with pytest.raises(OptionError, match="lr"):
        optimizer.step()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_there_is_something_to_optimize():
    with pytest.raises(OptionError, match="parameter"):
        AdamW([], 1e-3)


@pytest.mark.parametrize("ids", [[2, 3, 4], IDS.numpy(), None, "text"])
def test_a_text_that_is_no_tensor_is_refused(ids):
    with pytest.raises(DTypeError, match="ids"):
        pretrain.evaluate(policy(), ids)
    with pytest.raises(DTypeError, match="ids"):
        next(pretrain.train(policy(), ids, CONFIGS["pretrain"]))


def test_a_text_is_measured_in_any_whole_numbers_or_not_at_all():
    assert pretrain.evaluate(policy(), IDS.to(torch.uint64)) == pretrain.evaluate(policy(), IDS)
    assert pretrain.evaluate(policy(), IDS.int()) == pretrain.evaluate(policy(), IDS)
    assert next(pretrain.train(policy(), IDS.int(), CONFIGS["pretrain"]))["loss"] > 0
    with pytest.raises(OptionError, match="batch_size"):
        pretrain.evaluate(policy(), IDS, 0)
    broken = policy()
    broken.blocks[0].up.weight.data[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="loss"):
        pretrain.evaluate(broken, IDS)


def test_a_reward_model_reads_as_many_prompts_as_completions():
    model = RewardModel(policy(), TOKENIZER)
    for prompts, completions in ((["1"], ["1", "2"]), ([], ["1"])):
        with pytest.raises(NanoGRPOError, match="prompts"):
            model.score(prompts, completions)
    with pytest.raises(TextError, match="prompts"):
        model.score("12", "34")


def test_the_deviation_of_a_single_reward_is_not_logged(recwarn):
    rows = list(train("ppo", policy(), PPOConfig(**{**SMALL, "group_size": 1, "prompts_per_step": 1})))
    assert len(rows) == 2 and "reward_std" not in rows[0]
    assert not [w for w in recwarn if "degrees of freedom" in str(w.message)]


@pytest.mark.parametrize("seed", [0, 2**40, 2**63 - 1])
def test_minibatches_take_every_seed(seed):
    config = GRPOConfig(**SMALL, num_mini_batches=2, seed=seed)
    assert next(train("grpo", policy(), config))["step"] == 1


IDLE = {  # an option that is set, and what would have to be set for it
    "sapo_temperature_pos": (2.0, {"surrogate": "sapo"}),
    "vespo_k_neg": (2.0, {"surrogate": "vespo"}),
    "kl_estimator": ("k2", {"beta": 0.1}),
    "use_bias_correction_kl": (True, {"beta": 0.1}),
    "clip_cov_ub": (9.0, {"clip_cov_ratio": 0.1}),
    "kl_cov_coef": (2.0, {"kl_cov_ratio": 0.1}),
    "entropy_target": (0.5, {"use_adaptive_entropy": True}),
    "sampler_clip_min": (0.5, {"sampler_correction": "token_mask", "sampler_lag": 1}),
}


# PPO charges the KL in the reward, where the correction is an error, see StepConfig.check.
CASES = [(kind, name) for kind in (GRPOConfig, PPOConfig) for name in IDLE]
CASES.remove((PPOConfig, "use_bias_correction_kl"))


@pytest.mark.parametrize("kind, name", CASES)
def test_an_option_that_does_nothing_is_named_with_what_it_lacks(kind, name):
    value, lacking = IDLE[name]
    (said,) = kind(max_new_tokens=2, **{name: value}).idle()
    assert said.startswith(f"{name}={value!r} does nothing, since {next(iter(lacking))} is ")
    assert not kind(max_new_tokens=2, **{name: value}, **lacking).idle()


def test_every_option_that_needs_another_names_one_and_no_variant_sets_one_that_does_nothing():
    for kind in (GRPOConfig, PPOConfig):
        hints = get_type_hints(kind)
        for f in fields(kind):
            name, _, values = f.metadata["needs"].partition("=")
            assert not name or name in hints, f.name
            assert set(filter(None, values.split("|"))) <= set(get_args(hints.get(name))), f.name
    for name, options in VARIANTS.items():
        assert not GRPOConfig(max_new_tokens=9, **options).idle(), name


def test_train_warns_once_of_an_option_that_does_nothing():
    with pytest.warns(UserWarning, match="use_bias_correction_kl=True does nothing") as said:
        list(train("grpo", policy(), GRPOConfig(**SMALL, use_bias_correction_kl=True)))
    assert len(said) == 1
