"""Supervised fine-tuning: the loss, the mask, and determinism."""

import pytest
import torch

from nanogrpo import sft
from nanogrpo.errors import BlockSizeError, EmptyPromptError, NonFiniteError, RowError
from nanogrpo.evaluate import sample_texts
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.sft import SFTConfig, train
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("abc")
EXAMPLES = [("a", "bb"), ("bc", "c"), ("c", "")]


def policy():
    torch.manual_seed(0)
    return GPT(GPTConfig(TOKENIZER.vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=16))


@pytest.mark.slow
def test_a_model_learns_its_examples_and_when_to_stop():
    model = policy()
    rows = list(
        train(model, TOKENIZER, EXAMPLES, SFTConfig(learning_rate=1e-2, batch_size=16, max_steps=100))
    )
    texts = sample_texts(model, TOKENIZER, ["a", "bc", "c"], group_size=20, max_new_tokens=5)
    assert rows[-1]["loss"] < 0.05
    assert texts.count("bb") >= 18 and texts.count("c") >= 18 and texts.count("") >= 18, (
        "the end must be learned too"
    )


def test_prompt_tokens_are_read_but_not_learned(monkeypatch):
    seen = []
    real = sft.sft_loss
    monkeypatch.setattr(
        sft, "sft_loss", lambda logits, ids, mask: seen.append((ids, mask)) or real(logits, ids, mask)
    )
    next(train(policy(), TOKENIZER, [("abc", "b")], SFTConfig(batch_size=2)))
    ids, mask = seen[0]
    assert ids.tolist() == [TOKENIZER.encode("b") + [TOKENIZER.eos_id]] * 2 and mask.all()


def test_one_seed_gives_one_run():
    first, again, other = (
        list(train(policy(), TOKENIZER, EXAMPLES, SFTConfig(max_steps=5, seed=s))) for s in (0, 0, 1)
    )
    assert first == again != other


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(BlockSizeError, match="block_size=8"):
        next(train(policy(), TOKENIZER, [("abcabc", "abc")], SFTConfig()))


@pytest.mark.parametrize(
    "examples",
    [
        "abc",
        b"abc",
        None,
        3,
        {"a": "b"},
        {("a", "b")},
        (pair for pair in EXAMPLES),
        [("a",)],
        [("a", "b", "c")],
    ]
    + [["ab"], [("a", None)], [("a", 1)], [(b"a", b"b")], [{"prompt": "a", "completion": "b"}], [None]],
)
def test_examples_are_pairs_of_texts(examples):
    with pytest.raises(RowError, match="example"):
        next(train(policy(), TOKENIZER, examples, SFTConfig()))


@pytest.mark.parametrize("examples", [[], (), [("", "a")], [*EXAMPLES, ("", "a")]])
def test_no_examples_and_empty_prompts_have_their_error(examples):
    with pytest.raises(EmptyPromptError):
        next(train(policy(), TOKENIZER, examples, SFTConfig()))


def test_examples_may_be_lists_and_equal():
    assert next(train(policy(), TOKENIZER, [["a", "b"]] * 3, SFTConfig()))["step"] == 1


@pytest.mark.parametrize("rate", [1e12, 1e30])
def test_a_run_that_breaks_says_at_which_step(rate):
    with pytest.raises(NonFiniteError, match=r"SFT step \d"):
        list(train(policy(), TOKENIZER, EXAMPLES, SFTConfig(learning_rate=rate, max_steps=20)))


def test_the_last_step_is_looked_at_too():
    with pytest.raises(
        NonFiniteError, match="after SFT step 1 .* learning rate|SFT step 1 with learning rate"
    ):
        list(train(policy(), TOKENIZER, EXAMPLES, SFTConfig(learning_rate=1e30, max_steps=1)))
