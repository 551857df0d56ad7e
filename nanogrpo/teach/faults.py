"""The command that plants the faults of :mod:`nanogrpo.teach.collection` and shows which test finds each.

    python -m nanogrpo.teach.faults            plant each in a copy, run its tests, print who caught it
    python -m nanogrpo.teach.faults --list     what each one does, and how it shows in training
    python -m nanogrpo.teach.faults k3 k1      only those whose name contains one of these words

Your files are never changed: a fault is planted in a temporary copy of the package, and the tests run there.
A fault that no test catches, or whose text is no longer in the package, makes the command fail.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from nanogrpo.errors import FaultError
from nanogrpo.teach.collection import FAULTS, Fault, planted

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Verdict:
    """What the tests said about a planted fault; ``caught_by`` is empty if nobody noticed."""

    fault: Fault
    caught_by: str
    message: str


def examine(fault: Fault, root: Path = ROOT) -> Verdict:
    """Plant a fault in a copy of package and tests, and run the test file that should catch it.

    Raises:
        FaultError: The fault cannot be planted, the tests are not there, or they could not be run.
    """
    if not (root / "tests" / fault.tests).is_file():
        raise FaultError(f"no tests/{fault.tests} in {root}; run this from a checkout of the repository")
    with tempfile.TemporaryDirectory() as folder:
        copy, report = Path(folder), Path(folder) / "report.xml"
        shutil.copytree(root / "nanogrpo", copy / "nanogrpo", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(root / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(root / "pyproject.toml", copy)
        victim = copy / "nanogrpo" / fault.file
        victim.write_text(planted(victim.read_text(encoding="utf-8"), fault), encoding="utf-8")
        settings = {
            "PYTHONPATH": folder,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # none is needed, and loading them doubles the time
            "OMP_NUM_THREADS": "1",
        }
        run = subprocess.run(
            [sys.executable, "-c", _RUN, folder, f"tests/{fault.tests}", f"--junitxml={report}"],
            cwd=copy,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
        )
        if run.returncode not in (0, 1):
            raise FaultError(
                f"fault {fault.name!r}: pytest could not run\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
            )
        return _verdict(fault, report)


# Checks first that the copy is what will be tested, and not the installed package.
_RUN = """
import sys, nanogrpo, pytest
assert nanogrpo.__file__.startswith(sys.argv[1]), f"testing {nanogrpo.__file__}, not the copy"
sys.exit(pytest.main([sys.argv[2], "-x", "-q", "-p", "no:cacheprovider", sys.argv[3]]))
"""


def _verdict(fault: Fault, report: Path) -> Verdict:
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
            return Verdict(fault, case.get("name", "?").split("[")[0], message.strip())
    return Verdict(fault, "", "NOT CAUGHT")


def examine_all(faults: Sequence[Fault] = FAULTS) -> list[Verdict]:
    """Examine some faults, as many at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(examine, faults))


def table(verdicts: Sequence[Verdict]) -> str:
    """Three columns as text: fault, caught by, message."""
    widths = (24, 40, 48)

    def row(*cells: str) -> str:
        wrapped = [textwrap.wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
        lines = zip_longest(*wrapped, fillvalue="")
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in lines)

    rows = [row("fault", "caught by", "message") + "\n" + row(*("-" * width for width in widths))]
    for v in verdicts:
        name = v.caught_by.removeprefix("test_").replace("_", " ")  # spaces, so that the cell can wrap
        rows.append(row(v.fault.name, f"{v.fault.tests}: {name}" if name else "nobody", v.message))
    return "\n\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if every fault was caught."""
    parser = argparse.ArgumentParser(
        prog="python -m nanogrpo.teach.faults", description=__doc__.split("\n")[0]
    )
    parser.add_argument("words", nargs="*", help="only faults whose name contains one of these words")
    parser.add_argument("--list", action="store_true", help="describe the faults and run nothing")
    options = parser.parse_args(arguments)
    chosen = [
        f for f in FAULTS if not options.words or any(w.lower() in f.name.lower() for w in options.words)
    ]
    if not chosen:
        parser.error(f"no fault is named like {' or '.join(options.words)}; see --list")
    if options.list:
        for fault in chosen:
            print(f"{fault.name} ({fault.file})\n  does:  {fault.effect}\n  shows: {fault.symptom}\n")
        return 0
    print(f"Planting {len(chosen)} faults, one by one, each in a copy of its own ...\n")
    verdicts = examine_all(chosen)
    missed = [v.fault.name for v in verdicts if not v.caught_by]
    print(table(verdicts))
    print(
        f"\n{len(chosen) - len(missed)} of {len(chosen)} caught."
        + (f" MISSED: {', '.join(missed)}" * bool(missed))
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
