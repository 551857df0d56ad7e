"""Run a submission in a process of its own, with a time limit for each cell, and say what each step got."""

from __future__ import annotations

import functools
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanogrpo.teach.grade.notebook import Lab, SubmissionError, lab_of, read
from nanogrpo.teach.grade.plan import Piece, plan

START = 180.0  # seconds that a process may take to import torch
GRACE = 3.0  # seconds between an interrupt and the end


@dataclass(frozen=True)
class Options:
    """How submissions are run.

    Attributes:
        seconds: Time limit of a cell.
        memory: Limit in GiB of what a submission takes beyond the libraries; Linux only.
        watch: Note which of the package's functions the answers call.
    """

    seconds: float = 60.0
    memory: float = 4.0
    watch: bool = False


@dataclass(frozen=True)
class Step:
    """What one graded cell gave: its points, the most there are, why it failed, and what is worth a look."""

    name: str
    points: float
    most: float
    said: str = ""
    note: str = ""


@dataclass
class Graded:
    """A submission with its grade; ``error`` if it could not be read, and then there are no steps."""

    path: Path
    lab: Lab | None = None
    steps: list[Step] = field(default_factory=list)
    error: str = ""

    @property
    def points(self) -> float:
        """All points of its graded cells."""
        return sum(step.points for step in self.steps)

    @property
    def most(self) -> float:
        """The most that its graded cells can give."""
        return sum(step.most for step in self.steps)


def grade(path: Path, labs: Sequence[Lab], options: Options = Options()) -> Graded:
    """Grade one notebook; whatever it is, this returns."""
    before = _package()
    try:
        submitted = read(path)
        lab = lab_of(submitted, labs, path)
    except (SubmissionError, OSError) as error:
        return Graded(path, error=str(error))
    results = run(plan(submitted, lab), lab, options)
    if _package() != before:
        return Graded(
            path, error="It changed the files of the installed package: install that again, and grade again."
        )
    if options.watch:
        results = {
            name: (said, _unlike(note, _model_calls(lab)[name])) for name, (said, note) in results.items()
        }
    steps = [
        Step(name, 0.0 if results[name][0] else most, most, *results[name])
        for name, most in lab.points.items()
    ]
    return Graded(path, lab, steps)


def _package() -> list[tuple[str, int, int]]:
    """The files of the package, as they are."""
    folder = Path(__file__).resolve().parents[2]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


@functools.cache
def _model_calls(lab: Lab) -> dict[str, set[str]]:
    """Which of the package's functions the solution of each step calls: a lab's text allows those."""
    results = run(plan(lab.notebook, lab), lab, Options(watch=True))
    return {name: set(_calls(note)) for name, (_, note) in results.items()}


def _calls(note: str) -> list[str]:
    return next((part[6:].split(", ") for part in note.split("; ") if part.startswith("calls ")), [])


def _unlike(note: str, allowed: set[str]) -> str:
    """A note without the calls that the solution makes, too."""
    parts = [part for part in note.split("; ") if part and not part.startswith("calls ")]
    own = [name for name in _calls(note) if name not in allowed]
    return "; ".join(parts + ([f"calls {', '.join(own)}"] if own else []))


def run(pieces: list[Piece], lab: Lab, options: Options) -> dict[str, tuple[str, str]]:
    """What each graded cell says, empty if it passes, and the note to it.

    A cell that does not end is interrupted. If that does not help, or if it takes the process with it, a new
    process runs the notebook again without that cell.
    """
    imports = [cell.source for cell in lab.notebook.cells if cell.cell_type == "code"]
    results: dict[str, tuple[str, str]] = {}
    skip: set[int] = set()
    steps = {index: piece.step for index, piece in enumerate(pieces) if piece.step}
    while True:
        stuck = _once(pieces, imports, skip, results, options)
        if stuck is None:
            break
        index, why = stuck
        if index in steps:
            results[steps[index]] = (why, "")
        skip |= {index} | {at for at, step in steps.items() if step in results}
        if index < 0 or len(results) == len(steps):
            break
    return {step: results.get(step, ("It was not reached.", "")) for step in steps.values()}


def _once(pieces, imports, skip, results, options) -> tuple[int, str] | None:
    """One process: fills ``results``; the cell that ended it before its time, and why, or None."""
    word, folder = secrets.token_hex(16), tempfile.mkdtemp(prefix="grade-")
    cells = [(piece.source, piece.step, piece.given) for piece in pieces]
    job = {"word": word, "cells": cells, "imports": imports, "skip": sorted(skip),
           "memory": options.memory, "watch": options.watch}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "nanogrpo.teach.grade.worker"],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin  # a pipe
    try:
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
        return _listen(process, word, pieces, results, options)
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    """This process's, so that the package is found from an empty folder as well."""
    found = os.pathsep.join(str(Path(part or ".").resolve()) for part in sys.path)
    return {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg",
            "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip


def _listen(process, word, pieces, results, options) -> tuple[int, str] | None:
    lines: queue.Queue = queue.Queue()

    def read_all() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read_all, daemon=True).start()
    now, wait, interrupted = -1, START, False
    while True:
        try:
            line = lines.get(timeout=wait)
        except queue.Empty:
            if interrupted or now < 0 or not _interrupt(process):
                return now, f"It was stopped at the time limit of {options.seconds:g} seconds."
            interrupted, wait = True, GRACE
            continue
        what = _understood(line, word)
        if line is None:
            return now, "It ended the process that ran it."
        if what[:1] == ["begin"]:
            now, wait, interrupted = int(what[1]), options.seconds, False
        elif what[:1] == ["end"]:
            step, (said, note) = pieces[int(what[1])].step, what[2:]
            if step:
                limit = f"It was stopped at the time limit of {options.seconds:g} seconds."
                results[step] = (limit if said == "the time limit" else said, note)
            wait = START
        elif what[:1] == ["done"]:
            return None


def _understood(line: bytes | None, word: str) -> list[str]:
    """The parts of a line that the worker wrote; nothing for any other."""
    first, *rest = (line or b"").decode("ascii", "replace").rstrip("\n").split(" ")
    return [bytes.fromhex(part).decode() for part in rest] if first == word else []


def _interrupt(process) -> bool:
    """Interrupt the cell as a notebook's stop button does; false where that cannot be done."""
    if os.name != "posix":
        return False
    process.send_signal(signal.SIGINT)
    return True


def _end(process) -> None:
    """End the process and all that it started."""
    try:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
    process.stdout.close()
