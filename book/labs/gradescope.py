"""An autograder for Gradescope: `python book/labs/gradescope.py lab1` writes the archive to upload.

    _build/labs/gradescope/lab1.zip     setup.sh, run_autograder, the lab's source with its hidden tests

Gradescope runs setup.sh once, when the archive is uploaded, and run_autograder for each submission: it looks
for the notebook in /autograder/submission and writes /autograder/results/results.json. With `--source FOLDER`
the source is that of a course of your own, from `make course`.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

import tomllib

LABS = Path(__file__).resolve().parent
ROOT = LABS.parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE = f"nanogrpo[grade] @ git+{PROJECT['urls']['Repository']}@v{PROJECT['version']}"
SETUP = f"""#!/usr/bin/env bash
set -euo pipefail
apt-get update -qq && apt-get install -y -qq git python3-venv
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install -q torch --index-url https://download.pytorch.org/whl/cpu
/autograder/venv/bin/pip install -q "{PACKAGE}" matplotlib
"""
# PYTHON and AUTOGRADER can be set to try it elsewhere.
RUN = """#!/usr/bin/env bash
here=${AUTOGRADER:-/autograder}
python=${PYTHON:-$here/venv/bin/python}
mkdir -p "$here/results"
notebook=$(find "$here/submission" -name '*.ipynb' -not -path '*/.*' | head -n 1)
"$python" -m nanogrpo.teach.grade "${notebook:-$here/submission/lab.ipynb}" \\
  --source "$here/source/lab.ipynb" --gradescope "$here/results/results.json" && exit 0
[ -s "$here/results/results.json" ] ||
  echo '{"score": 0, "output": "No notebook could be graded. Hand in one file that ends in .ipynb."}' \\
    > "$here/results/results.json"
"""


def write(lab: str, source: Path, target: Path) -> None:
    """Write the archive of one lab."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {"setup.sh": SETUP, "run_autograder": RUN}.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, text)
        archive.write(source / lab / f"{lab}.ipynb", "source/lab.ipynb")
    print(target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labs", nargs="+", help="such as lab1")
    parser.add_argument("--source", type=Path, default=LABS / "source", help="a folder of sources")
    given = parser.parse_args()
    for lab in given.labs:
        write(lab, given.source, ROOT / "_build" / "labs" / "gradescope" / f"{lab}.zip")
    return 0


if __name__ == "__main__":
    sys.exit(main())
