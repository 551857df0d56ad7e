"""Text to learn from: tiny Shakespeare, from a local copy, the cache or a download, and windows of it."""

import hashlib
import os
from pathlib import Path

import pooch
import torch
from torch import Tensor

from nanogrpo.errors import CorpusError
from nanogrpo.tokenizer import CharTokenizer

# name -> (file below $NANOGRPO_DATA, address, sha256)
CORPORA = {
    "tinyshakespeare": (
        "tinyshakespeare/input.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    )
}


def load_corpus(name: str = "tinyshakespeare") -> str:
    """The text of a corpus, the same bytes wherever it came from.

    Looked for in this order: in the folder that the environment variable ``NANOGRPO_DATA`` names, in the
    cache of earlier downloads, and at the address where Andrej Karpathy publishes the file.

    Raises:
        CorpusError: no such corpus, no copy and no network, or a copy with another checksum.
    """
    if name not in CORPORA:
        raise CorpusError(f"there is no corpus {name!r}; choose one of {', '.join(CORPORA)}")
    file, address, sha256 = CORPORA[name]
    folder = os.environ.get("NANOGRPO_DATA")
    path = Path(folder) / file if folder else _download(name, address, sha256)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(
            f"cannot read {path}: {error.strerror}; put the file there, or unset NANOGRPO_DATA to download it"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CorpusError(f"{path} has sha256 {found}, not {sha256}; delete it and get it from {address}")
    return content.decode("utf-8")


def _download(name: str, address: str, sha256: str) -> Path:
    try:
        folder = pooch.os_cache("nanogrpo")
        return Path(pooch.retrieve(address, f"sha256:{sha256}", f"{name}.txt", folder, progressbar=True))
    except (OSError, ValueError) as error:  # no network, or a file that is not the one that we know
        raise CorpusError(
            f"cannot download {name} from {address}: {error}. Without a network, put the file somewhere as "
            f"{CORPORA[name][0]} and set NANOGRPO_DATA to the folder that holds it"
        ) from error


def split_corpus(text: str, held_out: float = 0.1) -> tuple[str, str]:
    """The first part to train on and the last ``held_out`` of it to test on, unseen.

    >>> split_corpus("abcdefghij", held_out=0.2)
    ('abcdefgh', 'ij')
    """
    cut = len(text) - round(len(text) * held_out)
    return text[:cut], text[cut:]


def alphabet(text: str) -> CharTokenizer:
    """A tokenizer for exactly the characters of ``text``, in their sorted order."""
    return CharTokenizer("".join(sorted(set(text))))


def windows(ids: Tensor, batch_size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets ``(B, T)`` from random places of a text; each target stands one later in it."""
    start = torch.randint(len(ids) - length, (batch_size, 1), generator=generator)
    at = start + torch.arange(length)  # (B, T)
    return ids[at], ids[at + 1]
