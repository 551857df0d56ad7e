"""The pieces of the museum: mistakes that codes of this kind really make, as small edits of the package.

They stand in ``pieces.txt``, one after the other, each with all that is known of it: what it does, how it
shows in a run, the check of :mod:`nanogrpo.teach.check` that catches it and what that says, the test file
that catches it and what that says, and the edit. A new piece is a new part of that file, and nothing else::

    Piece: k3 without expm1
    Does: Loses every digit in float32 where policy and reference are close, as they are at the start.
    Shows: In the first steps the KL jumps between multiples of 6e-8, and is at times negative.
    Check: check_kl_k3_precision
    Says: Use expm1
    Tests: test_kl.py
    Test-Says: use expm1
    File: kl.py

    -    return torch.expm1(delta) - delta
    +    return torch.exp(delta) - 1 - delta

The edit is written as in a diff: ``-`` before a line that is right, ``+`` before the one that takes its
place, a space before a line that stays. The right lines stand in the file exactly once. An empty line
ends an edit, and another may follow. ``Says`` is a regular expression, ``Test-Says`` plain text. ``---``
or a heading, ``===``, stands between two pieces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path

from nanogrpo.errors import MuseumError


@dataclass(frozen=True)
class Piece:
    """One mistake that can be put into the package.

    Attributes:
        name: A few words.
        file: In the package, for example ``losses.py``.
        edits: Pairs of the right text, which must stand in the file exactly once, and the wrong one.
        effect: What it does, in one sentence.
        symptom: How it shows in a training run.
        check: The check of :mod:`nanogrpo.teach.check` that is meant to catch it, and to name it.
        tests: The test file of the repository that is meant to catch it.
        says: What the check must say of it, a regular expression.
        test_says: What the failing test must say of it.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    effect: str
    symptom: str
    check: str
    tests: str
    says: str = ""
    test_says: str = ""


def planted(source: str, piece: Piece) -> str:
    """The text of a file with the mistake in it.

    Raises:
        MuseumError: A text to replace does not stand there exactly once.
    """
    for right, wrong in piece.edits:
        times = source.count(right)
        if times != 1:
            raise MuseumError(
                f"piece {piece.name!r}: {right!r} stands {times} times in {piece.file}, not once; "
                "the package has changed, so change the piece with it"
            )
        source = source.replace(right, wrong)
    return source


def read(text: str) -> tuple[Piece, ...]:
    """The pieces of a text that is written as ``pieces.txt`` is.

    Raises:
        MuseumError: A piece lacks a part, or has nothing to change.
    """
    return tuple(map(_piece, filter(str.strip, re.split(r"^(?:---|===.*)\n", text, flags=re.MULTILINE))))


def _piece(paragraph: str) -> Piece:
    label = message_from_string(paragraph.lstrip())
    lines = [" ".join((label[key] or "").split()) for key in _LABEL]
    edits = tuple(_edit(lines) for lines in re.split(r"\n\n+", str(label.get_payload()).strip("\n")))
    missing = [key for key, line in zip(_LABEL, lines, strict=True) if not line]
    if missing or any(right == wrong for right, wrong in edits):
        raise MuseumError(f"the piece {lines[0]!r} has no {', '.join(missing) or 'edit'}:\n{paragraph}")
    name, file, *others = lines
    return Piece(name, file, edits, *others)


_LABEL = ("Piece", "File", "Does", "Shows", "Check", "Tests", "Says", "Test-Says")


def _edit(hunk: str) -> tuple[str, str]:
    """The right and the wrong text of one edit, as whole lines."""
    right, wrong = (
        "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[:1] in signs) for signs in (" -", " +")
    )
    return right, wrong


PIECES = read(Path(__file__).with_name("pieces.txt").read_text(encoding="utf-8"))
