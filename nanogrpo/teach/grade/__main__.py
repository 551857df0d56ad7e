"""Grade submitted labs: each notebook in a process of its own, each cell with a time limit."""

from __future__ import annotations

import argparse
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanogrpo.errors import NanoGRPOError
from nanogrpo.teach.grade import report
from nanogrpo.teach.grade.notebook import SubmissionError, labs_in
from nanogrpo.teach.grade.process import Graded, Options, grade

SOURCE = Path("book/labs/source")


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(prog="python -m nanogrpo.teach.grade", description=__doc__)
    add = top.add_argument
    add("files", nargs="+", type=Path, help="notebooks, or folders that hold some")
    add("--source", type=Path, default=SOURCE, help=f"the labs with their hidden tests (default: {SOURCE})")
    add("--csv", type=Path, help="write the points of each step")
    add("--canvas", type=Path, metavar="CSV", help="write the totals for an import into Canvas")
    add("--gradescope", type=Path, metavar="JSON", help="write results.json of the one notebook")
    add("--seconds", type=float, default=60.0, help="time limit of a cell (default: 60)")
    add("--memory", type=float, default=4.0, help="memory limit of a notebook in GiB, on Linux (default: 4)")
    add("--jobs", type=int, default=1, help="notebooks at a time (default: 1)")
    add("--package-calls", action="store_true", help="say which of the package's functions the answers call")
    add("--require", type=float, default=0.0, metavar="POINTS", help="exit with 1 if a notebook has fewer")
    return top


def submissions(paths: list[Path]) -> list[Path]:
    """All notebooks of some files and folders.

    Raises:
        SubmissionError: A path does not exist, or there is no notebook.
    """
    for path in paths:
        if not path.exists():
            raise SubmissionError(f"there is no {path}")
    found = [file for path in paths for file in (sorted(path.rglob("*.ipynb")) if path.is_dir() else [path])]
    found = [path for path in found if not any(part.startswith(".") and part != ".." for part in path.parts)]
    if not found:
        raise SubmissionError(f"no notebook in {', '.join(map(str, paths))}")
    return found


def check(given: argparse.Namespace) -> None:
    """Raise SubmissionError where an option means nothing, or a table has no place to go to."""
    for name, low in (("seconds", 0.0), ("memory", 0.0), ("require", -math.inf)):
        if not (low <= (value := getattr(given, name)) and math.isfinite(value)):
            raise SubmissionError(f"--{name} {value:g} is no number that goes")
    for name in ("csv", "canvas", "gradescope"):
        if (path := getattr(given, name)) and (path.is_dir() or not path.parent.is_dir()):
            raise SubmissionError(f"--{name} {path}: there is no folder {path.parent}, or it is one itself")


def main(argv: list[str] | None = None) -> int:
    """Grade, print, write; the exit status is 1 if a notebook could not be graded or has too few points."""
    given = parser().parse_args(argv)
    try:
        check(given)
        files, labs = submissions(given.files), labs_in(given.source)
        if given.gradescope and len(files) != 1:
            raise SubmissionError(f"--gradescope takes one notebook, and there are {len(files)}")
    except (NanoGRPOError, OSError) as error:
        sys.exit(f"error: {error}")
    options = Options(given.seconds, given.memory, given.package_calls)

    def one(path: Path) -> Graded:
        done = grade(path, labs, options)
        print(report.table([done]), flush=True)
        return done

    with ThreadPoolExecutor(max(1, min(given.jobs, os.cpu_count() or 1))) as pool:
        graded = list(pool.map(one, files))
    root = given.files[0] if given.files[0].is_dir() else given.files[0].parent
    if given.csv:
        report.write_csv(graded, given.csv, root)
    if given.canvas:
        report.write_canvas(graded, given.canvas, root)
    if given.gradescope:
        report.write_gradescope(graded[0], given.gradescope)
    print(f"{len(graded)} notebooks, {sum(one.points for one in graded):g} points in all")
    return int(any(one.error or one.points < given.require for one in graded))


if __name__ == "__main__":
    sys.exit(main())
