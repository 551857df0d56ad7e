"""Reward models: noise and its ceiling, pooling and padding, training, files, bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mathcheck import close

from nanogrpo import weights
from nanogrpo.checkpoint import load_model, load_tensors, save_model, save_tensors
from nanogrpo.errors import (
    BlockSizeError,
    CheckpointError,
    NonFiniteError,
    OptionError,
    PairError,
    ShapeError,
    UnknownCharacterError,
)
from nanogrpo.grpo import GRPOConfig
from nanogrpo.grpo import train as grpo_train
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.reward_model import (
    POOLS,
    Preference,
    RewardModel,
    RewardModelConfig,
    load_reward_model,
    noise_ceiling,
    pair_accuracy,
    prefer,
    preference_probs,
    save_reward_model,
    train,
)
from nanogrpo.state import TrainState
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("abc:")
scores = st.lists(st.tuples(st.integers(-3, 8), st.integers(-3, 8)), min_size=1, max_size=20)


def policy(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return GPT(GPTConfig(TOKENIZER.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=16)).to(dtype)


def judged(dtype=torch.float32, pool="sum"):
    """A reward model with opinions: its head is not zero."""
    model = RewardModel(policy(dtype=dtype), TOKENIZER, pool)
    torch.nn.init.normal_(model.gpt.head.weight, generator=torch.Generator().manual_seed(1))
    return model


def ids_of(*texts, width, fill=TOKENIZER.pad_id):
    rows = [[*TOKENIZER.encode(text), TOKENIZER.eos_id] for text in texts]
    ids = torch.full((len(rows), width), fill)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids, torch.tensor([len(tokens) for tokens in rows])


# Labels


@given(scores, st.floats(0.5, 5))
def test_the_two_orders_of_a_pair_have_probabilities_that_add_to_one(pairs, temperature):
    a, b = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    p = preference_probs(a, b, temperature)
    torch.testing.assert_close(p + preference_probs(b, a, temperature), torch.ones_like(p))
    torch.testing.assert_close(torch.logit(p), (a - b) / temperature)


@given(scores, st.floats(0.5, 5))
def test_the_ceiling_lies_between_a_coin_and_certainty_and_falls_with_the_noise(pairs, temperature):
    a, b = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    ceiling = noise_ceiling(a, b, temperature)
    assert 0.5 <= ceiling <= 1 and noise_ceiling(b, a, temperature) == pytest.approx(ceiling)
    assert noise_ceiling(a, b, 2 * temperature) <= ceiling + 1e-12


def test_labels_are_drawn_with_these_probabilities_and_the_judge_reaches_the_ceiling():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(-2, 7, (2, 40000), generator=generator).double()
    labels = prefer(a, b, 1.5, generator)
    p = preference_probs(a, b, 1.5)
    error = 4 * (p * (1 - p)).mean().sqrt().item() / 200  # 4 standard errors
    assert abs(labels.double().mean() - p.mean()) < error
    right = torch.where(a == b, 0.5, (labels == (a > b)).double()).mean().item()
    assert right == pytest.approx(noise_ceiling(a, b, 1.5), abs=error)
    again = torch.Generator().manual_seed(0)
    torch.randint(-2, 7, (2, 40000), generator=again)
    assert torch.equal(labels, prefer(a, b, 1.5, again)), "one generator state, one set of labels"


def test_a_colder_judge_makes_fewer_mistakes():
    a, b = torch.zeros(2000), torch.ones(2000)
    wrong = [prefer(a, b, t, torch.Generator().manual_seed(0)).sum().item() for t in (0.05, 0.5, 5.0)]
    assert wrong[0] == 0 < wrong[1] < wrong[2] < 1000


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(OptionError, match="temperature="):
        preference_probs(torch.zeros(1), torch.zeros(1), temperature)


def test_scores_of_unlike_shapes_are_refused():
    with pytest.raises(ShapeError, match="scores_b"):
        preference_probs(torch.zeros(2), torch.zeros(3), 1.0)
    with pytest.raises(ShapeError, match="rejected"):
        pair_accuracy(torch.zeros(2), torch.zeros(3))


def test_a_pair_of_two_equal_texts_is_refused():
    with pytest.raises(PairError, match="both completions of prompt 'a:' are 'bb'"):
        Preference("a:", "bb", "bb")


# The model


def test_an_untrained_reward_model_prefers_nothing_and_leaves_its_policy_alone():
    start = policy()
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    model = RewardModel(start, TOKENIZER)
    assert model.score(["a:", "b:"], ["abc", ""]) == [0.0, 0.0]
    list(train(model, [Preference("a:", "b", "c")], RewardModelConfig(max_steps=3)))
    for name, tensor in start.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("pool", POOLS)
def test_the_score_is_read_at_the_last_token(pool):
    model = judged(torch.float64, pool)
    ids, lens = ids_of("a:bc", width=5)
    by_token = model.gpt.hidden(ids)[0] @ model.gpt.head.weight[0]
    assert ids[0, 4] == TOKENIZER.eos_id
    torch.testing.assert_close(model(ids, lens)[0], by_token.sum() if pool == "sum" else by_token[4])
    cut = model(ids[:, :4], torch.tensor([4]))[0]  # a text that was cut off is read at its last character
    torch.testing.assert_close(cut, by_token[:4].sum() if pool == "sum" else by_token[3])


@pytest.mark.parametrize("pool", POOLS)
@given(st.integers(0, 10), st.integers(0, TOKENIZER.vocab_size - 1))
def test_padding_cannot_change_a_score(pool, extra, fill):
    model = judged(torch.float64, pool)
    ids, lens = ids_of("a:bc", "b:", width=5)
    padded, _ = ids_of("a:bc", "b:", width=5 + extra, fill=fill)
    close(model(padded, lens), model(ids, lens), "padding changed a score: is it read at the padding?")


@pytest.mark.parametrize("pool", POOLS)
@given(st.integers(0, TOKENIZER.vocab_size - 1))
def test_what_stands_in_the_padding_cannot_change_a_bit(pool, fill):
    model = judged(pool=pool)
    (zeros, lens), (filled, _) = (ids_of("a:bc", "b:", width=12, fill=f) for f in (0, fill))
    assert torch.equal(model(zeros, lens), model(filled, lens))


@pytest.mark.parametrize("pool", POOLS)
def test_a_padded_text_has_the_gradient_of_the_text_alone(pool):
    gradients = []
    for width in (3, 12):
        model = judged(torch.float64, pool)
        model(*ids_of("b:", width=width)).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for alone, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, alone)


def test_texts_are_scored_alike_alone_together_and_in_any_order():
    model = judged(torch.float64)
    texts = ["abc" * (i % 4) + "ab"[: i % 3] for i in range(70)]
    together = torch.tensor(model.score(["a:"] * 70, texts), dtype=torch.float64)
    alone = torch.tensor([model.score(["a:"], [text])[0] for text in texts], dtype=torch.float64)
    backwards = torch.tensor(model.score(["a:"] * 70, texts[::-1]), dtype=torch.float64)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(together, backwards.flip(0), rtol=0, atol=1e-12)
    assert model.score([], []) == []


def test_a_text_that_cannot_be_read_is_an_error():
    with pytest.raises(BlockSizeError, match="block_size=16"):
        judged().score(["a:"], ["abc" * 5])
    with pytest.raises(UnknownCharacterError, match="'x' at index 1"):
        judged().score(["a:"], ["ax"])


def test_an_unknown_pool_is_refused():
    with pytest.raises(OptionError, match="pool='mean' is unknown; choose one of 'sum', 'last'"):
        RewardModel(policy(), TOKENIZER, "mean")


def test_its_score_is_a_reward_function():
    model = judged()
    config = GRPOConfig(4, group_size=4, prompts_per_step=2, max_steps=1)
    row = next(grpo_train(policy(), TOKENIZER, [{"prompt": "a:", "speaker": "a"}], model.score, config))
    assert math.isfinite(row["reward"]) and row["reward_std"] > 0


# Training


def preferences(count=200):
    """More letters b are better, with two labels in ten wrong."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(count):
        texts = ["".join("abc"[i] for i in torch.randint(3, (6,), generator=generator)) for _ in "12"]
        texts.sort(key=lambda text: text.count("b"), reverse=True)
        if torch.rand(1, generator=generator) < 0.2:
            texts.reverse()
        if texts[0] != texts[1]:
            pairs.append(Preference("c:", *texts))
    return pairs


@pytest.mark.slow
def test_it_learns_what_the_noisy_labels_agree_on():
    model = RewardModel(policy(), TOKENIZER)
    rows = list(train(model, preferences(), RewardModelConfig(learning_rate=3e-3, max_steps=60)))
    assert rows[0]["loss"] == pytest.approx(math.log(2)) and rows[0]["accuracy"] == 0.5
    by_count = torch.tensor(model.score(["c:"] * 4, ["acacac", "abcaca", "abcabc", "bbbabb"]))
    assert (by_count.diff() > 0).all(), f"more letters b must score higher: {by_count}"
    assert rows[-1]["loss"] < math.log(2) and rows[-1]["margin"] > 0


def test_every_pass_uses_every_pair_once(monkeypatch):
    seen = []
    pairs = [Preference("a:", "b" * (i + 1), "c") for i in range(7)]
    model = RewardModel(policy(), TOKENIZER)
    read = model.read

    def spy(prompts, texts):
        seen.extend(texts[: len(texts) // 2])
        return read(prompts, texts)

    monkeypatch.setattr(model, "read", spy)
    list(train(model, pairs, RewardModelConfig(batch_size=3, max_steps=7)))
    passes = [seen[first : first + 7] for first in (0, 7, 14)]
    assert all(sorted(texts) == sorted(pair.chosen for pair in pairs) for texts in passes)
    assert passes[0] != passes[1], "each pass has a shuffle of its own"


def test_one_seed_gives_one_run():
    def run(seed):
        config = RewardModelConfig(seed=seed, max_steps=5)
        return list(train(RewardModel(policy(), TOKENIZER), preferences(20), config))

    assert run(0) == run(0) != run(1)


def test_a_run_that_is_saved_and_taken_up_again_is_the_run_that_was_never_interrupted(tmp_path):
    config = RewardModelConfig(batch_size=3, max_steps=6)
    pairs = preferences(10)  # the break falls into the middle of a pass
    whole, parts = RewardModel(policy(), TOKENIZER), RewardModel(policy(), TOKENIZER)
    expected = list(train(whole, pairs, config))

    state = TrainState.start(parts.parameters(), config.learning_rate, config.seed)
    run = train(parts, pairs, config, state)
    first = [next(run) for _ in range(2)]
    save_tensors(tmp_path / "state.safetensors", state.tensors(), {})
    save_reward_model(tmp_path / "model.safetensors", parts)

    fresh = load_reward_model(tmp_path / "model.safetensors")
    state = TrainState.start(fresh.parameters(), 99.0, 99)
    state.restore(load_tensors(tmp_path / "state.safetensors")[0])
    second = list(train(fresh, pairs, config, state))

    assert [repr(row) for row in first + second] == [repr(row) for row in expected]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


def test_no_pairs_are_an_error():
    with pytest.raises(PairError, match="empty"):
        next(train(judged(), [], RewardModelConfig()))


# Files


@pytest.mark.parametrize("pool", POOLS)
def test_a_reward_model_comes_back_bit_for_bit(tmp_path, pool):
    model = judged(pool=pool)
    save_reward_model(tmp_path / "model.safetensors", model, seed="3")
    loaded = load_reward_model(tmp_path / "model.safetensors")
    assert loaded.pool == pool and loaded.tokenizer.chars == TOKENIZER.chars
    assert loaded.gpt.config == model.gpt.config
    assert loaded.score(["a:"], ["bcb"]) == model.score(["a:"], ["bcb"])
    assert load_tensors(tmp_path / "model.safetensors")[1]["seed"] == "3"


def test_a_policy_is_no_reward_model_and_the_other_way_round(tmp_path):
    save_model(tmp_path / "policy.safetensors", policy(), TOKENIZER)
    with pytest.raises(CheckpointError, match="policy.safetensors holds no reward model"):
        load_reward_model(tmp_path / "policy.safetensors")
    save_reward_model(tmp_path / "reward.safetensors", judged())
    with pytest.raises(CheckpointError, match="reward.safetensors holds a reward model"):
        load_model(tmp_path / "reward.safetensors")


def test_a_reward_model_of_another_shape_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_reward_model(path, judged())
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | {"config": header["config"].replace('"n_embd": 16', '"n_embd": 32')})
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load_reward_model(path)


def test_the_reward_model_that_ships_is_loaded_by_name():
    model = weights.load_reward_model("tinyshakespeare-reward")
    good, bad = model.score(["ROMEO:\n"] * 2, ["Good morrow, gentle cousin, and farewell.", "I."])
    assert good > bad
    with pytest.raises(CheckpointError, match="tinyshakespeare-lines.safetensors holds no reward model"):
        weights.load_reward_model("tinyshakespeare-lines")
    with pytest.raises(CheckpointError, match="holds a reward model"):
        weights.load("tinyshakespeare-reward")
    with pytest.raises(CheckpointError, match="no weights 'hamlet' ship"):
        weights.load_reward_model("hamlet")


@pytest.mark.parametrize(
    "pairs", ["abc", None, {"a": 1}, [("a", "b", "c")], [None], iter([Preference("a", "b", "c")])]
)
def test_what_is_no_list_of_preferences_is_refused(pairs):
    with pytest.raises(PairError, match="preference|Preference"):
        next(train(RewardModel(policy(), TOKENIZER), pairs, RewardModelConfig()))


@pytest.mark.parametrize("texts", [("a", "b", 1), (1, "b", "c"), ("a", None, "c"), ("a", b"b", "c")])
def test_a_preference_is_made_of_texts(texts):
    with pytest.raises(PairError, match="texts"):
        Preference(*texts)


@pytest.mark.parametrize("name", ["learning_rate", "batch_size", "max_steps", "max_grad_norm", "seed"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1", True, [1]])
def test_options_outside_their_range_are_refused(name, value):
    with pytest.raises(OptionError, match=name):
        RewardModelConfig(**{name: value})


def test_a_run_that_breaks_says_at_which_step():
    config = RewardModelConfig(learning_rate=1e30, max_steps=3)
    with pytest.raises(NonFiniteError, match=r"reward model step \d"):
        list(train(RewardModel(policy(), TOKENIZER), [Preference("a", "b", "c")], config))
