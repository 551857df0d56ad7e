"""Weights that ship with the package, by name; beside each its recipe and the logs of its one training run.

``tinyshakespeare`` predicts the next character of tiny Shakespeare. The chapters on a learned reward start
from it, and it is their frozen reference. It was trained by ``book/studies/shakespeare/train.py``.

``tinyshakespeare-lines`` is that model after fine-tuning: it answers a speaker's heading with one line.
``tinyshakespeare-reward`` is a reward model of such lines, loaded by :func:`load_reward_model`. Both were
trained by ``book/studies/reward_model``.

``addition`` is half right at two-digit addition, for the chapters and studies on a verifiable reward. It was
trained by ``book/studies/addition/train.py``.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from nanogrpo.checkpoint import load_model
from nanogrpo.errors import CheckpointError
from nanogrpo.model import GPT
from nanogrpo.reward_model import RewardModel
from nanogrpo.reward_model import load_reward_model as _load_reward_model
from nanogrpo.tokenizer import CharTokenizer

FOLDER = Path(__file__).parent


def names(kind: str | None = None) -> list[str]:
    """The names of weights that ship: all, or of one kind, ``"policy"`` or ``"reward model"``."""
    every = sorted(file.stem for file in FOLDER.glob("*.safetensors"))
    return [name for name in every if kind is None or _kind(FOLDER / f"{name}.safetensors") == kind]


def _kind(file: Path) -> str:
    with safe_open(file, framework="pt") as content:  # the header alone
        return content.metadata().get("kind", "policy")


def path(name: str) -> Path:
    """The file of the weights of that name.

    Raises:
        CheckpointError: no such name; the message lists those that there are.
    """
    return _file(name, ".safetensors")


def load(name: str, device: str | torch.device = "cpu") -> tuple[GPT, CharTokenizer]:
    """The model and tokenizer of that name, read from the package: no network is needed.

    Each call gives a copy of its own, so a policy and its frozen reference are two calls.

    Raises:
        CheckpointError: no such name (the message lists those that there are), or the file is damaged.
    """
    return load_model(path(name), device)


def load_reward_model(name: str, device: str | torch.device = "cpu") -> RewardModel:
    """The reward model of that name, with its tokenizer.

    Raises:
        CheckpointError: no such name, the file is damaged, or it holds a policy.
    """
    return _load_reward_model(path(name), device)


def recipe(name: str) -> dict:
    """How the weights came about: corpus with checksum, options, shape, machine, commit, held-out loss.

    ``held_out_loss`` is in nats a character.

    Raises:
        CheckpointError: no such name; the message lists those that there are.
    """
    return json.loads(_file(name, ".json").read_text(encoding="utf-8"))


def log(name: str, held_out: bool = False) -> Path:
    """The log of the training run, for :func:`~nanogrpo.metrics.read_csv`, or that of its held-out loss.

    Raises:
        CheckpointError: no such name; the message lists those that there are.
    """
    return _file(name, "-held-out.csv" if held_out else ".csv")


def _file(name: str, ending: str) -> Path:
    if name not in names():
        raise CheckpointError(
            f"no weights {name!r} ship with this package; choose one of {', '.join(names()) or '(none yet)'}"
        )
    return FOLDER / f"{name}{ending}"
