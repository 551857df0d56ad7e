"""What the quickstart's text says of its seeds holds in the committed logs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pooch
import pytest
import requests

from nanogrpo.errors import LogError
from nanogrpo.metrics import read_csv
from nanogrpo.show import studies
from nanogrpo.show.studies import STUDIES, environment, study_log

FOLDER = STUDIES / "quickstart"
DEFAULT, LARGE = 3e-4, 1e-3
RETRIEVE = pooch.retrieve


def runs(rate):
    results = read_csv(study_log("quickstart/results.csv"))
    rows = [dict(zip(results, values, strict=True)) for values in zip(*results.values(), strict=True)]
    return [row for row in rows if row["learning_rate"] == rate]


def test_five_seeds_start_half_right_and_gain_thirty_points():
    assert [row["seed"] for row in runs(DEFAULT)] == [0, 1, 2, 3, 4]
    for row in runs(DEFAULT):
        assert 0.2 <= row["accuracy after SFT"] <= 0.6
        assert row["accuracy after GRPO"] >= row["accuracy after SFT"] + 0.3


def test_at_the_large_learning_rate_every_run_falls_and_none_catches_up():
    assert len(runs(LARGE)) == 5
    for row in runs(LARGE):
        first = read_csv(FOLDER / f"seed{row['seed']:.0f}-lr{LARGE:g}.csv")["reward"][:50]
        assert min(sum(first[i : i + 10]) / 10 for i in range(41)) < row["accuracy after SFT"] / 1.5
        assert row["accuracy after GRPO"] < min(good["accuracy after GRPO"] for good in runs(DEFAULT))


@pytest.mark.parametrize("rate", [DEFAULT, LARGE])
def test_every_run_left_a_whole_log_that_agrees_with_its_row(rate):
    for row in runs(rate):
        log = read_csv(FOLDER / f"seed{row['seed']:.0f}-lr{rate:g}.csv")
        assert log["step"] == list(range(1, 201)) and row["grpo_steps"] == 200
        assert log["num_tokens"][-1] == row["num_tokens"]


def test_the_log_says_what_made_it():
    made = json.loads((FOLDER / "environment.json").read_text())
    assert made.keys() == environment().keys()
    assert "dirty" not in made["commit"] and made["processor"] and made["torch"]


def test_the_environment_does_not_depend_on_the_shell(monkeypatch, tmp_path):
    here = environment()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    for name in ("HOME", "USER", "LANG", "LC_ALL", "TERM", "SHELL"):
        monkeypatch.delenv(name, raising=False)
    assert environment() == here


def test_without_git_or_a_checkout_the_commit_is_unknown(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert environment()["commit"] == "unknown"
    monkeypatch.setattr(studies, "STUDIES", tmp_path / "book" / "studies")
    assert environment()["commit"] == "unknown", "of a wheel, whatever repository it lies in"


# --- where a log comes from, and which commit made it


def test_the_checksums_are_those_of_the_committed_logs():
    """After a study has written new logs: python -m nanogrpo.show.studies"""
    listed = subprocess.run(["git", "ls-files", "-z", "."], cwd=STUDIES, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = {name for name in listed.stdout.split("\0") if name.endswith(studies.KINDS)}
    checksums = json.loads(studies.CHECKSUMS.read_text())
    assert tracked == checksums.keys()
    assert {name: sha for name, sha in studies.logs(STUDIES).items() if name in tracked} == checksums


@pytest.mark.parametrize(
    "name",
    ["", ".", "quickstart", "quickstart/none.csv", "quickstart/run.py", "/etc/passwd", "../../README.md",
     "quickstart/../../../pyproject.toml", "..\\x.csv", "quickstart/results.csv\0", None, 3, b"x", "é.csv"],
)  # fmt: skip
def test_a_log_that_is_none_is_named_and_so_are_those_that_are_like_it(name):
    with pytest.raises(LogError, match="there is no study log"):
        study_log(name)
    with pytest.raises(LogError, match="such as quickstart/results.csv"):
        study_log("quickstart/result.csv")


def test_a_log_that_a_study_has_just_written_is_found(tmp_path, monkeypatch):
    root = tmp_path / "clone"
    (root / "book" / "studies" / "new").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project]\nname = "nanogrpo"\n')
    (root / "book" / "studies" / "new" / "log.csv").write_text("step\n1\n")
    monkeypatch.setattr(studies, "STUDIES", root / "book" / "studies")
    assert read_csv(study_log("new/log.csv")) == {"step": [1]}
    with pytest.raises(LogError, match="git checkout"):
        study_log("quickstart/results.csv")


GIT = (
    "git",
    "-c",
    "user.name=Student",
    "-c",
    "user.email=student@example.org",
    "-c",
    "init.defaultBranch=main",
)
MADE = """import json
from nanogrpo.show import studies
made = studies.environment()
print(json.dumps([made["commit"], studies._in_checkout(), studies._installed_commit()]))"""


def git(folder, *command):
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    return subprocess.run(
        [*GIT, *command], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


TORCH = """__version__ = "0"
get_num_threads = lambda: 1
class cuda: is_available = lambda: False
"""


def copy_of_package(folder):
    """What this module needs of the package, in another place."""
    source = Path(studies.__file__).parents[1]
    for name in ("__init__.py", "errors.py", "show/__init__.py", "show/studies.py", "show/study_logs.json"):
        (folder / "nanogrpo" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, folder / "nanogrpo" / name)
    (folder / "torch.py").write_text(TORCH)  # the real one takes seconds to load
    (folder / "pooch.py").write_text("")
    return folder


def made_in(folder, code=MADE, **environ):
    env = {**os.environ, "PYTHONPATH": str(folder), **environ}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def student(tmp_path):
    """A student's repository with one commit."""
    root = tmp_path / "student"
    (root / "book" / "studies").mkdir(parents=True)
    (root / "book" / "studies" / "own.csv").write_text("step\n1\n")
    (root / "pyproject.toml").write_text('[project]\nname = "homework"\n')
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "mine")
    return root


@pytest.mark.parametrize("place", ["venv/lib/site-packages", "."])
@pytest.mark.parametrize("tracked", [False, True])
def test_inside_another_repository_the_commit_is_not_that_of_the_repository(student, place, tracked):
    """Installed into an environment there, put beside the homework, and committed with it."""
    copy_of_package(student / place)
    if tracked:
        git(student, "add", "-A", "-f")
        git(student, "commit", "-q", "-m", "all")
    assert made_in(student / place) == ["unknown", False, ""]


def test_an_unpacked_copy_inside_another_repository_has_no_commit_either(student):
    copy_of_package(student / "nanogrpo-0.1.0")
    shutil.copytree(student / "book", student / "nanogrpo-0.1.0" / "book")
    (student / "nanogrpo-0.1.0" / "pyproject.toml").write_text('[project]\nname = "nanogrpo"\n')
    git(student, "add", "-A")
    git(student, "commit", "-q", "-m", "all")
    assert made_in(student / "nanogrpo-0.1.0") == ["unknown", True, ""]


def test_a_clone_has_its_own_commit_also_inside_another_repository(student):
    clone = student / "clone"
    copy_of_package(clone)
    shutil.copytree(student / "book", clone / "book")
    (clone / "pyproject.toml").write_text('[project]\nname = "nanogrpo"\n')
    git(student, "init", "-q", str(clone))
    assert made_in(clone)[0] == "unknown", "before its first commit"
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "theirs")
    commit = git(clone, "rev-parse", "HEAD")[:12]
    assert made_in(clone) == [commit, True, ""]
    assert made_in(clone, GIT_DIR=str(student / ".git"), GIT_WORK_TREE=str(student))[0] == commit
    assert made_in(clone, PATH="")[0] == "unknown", "without git"
    (clone / "pyproject.toml").write_text('[project]\nname = "nanogrpo"\nversion = "1"\n')
    assert made_in(clone)[0] == f"{commit}-dirty"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noted", "commit"),
    [
        ({"url": "https://github.com/x/y", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}}, "a" * 40),
        ({"url": "file:///x.whl", "archive_info": {}}, ""),
        ({"vcs_info": {"vcs": "git", "commit_id": "main; rm -rf"}}, ""),
        ([], ""),
        ("not JSON", ""),
        (None, ""),
    ],
)
def test_a_package_installed_from_a_repository_knows_its_commit(student, noted, commit):
    """As on Colab; what pip has noted of it decides, and no repository around it."""
    site = copy_of_package(student / "site-packages")
    info = site / "nanogrpo-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nanogrpo\nVersion: 0.1.0\n")
    if noted is not None:
        (info / "direct_url.json").write_text(noted if isinstance(noted, str) else json.dumps(noted))
    assert made_in(site) == [commit[:12] or "unknown", False, commit]


class Server:
    """Hands out bytes where the network would, or fails as it does."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def retrieve(self, url, known_hash, fname, path):
        self.asked.append((url, known_hash))
        return RETRIEVE(url, known_hash, fname, path, downloader=self.download)

    def download(self, url, file, pooch):
        if isinstance(self.answer, Exception):
            raise self.answer
        Path(file).write_bytes(self.answer)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package as it is without a checkout."""
    monkeypatch.setattr(studies, "STUDIES", tmp_path / "lib" / "book" / "studies")
    monkeypatch.setattr(studies.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return monkeypatch


def serve(patch, answer):
    server = Server(answer)
    patch.setattr(studies.pooch, "retrieve", server.retrieve)
    return server


LOG = (STUDIES / "quickstart" / "results.csv").read_bytes() if STUDIES.is_dir() else b""


def test_without_a_checkout_a_log_comes_from_its_tag_and_only_as_it_is(installed):
    server = serve(installed, LOG)
    path = study_log("quickstart/results.csv")
    assert path.read_bytes() == LOG
    ((url, known),) = server.asked
    assert "/v0.1.0/book/studies/quickstart/results.csv" in url and "/main/" not in url
    assert known.startswith("sha256:") and len(known) == 71
    server.answer = OSError("no network")
    assert study_log("quickstart/results.csv") == path, "fetched once, it needs no network"
    path.write_bytes(LOG[:-10])
    with pytest.raises(LogError, match="no network"):
        study_log("quickstart/results.csv")


def test_where_pip_noted_a_commit_the_log_comes_from_that(installed):
    installed.setattr(studies, "_installed_commit", lambda: "b" * 40)
    server = serve(installed, LOG)
    study_log("quickstart/results.csv")
    assert f"/{'b' * 40}/book/studies/" in server.asked[0][0]


@pytest.mark.parametrize(
    "answer",
    [
        b"404: Not Found",
        LOG + b"\n",
        OSError("no network"),
        requests.exceptions.ConnectionError("Max retries exceeded"),
        requests.exceptions.HTTPError("404 Client Error"),
        requests.exceptions.Timeout("timed out"),
        PermissionError("read-only"),
    ],
    ids=lambda a: f"{a!r:.30}",
)
def test_what_cannot_be_fetched_or_is_another_file_is_a_typed_error(installed, answer):
    serve(installed, answer)
    with pytest.raises(LogError, match="cannot fetch the study log quickstart/results.csv .* checkout"):
        study_log("quickstart/results.csv")
    with pytest.raises(LogError, match="there is no study log"):
        study_log("quickstart/own.csv")
    with pytest.raises(LogError, match="renewed in a checkout"):
        studies.renew()


def test_the_landing_page_tells_what_the_log_holds():
    rows = runs(DEFAULT)
    before, after = (
        sum(row[f"accuracy after {which}"] for row in rows) / len(rows) for which in ("SFT", "GRPO")
    )
    page = " ".join((STUDIES.parent / "intro.md").read_text(encoding="utf-8").split())
    assert f"from {before:.0%} to {after:.0%}, the mean".replace("%", " %") in page
    assert (
        len(rows) == 5 and {row["grpo_steps"] for row in rows} == {200} and "five seeds, in 200 steps" in page
    )
