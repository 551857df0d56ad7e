"""Characters to ids and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogrpo.errors import EmptyPromptError, UnknownCharacterError
from nanogrpo.tokenizer import CharTokenizer

ALPHABET = "0123456789+="
tokenizer = CharTokenizer(ALPHABET)


@given(st.text(alphabet=ALPHABET))
def test_decode_inverts_encode(text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pad_and_eos_are_distinct_and_have_no_text():
    assert tokenizer.pad_id != tokenizer.eos_id, "a shared id would mask the end of every completion"
    assert tokenizer.decode([tokenizer.pad_id, tokenizer.eos_id]) == ""
    assert tokenizer.vocab_size == len(ALPHABET) + 2


def test_an_unknown_character_is_named_with_its_index():
    with pytest.raises(UnknownCharacterError, match=r"'x' at index 2 of '1\+x='"):
        tokenizer.encode("1+x=")


def test_an_empty_prompt_is_named_by_its_index():
    with pytest.raises(EmptyPromptError, match="prompt 1 is empty"):
        tokenizer.encode_prompts(["1=", ""])
    with pytest.raises(EmptyPromptError, match="list of prompts is empty"):
        tokenizer.encode_prompts([])


def test_a_repeated_character_in_the_alphabet_is_refused():
    with pytest.raises(ValueError, match="'a' more than once"):
        CharTokenizer("aba")


def test_prompts_are_padded_on_the_right():
    ids, lens = tokenizer.encode_prompts(["1+2=", "7="])
    assert ids.tolist() == [[3, 12, 4, 13], [9, 13, 0, 0]]
    assert lens.tolist() == [4, 2]


def test_completions_end_with_eos_inside_the_mask():
    ids, mask = tokenizer.encode_completions(["12", ""])
    assert ids.tolist() == [[3, 4, 1], [1, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]], (
        "EOS must be learned, padding must not"
    )
    assert tokenizer.decode_batch(ids) == ["12", ""]
    assert ids.dtype == torch.int64
