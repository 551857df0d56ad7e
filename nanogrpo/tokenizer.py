"""Characters to token ids and back. Two ids are special: ``pad`` fills a row, ``eos`` ends a completion."""

import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from nanogrpo.errors import (
    EmptyPromptError,
    OptionError,
    ShapeError,
    TextError,
    TokenError,
    UnknownCharacterError,
)


class CharTokenizer:
    """One token a character, after the two special tokens ``pad`` (id 0) and ``eos`` (id 1).

    ``pad`` and ``eos`` are distinct on purpose. Where they share an id, masking the padding also
    masks the end of every completion, and the model never learns to stop.

    Args:
        chars: the alphabet; its order decides the ids.

    Raises:
        OptionError: the alphabet is no text, is empty, repeats a character, or holds half of one.

    >>> tokenizer = CharTokenizer("0123456789+=")
    >>> tokenizer.encode("1+2=")
    [3, 12, 4, 13]
    >>> tokenizer.decode([5, tokenizer.eos_id, tokenizer.pad_id])
    '3'
    """

    pad_id = 0
    eos_id = 1

    def __init__(self, chars: str):
        if not isinstance(chars, str) or not chars:
            raise OptionError(f"the alphabet is {chars!r:.80}; give its characters as one text, at least one")
        if len(set(chars)) != len(chars):
            twice = next(c for c in chars if chars.count(c) > 1)
            raise OptionError(f"the alphabet holds {twice!r} more than once; give each character once")
        if halves := [c for c in chars if "\ud800" <= c <= "\udfff"]:
            raise OptionError(
                f"the alphabet holds {halves[0]!r}, half of a character, which no file can hold"
            )
        self.chars = str(chars)
        self._id = {c: i for i, c in enumerate(chars, start=2)}
        self._text = dict.fromkeys(range(2), "") | {i: c for c, i in self._id.items()}  # two without a text

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the two special ones included."""
        return len(self.chars) + 2

    def encode(self, text: str) -> list[int]:
        """Ids of the characters of ``text``; no special token is added.

        Raises:
            UnknownCharacterError: a character outside the alphabet; the message names it and its index.
            TextError: ``text`` is something else, a number or a list for instance.
        """
        if not isinstance(text, str):
            raise TextError(f"{text!r:.80} is of type {type(text).__name__}, need a text; use str(...)")
        try:
            return [self._id[c] for c in text]
        except KeyError:
            index = next(i for i, c in enumerate(text) if c not in self._id)
            raise UnknownCharacterError(
                f"character {text[index]!r} at index {index} of {text!r} is not in the alphabet "
                f"{self.chars!r}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; ``pad`` and ``eos`` have no text and are left out.

        Raises:
            TokenError: an id is outside the vocabulary, or no whole number.
            ShapeError: ``ids`` is no row of ids.
        """
        try:
            row = ids.tolist() if isinstance(ids, Tensor) else ids
            return "".join([self._text[i if type(i) is int else operator.index(i)] for i in row])
        except TypeError as error:
            kind = f"shape {tuple(ids.shape)}, {ids.dtype}" if isinstance(ids, Tensor) else f"{ids!r:.80}"
            raise ShapeError(f"cannot decode {kind}: need one row of whole numbers ({error})") from None
        except KeyError as error:
            raise TokenError(
                f"id {error} is outside the vocabulary of {self.vocab_size}; does the model belong to it?"
            ) from None

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts as one right-padded table of ids, ``(P, Tp)``, and their lengths, ``(P,)``.

        Raises:
            EmptyPromptError: no prompts at all, or a prompt without characters. A language model predicts
                the next token from the ones before it, so there must be one.
            TextError: ``prompts`` is no list of texts; a single text would be read as many prompts.
            UnknownCharacterError: as for :meth:`encode`.
        """
        prompts = _texts("prompts", prompts)
        if not prompts:
            raise EmptyPromptError("the list of prompts is empty; give at least one prompt")
        rows = [self.encode(prompt) for prompt in prompts]
        if not all(rows):
            i = rows.index([])
            raise EmptyPromptError(f"prompt {i} is empty; give each prompt at least one character")
        lens = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lens.max())), self.pad_id)  # (P, Tp)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids, lens

    def encode_completions(self, completions: list[str]) -> tuple[Tensor, Tensor]:
        """Completions as ids with ``eos`` at the end, right-padded, ``(B, T)``, and their mask.

        The mask is true for each token to be learned, ``eos`` included; an empty completion is ``eos`` alone.

        Raises:
            EmptyPromptError: there are no completions.
            TextError, UnknownCharacterError: as for :meth:`encode_prompts`.
        """
        completions = _texts("completions", completions)
        if not completions:
            raise EmptyPromptError("the list of completions is empty; give at least one")
        rows = [[*self.encode(completion), self.eos_id] for completion in completions]
        lens = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lens.max())) < lens.unsqueeze(1)  # (B, T)
        ids = torch.full(mask.shape, self.pad_id)
        ids[mask] = torch.tensor([i for row in rows for i in row])
        return ids, mask

    def decode_batch(self, ids: Tensor) -> list[str]:
        """Text of each row of ``ids``, ``(B, T)``; errors as for :meth:`decode`."""
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise ShapeError(f"ids have shape {getattr(ids, 'shape', type(ids).__name__)}, need (B, T)")
        return [self.decode(row) for row in ids.tolist()]


def _texts(what: str, texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str | bytes | dict | set | frozenset) or not isinstance(texts, Iterable):
        raise TextError(f"{what} is {texts!r:.80}, of type {type(texts).__name__}; give a list of texts")
    return list(texts)
