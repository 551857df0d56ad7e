"""The command that plants the pieces of :mod:`nanogrpo.teach.museum` and shows which test finds each.

    python -m nanogrpo.teach.museum            plant each in a copy, run its tests, print who caught it
    python -m nanogrpo.teach.museum --list     what each one does, and how it shows in training
    python -m nanogrpo.teach.museum k3 k1      only those whose name contains one of these words

Your files are never changed: a piece is planted in a temporary copy of the package, and the tests run there.
A piece that no test catches, or whose text is no longer in the package, makes the command fail.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import shutil
import sys
import tempfile
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from nanogrpo.errors import MuseumError
from nanogrpo.teach.museum.pieces import PIECES, Piece, planted

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Finding:
    """What the tests said about a planted piece; ``caught_by`` is empty if nobody noticed."""

    piece: Piece
    caught_by: str
    message: str


def examine(piece: Piece, root: Path = ROOT) -> Finding:
    """Plant a piece in a copy of package and tests, and run the test file that should catch it.

    Raises:
        MuseumError: The piece cannot be planted, the tests are not there, or they could not be run.
    """
    if not (root / "tests" / piece.tests).is_file():
        raise MuseumError(f"no tests/{piece.tests} in {root}; run this from a checkout of the repository")
    with tempfile.TemporaryDirectory() as folder:
        copy, report = Path(folder), Path(folder) / "report.xml"
        for part in ("nanogrpo", "tests", "book/_ext"):
            shutil.copytree(root / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(root / "pyproject.toml", copy)
        victim = copy / "nanogrpo" / piece.file
        victim.write_text(planted(victim.read_text(encoding="utf-8"), piece), encoding="utf-8")
        log = Path(folder) / "log.txt"
        names = {"folder": folder, "tests": f"tests/{piece.tests}", "report": str(report), "log": str(log)}
        process = _context().Process(target=exec, args=(_RUN, names))
        process.start()
        process.join()
        if process.exitcode not in (0, 1) or not report.exists():
            raise MuseumError(f"piece {piece.name!r}: pytest could not run\n{log.read_text()[-4000:]}")
        return _finding(piece, report)


@functools.cache
def _context() -> multiprocessing.context.SpawnContext | multiprocessing.context.ForkServerContext:
    """How processes start: where the system can, as forks of one that has imported what takes seconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "pytest", "hypothesis"])
    return context


# Checks first that the copy is what will be tested, and not the installed package. No plugin of pytest is
# needed, and loading them doubles the time.
_RUN = """
import os, sys
for number in (1, 2):
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
os.chdir(folder)
os.environ |= {"PYTHONPATH": folder, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
sys.dont_write_bytecode = True
sys.path.insert(0, folder)
for name in [name for name in sys.modules if name.split(".")[0] == "nanogrpo"]:
    del sys.modules[name]  # a script that asked for this may have brought it along
import nanogrpo, pytest, torch
torch.set_num_threads(1)
assert nanogrpo.__file__.startswith(folder), f"testing {nanogrpo.__file__}, not the copy"
sys.exit(int(pytest.main([tests, "-x", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"])))
"""


def _finding(piece: Piece, report: Path) -> Finding:
    """Name and first line of the first failed test of a JUnit report."""
    for case in ElementTree.parse(report).iter("testcase"):
        for failure in (*case.findall("failure"), *case.findall("error")):
            text = f"{failure.get('message')}\n{failure.text}"
            lines = [
                line.split("AssertionError: ", 1)[1]
                for line in text.splitlines()
                if "AssertionError: " in line
            ]
            message = (lines or text.splitlines())[0]
            return Finding(piece, case.get("name", "?").split("[")[0], message.strip())
    return Finding(piece, "", "NOT CAUGHT")


def examine_all(pieces: Sequence[Piece] = PIECES) -> list[Finding]:
    """Examine some pieces, as many at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(examine, pieces))


def table(findings: Sequence[Finding]) -> str:
    """Three columns as text: piece, caught by, message."""
    widths = (24, 40, 48)

    def row(*cells: str) -> str:
        wrapped = [textwrap.wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
        lines = zip_longest(*wrapped, fillvalue="")
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in lines)

    rows = [row("piece", "caught by", "message") + "\n" + row(*("-" * width for width in widths))]
    for v in findings:
        name = v.caught_by.removeprefix("test_").replace("_", " ")  # spaces, so that the cell can wrap
        rows.append(row(v.piece.name, f"{v.piece.tests}: {name}" if name else "nobody", v.message))
    return "\n\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if every piece was caught."""
    parser = argparse.ArgumentParser(
        prog="python -m nanogrpo.teach.museum", description=__doc__.split("\n")[0]
    )
    parser.add_argument("words", nargs="*", help="only pieces whose name contains one of these words")
    parser.add_argument("--list", action="store_true", help="describe the pieces and run nothing")
    options = parser.parse_args(arguments)
    chosen = [
        f for f in PIECES if not options.words or any(w.lower() in f.name.lower() for w in options.words)
    ]
    if not chosen:
        parser.error(f"no piece is named like {' or '.join(options.words)}; see --list")
    if options.list:
        for piece in chosen:
            print(f"{piece.name} ({piece.file})\n  does:  {piece.effect}\n  shows: {piece.symptom}\n")
        return 0
    print(f"Planting {len(chosen)} pieces, one by one, each in a copy of its own ...\n")
    findings = examine_all(chosen)
    missed = [v.piece.name for v in findings if not v.caught_by]
    print(table(findings))
    print(
        f"\n{len(chosen) - len(missed)} of {len(chosen)} caught."
        + (f" MISSED: {', '.join(missed)}" * bool(missed))
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
