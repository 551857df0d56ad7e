"""A task so small that twenty seeds of a run take seconds: one to three letters, to be written once more.

``cab=`` is answered by ``cab`` and the end of the sequence. The start is a tiny GPT that a few steps of
imitation have left half trained. Pitfall chapters and their studies run here, with pieces of the museum
planted or not.

    >>> len(WORDS), PROBLEMS[3]
    (39, {'prompt': 'aa=', 'answer': 'aa'})
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from nanogrpo import grpo, sft
from nanogrpo import tokenizer as tokens
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.rewards import Problem, exact_match
from nanogrpo.rollout import Rollout, completion_logits, logprobs_of
from nanogrpo.show.stats import mean, paired_difference
from nanogrpo.teach import museum
from nanogrpo.teach.museum.pieces import Piece

ALPHABET, ROOM = "abc", 6  # tokens that an answer may have
WORDS = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product(ALPHABET, repeat=n)]
PROBLEMS: list[Problem] = [{"prompt": word + "=", "answer": word} for word in WORDS]
PROMPTS = [problem["prompt"] for problem in PROBLEMS]

Log = dict[str, list[float]]  # metric: one value a step


@contextmanager
def planted(*faults: str | Piece) -> Iterator[None]:
    """Several pieces of the museum, put into the package for a while."""
    with ExitStack() as stack:
        for fault in faults:
            stack.enter_context(museum.installed(fault))
        yield


def vocabulary() -> tokens.CharTokenizer:
    """The letters and the equals sign; made anew, so that a planted tokenizer is used."""
    return tokens.CharTokenizer(ALPHABET + "=")


def sample(
    model: GPT, prompts: Sequence[str] = PROMPTS, seed: int = 0, group_size: int = 2, temperature: float = 1.0
) -> Rollout:
    """Groups of completions with the trainer's own sampler."""
    asking = grpo.GRPOConfig(max_new_tokens=ROOM, group_size=group_size, temperature=temperature)
    chance = torch.Generator().manual_seed(seed)
    return grpo.sample(model, vocabulary(), list(prompts), asking, chance)


def imitate(seed: int, steps: int, every: int | None = None) -> tuple[GPT, list[dict[str, float]]]:
    """SFT on all words; the model, and what was measured every so many steps."""
    torch.manual_seed(seed)
    letters = vocabulary()
    model = GPT(GPTConfig(letters.vocab_size, 4 + ROOM, n_layer=1, n_head=2, n_embd=32))
    options = sft.SFTConfig(max_steps=steps, batch_size=32, learning_rate=3e-3, seed=seed)
    log = []
    for row in sft.train(model, letters, list(zip(PROMPTS, WORDS, strict=True)), options):
        if every and row["step"] % every == 0:
            found = sample(model, seed=seed)
            texts = letters.decode_batch(found.completion_ids)
            right = [text.startswith(word) for text, word in zip(texts, _twice(WORDS), strict=True)]
            log.append(
                {
                    "step": row["step"],
                    "loss": row["loss"],
                    "truncated": found.truncated.float().mean().item(),
                    "starts right": sum(right) / len(right),
                }
            )
    return model, log


def _twice(words: Sequence[str]) -> list[str]:
    return [word for word in words for _ in range(2)]


def reinforce(
    start: GPT, seed: int, faults: Iterable[str | Piece] = (), steps: int = 24,
    prepare: Callable[[GPT], None] | None = None, reward: Any = exact_match,
    problems: Sequence[Problem] = PROBLEMS, **options: Any,
) -> tuple[GPT, Log]:  # fmt: skip
    """GRPO on a copy of a model with faults planted; it, and its log.

    Args:
        start: left as it is.
        seed: of prompts and samples, and of dropout where ``prepare`` adds some.
        faults: names of pieces of the museum, or pieces.
        steps: of training.
        prepare: what is done to the copy first.
        reward: one reward function or several, as the trainer takes them.
        problems: to draw prompts from.
        options: of the config, in place of those below.
    """
    given: dict[str, Any] = {
        "max_new_tokens": ROOM,
        "group_size": 8,
        "prompts_per_step": 16,
        "learning_rate": 2e-3,
    }
    given |= {"aggregation": "sequence_mean", "max_steps": steps, "seed": seed}
    policy = copy.deepcopy(start)
    if prepare:
        prepare(policy)
    torch.manual_seed(seed)
    with planted(*faults):
        config = grpo.GRPOConfig(**given | options)
        rows = list(grpo.train(policy, vocabulary(), problems, reward, config))
    return policy, {name: [row[name] for row in rows] for name in rows[0]}


@torch.no_grad()
def success(model: GPT, words: Sequence[str] = WORDS) -> float:
    """Probability of the right answer and its end at temperature 1, averaged over the words; exact."""
    letters = vocabulary()
    prompts = letters.encode_prompts([word + "=" for word in words])
    ids, mask = letters.encode_completions(list(words))  # (B, T)
    logprobs = logprobs_of(completion_logits(model, *prompts, ids), ids)  # (B, T)
    return logprobs.where(mask, 0.0).sum(1).exp().mean().item()


def last(log: Log, name: str = "reward", steps: int = 5) -> float:
    """The mean of a metric over the last steps."""
    return sum(log[name][-steps:]) / steps


def against(broken: Sequence[Log], right: Sequence[Log], name: str = "reward") -> dict[str, str]:
    """Of runs with a mistake and runs without, by seed: both ends, and the paired difference."""
    a, b = ([last(log, name) for log in logs] for logs in (right, broken))
    gap = paired_difference(b, a)
    return {
        "right": f"{mean(a).estimate:.3f}",
        "broken": f"{mean(b).estimate:.3f}",
        "difference": f"{gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
    }


def compared(runs: dict[str, list[Log]], kinds: Sequence[str], right: str) -> dict[str, dict[str, str]]:
    """A row for each kind: :func:`against` the right one, and the share that is clipped in the first step."""
    table = {}
    for kind in kinds:
        clipped = [log["clip_ratio/region_mean"][0] for log in runs[kind]]
        table[kind] = against(runs[kind], runs[right])
        table[kind]["clipped in step 1"] = f"{min(clipped):.3f} to {max(clipped):.3f}"
    return table
