"""The lists and addresses that stand in more than one file agree."""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import yaml

if sys.version_info < (3, 11):
    pytest.skip("the book's tools need Python 3.11", allow_module_level=True)
import tomllib

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from execute import chapters  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
URL, BOOK = PROJECT["urls"]["Repository"], PROJECT["urls"]["Book"]
SLUG = URL.removeprefix("https://github.com/")
CHAPTERS = chapters(ROOT)
NO_CODE = {getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-")


PINS = dict(
    (name_of(line), line.split("==")[1].strip())
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def project_files() -> list[Path]:
    """Tracked text files, the sources of notebooks included."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    kinds = (".md", ".py", ".toml", ".yml", ".yaml", ".cff", ".ipynb", ".txt", ".cfg", ".js")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name.endswith(kinds) or name == "Makefile"]
    return [path for path in paths if path.exists()]


@pytest.mark.parametrize("extra", ["plot", "book", "test"])
def test_everything_the_book_needs_is_pinned(extra):
    missing = [r for r in EXTRAS[extra] if name_of(r) != "nanogrpo" and name_of(r) not in PINS]
    assert not missing, f"[{extra}] names {missing}, which constraints.txt does not pin"


def test_the_core_is_pinned_but_asks_for_little():
    assert {name_of(r) for r in PROJECT["dependencies"]} <= PINS.keys()
    pinned = [r for r in PROJECT["dependencies"] if re.search(r"==|~=|<", r)]
    assert not pinned, f"{pinned}: Colab's preinstalled packages must satisfy the core"
    assert "torch>=2.2" in PROJECT["dependencies"]


def test_the_pins_are_those_of_the_tested_stack():
    assert PINS["sphinx"].startswith("7."), "Jupyter Book 1 needs Sphinx 7"
    assert PINS["jupyter-book"].startswith("1.")
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in PINS.values()), (
        "one exact version a line"
    )


def test_this_environment_is_the_tested_one():
    from importlib.metadata import PackageNotFoundError, version

    wrong = {}
    for package, pin in PINS.items():
        try:
            found = version(package).split("+")[0]
        except PackageNotFoundError:
            continue
        if found != pin:
            wrong[package] = f"{found}, pinned {pin}"
    assert not wrong


def test_every_pin_takes_the_oldest_python_that_the_book_promises():
    """Debian 12 has 3.11.2, and some packages ask for a later patch."""
    from importlib.metadata import PackageNotFoundError, metadata

    from packaging.specifiers import SpecifierSet

    wrong = {}
    for package in PINS:
        try:
            asks = metadata(package)["Requires-Python"]
        except PackageNotFoundError:
            continue
        if asks and not SpecifierSet(asks).contains("3.11.0"):
            wrong[package] = asks
    assert not wrong


def test_conda_and_make_install_the_same():
    conda = yaml.safe_load(text_of(ROOT / "environment.yml"))["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    makefile = text_of(ROOT / "Makefile")
    installs = re.findall(r"pip install[^\n]*-c constraints\.txt -e '(\.\[[^']*\])'", makefile)
    assert installs, "the Makefile's install line was not found"
    assert pip == ["-c constraints.txt", f"-e {installs[0]}"]
    python = next(entry for entry in conda if str(entry).startswith("python="))
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= (3, 11)


def test_tools_of_pre_commit_are_those_of_lint():
    repos = yaml.safe_load(text_of(ROOT / ".pre-commit-config.yaml"))["repos"]
    for repo in repos:
        tool = "ruff" if "ruff" in repo["repo"] else "codespell"
        assert repo["rev"] == f"v{PINS[tool]}"


def test_versions_agree():
    import nanogrpo

    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert nanogrpo.__version__ == PROJECT["version"] == str(citation["version"])
    assert (citation["repository-code"], citation["url"]) == (URL, BOOK)


@pytest.mark.slow
def test_every_address_of_the_repository_is_the_same():
    """Addresses of other projects are welcome; those that end in this project's name must be this one's."""
    owner, host = SLUG.split("/")[0], BOOK.split("//")[1].split(".")[0]
    patterns = {
        r"(?:github\.com|colab[^\s\")]*/github)/([\w.-]+)/nanogrpo\b": owner,
        r"(?<![\w-])([\w-]+)\.github\.io/nanogrpo": host,  # or it begins anew at each letter of a picture
    }
    wrong = [
        (path.relative_to(ROOT).as_posix(), found)
        for path in project_files()
        for pattern, expected in patterns.items()
        for found in re.findall(pattern, text_of(path), re.IGNORECASE)
        if found != expected
    ]
    assert not wrong


def test_the_book_knows_its_addresses():
    config = yaml.safe_load(text_of(ROOT / "_config.yml"))
    assert config["repository"] == {"url": URL, "branch": "main", "path_to_book": ""}
    assert config["html"]["baseurl"] == BOOK == config["sphinx"]["config"]["ogp_site_url"]
    assert config["sphinx"]["config"]["notfound_urls_prefix"] == "/" + BOOK.split("/", 3)[3]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_a_colab_badge_that_points_to_its_colab_edition(path):
    cells = json.loads(text_of(path))["cells"]
    first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    here = (path.parent / "colab" / path.name).relative_to(ROOT).as_posix()
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    target = f"https://colab.research.google.com/github/{SLUG}/blob/main/{here}"
    assert f"[![Open in Colab]({badge})]({target})" in first, "the badge belongs below the chapter's title"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_installs_on_colab_from_the_repository(path):
    cells = json.loads(text_of(path))["cells"]
    code = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "google.colab" in code and f"git+{URL}" in code, "the first code cell sets up Colab"


def test_every_notebook_of_the_book_is_in_its_contents():
    found = {
        p
        for p in (ROOT / "book").rglob("*.ipynb")
        if not any(part.startswith((".", "_")) for part in p.parts)
    }
    others = {p for p in found if {"labs", "studies", "colab", "notebooks"} & set(p.parts)}
    assert found - others == set(CHAPTERS)


def test_the_readme_says_how_long_the_package_is():
    """Lines of code of the files directly in the package: no docstrings, comments and blank lines."""
    lines = 0
    for path in (ROOT / "nanogrpo").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        kept = set()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type not in NO_CODE:
                kept |= set(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                kept -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        lines += len(kept)
    [said] = re.findall(r"about ([\d,]+) lines", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert lines == pytest.approx(int(said.replace(",", "")), rel=0.05)
