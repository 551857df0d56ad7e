"""Supervised fine-tuning: raise the log-probs of given completions.

What it leaves out, and why: warm-up and decay of the learning rate, weight decay, evaluation (the caller has
the model between steps and can do it there).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from nanogrpo.errors import EmptyPromptError, RowError, check_outputs
from nanogrpo.losses import aggregate, sft_loss
from nanogrpo.model import GPT
from nanogrpo.optim import clip_grad_norm
from nanogrpo.options import Options, option
from nanogrpo.rollout import completion_logits
from nanogrpo.state import TrainState
from nanogrpo.together import check_config, check_state, check_vocabulary
from nanogrpo.tokenizer import CharTokenizer


@dataclass(frozen=True)
class SFTConfig(Options):
    """Options of :func:`train`; names as in TRL where it has them."""

    learning_rate: float = option(1e-3, help="of AdamW.", low=0, high=1e30)
    batch_size: int = option(64, help="examples a step.", low=1, high=1_000_000)
    max_steps: int = option(1000, help="how many steps the generator yields at most.", low=0)
    max_grad_norm: float | None = option(
        1.0, help="the gradient is scaled down to this length; 0 or None: never.", low=0
    )
    seed: int = option(0, help="of the batches.", low=0, high=2**63 - 1)


def train(
    model: GPT,
    tokenizer: CharTokenizer,
    examples: Sequence[tuple[str, str]],
    config: SFTConfig,
    state: TrainState | None = None,
) -> Iterator[dict[str, float]]:
    """Train ``model`` in place on (prompt, completion) pairs; yield one dict of metrics a step.

    The loss is the mean cross-entropy of the completions' tokens, the end of the sequence included. Tokens of
    the prompt are read but not learned: the model will never have to write them.

    Stop whenever the model is good enough: leave the loop that drives this generator. To go on with a run
    that was saved, hand in the ``state`` that was saved with it.

    Raises:
        OptionError: the arguments do not belong together, see :mod:`nanogrpo.together`.
        RowError, EmptyPromptError: the examples are no list of pairs of texts, or a prompt is empty.
        BlockSizeError: an example does not fit the model.
        NonFiniteError: a gradient, a weight or a logit is NaN or infinite; the message says whether the
            weights are as they were before that step.
    """
    check_config(config, SFTConfig)
    check_vocabulary(model, tokenizer)
    check_examples(examples)
    device = model.head.weight.device
    state = state or TrainState.start(model.parameters(), config.learning_rate, config.seed)
    check_state(state, model)
    optimizer = state.optimizer
    for step in range(state.step + 1, config.max_steps + 1):
        batch = torch.randint(len(examples), (config.batch_size,), generator=state.generator).tolist()
        prompt_ids, prompt_lens = tokenizer.encode_prompts([examples[i][0] for i in batch])
        ids, mask = tokenizer.encode_completions([examples[i][1] for i in batch])
        ids, mask = ids.to(device), mask.to(device)
        prompt_ids, prompt_lens = prompt_ids.to(device), prompt_lens.to(device)
        logits = completion_logits(model, prompt_ids, prompt_lens, ids)  # (B, T, V)
        loss = aggregate(sft_loss(logits, ids, mask), mask, "token_mean")
        optimizer.zero_grad()
        loss.backward()
        grad_norm = clip_grad_norm(optimizer.params, config.max_grad_norm, f"SFT step {step}")
        optimizer.step(f"SFT step {step}")
        with torch.no_grad():
            logits = completion_logits(model, prompt_ids[:1], prompt_lens[:1], ids[:1])  # (1, T, V)
        check_outputs(logits, f"SFT step {step}")
        state.step = step
        yield {"step": step, "loss": loss.item(), "grad_norm": grad_norm}


def check_examples(examples: Sequence[tuple[str, str]]) -> None:
    """Raise RowError or EmptyPromptError unless these are one or more pairs (prompt, completion) of texts."""
    if isinstance(examples, (str, bytes)) or not isinstance(examples, Sequence):
        raise RowError(f"the examples are of type {type(examples).__name__}; give a list of pairs of texts")
    if not examples:
        raise EmptyPromptError("there are no examples to learn from; give at least one pair of texts")
    for i, pair in enumerate(examples):
        if not (isinstance(pair, (tuple, list)) and [isinstance(text, str) for text in pair] == [True, True]):
            raise RowError(f"example {i} is {pair!r}; it must be a pair of texts, prompt and completion")
        if not pair[0]:
            raise EmptyPromptError(f"the prompt of example {i} is empty; give it at least one character")
