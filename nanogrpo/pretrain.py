"""Pretraining: read a text, predict each next character.

What it leaves out: dropout, early stopping (watch :func:`evaluate` on held-out text), mixed precision.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogrpo.data import windows
from nanogrpo.errors import (
    BlockSizeError,
    DTypeError,
    NonFiniteError,
    ShapeError,
    UnknownCharacterError,
    check_outputs,
    check_whole,
)
from nanogrpo.model import GPT
from nanogrpo.optim import AdamW, clip_grad_norm
from nanogrpo.options import Options, option
from nanogrpo.precision import widen
from nanogrpo.together import check_config


@dataclass(frozen=True)
class PretrainConfig(Options):
    """Options of :func:`train`."""

    learning_rate: float = option(2e-3, help="of AdamW at its highest, after the warm-up.", low=0, high=1e30)
    batch_size: int = option(32, help="windows of ``block_size`` characters a step.", low=1, high=1_000_000)
    max_steps: int = option(5000, help="how many steps there are.", low=0)
    warmup_steps: int = option(100, help="steps in which the learning rate rises; 0 for none.", low=0)
    weight_decay: float = option(0.1, help="of AdamW, on matrices only.", low=0)
    max_grad_norm: float | None = option(
        1.0, help="the gradient is scaled down to this length; 0 or None: never.", low=0
    )
    seed: int = option(0, help="of the windows.", low=0, high=2**63 - 1)


def schedule(step: int, config: PretrainConfig) -> float:
    """Learning rate of a step: a linear rise over the warm-up, then half a cosine down to zero."""
    rise = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    done = max(0, step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * done))


def train(model: GPT, ids: Tensor, config: PretrainConfig) -> Iterator[dict[str, float]]:
    """Train ``model`` in place on a text given as ids ``(N,)``; yield one dict of metrics a step.

    The loss is the mean cross-entropy in nats a character.

    Raises:
        BlockSizeError, ShapeError, DTypeError, UnknownCharacterError: see :func:`check_text`.
        NonFiniteError: a gradient, a weight or a logit is NaN or infinite; the message says whether the
            weights are as they were before that step.
    """
    check_config(config, PretrainConfig)
    ids = check_text(model, ids)
    device = model.head.weight.device
    optimizer = AdamW(model.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    for step in range(1, config.max_steps + 1):
        inputs, targets = windows(ids, config.batch_size, model.config.block_size, generator)
        logits = widen("logits", model(inputs.to(device)))  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
        optimizer.zero_grad()
        loss.backward()
        grad_norm = clip_grad_norm(optimizer.params, config.max_grad_norm, f"pretraining step {step}")
        optimizer.lr = schedule(step, config)
        optimizer.step(f"pretraining step {step}")
        with torch.no_grad():
            check_outputs(model(inputs[:1].to(device)), f"pretraining step {step}")
        yield {"step": step, "loss": loss.item(), "grad_norm": grad_norm, "learning_rate": optimizer.lr}


@torch.no_grad()
def evaluate(model: GPT, ids: Tensor, batch_size: int = 64) -> float:
    """Mean cross-entropy in nats a character over a whole text, cut into windows without overlap.

    Raises:
        BlockSizeError, ShapeError, DTypeError, UnknownCharacterError: see :func:`check_text`.
        OptionError: ``batch_size`` is no whole number above 0.
        NonFiniteError: the loss is NaN or infinite, since the model's weights are broken.
    """
    ids = check_text(model, ids)
    check_whole("batch_size", batch_size, 1)
    T = model.config.block_size
    count = (len(ids) - 1) // T
    inputs, targets = ids[: count * T].view(count, T), ids[1 : count * T + 1].view(count, T)
    total, device = 0.0, model.head.weight.device
    for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
        logits = widen("logits", model(x.to(device))).flatten(0, 1)
        total += F.cross_entropy(logits, y.to(device).flatten(), reduction="sum").item()
    if not math.isfinite(total):
        raise NonFiniteError(f"the loss is {total}: the model's weights are broken, or its logits too large")
    return total / targets.numel()


def check_text(model: GPT, ids: Tensor) -> Tensor:
    """The ids ``(N,)`` of a text as int64, if the model knows them and there is a window and the next id.

    Raises:
        ShapeError, DTypeError: it has another shape, or is not of whole numbers.
        BlockSizeError: it is too short.
        UnknownCharacterError: an id is outside the vocabulary.
    """
    if not isinstance(ids, Tensor):
        raise DTypeError(f"the text's ids are of type {type(ids).__name__}; give a tensor, torch.tensor(...)")
    if ids.ndim != 1:
        raise ShapeError(f"the text has shape {tuple(ids.shape)}; give the ids of one text, (N,)")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DTypeError(f"the text's ids are of type {ids.dtype}; give whole numbers, torch.long")
    window, V = model.config.block_size, model.config.vocab_size
    if len(ids) <= window:
        raise BlockSizeError(
            f"a text of {len(ids)} characters holds no window of block_size={window} with the character "
            "after it; take a longer text, or a model with a smaller block_size"
        )
    ids = ids.long()  # PyTorch compares no unsigned numbers but bytes
    if int(ids.min()) < 0 or int(ids.max()) >= V:
        raise UnknownCharacterError(
            f"the text has ids from {int(ids.min())} to {int(ids.max())}; need 0 to {V - 1}"
        )
    return ids
