"""Save and load a model: safetensors, with the configuration and the alphabet in the file's header.

A file is written beside its name and then moved there, so a crash in the middle leaves the old one whole.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nanogrpo.errors import CheckpointError
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.tokenizer import CharTokenizer


def save_tensors(path: str | os.PathLike, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    """Write named tensors and a header of strings, whole or not at all.

    Raises:
        CheckpointError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, metadata=header)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error}; the old file, if any, is untouched") from error


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read what :func:`save_tensors` wrote. The format holds numbers only, no code that could run.

    Raises:
        CheckpointError: no such file, or it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"cannot read the checkpoint {path}: {error}; save it again or restore a copy"
        ) from error


def save_model(path: str | os.PathLike, model: GPT, tokenizer: CharTokenizer, **notes: str) -> None:
    """Save a model with its configuration and alphabet; ``notes`` (recipe, seed) go into the header."""
    header = {"config": json.dumps(asdict(model.config)), "alphabet": tokenizer.chars, **notes}
    save_tensors(path, model.state_dict(), header)


def load_model(path: str | os.PathLike, device: str | torch.device = "cpu") -> tuple[GPT, CharTokenizer]:
    """The model and tokenizer that :func:`save_model` wrote.

    Raises:
        CheckpointError: the file is missing or damaged, holds another kind of model, or its tensors do not
            fit its own configuration.
    """
    tensors, header = load_tensors(path)
    if "kind" in header:  # a policy's header has none
        raise CheckpointError(f"{path} holds a {header['kind']}, not a policy; load it as what it is")
    try:
        model = GPT(GPTConfig(**json.loads(header["config"])))
        tokenizer = CharTokenizer(header["alphabet"])
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no checkpoint of this package, or is damaged: {error}") from error
    return model.to(device), tokenizer
