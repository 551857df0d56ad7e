"""Without tiny Shakespeare: what needs it, and only that, is skipped or kept, with one line, counted last."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="package: those of the book are not installed")
pytest.importorskip("nbval", reason="package: nbval is not installed")

ROOT = Path(__file__).resolve().parents[1]
HERE = os.environ.get("NANOGRPO_DATA", "")  # before the desk hides it
LINE = r"corpus: tiny Shakespeare is not .*; save https://\S+ as FOLDER/\S+ and set NANOGRPO_DATA=FOLDER"
CALL = "from nanogrpo.data import load_corpus\nprint(len(load_corpus()))"
# Reads the corpus, but hides the call from who looks at the notebook's source.
SLY = "from nanogrpo import data\nprint(len(getattr(data, 'load_' + 'corpus')()))"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A small repository of three chapters: one that reads the corpus, one that hides it, and one without."""
    (tmp_path / "book").mkdir()
    (tmp_path / "tests").mkdir()
    helpers = [path for path in (ROOT / "tests").iterdir() if path.is_file() and "test_" not in path.name]
    for path in (ROOT / "book" / "conftest.py", *helpers):
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    shutil.copytree(ROOT / "book" / "_ext", tmp_path / "book" / "_ext")
    for name, code in {"call": CALL, "sly": SLY, "none": "print(1115394)"}.items():
        cells = [nbformat.v4.new_code_cell(text, execution_count=1) for text in ("x = 1", code)]
        cells[1].outputs = [nbformat.v4.new_output("stream", text="1115394\n")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "book" / f"{name}.ipynb")
    (tmp_path / "_toc.yml").write_text("root: book/none\nchapters:\n- file: book/call\n")
    tests = "import pytest\ndef test_a(corpus): pass\ndef test_b(corpus): pass\ndef test_c(): pass\n"
    more = "@pytest.mark.skip(reason='GPU: no CUDA GPU is here')\ndef test_d(): pass\n"
    (tmp_path / "tests" / "test_it.py").write_text(tests + more)
    monkeypatch.setenv("NANOGRPO_DATA", str(tmp_path / "nothing"))
    return tmp_path


def run(folder, *arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def pytest_of(folder, *arguments):
    nbval = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", "tests/nbval_sanitize.cfg"]
    return run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *nbval, *arguments)


@pytest.mark.thorough
def test_what_was_skipped_is_counted_by_its_reason_and_said_last(desk):
    chapters = ["book/call.ipynb", "book/none.ipynb"]
    code, printed = pytest_of(desk, "-n", "2", "--dist", "loadfile", "tests", *chapters)
    assert code == 0, printed
    assert "3 passed, 5 skipped" in printed
    head, corpus, gpu = printed.rstrip().splitlines()[-3:]
    assert head == "Not checked here: 5 skipped"
    assert re.fullmatch(rf" +4  {LINE}", corpus)
    assert gpu.split(maxsplit=1) == ["1", "GPU: no CUDA GPU is here"]


@pytest.mark.slow
def test_nothing_skipped_is_said_too(desk):
    code, printed = pytest_of(desk, "tests", "-k", "test_c")
    assert code == 0 and printed.rstrip().splitlines()[-1] == "Not checked here: 0 skipped"


@pytest.mark.slow
def test_a_chapter_that_reads_the_corpus_unseen_fails_even_where_it_is(desk, monkeypatch, corpus):
    monkeypatch.setenv("NANOGRPO_DATA", HERE)
    code, printed = pytest_of(desk, "book/sly.ipynb")
    assert code == 1 and "since this chapter does not call load_corpus" in printed
    assert pytest_of(desk, "book/call.ipynb", "book/none.ipynb")[0] == 0


@pytest.mark.thorough
def test_all_chapters_are_run_but_those_that_need_the_corpus(desk):
    before = (desk / "book/call.ipynb").read_bytes()
    nb = nbformat.read(desk / "book/none.ipynb", as_version=4)
    nb.cells[1].outputs = []
    nbformat.write(nb, desk / "book/none.ipynb")
    code, printed = run(desk, "book/_ext/execute.py", "--all")
    assert code == 0, printed
    assert re.fullmatch(rf"Kept the stored outputs of call\. {LINE}", printed.rstrip().splitlines()[-1])
    assert (desk / "book/call.ipynb").read_bytes() == before
    assert nbformat.read(desk / "book/none.ipynb", as_version=4).cells[1].outputs[0].text == "1115394\n"


@pytest.mark.slow
def test_a_chapter_named_by_hand_is_run_and_its_error_is_told(desk):
    code, printed = run(desk, "book/_ext/execute.py", "book/call.ipynb", "--output", "copy.ipynb")
    assert code == 1 and "CorpusError" in printed
