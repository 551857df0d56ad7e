"""The grader: right answers get their points however they are handed in, and nothing else gets any."""

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
from cheats import CHEATS, answers_with

from nanogrpo.teach.grade import __main__ as command
from nanogrpo.teach.grade import guard, report, results
from nanogrpo.teach.grade.notebook import Lab, SubmissionError, lab_of, labs_in, read
from nanogrpo.teach.grade.plan import plan
from nanogrpo.teach.grade.process import Graded, Options, Step, grade

SOURCES = S.ROOT / "book/labs/source"
FAST = Options(seconds=8, memory=2)
LAB = Lab("lab1", S.lab())


def lost(notebook, tmp_path, options=FAST):
    """The steps that a notebook loses."""
    graded = grade(S.write(notebook, tmp_path / "lab1.ipynb"), [LAB], options)
    assert not graded.error and graded.most == S.MOST
    assert graded.points == sum(step.most for step in graded.steps if not step.said)
    return {step.name.removesuffix("-tests") for step in graded.steps if not step.points}


@pytest.mark.slow
@pytest.mark.parametrize("kind", S.RIGHT)
def test_right_answers_get_all_points_however_they_are_handed_in(kind, tmp_path):
    assert lost(S.RIGHT[kind](), tmp_path) == set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", S.PARTLY)
def test_a_mistake_costs_its_own_step_and_no_other(kind, tmp_path):
    make, expected = S.PARTLY[kind]
    assert lost(make(), tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHEATS)
def test_a_cheat_gets_nothing(kind, tmp_path):
    assert lost(CHEATS[kind](), tmp_path) == set(S.STEPS)


@pytest.mark.slow
def test_a_check_that_accepts_anything_is_not_believed(tmp_path, monkeypatch):
    """The last fence alone: a graded cell that says yes to all."""
    lab = Lab("lab1", S.lab())
    for test in lab.tests.values():
        test.source = (
            f"{test.id.removeprefix('lab1-').removesuffix('-tests')}(torch.zeros(2, 2), torch.ones(2, 2) > 0)"
        )
    notebook = answers_with("return torch.zeros(3)")()
    graded = grade(S.write(S.insert(notebook, "import torch"), tmp_path / "lab1.ipynb"), [lab], FAST)
    assert graded.points == 0 and all("spoiled" in step.said for step in graded.steps)


@pytest.mark.slow
def test_calls_of_the_package_are_told_and_those_of_the_solution_are_not(tmp_path):
    body = "def completion_mask(ids, eos):\n    f = rollout.completion_mask\n    return f(ids, eos)"
    notebook = S.answer("perplexity", "perplexity = 3", S.answer("completion_mask", body))
    graded = grade(S.write(notebook, tmp_path / "lab1.ipynb"), [LAB], Options(seconds=20, watch=True))
    notes = {step.name: step.note for step in graded.steps}
    assert notes == {
        "completion_mask-tests": "calls rollout.completion_mask",
        "logprobs_of-tests": "",
        "perplexity-tests": "",
    }
    whole = Lab("lab1", S.release.read(SOURCES / "lab1/lab1.ipynb"))
    graded = grade(SOURCES / "lab1/lab1.ipynb", [whole], Options(watch=True))
    assert graded.points == 80 and not any(step.note for step in graded.steps)


@pytest.mark.slow
@pytest.mark.parametrize("lab", [path.parent.name for path in sorted(SOURCES.glob("*/*.ipynb"))])
def test_a_solution_gets_all_points_and_an_unanswered_lab_none(lab):
    labs = labs_in(SOURCES)
    solved, unanswered = (
        grade(SOURCES / lab / f"{lab}.ipynb", labs),
        grade(S.ROOT / f"book/labs/{lab}.ipynb", labs),
    )
    assert [step.said for step in solved.steps if step.said] == [] and solved.points == solved.most == 80
    assert unanswered.points == 0 and unanswered.most == 80
    assert all("Nothing is written here yet" in step.said for step in unanswered.steps)


# -- against nbgrader itself

BOTH = {
    "solution": S.solved,
    "unanswered": S.unanswered,
    **{
        kind: S.RIGHT[kind]
        for kind in (
            "helper cells",
            "scratch: a graded cell copied, and it fails",
            "graded cells edited",
            "graded cells deleted",
            "graded cells to text",
            "double precision",
            "IPython",
            "Colab",
            "VS Code",
            "exit at the end",
            "errors beside the steps",
            "points edited",
            "an answer behind its own cell",
        )
    },
    **{
        kind: S.PARTLY[kind][0]
        for kind in ("one wrong", "endless", "sys.exit", "answer deleted", "no Python")
    },
    **{
        kind: CHEATS[kind]
        for kind in (
            "copies of graded cells that pass",
            "graded cells that pass",
            "graded cells of other ids",
        )
    },
}


@pytest.mark.slow
def test_nbgrader_gives_the_same_points(tmp_path):
    from course import nbgrader  # submissions.py has put its folder on the path
    from nbgrader.api import Gradebook

    course = tmp_path / "course"
    (course / "source/lab1").mkdir(parents=True)
    nbformat.write(S.lab(), course / "source/lab1/lab1.ipynb")
    config = (S.ROOT / "book/labs/nbgrader_config.py").read_text().replace("timeout = 300", "timeout = 10")
    (course / "nbgrader_config.py").write_text(config)
    names = {f"student{number}": kind for number, kind in enumerate(BOTH)}
    for student, kind in names.items():
        (course / "submitted" / student / "lab1").mkdir(parents=True)
        S.write(BOTH[kind](), course / "submitted" / student / "lab1/lab1.ipynb")
    for verb in ("generate_assignment", "autograde"):
        nbgrader(verb, "lab1", folder=course)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "nanogrpo") as book:
        theirs = {
            kind: book.find_submission_notebook("lab1", "lab1", student).score
            for student, kind in names.items()
        }
    ours = {
        kind: grade(course / "submitted" / student / "lab1/lab1.ipynb", [LAB], FAST).points
        for student, kind in names.items()
    }
    assert ours == theirs


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
