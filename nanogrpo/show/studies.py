"""The logs of studies: where to find them, and what was true of the machine that wrote them."""

import os
import platform
import subprocess
from pathlib import Path

import pooch
import torch

from nanogrpo import __version__

STUDIES = Path(__file__).parents[2] / "book" / "studies"
ADDRESS = "https://raw.githubusercontent.com/asimkadav/nanogrpo/main/book/studies/"


def study_log(name: str) -> Path:
    """A committed log by its name below ``book/studies``: from the checkout, or else from the repository."""
    local = STUDIES / name
    return local if local.exists() else Path(pooch.retrieve(ADDRESS + name, known_hash=None))


def environment() -> dict[str, str | int]:
    """Commit, versions and hardware, without any name or path of the machine."""
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


def _commit() -> str:
    """The commit of this checkout. Installed elsewhere there is none: a repository around it is another's."""
    if not STUDIES.is_dir():
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    # GIT_DIR and its kin, which git sets for its hooks, would point to another repository.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=STUDIES, env=own)
    except OSError:  # no git
        return "unknown"
    return result.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
