"""The logs of studies: where to find them, and what was true of the machine that wrote them.

Logs are committed to the repository and no part of the package. Their checksums are, in ``study_logs.json``.
So an installed package fetches a log from the commit or the tag that it was made from, and takes no other
bytes. After a study has written new logs, ``python -m nanogrpo.show.studies`` renews the checksums.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

import pooch
import torch

from nanogrpo import __version__
from nanogrpo.errors import LogError, os_errors

STUDIES = Path(__file__).parents[2] / "book" / "studies"
CHECKSUMS = Path(__file__).with_name("study_logs.json")
ADDRESS = "https://raw.githubusercontent.com/asimkadav/nanogrpo/{ref}/book/studies/{name}"
KINDS = (".csv", ".json")  # what is a log


def study_log(name: str) -> Path:
    """A committed log by its name below ``book/studies``, such as ``"quickstart/results.csv"``.

    In a checkout it is the file that stands there, which a study may just have written anew. Elsewhere it is
    fetched once, from the commit that the package was installed from or else from the tag of its version,
    and compared with its checksum each time.

    Raises:
        LogError: there is no such log, or it cannot be had here, or what is there is another file.
    """
    checksums = json.loads(CHECKSUMS.read_text(encoding="utf-8"))
    known = isinstance(name, str) and (name in checksums or _is_log(name))
    if not known:
        close = get_close_matches(str(name), checksums, n=3, cutoff=0.4) or sorted(checksums)[:3]
        raise LogError(
            f"there is no study log {name!r:.80}; there are {len(checksums)}, such as {', '.join(close)}"
        )
    if _in_checkout():
        if not (STUDIES / name).is_file():
            raise LogError(f"{STUDIES / name} is missing from this checkout; get it by `git checkout`")
        return STUDIES / name
    return _fetch(name, checksums[name])


def _is_log(name: str) -> bool:
    """Whether a name is that of a log of this checkout, which may not have a checksum yet."""
    if "\0" in name or not name.endswith(KINDS) or not _in_checkout():
        return False
    try:
        path = (STUDIES / name).resolve()
        return path.is_relative_to(STUDIES.resolve()) and path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _fetch(name: str, sha256: str) -> Path:
    address = ADDRESS.format(ref=_installed_commit() or f"v{__version__}", name=name)
    try:
        folder = pooch.os_cache("nanogrpo") / "studies"
        return Path(pooch.retrieve(address, f"sha256:{sha256}", f"{sha256[:12]}-{Path(name).name}", folder))
    except (OSError, ValueError) as error:  # no network, or a file that is not the one that we know
        raise LogError(
            f"cannot fetch the study log {name} from {address}: {error}. Without a network, run this in a "
            "checkout of the repository, which holds all logs"
        ) from error


def logs(folder: Path) -> dict[str, str]:
    """The logs below a folder and their SHA-256, by name; what a study keeps in ``runs`` is none."""
    paths = sorted(
        p for p in folder.rglob("*") if p.suffix in KINDS and "runs" not in p.parts and p.is_file()
    )
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def renew() -> None:
    """Write the checksums of all logs of this checkout, to be committed with them.

    Raises:
        LogError: this is no checkout, or the file cannot be written.
    """
    if not _in_checkout():
        raise LogError(f"{STUDIES} is not there: checksums are renewed in a checkout of the repository")
    with os_errors(LogError, f"write {CHECKSUMS}", "choose a checkout you may write to"):
        CHECKSUMS.write_text(json.dumps(logs(STUDIES), indent=0) + "\n", encoding="utf-8")


def environment() -> dict[str, str | int]:
    """Commit, versions and hardware, without any name or path of the machine.

    The commit is that of the package: of its checkout, or the one that pip installed it from. Where neither
    is known, as for a wheel, it is ``"unknown"``, whatever repository lies around it.
    """
    return {
        "commit": _commit(),
        "nanogrpo": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _in_checkout() -> bool:
    """Whether this file lies in the project's own tree, and not in one that somebody has put it into."""
    try:
        project = (STUDIES.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return STUDIES.is_dir() and bool(re.search(r'(?m)^name\s*=\s*"nanogrpo"', project))


def _commit() -> str:
    if not _in_checkout():
        return _installed_commit()[:12] or "unknown"
    root = _git("rev-parse", "--show-toplevel")
    if not root or Path(root).resolve() != STUDIES.parents[1].resolve():
        return "unknown"  # unpacked, or copied, into another repository
    return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or "unknown"


def _git(*command: str) -> str:
    """What git says of this tree; nothing where there is no git, or no repository that it trusts."""
    # GIT_DIR and its kin, which git sets for its hooks, would point to another repository.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(
            ["git", *command], capture_output=True, text=True, cwd=STUDIES, env=own, timeout=60
        ).stdout.strip()
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""


def _installed_commit() -> str:
    """The commit that pip has noted for a package that it took from a repository; else nothing."""
    try:
        package = metadata.distribution("nanogrpo")
        if not Path(str(package.locate_file("nanogrpo"))).samefile(Path(__file__).parents[1]):
            return ""  # another copy is installed than the one that runs
        noted = json.loads(package.read_text("direct_url.json") or "{}")
        commit = noted.get("vcs_info", {}).get("commit_id", "")
        return commit if re.fullmatch("[0-9a-f]{40}", commit) else ""
    except (metadata.PackageNotFoundError, OSError, ValueError, AttributeError, TypeError):
        return ""


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, ValueError, IndexError):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    renew()
