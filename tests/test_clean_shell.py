"""Every block of commands in README and teacher's guide, as written, in a clean shell and a fresh clone.

The shell knows HOME and PATH, nothing else. Each block starts in the clone, with what those before it left
there. Three things are not as a reader has them:

- The repository's address leads to a copy of the files as they are here; git's own ``insteadOf`` does that.
- HOME has this machine's settings and cache of pip, and pins the build of torch that is installed here: no
  test downloads gigabytes of another one.
- ``make test`` runs a few tests only, by its variable PYTEST_ARGS. All of them would start this one again.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
URL = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
SYSTEM = "/usr/bin:/bin"
# A word of a block -> what it must leave behind in the clone.
LEAVES = {
    "git clone": "_build/html/index.html",
    "demo": "trial/bin/pip",
    "ppo --model": "runs/ppo/*.safetensors",
    "make labs": "_build/labs/solution/lab1.ipynb",
    "make slides": "_build/slides/*.html",
    "nbgrader autograde": "course/feedback/ada/lab1/*.html",
    "make grade": "canvas.csv",
    "test_lab.py": "book/labs/test_lab.py",
}


def blocks() -> list[tuple[str, str]]:
    """(file, commands) of each block, in the order in which a reader meets them."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "book/labs/guide.md")}
    fence = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(name, block) for name, text in texts.items() for block in fence.findall(text)]


def quiet(text: str) -> str:
    """Without pip's warnings, which hide what came after them."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("WARNING: "))


class Desk:
    """A home and a folder to work in; commands run there in a clean shell."""

    def __init__(self, folder: Path):
        self.home, self.folder = folder / "home", folder
        self.home.mkdir()

    def run(self, commands: str, where: Path | None = None, **more: str) -> subprocess.CompletedProcess:
        variables = [f"{name}={value}" for name, value in {"HOME": self.home, "PATH": SYSTEM, **more}.items()]
        shell = ["bash", "-euo", "pipefail", "-c", commands]
        clean = ["/usr/bin/env", "-i", *variables, *shell]
        return subprocess.run(clean, cwd=where or self.folder, capture_output=True, text=True)


def copy_of_the_repository(folder: Path) -> None:
    """A repository with one commit: the files as they are here, whether they are committed or not."""
    git = ["git", "-c", "user.name=a reader", "-c", "user.email=reader@example.org"]
    listed = subprocess.run([*git, "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("package: this is no git checkout, so there is nothing to clone")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "The files as they are"]):
        subprocess.run([*git, *command], cwd=folder, check=True, capture_output=True)


def settings_of_pip(home: Path) -> str:
    """What pip is told here, by files and variables, as one file; and which build of torch to take."""

    def pip(*arguments):
        command = [sys.executable, "-m", "pip", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (home / "torch.txt").write_text(f"torch=={version('torch')}\n")
    told = {"constraint": [str(home / "torch.txt")], "cache-dir": [pip("cache", "dir")]}
    if index := os.environ.get("TORCH_INDEX"):
        told["extra-index-url"] = [index]
    for line in pip("config", "list").splitlines():
        name, value = line.split("=", 1)
        known = told.setdefault(name.rsplit(".", 1)[1], [])
        known += [word for word in ast.literal_eval(value).split() if word not in known]
    return "[global]\n" + "".join(f"{key} = {' '.join(words)}\n" for key, words in told.items())


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    if os.environ.get("FOREIGN_SEED"):
        pytest.skip("foreign: a clean shell drops the mode's variables; `make test` runs these")
    desk = Desk(tmp_path_factory.mktemp("desk"))
    asked = "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))"
    if desk.run(f"command -v git make && python3 -c '{asked}'").returncode:
        pytest.skip(f"package: no git, make and python3 >= 3.11 with venv in {SYSTEM}, for a clean shell")
    copy_of_the_repository(desk.folder / "origin")
    (desk.home / ".gitconfig").write_text(
        f'[url "{desk.folder}/origin"]\n\tinsteadOf = {URL}.git\n\tinsteadOf = {URL}\n'
    )
    (desk.home / ".config" / "pip").mkdir(parents=True)
    (desk.home / ".config" / "pip" / "pip.conf").write_text(settings_of_pip(desk.home))
    probe = f"{sys.executable} -m pip download -q --no-deps --retries 0 --timeout 30 -d probe iniconfig"
    if (done := desk.run(probe)).returncode:
        pytest.skip(f"package: no package index, which a fresh clone installs from: {done.stderr[-200:]}")
    yield desk
    shutil.rmtree(desk.folder)  # gigabytes


def test_every_block_is_found_and_known():
    found = blocks()
    assert len(found) == sum((ROOT / name).read_text().count("\n```bash\n") for name in {n for n, _ in found})
    for word in LEAVES:
        assert sum(word in block for _, block in found) == 1, word


@pytest.mark.thorough
@pytest.mark.parametrize("number", range(len(blocks())))
def test_a_block_runs_as_it_is_written(desk, number):
    name, block = blocks()[number]
    clone = desk.folder / "nanogrpo"
    first = "git clone" in block
    if not first and not (clone / ".venv" / "bin" / "nbgrader").exists():
        pytest.fail("the first block did not build the environment")  # it says why
    done = desk.run(block, desk.folder if first else clone, PYTEST_ARGS="-k test_tokenizer")
    assert done.returncode == 0, f"{name}:\n{block}\n{done.stdout[-3000:]}\n{quiet(done.stderr)[-3000:]}"
    for word, left in LEAVES.items():
        assert word not in block or list(clone.glob(left)), f"{block}\nleft no {left}"
    if "nbgrader autograde" in block:
        header, row = (clone / "course" / "grades.csv").read_text().strip().splitlines()
        grades = dict(zip(header.split(","), row.split(","), strict=True))
        assert (grades["student_id"], grades["score"], grades["max_score"]) == ("ada", "80.0", "100.0")
