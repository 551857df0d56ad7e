"""Tokenizer, model and evaluation: whatever they are given, they work or raise an error of the package."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogrpo.errors import (
    BlockSizeError,
    DeviceError,
    DTypeError,
    EmptyPromptError,
    NanoGRPOError,
    NonFiniteError,
    OptionError,
    RowError,
    ShapeError,
    TextError,
    TokenError,
    UnknownCharacterError,
)
from nanogrpo.evaluate import pass_at_k, sample_texts, success_counts, success_probability
from nanogrpo.model import GPT, GPTConfig, KVCache
from nanogrpo.rewards import exact_match
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("0123456789+=")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(TOKENIZER.vocab_size, 8, n_layer=1, n_head=1, n_embd=8))


def text_of(kind):
    return f"{type(kind).__name__} {kind!r:.30}"


# --- the tokenizer


@pytest.mark.parametrize(
    "chars", ["", "aa", "abca", None, 5, True, b"ab", ["a", "b"], ["ab", "c"], {"a"}, ("a",), "a\ud800"],
    ids=text_of,
)  # fmt: skip
def test_an_alphabet_that_is_none(chars):
    with pytest.raises(OptionError, match="alphabet") as caught:
        CharTokenizer(chars)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "text", [None, 5, 2.0, b"12", ["1", "2"], ("1",), {"1": 2}, np.array("1"), True], ids=text_of
)
def test_what_is_no_text_is_not_encoded(text):
    with pytest.raises(TextError, match="need a text"):
        TOKENIZER.encode(text)
    for encode in (TOKENIZER.encode_prompts, TOKENIZER.encode_completions):
        with pytest.raises(TextError):
            encode(["1", text])


@pytest.mark.parametrize("texts", ["12+", b"12", None, 5, {"1": 2}, {"12"}], ids=text_of)
def test_a_single_text_is_not_read_as_many(texts):
    for encode in (TOKENIZER.encode_prompts, TOKENIZER.encode_completions):
        with pytest.raises(TextError, match="list of texts"):
            encode(texts)


def test_lists_of_texts_of_any_kind_are_taken():
    expected = TOKENIZER.encode_prompts(["1", "23"])
    for texts in (("1", "23"), iter(["1", "23"]), np.array(["1", "23"]), (t for t in ("1", "23"))):
        got = TOKENIZER.encode_prompts(texts)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    for encode in (TOKENIZER.encode_prompts, TOKENIZER.encode_completions):
        with pytest.raises(EmptyPromptError, match="empty"):
            encode([])


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([14], TokenError), ([-1], TokenError), ([2, 10**30], TokenError), ([2.0], ShapeError),
        ([2.5], ShapeError), (["2"], ShapeError), ([None], ShapeError), ([[2]], ShapeError), (2, ShapeError),
        (None, ShapeError), (torch.tensor(2), ShapeError), (torch.tensor([[2]]), ShapeError),
        (torch.tensor([2.0]), ShapeError), (np.array([2.5]), ShapeError), (np.array([[2]]), ShapeError),
    ],
    ids=text_of,
)  # fmt: skip
def test_what_is_no_id_is_not_left_out(ids, error):
    """A negative id was dropped without a word, and 2.5 was read as 2."""
    with pytest.raises(error):
        TOKENIZER.decode(ids)


def test_ids_of_any_kind_of_whole_number_are_decoded():
    for ids in (
        [2, 3, 1, 0],
        torch.tensor([2, 3, 1, 0]),
        np.array([2, 3, 1, 0]),
        [torch.tensor(2), np.int8(3)],
    ):
        assert TOKENIZER.decode(ids) == "01"
    assert TOKENIZER.decode_batch(torch.tensor([[2, 3], [1, 0]])) == ["01", ""]
    for ids in (torch.tensor([2]), [[2]], None):
        with pytest.raises(ShapeError):
            TOKENIZER.decode_batch(ids)


# --- the model


@pytest.mark.parametrize("name", ["vocab_size", "block_size", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize(
    "value", [0, -1, 1.5, 4.0, "4", None, True, float("nan"), float("inf"), [4], 10**12], ids=text_of
)
def test_a_shape_that_is_none(name, value):
    shape = {"vocab_size": 5, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8} | {name: value}
    with pytest.raises(OptionError, match=name) as caught:
        GPTConfig(**shape)
    assert isinstance(caught.value, ValueError)


def test_heads_share_the_channels_and_numbers_become_plain():
    with pytest.raises(OptionError, match="n_embd=8 does not divide into n_head=3"):
        GPTConfig(5, 8, n_head=3, n_embd=8)
    config = GPTConfig(np.int64(5), np.int32(8), n_embd=np.int64(128))
    assert config == GPTConfig(5, 8) and all(type(v) is int for v in vars(config).values())


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        (torch.tensor([2, 3]), ShapeError),
        (torch.tensor(2), ShapeError),
        (torch.zeros(1, 2, 3, dtype=torch.long), ShapeError),
        (torch.zeros(1, 2), DTypeError),
        (torch.zeros(1, 2, dtype=torch.bool), DTypeError),
        (torch.zeros(1, 2, dtype=torch.int16), DTypeError),
        ([[2, 3]], DTypeError),
        (None, DTypeError),
        (torch.tensor([[14]]), TokenError),
        (torch.tensor([[-1]]), TokenError),
        (torch.zeros(1, 9, dtype=torch.long), BlockSizeError),
        (torch.zeros(1, 2, dtype=torch.long, device="meta"), DeviceError),
    ],
    ids=lambda x: getattr(x, "__name__", "") or f"{getattr(x, 'dtype', x)}",
)
def test_ids_that_a_model_cannot_read(model, ids, error):
    with pytest.raises(error):
        model(ids)
    with pytest.raises(error):
        model.hidden(ids, KVCache(model.config, 1, 8, model.head.weight))


def test_a_shorter_type_of_whole_numbers_is_read_alike(model):
    ids = torch.tensor([[2, 3, 4]])
    assert torch.equal(model(ids), model(ids.int()))


# --- evaluation


ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": "4"}]


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([], EmptyPromptError),
        (None, RowError),
        ("1+1=", RowError),
        ({"prompt": "1"}, RowError),
        ([{"answer": "2"}], RowError),
        (["1+1="], RowError),
        ([{"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2="}], RowError),
        ([{"prompt": "", "answer": "2"}], EmptyPromptError),
        ([{"prompt": 11, "answer": "2"}], RowError),
        ([{"prompt": "x", "answer": "2"}], UnknownCharacterError),
        ([{"prompt": "1" * 9, "answer": "2"}], BlockSizeError),
    ],
    ids=text_of,
)
def test_problems_that_are_none(model, rows, error):
    with pytest.raises(error):
        success_counts(model, TOKENIZER, rows, exact_match, max_new_tokens=2)
    with pytest.raises(error):
        success_probability(model, TOKENIZER, rows)


def test_answers_that_are_none(model):
    for answer, error in (
        (2, TextError),
        (None, TextError),
        ("x", UnknownCharacterError),
        ("2" * 9, BlockSizeError),
    ):
        with pytest.raises(error):
            success_probability(model, TOKENIZER, [{"prompt": "1+1=", "answer": answer}])
    with pytest.raises(RowError, match="lacks answer"):
        success_probability(model, TOKENIZER, [{"prompt": "1+1="}])


@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 0}, {"group_size": -1}, {"group_size": 1.5}, {"group_size": None},
        {"max_new_tokens": 0},
        {"max_new_tokens": "3"}, {"temperature": -1}, {"temperature": math.nan}, {"temperature": None},
        {"seed": 1.5}, {"seed": None}, {"seed": 2**70}, {"seed": "0"},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_sampling_that_are_none(model, options):
    options = {"max_new_tokens": 2} | options
    with pytest.raises(OptionError, match=next(reversed(options))):
        sample_texts(model, TOKENIZER, ["1+1="], **options)
    with pytest.raises(OptionError):
        success_counts(model, TOKENIZER, ROWS, exact_match, **options)


def test_a_broken_model_has_no_success_probability(model):
    broken = GPT(model.config)
    torch.nn.init.constant_(broken.head.weight, math.nan)
    for batch_size in (1, 512):
        with pytest.raises(NonFiniteError):
            success_probability(broken, TOKENIZER, ROWS, batch_size)
    for batch_size in (0, -1, 1.5, None):
        with pytest.raises(OptionError, match="batch_size"):
            success_probability(model, TOKENIZER, ROWS, batch_size)


@pytest.mark.parametrize(
    "counts", [(4, 5, 2), (4, -1, 2), (4, 1, 0), (4, 1, 5), (0, 0, 1), (4.0, 1, 2), (4, 1.5, 2), (4, 1, None),
               (math.nan, 1, 1), ("4", 1, 1), (True, True, True)], ids=str,
)  # fmt: skip
def test_counts_that_are_none(counts):
    with pytest.raises(OptionError) as caught:
        pass_at_k(*counts)
    assert isinstance(caught.value, ValueError)


# --- fuzz


lists_of_texts = st.lists(st.one_of(st.text("ab01", max_size=3), st.integers(), st.none()), max_size=3)
shapes = st.lists(st.one_of(st.integers(-1, 6), st.floats(), st.none()), min_size=5, max_size=5)


def works_or_names(call, check):
    try:
        result = call()
    except NanoGRPOError as error:
        assert len(str(error)) > 15
    else:
        check(result)


values = st.one_of(
    st.integers(-2, 20),
    st.floats(),
    st.none(),
    st.booleans(),
    st.text("0123+=x", max_size=4),
    st.binary(max_size=2),
)


@pytest.mark.slow
@settings(max_examples=300)
@given(chars=st.one_of(st.text(max_size=6), values), texts=st.one_of(lists_of_texts, values))
def test_fuzz_tokenizers(chars, texts):
    def round_trip():
        tokenizer = CharTokenizer(chars)
        return tokenizer, *tokenizer.encode_completions(texts), list(texts)

    def check(result):
        tokenizer, ids, mask, given_texts = result
        assert tokenizer.decode_batch(ids) == given_texts
        assert mask.sum(1).tolist() == [len(text) + 1 for text in given_texts]
        assert int(ids.max()) < tokenizer.vocab_size

    works_or_names(round_trip, check)
    works_or_names(lambda: TOKENIZER.decode(texts), lambda text: len(text) <= len(texts))


@pytest.mark.slow
@settings(max_examples=300)
@given(shape=shapes, ids=st.lists(st.integers(-1, 6), max_size=4), rows=st.integers(0, 2))
def test_fuzz_models(shape, ids, rows):
    def forward():
        model = GPT(GPTConfig(*shape))
        return model, model(torch.tensor(ids, dtype=torch.long).repeat(rows, 1))

    def check(result):
        model, logits = result
        assert logits.shape == (rows, len(ids), model.config.vocab_size) and logits.isfinite().all()

    works_or_names(forward, check)


@pytest.mark.slow
@settings(max_examples=300)
@given(n=values, c=values, k=values)
def test_fuzz_pass_at_k(n, c, k):
    works_or_names(lambda: pass_at_k(n, c, k), lambda p: 0 <= p <= 1)
