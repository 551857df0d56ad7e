"""A model of transformers goes through our own loop: same logits, same samples, and TRL's step from them."""

import pytest
import torch
from torch import nn
from trlsteps import compare, our_steps, trl_steps

from nanogrpo import causal, grpo, hub, packed, rollout
from nanogrpo.errors import CheckpointError, OptionError, PackageError, TextError, TokenError
from nanogrpo.model import GPT, GPTConfig, KVCache
from nanogrpo.rewards import exact_match
from nanogrpo.state import TrainState
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("0123456789+=")
PROBLEMS = [{"prompt": p, "answer": a} for p, a in (("1+2=", "3"), ("12+34=", "46"), ("5+60=", "65"))]


@pytest.fixture
def transformers():
    return pytest.importorskip(
        "transformers",
        reason="package: transformers is not installed here; `make parity` trains models of it",
    )


def llama(transformers):
    """A tiny one in float32, where three queries share a key."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": TOKENIZER.vocab_size, "hidden_size": 24, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": TOKENIZER.eos_id,
        "initializer_range": 0.3, "tie_word_embeddings": True,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()


def adapted(transformers, pad="<pad>"):
    theirs = hub.tokenizer_to_transformers(TOKENIZER, 32)
    theirs.pad_token = pad
    return causal.adapt(llama(transformers), theirs)


class Bare(nn.Module):
    """What the loop asks of a model, and nothing more: our GPT without its name for the layers."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.config = model, model.config

    token = property(lambda self: self.inner.token)
    head = property(lambda self: self.inner.head)

    def hidden(self, idx, cache=None):
        return self.inner.hidden(idx, cache)

    def forward(self, idx, cache=None):
        return self.inner(idx, cache)


def step_of(model, tokenizer, seed=3, reward=exact_match, **options):
    options = {"group_size": 8, "prompts_per_step": 3, "learning_rate": 1e-2} | options
    config = grpo.GRPOConfig(4, seed=seed, **options)
    state = TrainState.start([p for p in model.parameters() if p.requires_grad], config.learning_rate, seed)
    return grpo.step(model, tokenizer, PROBLEMS, reward, config, state)


def test_the_loop_needs_no_more_of_a_model_than_the_adapter_has():
    torch.manual_seed(0)
    one = GPT(GPTConfig(TOKENIZER.vocab_size, block_size=12, n_layer=2, n_head=2, n_embd=16)).double()
    torch.manual_seed(0)
    other = Bare(GPT(one.config).double())
    (ours, batch), (bare, same) = (
        step_of(model, TOKENIZER, reward=lambda completions, **_: [len(c) for c in completions])
        for model in (one, other)
    )
    assert torch.equal(batch.rollout.completion_ids, same.rollout.completion_ids)
    assert ours["grad_norm"] > 0 and ours == pytest.approx(bare, rel=1e-9, abs=1e-12)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_without_transformers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(PackageError, match="pip install"):
        causal.CausalLM(nn.Linear(1, 1))


def test_logits_are_the_models_own_in_one_pass_and_through_a_cache(transformers):
    model, _ = adapted(transformers)
    ids = torch.randint(2, TOKENIZER.vocab_size, (3, 9))
    with torch.no_grad():
        own = model.theirs(input_ids=ids).logits
        cache = KVCache(model.config, 3, 9, like=model.head.weight)
        parts = torch.cat([model(ids[:, i:j], cache) for i, j in ((0, 5), (5, 6), (6, 9))], 1)
        torch.testing.assert_close(model(ids), own, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts, own, rtol=1e-5, atol=1e-5)
    assert model.theirs.config._attn_implementation == "sdpa"


def test_the_training_pass_reads_a_prompt_once_and_gives_the_same_log_probs(transformers):
    """Of rows that are padded on the right, and of each text alone through the model's own forward."""
    model, tokenizer = adapted(transformers)
    prompts, lens = tokenizer.encode_prompts([row["prompt"] for row in PROBLEMS])
    ids = torch.randint(2, TOKENIZER.vocab_size, (6, 4))
    with torch.no_grad():
        shared = packed.completion_logits(model, prompts, lens, ids)
        plain = rollout.completion_logits(model, prompts, lens, ids)
        torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-5)
        for i, row in enumerate(ids):
            n = int(lens[i // 2])
            text = torch.cat([prompts[i // 2, :n], row])[None]
            alone = model.theirs(input_ids=text).logits[0, n - 1 : -1]
            torch.testing.assert_close(shared[i], alone, rtol=1e-5, atol=1e-5)


def test_a_step_learns_and_leaves_frozen_layers_alone(transformers):
    model, tokenizer = adapted(transformers)
    model.theirs.get_input_embeddings().requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    metrics, batch = step_of(
        model, tokenizer, reward=lambda completions, **_: [float("3" in c) for c in completions]
    )
    assert metrics["frac_reward_zero_std"] < 1 and metrics["grad_norm"] > 0
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new) != new.requires_grad
    again = rollout.token_logprobs(
        model, batch.rollout.prompt_ids, batch.rollout.prompt_lens, batch.rollout.completion_ids
    )
    gain = (again - batch.rollout.logprobs).where(batch.rollout.completion_mask, 0.0).sum(1)  # (B,)
    assert (gain * batch.advantages).sum() > 0, "what earned more did not become more probable"


def test_a_model_that_computes_otherwise_is_refused(transformers):
    model = llama(transformers)
    for layer in model.model.layers:
        layer.self_attn.scaling = 1.0
    causal.CausalLM(llama(transformers))
    own = model.config._attn_implementation
    with pytest.raises(CheckpointError, match="other logits"):
        causal.CausalLM(model)
    assert model.config._attn_implementation == own


def test_odd_ids_and_texts_and_tokenizers_are_named(transformers):
    model, tokenizer = adapted(transformers)
    with pytest.raises(TokenError, match="14"):
        model(torch.tensor([[TOKENIZER.vocab_size]]))
    with pytest.raises(TextError, match="int"):
        tokenizer.encode(3)
    theirs = hub.tokenizer_to_transformers(TOKENIZER, 32)
    theirs.eos_token = None
    with pytest.raises(OptionError, match="eos_token"):
        causal.HubTokenizer(theirs, 14)
    with pytest.raises(OptionError, match="add_bos_token"):
        causal.HubTokenizer(lambda text: {"input_ids": [1]}, 14)


def test_texts_come_and_go_as_with_our_tokenizer(transformers):
    _, tokenizer = adapted(transformers)
    assert tokenizer.encode("12+7=") == TOKENIZER.encode("12+7=")
    ids, lens = tokenizer.encode_prompts(["1+2=", "12+34="])
    expected, expected_lens = TOKENIZER.encode_prompts(["1+2=", "12+34="])
    assert torch.equal(ids, expected) and torch.equal(lens, expected_lens)
    assert tokenizer.decode_batch(torch.tensor([[5, 6, TOKENIZER.eos_id, 0]])) == ["34"]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 0, TOKENIZER.vocab_size)


def graded(prompts, completions, answer, **columns):
    """A reward by which no group is without a signal."""
    return [sum(c in a for c in text) - 0.25 * len(text) for text, a in zip(completions, answer, strict=True)]


def test_trl_logs_the_same_of_each_step_and_ends_with_the_same_weights(transformers, tmp_path):
    trl = pytest.importorskip("trl", reason="package: TRL is not installed here; `make parity` runs it")
    # With a pad of its own, TRL takes a completion for ended that was cut off just after it sampled a pad.
    model, tokenizer = adapted(transformers, pad="<eos>")
    assert tokenizer.pad_id == tokenizer.eos_id
    ours, batches = our_steps(model, tokenizer, 3, PROBLEMS, graded, tokens=4, group_size=4, rate=1e-2)
    assert min(row["grad_norm"] for row in ours) > 0.1
    other, start = llama(transformers), llama(transformers)
    theirs = trl_steps(
        trl, other, tokenizer, batches, 3, PROBLEMS, graded, tmp_path, learning_rate=1e-2,
        max_completion_length=4,
    )  # fmt: skip
    compare(ours, theirs, tolerance=1e-4)

    def gap(a, b):
        return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters(), strict=True))

    assert gap(model.theirs, other) < 1e-2 * gap(other, start)
