"""The core's tests with other Pythons and versions: `make test-versions`, or ONLY=3.12 for one of them.

Each row below gets an environment in _build/versions, with the package, its plots, pandas and pytest, and
nothing of the book. The tests are those that import no more than that. What this machine cannot bring (a
Python, or packages for it) is said in one line and is no failure; a failed test is. On Linux torch takes
gigabytes, unless TORCH_INDEX=https://download.pytorch.org/whl/cpu is given.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "_build" / "versions"
# name: (Pythons, the first that is here counts; what is pinned). Without a pin, pip takes the newest.
ROWS = {
    "oldest": (("3.10", "3.11"), ["torch==2.2.*", "numpy==1.26.*"]),
    **{minor: ((minor,), []) for minor in ("3.11", "3.12", "3.13", "3.14")},
}
TOOLS = {"pytest", "pytest-xdist", "hypothesis", "pandas"}
# What a test may import: the standard library, these, the package but for what is named below, other helpers.
ALLOWED = (
    set("torch numpy safetensors tqdm pooch matplotlib scipy pandas pytest hypothesis".split())
    | sys.stdlib_module_names - {"tomllib"}  # which Python 3.10 lacks
)
WIDGETS = ("nanogrpo.show.widgets", "nanogrpo.show.dashboard", "nanogrpo.show.live")
BOOK = (*WIDGETS, "nanogrpo.teach.museum.__main__")


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it; of the package by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_core(path: Path) -> bool:
    """Whether a test file needs nothing of the book."""
    for name in imports(path):
        top = name.split(".")[0]
        helper = path.parent / f"{top}.py"
        if top == "nanogrpo":
            if name.startswith(BOOK):
                return False
        elif helper.exists():
            if not is_core(helper):
                return False
        elif top not in ALLOWED:
            return False
    return True


def core_tests() -> list[str]:
    """Those of chapters and studies run the book's code, whatever they import."""
    names = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if is_core(path)]
    return [f"tests/{path.name}" for path in names if not re.search("chapter|study|corpus", path.name)]


def find_python(minors: tuple[str, ...]) -> str | None:
    """An interpreter of one of these versions, on PATH or among pyenv's; it must really start."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in minors:
        places = [shutil.which(f"python{minor}"), *map(str, pyenv.glob(f"{minor}.*/bin/python"))]
        for python in filter(None, places):
            asked = [python, "-c", "import ensurepip, sys; print(sys.version)"]
            if subprocess.run(asked, capture_output=True, text=True).stdout.startswith(f"{minor}."):
                return python
    return None


def build(name: str, python: str, pins: list[str]) -> Path | None:
    """The environment of a row, made once; None if its packages cannot be had."""
    folder = PLACE / name
    inside = folder / "bin" / "python"
    if (folder / "complete").exists():
        return inside
    index = os.environ.get("TORCH_INDEX")
    torch = [pin for pin in pins if pin.startswith("torch")] or ["torch"]
    pip = [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    commands = [
        [python, "-m", "venv", "--clear", folder],
        [*pip, *(["--index-url", index] if index else []), *torch],
        [*pip, *pins, *sorted(TOOLS), "-e", f"{ROOT}[plot]"],
    ]
    for command in commands:
        if subprocess.run(command).returncode:
            return None
    (folder / "complete").touch()
    return inside


VERSIONS = """import platform, numpy, pandas, torch
print(f"Python {platform.python_version()}, torch {torch.__version__}, "
      f"numpy {numpy.__version__}, pandas {pandas.__version__}")"""


def main(only: list[str]) -> int:
    unknown = set(only) - ROWS.keys()
    if unknown:
        sys.exit(f"there is no row {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    report, failed = [], False
    for name in only or ROWS:
        minors, pins = ROWS[name]
        python = find_python(minors)
        inside = python and build(name, python, pins)
        if not inside:
            lacks = f"Python {' or '.join(minors)}" if python is None else "its packages"
            report.append(f"{name}: not run, this machine could not bring {lacks}")
            continue
        asked = [inside, "-c", VERSIONS]
        versions = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT).stdout.strip()
        print(f"{name}: {versions}", flush=True)
        options = ["-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", *core_tests()]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.run([inside, "-m", "pytest", *options], cwd=ROOT, env=environment).returncode
        failed |= code != 0
        report.append(f"{name}: {'FAILED' if code else 'passed'}, {versions}")
    print("\n".join(report))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
