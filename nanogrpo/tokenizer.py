"""Characters to token ids and back. Two ids are special: ``pad`` fills a row, ``eos`` ends a completion."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nanogrpo.errors import EmptyPromptError, UnknownCharacterError


class CharTokenizer:
    """One token a character, after the two special tokens ``pad`` (id 0) and ``eos`` (id 1).

    ``pad`` and ``eos`` are distinct on purpose. Where they share an id, masking the padding also
    masks the end of every completion, and the model never learns to stop.

    Args:
        chars: the alphabet; its order decides the ids, a repeated character raises ``ValueError``.

    >>> tokenizer = CharTokenizer("0123456789+=")
    >>> tokenizer.encode("1+2=")
    [3, 12, 4, 13]
    >>> tokenizer.decode([5, tokenizer.eos_id, tokenizer.pad_id])
    '3'
    """

    pad_id = 0
    eos_id = 1

    def __init__(self, chars: str):
        if len(set(chars)) != len(chars):
            twice = next(c for c in chars if chars.count(c) > 1)
            raise ValueError(f"the alphabet holds {twice!r} more than once; give each character once")
        self.chars = chars
        self._id = {c: i for i, c in enumerate(chars, start=2)}

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the two special ones included."""
        return len(self.chars) + 2

    def encode(self, text: str) -> list[int]:
        """Ids of the characters of ``text``; no special token is added.

        Raises:
            UnknownCharacterError: a character outside the alphabet; the message names it and its index.
        """
        try:
            return [self._id[c] for c in text]
        except KeyError:
            index = next(i for i, c in enumerate(text) if c not in self._id)
            raise UnknownCharacterError(
                f"character {text[index]!r} at index {index} of {text!r} is not in the alphabet "
                f"{self.chars!r}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; ``pad`` and ``eos`` have no text and are left out."""
        return "".join(self.chars[int(i) - 2] for i in ids if int(i) >= 2)

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts as one right-padded table of ids, ``(P, Tp)``, and their lengths, ``(P,)``.

        Raises:
            EmptyPromptError: no prompts at all, or a prompt without characters. A language model predicts
                the next token from the ones before it, so there must be one.
        """
        if not prompts:
            raise EmptyPromptError("the list of prompts is empty; give at least one prompt")
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise EmptyPromptError(f"prompt {i} is empty; give each prompt at least one character")
        rows = [self.encode(prompt) for prompt in prompts]
        lens = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lens.max())), self.pad_id)  # (P, Tp)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids, lens

    def encode_completions(self, completions: list[str]) -> tuple[Tensor, Tensor]:
        """Completions as ids with ``eos`` at the end, right-padded, ``(B, T)``, and their mask.

        The mask is true for each token to be learned, ``eos`` included; an empty completion is ``eos`` alone.
        """
        rows = [[*self.encode(completion), self.eos_id] for completion in completions]
        lens = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lens.max())) < lens.unsqueeze(1)  # (B, T)
        ids = torch.full(mask.shape, self.pad_id)
        ids[mask] = torch.tensor([i for row in rows for i in row])
        return ids, mask

    def decode_batch(self, ids: Tensor) -> list[str]:
        """Text of each row of ``ids``, ``(B, T)``."""
        return [self.decode(row) for row in ids.tolist()]
