"""The parts of the grader, its command, its tables, and the recipes for those who run it elsewhere."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import submissions as S
import torch

from nanogrpo.teach.grade import __main__ as command
from nanogrpo.teach.grade import guard, report, results
from nanogrpo.teach.grade.notebook import Lab, SubmissionError, lab_of, labs_in, read
from nanogrpo.teach.grade.plan import plan
from nanogrpo.teach.grade.process import Graded, Step, grade

SOURCES = S.ROOT / "book/labs/source"
LAB = Lab("lab1", S.lab())


# -- notebooks


def test_a_lab_is_known_by_what_is_in_it():
    labs = labs_in(SOURCES)
    assert [lab.name for lab in labs] == [f"lab{n}" for n in range(1, 7)]
    for lab in labs:
        released = S.ROOT / f"book/labs/{lab.name}.ipynb"
        assert lab_of(read(released), labs, Path("Müllers Aufgabe (3).ipynb")) is lab
        assert lab_of(S.bare(read(released), ids=False), labs, Path("lab1.ipynb")) is lab
    with pytest.raises(SubmissionError, match="no cell of any lab"):
        lab_of(nbformat.v4.new_notebook(), labs, Path("empty.ipynb"))


FORMAT = b'"nbformat": 4, "nbformat_minor": 5}'
ODD = {
    "empty file": b"",
    "no notebook": b"[]",
    "null": b"null",
    "cut off": b'{"cells": [{"cell_type": "code", "sou',
    "cells are no list": b'{"cells": 3, "metadata": {}, ' + FORMAT,
    "a cell without a source": b'{"cells": [{"cell_type": "code"}], "metadata": {}, ' + FORMAT,
    "a picture": b"\x89PNG\r\n\x1a\n\x00\x00",
    "a language": b'{"cells": [], "metadata": {"kernelspec": {"language": "R"}}, ' + FORMAT,
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", ODD)
def test_a_file_that_is_no_notebook_of_the_lab_is_said_to_be_none(kind, tmp_path):
    path = tmp_path / "lab1.ipynb"
    path.write_bytes(ODD[kind])
    graded = grade(path, [LAB])
    assert str(path) in graded.error and graded.points == 0 and not graded.steps
    assert report.table([graded]).startswith("lab1.ipynb: not graded.")


@pytest.mark.parametrize(
    "mangle",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: json.dumps(json.loads(text), indent=4),
    ],
)
def test_a_notebook_is_read_however_it_was_stored(mangle, tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_bytes(mangle(json.dumps(S.solved())).encode())
    assert [cell.source for cell in read(path).cells] == [cell.source for cell in S.solved().cells]


def test_sources_of_cells_may_be_lists_of_lines(tmp_path):
    notebook = json.loads(json.dumps(S.solved()))
    for cell in notebook["cells"]:
        cell["source"] = cell["source"].splitlines(keepends=True)
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps(notebook))
    assert [cell.source for cell in read(path).cells] == [cell.source for cell in S.solved().cells]


def graded_at(notebook):
    """Where the graded cells stand in a plan, by step."""
    return {piece.step.removesuffix("-tests"): n for n, piece in enumerate(plan(notebook, LAB)) if piece.step}


def test_graded_cells_stand_where_nbgrader_puts_them():
    as_it_is = graded_at(S.solved())
    assert list(as_it_is) == list(S.STEPS)
    assert graded_at(S.without(S.solved(), *(f"{step}-tests" for step in S.STEPS))) == as_it_is
    assert graded_at(S.bare(S.solved())) == graded_at(S.bare(S.solved(), ids=False)) == as_it_is
    assert graded_at(S.edited(S.solved(), "pass")) == as_it_is
    behind, before = (
        graded_at(S.copied(S.solved(), "pass")),
        graded_at(S.copied(S.solved(), "pass", first=True)),
    )
    assert behind == before == {step: n + 1 + list(S.STEPS).index(step) for step, n in as_it_is.items()}
    assert set(graded_at(nbformat.v4.new_notebook())) == set(S.STEPS)


def test_a_graded_cell_is_the_source_s_and_takes_only_the_answer():
    for notebook in (
        S.edited(S.solved(), "pass"),
        S.copied(S.unanswered(), "pass"),
        S.other_ids(S.unanswered()),
    ):
        for piece in plan(notebook, LAB):
            if piece.step:
                assert piece.source == LAB.tests[piece.step].source
                assert piece.given == (piece.step.removesuffix("-tests"),)


# -- the guard


def test_a_snapshot_puts_back_what_was_replaced():
    import nanogrpo.kl as kl

    snapshot = guard.Snapshot()
    assert snapshot.restore() == []
    before, code = torch.isclose, kl.kl_k3.__code__
    torch.isclose = torch.Tensor.all = lambda *a, **k: True
    kl.kl_k3.__code__ = (lambda *a, **k: 0).__code__
    kl.sum = lambda x: 0
    sys.modules["nanogrpo.kl"] = None
    changed = snapshot.restore()
    assert {"torch.isclose", "Tensor.all", "kl_k3", "nanogrpo.kl.sum", "nanogrpo.kl"} == set(changed)
    assert torch.isclose is before and kl.kl_k3.__code__ is code and not hasattr(kl, "sum")
    assert sys.modules["nanogrpo.kl"] is kl and "all" not in vars(torch.Tensor)
    assert snapshot.restore() == []


class Odd(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True


class Text(str):
    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


def test_results_are_plain():
    assert type(results.plain(torch.zeros(2).as_subclass(Odd))) is torch.Tensor
    assert type(results.plain((torch.zeros(2).as_subclass(Odd),))[0]) is torch.Tensor
    assert results.plain({"part": Text("x")}) == {"part": "x"} and type(results.plain(Text("x"))) is str
    assert results.plain(True) is True and results.plain(None) is None and results.plain([1, 2.5]) == [1, 2.5]


@pytest.mark.parametrize(
    "value", [torch.zeros(2), torch.ones(2).bool(), torch.arange(2), 0.0, 1, True, "x", [0.5], {"a": (1.0,)}]
)
def test_a_spoiled_result_is_another_of_the_same_kind(value):
    spoiled = results.spoil(value)
    assert type(spoiled) in (type(value), float)
    assert (not torch.equal(spoiled, value)) if isinstance(value, torch.Tensor) else spoiled != value


def test_a_guarded_function_keeps_gradients_and_puts_back_after_each_call():
    restored = []
    double = results.guarded(lambda x: 2 * x, lambda: restored.append(1) or [])
    leaf = torch.ones(2, requires_grad=True)
    double(leaf).sum().backward()
    assert leaf.grad.tolist() == [2, 2] and restored == [1]
    assert results.guarded(lambda x: x, list, spoiled=True)(1.0) == 2.0


# -- the command


@pytest.fixture
def folder(tmp_path):
    """What a class handed in, in a folder for each student, and some of it odd."""
    files = {
        "ada/lab1.ipynb": S.solved(),
        "bob/lab1 (2).ipynb": S.answer("perplexity", "perplexity = None"),
        "müller_4711_99_my lab.ipynb": S.unanswered(),
    }
    for name, notebook in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        S.write(notebook, tmp_path / "in" / name)
    (tmp_path / "in/ada/.ipynb_checkpoints").mkdir()
    shutil.copy(tmp_path / "in/ada/lab1.ipynb", tmp_path / "in/ada/.ipynb_checkpoints")
    (tmp_path / "in/carl.ipynb").write_text("{")
    nbformat.write(S.lab(), tmp_path / "lab1.ipynb")
    return tmp_path


@pytest.mark.slow
def test_a_folder_is_graded_with_one_command(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert (
        command.main(["in", "--source", "lab1.ipynb", "--csv", "grades.csv", "--canvas", "canvas.csv"]) == 1
    )  # carl
    told = capsys.readouterr().out
    assert "lab1.ipynb: 30 of 30 points" in told and "lab1 (2).ipynb: 20 of 30 points" in told
    assert "carl.ipynb: not graded" in told and told.endswith("4 notebooks, 50 points in all\n")
    head, *rows = csv.reader((folder / "grades.csv").read_text(encoding="utf-8").splitlines())
    assert head == ["student", "id", "file", *S.STEPS, "points", "of", "look"]
    assert [row[:2] + row[3:8] for row in rows] == [
        ["ada", "", "10", "10", "10", "30", "30"],
        ["bob", "", "10", "10", "0", "20", "30"],
        ["müller", "4711", "0", "0", "0", "0", "30"],
    ]
    head, most, *rows = csv.reader((folder / "canvas.csv").read_text(encoding="utf-8").splitlines())
    assert head == [
        "Student",
        "ID",
        "SIS User ID",
        "SIS Login ID",
        "Section",
        "Lab 1: log-probs, masks and sampling",
    ]
    assert most[0].strip() == "Points Possible" and most[1:] == ["", "", "", "", "30"]
    assert [(row[0], row[1], row[5]) for row in rows] == [
        ("ada", "", "30"),
        ("bob", "", "20"),
        ("müller", "4711", "0"),
    ]
    assert sorted(path.name for path in folder.iterdir()) == [
        "canvas.csv",
        "grades.csv",
        "in",
        "lab1.ipynb",
    ], "nothing else is left"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nowhere"], "there is no nowhere"),
        (["."], "no notebook in"),
    ],
)
def test_what_cannot_be_graded_is_said_in_one_line(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=says):
        command.main([*arguments, "--source", str(SOURCES)])


@pytest.mark.slow
def test_pytest_gives_the_same_points_and_the_total(tmp_path):
    def pytest_of(notebook):
        asked = [sys.executable, "-m", "pytest", "-q", "book/labs/test_lab.py", "--notebook", str(notebook)]
        return subprocess.run([*asked, "--seconds", "10"], cwd=S.ROOT, capture_output=True, text=True)

    whole = S.release.read(SOURCES / "lab1/lab1.ipynb")
    S.answer("perplexity", "def perplexity(logprobs, mask):\n    while True: pass", whole)
    done = pytest_of(S.write(whole, tmp_path / "renamed.ipynb"))
    assert (
        done.returncode == 1
        and "1 failed, 5 passed" in done.stdout
        and "70 of 80 points, 20 more by hand" in done.stdout
    )
    assert "time limit of 10 seconds" in done.stdout


# -- Gradescope and GitHub Classroom


@pytest.mark.slow
def test_the_archive_for_gradescope_grades_a_submission(tmp_path):
    import zipfile

    import gradescope

    gradescope.write("lab1", SOURCES, tmp_path / "lab1.zip")
    with zipfile.ZipFile(tmp_path / "lab1.zip") as archive:
        archive.extractall(tmp_path)
        assert all(
            archive.getinfo(name).external_attr >> 16 == 0o755 for name in ("setup.sh", "run_autograder")
        )
    assert subprocess.run(["bash", "-n", tmp_path / "setup.sh"]).returncode == 0
    environment = {**os.environ, "AUTOGRADER": str(tmp_path), "PYTHON": sys.executable}
    for name, points in {"solution": 80, "unanswered": 0, "broken": 0, "none": 0}.items():
        shutil.rmtree(tmp_path / "submission", ignore_errors=True)
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        (tmp_path / "submission").mkdir()
        if name == "broken":
            (tmp_path / "submission/a b.ipynb").write_text("{")
        elif name != "none":
            path = SOURCES / "lab1/lab1.ipynb" if name == "solution" else S.ROOT / "book/labs/lab1.ipynb"
            shutil.copy(path, tmp_path / "submission/my lab.ipynb")
        subprocess.run(
            ["bash", tmp_path / "run_autograder"], env=environment, cwd=tmp_path, capture_output=True
        )
        found = json.loads((tmp_path / "results/results.json").read_text())
        assert found["score"] == points and found["output"]
        if name in ("solution", "unanswered"):
            assert [test["max_score"] for test in found["tests"]] == [10, 10, 20, 15, 15, 10]
            assert {test["status"] for test in found["tests"]} == {"passed" if points else "failed"}


def test_gradescope_tells_of_a_diagnosis_when_the_time_is_up(tmp_path):
    lab = next(lab for lab in labs_in(SOURCES) if lab.name == "lab6")
    steps = [Step(name, 0.0, most, "Another part is to blame.") for name, most in lab.points.items()]
    report.write_gradescope(Graded(tmp_path / "lab6.ipynb", lab, steps), tmp_path / "results.json")
    for test in json.loads((tmp_path / "results.json").read_text())["tests"]:
        assert (test["visibility"] == "after_due_date") == test["name"].startswith("run-")


@pytest.mark.slow
def test_the_last_step_of_the_classroom_recipe_runs_as_it_stands(tmp_path):
    import base64
    import gzip
    import re

    import yaml

    guide = (S.ROOT / "book/labs/guide.md").read_text(encoding="utf-8")
    recipe = yaml.safe_load(re.search(r"^```yaml\n(on: .*?)^```", guide, re.DOTALL | re.MULTILINE)[1])
    step = recipe["jobs"]["grade"]["steps"][-1]
    secret = base64.b64encode(gzip.compress((SOURCES / "lab1/lab1.ipynb").read_bytes())).decode()
    assert len(secret) < 48_000, "GitHub's limit of a secret"
    script = step["run"].replace("/tmp/lab1.ipynb", str(tmp_path / "source.ipynb"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for notebook, code in ((SOURCES / "lab1/lab1.ipynb", 0), (S.ROOT / "book/labs/lab1.ipynb", 1)):
        shutil.copy(notebook, tmp_path / "lab1.ipynb")
        done = subprocess.run(
            ["bash", "-e", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path, "LAB_SOURCE": secret}
        )
        assert done.returncode == code


def test_labs_and_recipes_install_the_release_that_this_is():
    import gradescope

    tag = f"@v{gradescope.PROJECT['version']}"
    texts = [
        path.read_text(encoding="utf-8")
        for path in (*SOURCES.glob("*/*.ipynb"), S.ROOT / "book/labs/guide.md")
    ]
    for text in [*texts, gradescope.SETUP]:
        found = text.split(f"git+{gradescope.PROJECT['urls']['Repository']}")[1:]
        assert found and all(part.startswith(tag) for part in found)


@pytest.mark.parametrize(
    "odd",
    [["--csv", "no/x.csv"], ["--canvas", "."], ["--gradescope", "no/x.json"], ["--seconds", "nan"],
     ["--seconds", "-1"], ["--memory", "inf"], ["--require", "nan"]],
)  # fmt: skip
def test_what_cannot_be_written_or_means_nothing_is_said_before_grading(odd, tmp_path, monkeypatch):
    """A NaN is below no number of points, so that nobody would fail; and no grading is lost at its end."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(S.ROOT / "book/labs/lab1.ipynb", "lab1.ipynb")
    monkeypatch.setattr(command, "grade", lambda *a: pytest.fail("it was graded"))
    with pytest.raises(SystemExit, match=f"error: {odd[0]} "):
        command.main(["lab1.ipynb", "--source", str(SOURCES), *odd])
