"""Bring what pages need in from npm, so that the rendered book asks no other site for anything.

That is MathJax, which typesets formulas while the book is built (formulas.py), and the widget manager.

    python book/_ext/vendor.py

They land in book/_static/vendor, which git ignores: third-party code is never committed. Each package is
pinned by version and checksum. Without npm or a network the build still passes; the pages then load the same
scripts from their public CDNs, and this script says so.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

TARGET = Path(__file__).resolve().parents[1] / "_static" / "vendor"
FALLBACK = "the rendered pages will load MathJax and the widget manager from their CDNs"

# folder: (package, sha512 of its tarball, what is taken out of it)
PACKAGES = {
    "mathjax": (
        "mathjax@3.2.2",
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        r"LICENSE|es5/(node-main|input/tex-base|input/tex/extensions/(ams|newcommand|boldsymbol)|output/chtml"
        r"|output/chtml/fonts/tex|adaptors/liteDOM|a11y/assistive-mml)\.js|es5/output/chtml/fonts/woff-v2/.*",
    ),
    "requirejs": (
        "requirejs@2.3.8",
        "7/cTSLOdYkNBNJcDMWf+luFvMriVm7eYxp4BcFCsAX0wF421Vyce5SXP17c+Jd5otXKGNehIonFlyQXSowL6Mw==",
        r"require\.js|README\.md",
    ),
    "html-manager": (
        "@jupyter-widgets/html-manager@1.0.15",
        "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        r"package\.json|dist/(embed-amd\.js(\.LICENSE\.txt)?|[0-9a-f]+\.(svg|woff2?))",
    ),
}


def wanted(member: str, pattern: str) -> str | None:
    """The path under the package's folder at which a member of the tarball is kept, or None."""
    inside = PurePosixPath(*PurePosixPath(member).parts[1:])
    if ".." in inside.parts or not re.fullmatch(pattern, str(inside)):
        return None
    return re.sub(r"^(es5|dist)/", "", str(inside))


def fetch(package: str, sha512: str, into: Path) -> Path:
    """Download one package with npm's own client and check what came."""
    options = ["--silent", "--fetch-retries=1", "--fetch-timeout=20000", "--pack-destination", str(into)]
    done = subprocess.run(["npm", "pack", package, *options], capture_output=True, text=True, timeout=180)
    if done.returncode:
        raise OSError(f"npm pack {package} failed: {done.stderr.strip()[:200] or 'no message'}")
    tarball = into / done.stdout.strip().splitlines()[-1]
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if digest != sha512:
        raise ValueError(f"{package}: the checksum is {digest}, expected {sha512}")
    return tarball


def unpack(tarball: Path, pattern: str, folder: Path) -> None:
    with tarfile.open(tarball) as archive:
        for member in archive.getmembers():
            name = wanted(member.name, pattern) if member.isfile() else None
            if name:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(archive.extractfile(member).read())


def main() -> int:
    stamp = TARGET / "versions.txt"
    versions = "".join(f"{package} {pattern}\n" for package, _, pattern in PACKAGES.values())
    if stamp.exists() and stamp.read_text() == versions:
        return 0
    shutil.rmtree(TARGET, ignore_errors=True)
    if shutil.which("npm") is None:
        print(f"npm is not installed: {FALLBACK}")
        return 0
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for name, (package, sha512, pattern) in PACKAGES.items():
                print(f"Bringing in {package} ...", flush=True)
                unpack(fetch(package, sha512, Path(scratch)), pattern, TARGET / name)
        stamp.write_text(versions)
    except (OSError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(TARGET, ignore_errors=True)
        print(f"{error}\n{FALLBACK}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
