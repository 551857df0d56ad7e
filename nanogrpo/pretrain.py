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
from nanogrpo.model import GPT
from nanogrpo.optim import AdamW, clip_grad_norm
from nanogrpo.precision import widen


@dataclass(frozen=True)
class PretrainConfig:
    """Options of :func:`train`; ``batch_size`` windows of ``block_size`` characters a step."""

    learning_rate: float = 2e-3
    batch_size: int = 32
    max_steps: int = 5000
    warmup_steps: int = 100
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0


def schedule(step: int, config: PretrainConfig) -> float:
    """Learning rate of a step: a linear rise over the warm-up, then half a cosine down to zero."""
    rise = min(1.0, step / config.warmup_steps)
    done = max(0, step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * done))


def train(model: GPT, ids: Tensor, config: PretrainConfig) -> Iterator[dict[str, float]]:
    """Train ``model`` in place on a text given as ids ``(N,)``; yield one dict of metrics a step.

    The loss is the mean cross-entropy in nats a character.

    Raises:
        NonFiniteError: the gradient is NaN or infinite; the weights are as they were before that step.
    """
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
        optimizer.step()
        yield {"step": step, "loss": loss.item(), "grad_norm": grad_norm, "learning_rate": optimizer.lr}


@torch.no_grad()
def evaluate(model: GPT, ids: Tensor, batch_size: int = 64) -> float:
    """Mean cross-entropy in nats a character over a whole text, cut into windows without overlap."""
    T = model.config.block_size
    count = (len(ids) - 1) // T
    inputs, targets = ids[: count * T].view(count, T), ids[1 : count * T + 1].view(count, T)
    total, device = 0.0, model.head.weight.device
    for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
        logits = widen("logits", model(x.to(device))).flatten(0, 1)
        total += F.cross_entropy(logits, y.to(device).flatten(), reduction="sum").item()
    return total / targets.numel()
