"""Text to learn from: tiny Shakespeare, from a local copy, the cache or a download, and windows of it."""

import hashlib
import os
import threading
from pathlib import Path

import pooch
import torch
from torch import Tensor

from nanogrpo.errors import CorpusError
from nanogrpo.tokenizer import CharTokenizer

# name -> (file below $NANOGRPO_DATA, addresses that serve these very bytes, sha256)
CORPORA = {
    "tinyshakespeare": (
        "tinyshakespeare/input.txt",
        (
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
            "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
        ),
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    )
}
# Seconds that an address may keep silent, and that it may take in all, before the next one is tried.
SILENCE, PATIENCE = 5, 10


def load_corpus(name: str = "tinyshakespeare") -> str:
    """The text of a corpus, the same bytes wherever it came from.

    Looked for in this order: in the folder that the environment variable ``NANOGRPO_DATA`` names, in the
    cache of earlier downloads, at the address where Andrej Karpathy publishes the file, and at its mirrors.
    Each address gets seconds, not minutes, and its bytes count only if their checksum is right.

    Raises:
        CorpusError: no such corpus, no copy and no network, or a copy with another checksum.
    """
    if name not in CORPORA:
        raise CorpusError(f"there is no corpus {name!r}; choose one of {', '.join(CORPORA)}")
    file, addresses, sha256 = CORPORA[name]
    folder = os.environ.get("NANOGRPO_DATA")
    path = Path(folder) / file if folder else _download(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(
            f"cannot read {path}: {error.strerror}; put the file there, or unset NANOGRPO_DATA to download it"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CorpusError(
            f"{path} has sha256 {found}, not {sha256}; delete it and get it from {addresses[0]}"
        )
    return content.decode("utf-8")


def _download(name: str) -> Path:
    """The file in the cache; if it is not there, from the first address that has it."""
    file, addresses, sha256 = CORPORA[name]
    tried = []
    for address in addresses:
        try:
            return _retrieve(name, address, sha256)
        except (OSError, ValueError) as error:  # no network, or a file that is not the one that we know
            reason = "other bytes" if type(error) is ValueError else type(error).__name__
            tried.append(f"{address} ({reason})")
            last = error
    raise CorpusError(
        f"cannot download {name}; tried {', '.join(tried)}. Without a network, put the file somewhere as "
        f"{file} and set NANOGRPO_DATA to the folder that holds it"
    ) from last


def _retrieve(name: str, address: str, sha256: str) -> Path:
    """One address, in a thread: no other limit also ends a look-up of its name, or bytes that trickle."""
    downloader = pooch.HTTPDownloader(timeout=SILENCE, progressbar=True)
    result: list[Path | Exception] = []

    def work() -> None:
        try:
            folder = pooch.os_cache("nanogrpo")
            found = pooch.retrieve(address, f"sha256:{sha256}", f"{name}.txt", folder, downloader=downloader)
            result.append(Path(found))
        except Exception as error:  # raised again below, where someone listens
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not result:
        raise TimeoutError(f"{address} took more than {PATIENCE} seconds")
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


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
