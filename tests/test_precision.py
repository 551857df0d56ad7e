"""Each number type is right within what it can hold, or is refused with a reason; and so is each device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogrpo import grpo, kl, losses, packed, ppo, reward_model, rollout, sft
from nanogrpo.advantages import group_advantages
from nanogrpo.critic import explained_variance, new_critic
from nanogrpo.errors import (
    DeviceError,
    DTypeError,
    NanoGRPOError,
    NonFiniteError,
    OptionError,
    PairError,
    ShapeError,
    TokenError,
)
from nanogrpo.evaluate import sample_texts, success_counts, success_probability
from nanogrpo.inputs import check_temperature
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.optim import AdamW
from nanogrpo.pretrain import PretrainConfig
from nanogrpo.pretrain import train as pretrain
from nanogrpo.rollout import draw_uniforms, logprobs_of, sample_token, token_logprobs
from nanogrpo.tasks import Addition, exact_match
from nanogrpo.tokenizer import CharTokenizer

HALF = [torch.bfloat16, torch.float16]
FULL = [torch.float32, torch.float64]
# How far a log-prob may be off in nats: a logit of about 4 has eight bits in bfloat16, eleven in float16.
NATS = {torch.bfloat16: 0.1, torch.float16: 0.01, torch.float32: 1e-5, torch.float64: 1e-10}
PATHS = [rollout, packed]
V, BLOCK = 7, 16
PROMPTS, LENS = torch.tensor([[2, 3, 4], [5, 0, 0]]), torch.tensor([3, 1])


def lively(dtype=torch.float32, seed=0):
    """A model far from its small start."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(V, BLOCK, n_layer=2, n_head=2, n_embd=16))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype)


def sample(path, model, **changes):
    uniforms = draw_uniforms(8, 8, torch.Generator().manual_seed(1), model.head.weight)
    arguments = {"prompt_ids": PROMPTS, "prompt_lens": LENS, "uniforms": uniforms, "temperature": 1.0}
    arguments |= {"group_size": 4, "max_new_tokens": 8, "eos_id": 1, "pad_id": 0}
    return path.generate(model, **arguments | changes)


# --- sampling, against exact probabilities


def even_grid(points, dtype):
    """Uniform numbers that make every frequency exact to one point."""
    return ((torch.arange(points) + 0.5) / points).to(torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("dtype", HALF + FULL)
@pytest.mark.parametrize("size", [2, 65])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_exact_probabilities(dtype, size, temperature):
    logits = (2 * torch.randn(size, generator=torch.Generator().manual_seed(size))).to(dtype)
    grid = even_grid(1 << 16, dtype)
    expected = torch.softmax(logits.double() / temperature, -1)
    frequency = sample_token(logits.expand(len(grid), size), grid, temperature)[0].bincount(minlength=size)
    frequency = frequency / len(grid)
    distance = 0.5 * (frequency - expected).abs().sum()
    assert distance < size / len(grid), f"{distance:.1e} off in total variation"
    assert (frequency[expected > 2 / len(grid)] > 0).all(), "a token that can be drawn never is"


@pytest.mark.parametrize("dtype", HALF + FULL)
def test_a_large_vocabulary_is_drawn_in_its_order(dtype):
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    grid = even_grid(64, dtype)
    right = torch.searchsorted(logits.double().softmax(-1).cumsum(0), grid.double())
    assert (sample_token(logits.expand(64, -1), grid)[0] - right).abs().max() <= 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", HALF + FULL)
def test_a_whole_rollout_draws_its_first_token_with_the_exact_probabilities(path, dtype):
    model, G = lively(dtype), 4096
    grid = even_grid(G, dtype)
    uniforms = torch.ones(2 * G, 2, dtype=grid.dtype)
    uniforms[:, 0] = grid.repeat(2)
    drawn = sample(path, model, group_size=G, max_new_tokens=2, uniforms=uniforms)
    for i, n in enumerate(LENS.tolist()):
        with torch.no_grad():
            expected = torch.softmax(model(PROMPTS[i : i + 1, :n])[0, -1].double(), -1)
        first = drawn.completion_ids[i * G : (i + 1) * G, 0]
        distance = 0.5 * (first.bincount(minlength=V) / G - expected).abs().sum()
        assert distance < V / G + NATS[dtype], f"{distance:.1e} off in total variation"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", HALF + FULL)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probs_of_sampling_and_of_training_agree_within_the_type(path, dtype, temperature):
    model = lively(dtype)
    drawn = sample(path, model, temperature=temperature)
    assert drawn.logprobs.dtype == torch.promote_types(dtype, torch.float32)
    batch = (drawn.prompt_ids, drawn.prompt_lens, drawn.completion_ids)
    again = logprobs_of(path.completion_logits(model, *batch), drawn.completion_ids, temperature)
    exact = token_logprobs(lively(dtype).double(), *batch, temperature)
    assert again.dtype == drawn.logprobs.dtype
    for got in (again, drawn.logprobs):
        assert (got - exact)[drawn.completion_mask].abs().max() < NATS[dtype] / temperature


@pytest.mark.parametrize("dtype", HALF + FULL)
def test_uniform_numbers_are_as_fine_as_float32_at_least(dtype):
    like = torch.zeros(1, dtype=dtype)
    uniforms = draw_uniforms(100, 100, torch.Generator().manual_seed(0), like)
    assert uniforms.dtype == torch.promote_types(dtype, torch.float32)
    assert uniforms.unique().numel() > 9900 and uniforms.min() > 0 and uniforms.max() <= 1


def test_coarse_or_impossible_uniform_numbers_are_refused():
    logits = torch.randn(3, V)
    for dtype in HALF + [torch.int64, torch.bool]:
        with pytest.raises(DTypeError, match="too coarse"):
            sample_token(logits, torch.ones(3).to(dtype))
    for value in (1.5, float("nan"), float("inf")):
        with pytest.raises(NonFiniteError, match="uniform number"):
            sample_token(logits, torch.full((3,), value))
    for value in (0.0, -0.5, 1.5, float("nan")):
        for path in PATHS:
            with pytest.raises(OptionError, match="uniform number"):
                sample(path, lively(), uniforms=torch.full((8, 8), value))


def test_float64_numbers_choose_with_float32_logits():
    logits = torch.randn(100, V)
    u = draw_uniforms(100, 1, torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.float64))[:, 0]
    tokens, logprobs = sample_token(logits, u)
    right = torch.searchsorted(logits.double().softmax(-1).cumsum(-1), u[:, None])[:, 0]
    assert (tokens != right).sum() <= 1 and logprobs.dtype == torch.float32


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rollout_takes_uniform_numbers_of_another_type_than_the_weights(path, dtype):
    other = torch.float64 if dtype == torch.float32 else torch.float32
    u = torch.rand(8, 8, dtype=torch.float32, generator=torch.Generator().manual_seed(2)).clamp(min=0.01)
    same, apart = (sample(path, lively(dtype), uniforms=u.to(kind)) for kind in (dtype, other))
    assert torch.equal(apart.completion_ids, same.completion_ids)


# --- autocast


@pytest.mark.parametrize("path", PATHS)
def test_sampling_under_autocast_is_refused_and_outside_of_it_is_not(path):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(DTypeError, match="autocast is on"):
            sample(path, lively())
        exact = sample(path, lively(torch.float64))  # autocast leaves float64 alone
        with torch.autocast("cpu", enabled=False):
            inner = sample(path, lively())
    assert torch.equal(exact.logprobs, sample(path, lively(torch.float64)).logprobs)
    assert torch.equal(inner.logprobs, sample(path, lively()).logprobs)


def test_every_trainer_that_samples_refuses_autocast_before_anything_has_moved():
    task = Addition(digits=1, held_out=10)
    torch.manual_seed(0)
    model = GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, 1, 1, 8))
    before = [p.clone() for p in model.parameters()]
    options = {"group_size": 2, "prompts_per_step": 2, "max_steps": 1}
    for trainer, config in ((grpo, grpo.GRPOConfig), (ppo, ppo.PPOConfig)):
        rows = trainer.train(model, task.tokenizer, task.split()[0], exact_match, config(3, **options))
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(DTypeError, match="autocast is on"):
            next(rows)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_fine_tuning_under_autocast_has_the_gradient_of_float32_within_a_hundredth():
    grads = []
    for enabled in (False, True):
        model = lively()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            ids, mask = torch.tensor([[2, 3, 1], [4, 1, 0]]), torch.tensor([[True] * 3, [True, True, False]])
            logits = rollout.completion_logits(model, PROMPTS, LENS, ids)
            loss = losses.aggregate(losses.sft_loss(logits, ids, mask), mask, "token_mean")
        assert loss.dtype == torch.float32
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (grads[0] - grads[1]).norm() < 0.03 * grads[0].norm()


# --- training


@pytest.mark.parametrize("dtype", HALF)
def test_training_half_precision_weights_is_refused_in_every_trainer(dtype):
    task = Addition(digits=1, held_out=10)
    model = GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, 1, 1, 8)).to(dtype)
    problems, tokenizer = task.split()[0], task.tokenizer
    pairs = [reward_model.Preference("1+1=", "2", "3")]
    half_reward = reward_model.RewardModel(model, tokenizer)
    trainers = [
        lambda: grpo.train(model, tokenizer, problems, exact_match, grpo.GRPOConfig(3, max_steps=1)),
        lambda: ppo.train(model, tokenizer, problems, exact_match, ppo.PPOConfig(3, max_steps=1)),
        lambda: sft.train(model, tokenizer, [("1+1=", "2")], sft.SFTConfig(max_steps=1)),
        lambda: reward_model.train(half_reward, pairs, reward_model.RewardModelConfig(max_steps=1)),
        lambda: pretrain(model, torch.arange(14).repeat(4) % 14, PretrainConfig(max_steps=1)),
    ]
    for trainer in trainers:
        with pytest.raises(DTypeError, match=r"Train in float32, by model.float\(\)"):
            next(iter(trainer()))


def test_a_step_that_bfloat16_would_swallow():
    """Why it is refused: the number in the docstring."""
    weight = torch.tensor(0.1, dtype=torch.bfloat16)
    assert weight - 1e-4 == weight and weight - 5e-4 != weight
    with pytest.raises(DTypeError):
        AdamW([weight], lr=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_gradient_in_float32_is_that_in_float64(beta):
    drawn = sample(packed, lively(torch.float64))
    advantages = group_advantages(torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0]])).flatten()
    grads = []
    for dtype in (torch.float64, torch.float32):
        model, reference = lively(dtype), lively(dtype, seed=1)
        batch = (drawn.prompt_ids, drawn.prompt_lens, drawn.completion_ids)
        logprobs, ref = (
            logprobs_of(packed.completion_logits(m, *batch), batch[2]) for m in (model, reference)
        )
        old = drawn.logprobs.to(dtype)
        loss, _ = losses.grpo_loss(logprobs, old, ref, advantages, drawn.completion_mask, beta=beta)
        loss.backward()
        grads.append(torch.cat([p.grad.flatten().double() for p in model.parameters()]))
    assert (grads[0] - grads[1]).norm() < 1e-4 * grads[0].norm()


def test_a_reference_in_bfloat16_measures_the_kl_in_float32():
    drawn = sample(packed, lively())
    batch = (drawn.prompt_ids, drawn.prompt_lens, drawn.completion_ids)
    half, full = (token_logprobs(lively(dtype, seed=1), *batch) for dtype in (torch.bfloat16, torch.float32))
    assert half.dtype == torch.float32 and (half - full)[drawn.completion_mask].abs().max() < 0.1


# --- losses, KL and entropy


def per_token(seed=0, rows=3, tokens=4):
    draw = torch.Generator().manual_seed(seed)
    return [-torch.rand(rows, tokens, generator=draw) * 3 for _ in range(3)]


MASK = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
ADVANTAGES = torch.tensor([1.0, -0.5, -0.5])
# name -> a function of three (3, 4) tensors of log-probs and one (3,) of advantages
FUNCTIONS = {
    "kl_k1": lambda a, b, c, d: kl.kl_k1(a, b, MASK),
    "kl_k2": lambda a, b, c, d: kl.kl_k2(a, b),
    "kl_k3": lambda a, b, c, d: kl.kl_k3(a, b, MASK),
    "kl_exact": lambda a, b, c, d: kl.kl_exact(a, b),
    "entropy": lambda a, b, c, d: kl.entropy(a),
    "entropy_sampled": lambda a, b, c, d: kl.entropy_sampled(a, MASK),
    "entropy_proxy": lambda a, b, c, d: kl.entropy_proxy(a),
    "importance_ratio": lambda a, b, c, d: losses.importance_ratio(a, b, MASK),
    "sequence ratio": lambda a, b, c, d: losses.importance_ratio(a, b, MASK, "sequence"),
    "clipped_surrogate": lambda a, b, c, d: losses.clipped_surrogate(-a, d, MASK),
    "clip_fractions": lambda a, b, c, d: losses.clip_fractions(-a, d, MASK)["clip_ratio/low_mean"],
    "aggregate": lambda a, b, c, d: losses.aggregate(a, MASK),
    "reinforce_loss": lambda a, b, c, d: losses.reinforce_loss(a, d, MASK),
    "cispo_surrogate": lambda a, b, c, d: losses.cispo_surrogate(-a, b, d, MASK),
    "value_loss": lambda a, b, c, d: losses.value_loss(300 * a, 100 * b, MASK),
    "clipped value_loss": lambda a, b, c, d: losses.value_loss(a, b, MASK, c, 0.2),
    "bradley_terry_loss": lambda a, b, c, d: losses.bradley_terry_loss(a, b),
    "sft_loss": lambda a, b, c, d: losses.sft_loss(
        a.unsqueeze(2).expand(-1, -1, 5) * torch.arange(5), torch.ones(3, 4, dtype=torch.long), MASK
    ),
    "grpo_loss": lambda a, b, c, d: losses.grpo_loss(a, b, c, d, MASK, beta=0.1)[0],
    "logprobs_of": lambda a, b, c, d: logprobs_of(a, torch.ones(3, dtype=torch.long)),
    "preference_probs": lambda a, b, c, d: reward_model.preference_probs(a, b, 0.5),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_is_widened_before_anything_is_computed(name, dtype):
    """The result is that of the same numbers in float32, to the bit, and is kept in float32."""
    narrow = [tensor.to(dtype) for tensor in (*per_token(), ADVANTAGES)]
    got = FUNCTIONS[name](*narrow)
    assert got.dtype == torch.float32 and got.isfinite().all()
    wide = [tensor.float() for tensor in narrow]
    if name == "value_loss":
        wide = [(300 * narrow[0]).float() / 300, (100 * narrow[1]).float() / 100, *wide[2:]]
        torch.testing.assert_close(got, FUNCTIONS[name](*wide), rtol=1e-4, atol=1e-2)
    elif name == "sft_loss":
        torch.testing.assert_close(got, FUNCTIONS[name](*wide), rtol=2e-2, atol=2e-2)
    else:
        assert torch.equal(got, FUNCTIONS[name](*wide))


@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_full_precision_stays_what_it_is(name, dtype):
    assert FUNCTIONS[name](*(tensor.to(dtype) for tensor in (*per_token(), ADVANTAGES))).dtype == dtype


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("wrong", [torch.int64, torch.bool, torch.complex64, "a list"])
def test_what_is_no_floating_point_tensor_is_refused(name, wrong):
    tensors = (*per_token(), ADVANTAGES)
    inputs = [t.tolist() for t in tensors] if wrong == "a list" else [t.to(wrong) for t in tensors]
    if wrong == torch.bool and name in ("clipped_surrogate", "clip_fractions", "cispo_surrogate"):
        inputs[0] = ~inputs[0].int()  # a bool has no minus
    try:
        FUNCTIONS[name](*inputs)
    except DTypeError:
        return
    except TypeError as error:  # of the test's own arithmetic on a list
        assert wrong == "a list" and "'list'" in str(error), error
        return
    except AttributeError as error:
        assert wrong == "a list" and "'list' object" in str(error) and name == "sft_loss", error
        return
    pytest.fail("accepted")


# --- the reward model and the critic


@pytest.mark.parametrize("dtype", HALF)
def test_a_reward_model_in_half_precision_adds_up_in_float32(dtype):
    """A running total in bfloat16 stands still at 256: 1 added to it is rounded away."""
    tokenizer = CharTokenizer("ab")
    torch.manual_seed(0)
    model = reward_model.RewardModel(GPT(GPTConfig(4, 512, 1, 1, 8)), tokenizer)
    torch.nn.init.normal_(model.gpt.head.weight, std=3)
    texts = ["a" * 500, "ab" * 200, "b"]
    full = torch.tensor(model.score([""] * 3, texts))
    half = torch.tensor(model.to(dtype).score([""] * 3, texts))
    assert ((half - full).abs() < 0.03 * full.abs() + 1).all(), (half, full)


def test_accuracy_of_pairs_needs_no_float64_and_no_nan():
    chosen, rejected = torch.randn(999), torch.randn(999)
    rejected[::7] = chosen[::7]
    expected = ((chosen > rejected).double() + 0.5 * (chosen == rejected)).mean().item()
    assert reward_model.pair_accuracy(chosen, rejected) == expected
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError, match="score"):
            reward_model.pair_accuracy(torch.tensor([1.0, bad]), torch.tensor([0.0, 0.0]))
    with pytest.raises(PairError):
        reward_model.pair_accuracy(torch.zeros(0), torch.zeros(0))


def test_explained_variance_of_broken_values_is_an_error_and_not_a_nan():
    mask = torch.ones(1, 3, dtype=torch.bool)
    good = torch.tensor([[0.0, 1.0, 2.0]])
    for bad in (float("nan"), float("inf")):
        broken = torch.tensor([[0.0, bad, 1.0]])
        for arguments in ((broken, good), (good, broken)):
            with pytest.raises(NonFiniteError, match="critic"):
                explained_variance(*arguments, mask)
        assert explained_variance(broken, good, torch.tensor([[True, False, True]])) == pytest.approx(0.75)


class NoFloat64(torch.Tensor):
    """A tensor on a device that has no float64, as Apple's GPUs; what is fetched from it is plain."""

    def __deepcopy__(self, memo):
        copied = self.detach().clone()
        is_parameter = isinstance(self, torch.nn.Parameter)
        return torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(func, types, args, kwargs or {})
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, NoFloat64) and part.dtype == torch.float64:
                raise TypeError(f"this device has no float64; {func} made one")
        return result


def moved(module):
    """The module with its parameters on that device."""
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                owner._parameters[name] = torch.nn.Parameter(parameter.data.as_subclass(NoFloat64))
    return module


def test_the_stand_in_for_such_a_device_notices():
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros(2).as_subclass(NoFloat64).double()
    with pytest.raises(TypeError, match="no float64"):
        moved(torch.nn.Linear(2, 2))(torch.zeros(1, 2)).to(torch.float64)


def test_every_trainer_and_measurement_runs_where_there_is_no_float64():
    task = Addition(digits=1, held_out=10)
    torch.manual_seed(0)
    model = moved(GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, 1, 1, 8)))
    problems, tokenizer = task.split()[0], task.tokenizer
    options = {"group_size": 2, "prompts_per_step": 2, "max_steps": 2, "beta": 0.1}

    def score(prompts, completions, **columns):
        return [len(completion) / (1 + i) for i, completion in enumerate(completions)]

    critic = moved(new_critic(model))
    rows = [
        *grpo.train(model, tokenizer, problems, score, grpo.GRPOConfig(3, **options)),
        *ppo.train(model, tokenizer, problems, score, ppo.PPOConfig(3, **options), critic=critic),
        *sft.train(model, tokenizer, [("1+1=", "2")], sft.SFTConfig(max_steps=2)),
        *pretrain(model, torch.arange(14).repeat(4) % 14, PretrainConfig(max_steps=2, batch_size=2)),
        *reward_model.train(
            moved(reward_model.RewardModel(model, tokenizer)),
            [reward_model.Preference("1+1=", "2", "3")],
            reward_model.RewardModelConfig(max_steps=2, batch_size=2),
        ),
    ]
    assert len(rows) == 10
    for value in explained_variance, reward_model.pair_accuracy:
        tensors = [torch.rand(2, 3).as_subclass(NoFloat64) for _ in range(2)]
        mask = [torch.ones(2, 3, dtype=torch.bool)] if value is explained_variance else []
        assert isinstance(value(*tensors, *mask), float)
    assert 0 <= success_probability(model, tokenizer, problems[:4]) <= 1
    assert len(success_counts(model, tokenizer, problems[:4], exact_match, max_new_tokens=3)) == 4


# --- arguments that do not fit, in either path


HOSTILE = {
    "ids as a list": ({"prompt_ids": [[2, 3, 4], [5, 0, 0]]}, DTypeError),
    "ids of floats": ({"prompt_ids": PROMPTS.float()}, DTypeError),
    "ids of int32": ({"prompt_ids": PROMPTS.int()}, DTypeError),
    "ids of one row": ({"prompt_ids": PROMPTS[0]}, ShapeError),
    "no prompts": ({"prompt_ids": PROMPTS[:0], "prompt_lens": LENS[:0]}, ShapeError),
    "no columns": ({"prompt_ids": PROMPTS[:, :0]}, ShapeError),
    "an id below 0": ({"prompt_ids": PROMPTS - 1}, TokenError),
    "an id above V": ({"prompt_ids": PROMPTS + 3}, TokenError),
    "lens as a list": ({"prompt_lens": [3, 1]}, DTypeError),
    "lens of floats": ({"prompt_lens": LENS.float()}, DTypeError),
    "one len too few": ({"prompt_lens": LENS[:1]}, ShapeError),
    "a len of 0": ({"prompt_lens": torch.tensor([3, 0])}, ShapeError),
    "a len below 0": ({"prompt_lens": torch.tensor([3, -1])}, ShapeError),
    "a len beyond the table": ({"prompt_lens": torch.tensor([4, 1])}, ShapeError),
    "uniforms of another shape": ({"uniforms": torch.ones(8, 9)}, ShapeError),
    "too few uniforms": ({"uniforms": torch.ones(4, 8)}, ShapeError),
    "uniforms of one row": ({"uniforms": torch.ones(8)}, ShapeError),
    "no uniforms": ({"uniforms": None}, DTypeError),
    "uniforms in bfloat16": ({"uniforms": torch.ones(8, 8).bfloat16()}, DTypeError),
    "uniforms of whole numbers": ({"uniforms": torch.ones(8, 8).long()}, DTypeError),
    "no group": ({"group_size": 0}, OptionError),
    "half a group": ({"group_size": 1.5}, OptionError),
    "a group of None": ({"group_size": None}, OptionError),
    "a group of True": ({"group_size": True}, OptionError),
    "no new tokens": ({"max_new_tokens": 0}, OptionError),
    "new tokens as text": ({"max_new_tokens": "8"}, OptionError),
    "an eos of None": ({"eos_id": None}, OptionError),
    "a pad outside": ({"pad_id": V}, OptionError),
    "a negative pad": ({"pad_id": -1}, OptionError),
    "temperature below 0": ({"temperature": -1.0}, OptionError),
    "temperature nan": ({"temperature": float("nan")}, OptionError),
    "temperature inf": ({"temperature": float("inf")}, OptionError),
    "temperature None": ({"temperature": None}, OptionError),
    "temperature as text": ({"temperature": "1"}, OptionError),
    "temperature a tensor": ({"temperature": torch.tensor(1.0)}, OptionError),
    "temperature True": ({"temperature": True}, OptionError),
    "ids elsewhere": ({"prompt_ids": PROMPTS.to("meta")}, DeviceError),
    "lens elsewhere": ({"prompt_lens": LENS.to("meta")}, DeviceError),
    "uniforms elsewhere": ({"uniforms": torch.ones(8, 8, device="meta")}, DeviceError),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", HOSTILE)
def test_an_argument_that_does_not_fit_is_named(path, name):
    changes, error = HOSTILE[name]
    with pytest.raises(error) as caught:
        sample(path, lively(), **changes)
    assert len(str(caught.value)) > 20


SCORED = {
    "floats": ({"completion_ids": torch.ones(4, 2)}, DTypeError),
    "one row": ({"completion_ids": torch.ones(4, dtype=torch.long)}, ShapeError),
    "no tokens": ({"completion_ids": torch.ones(4, 0, dtype=torch.long)}, ShapeError),
    "no rows": ({"completion_ids": torch.ones(0, 2, dtype=torch.long)}, ShapeError),
    "rows that no group size gives": ({"completion_ids": torch.ones(3, 2, dtype=torch.long)}, ShapeError),
    "an id too high": ({"completion_ids": torch.full((4, 2), V)}, TokenError),
    "an id of -100": ({"completion_ids": torch.full((4, 2), -100)}, TokenError),
    "elsewhere": ({"completion_ids": torch.ones(4, 2, dtype=torch.long, device="meta")}, DeviceError),
    "a len beyond the table": ({"prompt_lens": torch.tensor([4, 1])}, ShapeError),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SCORED)
def test_a_completion_that_cannot_be_scored_is_named(path, name):
    changes, error = SCORED[name]
    arguments = {"prompt_ids": PROMPTS, "prompt_lens": LENS}
    arguments |= {"completion_ids": torch.ones(4, 2, dtype=torch.long)} | changes
    with pytest.raises(error):
        logprobs_of(path.completion_logits(lively(), **arguments), arguments["completion_ids"])


def test_log_probs_of_ids_that_do_not_belong_to_the_logits():
    logits, ids = torch.randn(2, 3, V), torch.zeros(2, 3, dtype=torch.long)
    for wrong, error in (
        (ids[:, :2], ShapeError),
        (ids + V, TokenError),
        (ids - 100, TokenError),
        (ids.float(), DTypeError),
        (ids.int(), DTypeError),
        ([[0]], DTypeError),
    ):
        with pytest.raises(error):
            logprobs_of(logits, wrong)
    for temperature in (0, 0.0, -1, float("nan"), None, "1"):
        with pytest.raises(OptionError):
            logprobs_of(logits, ids, temperature)
    check_temperature(0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_a_broken_model_samples_nothing(path, temperature, bad):
    """Greedy choices too: the most probable of NaNs is a token like any other."""
    model = lively()
    with torch.no_grad():
        model.head.weight[3] = bad
        model.blocks[0].up.weight[0] = bad
    with pytest.raises(NonFiniteError, match="logit"):
        sample(path, model, temperature=temperature)
    with pytest.raises(NonFiniteError, match="logit"):
        sample_texts(model, CharTokenizer("abcde"), ["ab"], max_new_tokens=4, temperature=temperature)


# --- fuzz


dtypes = st.sampled_from([*HALF, *FULL, torch.int64, torch.int32, torch.bool, torch.uint8, torch.complex64])
sizes = st.integers(0, 4)
numbers = st.one_of(st.floats(-5, 5), st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30]))


@st.composite
def tensors(draw, shapes=None):
    shapes = st.lists(sizes, max_size=3) if shapes is None else shapes
    shape, dtype = draw(shapes), draw(dtypes)
    count = int(torch.tensor(shape).prod()) if shape else 1
    values = draw(st.lists(numbers, min_size=min(count, 8), max_size=min(count, 8))) or [0.0]
    flat = torch.tensor(values, dtype=torch.float64)
    flat = flat.repeat(count // len(values) + 1)[:count].view(shape)
    return flat.nan_to_num(0, 3, -3).to(dtype) if not dtype.is_floating_point else flat.to(dtype)


def invariants(call, check=lambda result: None):
    """It works and holds what it promises, or it raises one of the package's own errors."""
    try:
        result = call()
    except NanoGRPOError as error:
        assert len(str(error)) > 15
        return
    check(result)


@pytest.mark.slow
@settings(max_examples=500)
@given(data=st.data())
def test_fuzz_sample_token_and_log_probs(data):
    logits, uniforms = data.draw(tensors()), data.draw(tensors())
    if data.draw(st.booleans()):
        uniforms = torch.rand(logits.shape[:-1]).clamp(min=1e-6)
    temperature = data.draw(st.one_of(st.sampled_from([0, 1, 0.5, None, "x"]), st.floats()))

    def check(result):
        tokens, logprobs = result
        assert tokens.shape == logits.shape[:-1] and (tokens < logits.shape[-1]).all() and (tokens >= 0).all()
        assert logprobs.dtype in FULL
        if temperature:
            finite = logits.float().isfinite().all(-1)
            assert (logprobs[finite] <= 1e-6).all()
        else:
            assert (logprobs.isnan() | (logprobs == 0)).all()

    invariants(lambda: sample_token(logits, uniforms, temperature), check)
    ids = data.draw(tensors())
    invariants(lambda: logprobs_of(logits, ids, temperature), lambda result: result.dtype in FULL)


SHAPES = st.sampled_from([[3, 4], [3, 4], [3, 4], [3], [2, 4], [3, 4, 2], [0, 4], []])


@pytest.mark.slow
@settings(max_examples=500)
@given(data=st.data(), name=st.sampled_from(sorted(FUNCTIONS)))
def test_fuzz_losses(data, name):
    inputs = [data.draw(tensors(SHAPES)) for _ in range(3)] + [
        data.draw(tensors(st.sampled_from([[3], [3, 4]])))
    ]
    if name in ("clipped_surrogate", "clip_fractions", "cispo_surrogate") and inputs[0].dtype == torch.bool:
        return  # a bool has no minus
    if name == "sft_loss" and inputs[0].ndim != 2:
        return  # the test's own arithmetic needs two dimensions
    if name == "value_loss":
        inputs = [t.int() if t.dtype in (torch.bool, torch.uint8) else t for t in inputs]
    finite = all(t.isfinite().all() for t in inputs)

    def check(result):
        assert result.dtype in FULL
        if finite and name in ("kl_k3", "kl_k2", "value_loss", "entropy", "bradley_terry_loss"):
            assert (result >= -1e-6).all()

    invariants(lambda: FUNCTIONS[name](*inputs), check)
