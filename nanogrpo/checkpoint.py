"""Save and load a model: safetensors, with the configuration and the alphabet in the file's header.

A file is written beside its name and then moved there, so a crash in the middle leaves the old one whole.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from nanogrpo.errors import CheckpointError, DeviceError, NonFiniteError, os_errors, shown
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.tokenizer import CharTokenizer

CHECKSUM = "sha256"  # in a file's header
REMEDY = "save it again or restore a copy"
SHIPPED = Path(__file__).resolve().parent / "weights"  # whose files are older than that, and tested


def stage(path: Path, content: bytes) -> Path:
    """Write a file under another name, to the disk itself; ``os.replace`` then moves it into place."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    return part


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Write a file, whole or not at all; its folder is made.

    Raises:
        CheckpointError: it cannot be written; what was there before is untouched.
    """
    path = Path(path)
    if path.is_char_device() or path.is_block_device() or path.is_fifo():  # which root could replace
        raise CheckpointError(f"cannot write {path}: it is a device or a pipe, and no file; name a file")
    with os_errors(CheckpointError, f"write {path}", "the old file, if any, is untouched"):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = stage(path, content)
        try:
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def pack(tensors: Mapping[str, torch.Tensor], header: dict[str, str]) -> bytes:
    """Named tensors and a header of strings as the bytes of a safetensors file, the same bytes every time.

    Raises:
        NonFiniteError: a tensor holds NaN or infinity. Such weights are never written over good ones.
        CheckpointError: an entry of the header is no text.
    """
    if odd := [name for name, value in header.items() if not isinstance(value, str)]:
        raise CheckpointError(
            f"{odd[0]}={shown(header[odd[0]])} cannot be noted in a file: write it as a text, by str(...)"
        )
    header = {key: value for key, value in header.items() if key != CHECKSUM}  # that of another file
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if broken := not_finite(ready):
        raise NonFiniteError(
            f"{broken} holds a number that is not finite, and is not saved; what was saved before is "
            "untouched. Go on from there with a lower learning rate"
        )
    content = save(ready, metadata=header)
    size = int.from_bytes(content[:8], "little")
    index = json.loads(content[8 : 8 + size])
    index["__metadata__"] = dict(sorted(header.items()))  # in an order of its own each time, else
    index["__metadata__"] = dict(sorted({**header, CHECKSUM: checksum(index, content[8 + size :])}.items()))
    text = _compact(index)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def checksum(index: Mapping, data: bytes) -> str:
    """The sha256 of a file's index and numbers, which the format itself lacks: a turned bit would be read."""
    return hashlib.sha256(_compact(index) + data).hexdigest()


def _compact(index: Mapping) -> bytes:
    return json.dumps(index, separators=(",", ":")).encode()


def from_json(text: str) -> Any:
    """What a text in JSON says; ValueError where a name stands twice, or a number is NaN or infinite."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} stands there more than once")
        return dict(pairs)

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no number that a setting can have")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """The name of the first tensor with NaN or infinity in it, or an empty string."""
    broken = (name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all())
    return next(broken, "")


def save_tensors(
    path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], header: dict[str, str]
) -> None:
    """Write named tensors and a header of strings, whole or not at all.

    Raises:
        CheckpointError: the file cannot be written; what was there before is untouched.
        NonFiniteError: see :func:`pack`.
    """
    write_whole(path, pack(tensors, header))


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read what :func:`save_tensors` wrote. The format holds numbers only, no code that could run.

    Raises:
        CheckpointError: no such file, or it is damaged, or holds a number that is not finite.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f"path={shown(path)} is no name of a file; give a text or a Path")
    if not os.path.isfile(path):
        raise CheckpointError(f"cannot read the checkpoint {path}: there is no such file; {REMEDY}")
    with os_errors(CheckpointError, f"read the checkpoint {path}", REMEDY):
        content = Path(path).read_bytes()
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        index = json.loads(content[8 : 8 + size])
        header = index.get("__metadata__") or {}  # null, where another program had nothing to say
        before = header.pop(CHECKSUM, None)  # a file of another program has none
        if before and before != checksum(index, content[8 + size :]):
            raise ValueError(f"its sha256 is not {before[:12]}..., which was noted when it was written")
        if not before and "config" in header and Path(path).resolve().parent != SHIPPED:
            # Another number of heads would go unnoticed: the tensors have the same shapes.
            print(f"{path} has no {CHECKSUM}, so whether it is as it was saved is not known", file=sys.stderr)
        broken = not_finite(tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}; {REMEDY}") from error
    if broken:
        raise CheckpointError(f"{path} is broken: {broken} holds a number that is not finite; {REMEDY}")
    return tensors, header


def save_model(path: str | os.PathLike, model: GPT, tokenizer: CharTokenizer, **notes: str) -> None:
    """Save a model with its configuration and alphabet; ``notes`` (recipe, seed) go into the header.

    Raises:
        CheckpointError: the file cannot be written, or a note is no text or is named as the header's own are.
        NonFiniteError: see :func:`pack`.
    """
    header = {"config": json.dumps(asdict(model.config)), "alphabet": tokenizer.chars}
    if odd := sorted(notes.keys() & {*header, "kind"}):
        raise CheckpointError(f"{odd[0]} says what the model is, and is no note; call it otherwise")
    save_tensors(path, model.state_dict(), header | notes)


def load_model(path: str | os.PathLike, device: str | torch.device = "cpu") -> tuple[GPT, CharTokenizer]:
    """The model and tokenizer that :func:`save_model` wrote.

    Raises:
        CheckpointError: the file is missing or damaged, holds another kind of model, or its tensors do not
            fit its own configuration.
        DeviceError: there is no such device here.
    """
    tensors, header = load_tensors(path)
    if "kind" in header:  # a policy's header has none
        raise CheckpointError(f"{path} holds a {header['kind']}, not a policy; load it as what it is")
    model, tokenizer = blank_model(path, tensors, header)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} is no checkpoint of this package, or is damaged: {error}; {REMEDY}"
        ) from error
    return moved(model, device), tokenizer


def moved(model: nn.Module, device: str | torch.device) -> Any:
    """The model on a device; raises DeviceError where there is none of that name here."""
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError, TypeError) as error:  # PyTorch's own
        raise DeviceError(f"device={shown(device)} is not to be had here: {error}; choose cpu") from error


def blank_model(
    path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]
) -> tuple[GPT, CharTokenizer]:
    """A model in the shape that a file's header gives, without its weights, and its tokenizer.

    Raises:
        CheckpointError: the header is none of this package's, or says another shape than the tensors have.
    """
    try:
        weights = {k: v for k, v in tensors.items() if not k.startswith("state.")}  # which a run has
        for name, tensor in weights.items():
            if not tensor.is_floating_point():
                raise ValueError(f"{name} is {tensor.dtype}; weights are no whole numbers")
        config, tokenizer = GPTConfig(**from_json(header["config"])), CharTokenizer(header["alphabet"])
        for part, rows in (("token", config.vocab_size), ("position", config.block_size)):
            shapes = [tuple(t.shape) for name, t in weights.items() if name.endswith(f"{part}.weight")]
            if shapes[:1] != [(rows, config.n_embd)] or config.n_layer > len(tensors):
                raise ValueError(f"its header says {config}, and its tensors have another shape")
        if tokenizer.vocab_size != config.vocab_size:
            raise ValueError(
                f"its alphabet makes {tokenizer.vocab_size} ids, its vocabulary has {config.vocab_size}"
            )
        return GPT(config), tokenizer
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of this package, or is damaged: {error}; {REMEDY}"
        ) from error
