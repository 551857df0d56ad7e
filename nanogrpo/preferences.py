"""Preferences to learn a reward from: a policy writes pairs of texts, and a hidden judge labels them."""

from collections.abc import Sequence

import torch

from nanogrpo.errors import EmptyPromptError, PairError
from nanogrpo.evaluate import sample_texts
from nanogrpo.model import GPT
from nanogrpo.plays import MAX_NEW_TOKENS
from nanogrpo.reward_model import Preference, prefer
from nanogrpo.rewards import RewardFunction, call_reward
from nanogrpo.tokenizer import CharTokenizer

PROMPTS, GROUP_SIZE = 64, 8  # of one pass of `sample_pairs`; a group gives four pairs


def sample_pairs(
    model: GPT,
    tokenizer: CharTokenizer,
    prompts: Sequence[str],
    count: int,
    seed: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[tuple[str, str, str]]:
    """Pairs to be judged: ``count`` times a prompt, drawn at random, and two completions of it.

    A prompt that is drawn serves four pairs, which shares its reading; all completions are independent. Where
    both completions of a pair are the same text there is nothing to prefer, and the pair is left out.

    Raises:
        EmptyPromptError: there are no prompts.
        PairError: the model writes the same text each time.
    """
    if not prompts:
        raise EmptyPromptError("there are no prompts to write pairs for; give at least one")
    generator = torch.Generator().manual_seed(seed)
    pairs: list[tuple[str, str, str]] = []
    while len(pairs) < count:
        drawn = [prompts[i] for i in torch.randint(len(prompts), (PROMPTS,), generator=generator).tolist()]
        own = int(torch.randint(2**31, (), generator=generator))
        options = {"group_size": GROUP_SIZE, "max_new_tokens": max_new_tokens, "seed": own}
        texts = sample_texts(model, tokenizer, drawn, **options)
        owners = [prompt for prompt in drawn for _ in range(GROUP_SIZE // 2)]
        new = [pair for pair in zip(owners, texts[::2], texts[1::2], strict=True) if pair[1] != pair[2]]
        if not new:
            raise PairError(f"all of {len(owners)} pairs have two equal texts; sample with more entropy")
        pairs += new
    return pairs[:count]


def judge_pairs(
    judge: RewardFunction, pairs: Sequence[tuple[str, str, str]], temperature: float, seed: int
) -> tuple[list[Preference], torch.Tensor]:
    """Noisy labels of pairs: the preferences, and the judge's scores of their texts, ``(N, 2)``.

    The scores are of ``(chosen, rejected)``; where the second is higher, noise has turned the label around.

    Args:
        judge: a reward function that needs nothing but prompts and completions.
        pairs: of :func:`sample_pairs`.
        temperature: of the noise, in the judge's points, see :func:`~nanogrpo.reward_model.prefer`.
        seed: of the noise.
    """
    texts = [text for _, a, b in pairs for text in (a, b)]
    scores = (
        call_reward(judge, [{"prompt": prompt} for prompt, _, _ in pairs], texts).double().view(-1, 2)
    )  # (N, 2)
    wins = prefer(scores[:, 0], scores[:, 1], temperature, torch.Generator().manual_seed(seed))
    preferences = [
        Preference(prompt, a, b) if win else Preference(prompt, b, a)
        for (prompt, a, b), win in zip(pairs, wins.tolist(), strict=True)
    ]
    return preferences, torch.where(wins.unsqueeze(1), scores, scores.flip(1))
