"""Which chapters read tiny Shakespeare, whether it is here, and the one line that says how to get it."""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path

from nanogrpo.data import CORPORA, load_corpus
from nanogrpo.errors import CorpusError

# A copy beside the repository spares every run the download.
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
FILE, (ADDRESS, *_), _ = CORPORA["tinyshakespeare"]


def use_copy_beside() -> None:
    """Let this process, and those that it starts, read the copy beside the repository if there is one."""
    if BESIDE.is_dir() and not os.environ.get("NANOGRPO_DATA"):
        os.environ["NANOGRPO_DATA"] = str(BESIDE)


@functools.cache
def missing() -> str | None:
    """None if the corpus is here, or was downloaded just now; else the one line. Takes seconds at most."""
    use_copy_beside()
    try:
        load_corpus()
    except CorpusError:
        where = "where NANOGRPO_DATA says" if os.environ.get("NANOGRPO_DATA") else "here nor on any mirror"
        remedy = f"save {ADDRESS} as FOLDER/{FILE} and set NANOGRPO_DATA=FOLDER"
        return f"corpus: tiny Shakespeare is not {where}; {remedy}"
    return None


@functools.cache
def needs_corpus(path: Path) -> bool:
    """Whether a cell of this notebook calls ``load_corpus``; book/conftest.py holds chapters to that."""
    return reads_corpus(json.loads(path.read_text(encoding="utf-8"))["cells"])


def reads_corpus(cells: list[dict]) -> bool:
    """Whether one of these cells calls ``load_corpus``."""
    code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return any(re.search(r"\bload_corpus\(", source) for source in code)
