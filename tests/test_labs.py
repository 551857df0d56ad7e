"""The labs: students' notebooks hold no answers, and each wrong answer fails its own step and no other."""

import ast
import builtins
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch

matplotlib.use("Agg")  # here only: kernels that later tests start must show their figures

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / "book" / "labs"
sys.path.insert(0, str(LABS))

import course  # noqa: E402
import release  # noqa: E402
from grading import graded_as, is_answer, is_test, is_written, nbgrader, run, run_all  # noqa: E402

from nanogrpo.teach import check  # noqa: E402
from nanogrpo.teach.check import CheckFailed  # noqa: E402

SOURCES = {path.stem: release.read(path) for path in release.sources()}
HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS\n(.*?)### END HIDDEN TESTS", re.DOTALL)
HEADING = re.compile(r"^## .*?\((?:(\d+) points, )?(\d+) minutes\)$", re.MULTILINE)

each_lab = pytest.mark.parametrize("lab", SOURCES)
TRAIN = ("lab2", "lab5", "lab6")  # whose cells train for ten seconds, or thirty


def answers(lab):
    """WRONG and RIGHT of tests/labs/<lab>.py; a lab without that file has none, which one test reports."""
    known = importlib.util.find_spec(f"labs.{lab}")
    return importlib.import_module(f"labs.{lab}") if known else SimpleNamespace(WRONG={}, RIGHT={})


def every(kind):
    """(lab, step, name, ...) of all answers of one kind, for parametrize."""
    rows = [(lab, step, *row) for lab in SOURCES for step, all in getattr(answers(lab), kind).items()
            for row in all]  # fmt: skip
    return {"argvalues": rows, "ids": [f"{row[0]}-{row[1]}-{row[2]}" for row in rows]}


@pytest.fixture(autouse=True)
def the_labs_do_not_change_torch_for_others():
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


def is_whole(cell):
    """A cell that belongs to no single step: lab 5's capstone is made of all, lab 6's diagnoses of none."""
    return "whole" in cell.metadata.get("tags", [])


def steps(lab):
    """The code that students write and the cell that tests it, by the name of the step."""
    cells = [cell for cell in SOURCES[lab].cells if not is_whole(cell)]
    tests = {nbgrader(cell)["grade_id"].removesuffix("-tests"): cell for cell in cells if is_test(cell)}
    return {nbgrader(c)["grade_id"]: (c, tests[nbgrader(c)["grade_id"]]) for c in cells if is_answer(c)}


def is_slow(cell):
    return "slow-check" in cell.metadata.get("tags", [])


@cache
def prepared(lab):
    """What the cells around the steps define: imports, models, data. Nothing of a step."""
    namespace = {"__name__": "__main__"}
    for cell in SOURCES[lab].cells:
        if cell.cell_type == "code" and not nbgrader(cell) and not is_whole(cell):
            error = run(cell, namespace)
            assert error is None, f"{cell.source}\n{error!r}"
    return namespace


def said(lab, step, source=None):
    """What each test says (None: it passes) if the answer to one step is another."""
    namespace = dict(prepared(lab))
    for name, (answer, _) in steps(lab).items():
        changed = answer.copy()
        changed.source = source if source is not None and name == step else answer.source
        error = run(changed, namespace)
        assert error is None, repr(error)
    tests = {name: test for name, (_, test) in steps(lab).items() if name == step or not is_slow(test)}
    return {name: run(test, namespace) for name, test in tests.items()}


def names_of(source):
    """Global names that a cell defines, and those that it reads."""
    tree = ast.parse(source)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    nodes = list(ast.walk(tree))
    own = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    top = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    return defined | top, read - own - defined - set(dir(builtins))


@each_lab
def test_the_student_s_notebook_is_the_one_that_make_labs_makes(lab):
    assert release.read(LABS / f"{lab}.ipynb") == release.student(SOURCES[lab]), "run `make labs`"


@each_lab
def test_a_source_holds_no_outputs_and_is_stored_as_nbformat_writes_it(lab, tmp_path):
    release.write(SOURCES[lab], tmp_path / "again.ipynb")
    path = LABS / "source" / lab / f"{lab}.ipynb"
    assert path.read_bytes() == (tmp_path / "again.ipynb").read_bytes()
    for cell in SOURCES[lab].cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)


@each_lab
def test_the_student_s_notebook_holds_no_solution_and_no_hidden_test(lab):
    text = "\n".join(cell.source for cell in release.read(LABS / f"{lab}.ipynb").cells)
    assert "BEGIN" not in text and "Rubric" not in text and "Model answer" not in text
    told = re.sub(r"```python.*?```", "", text, flags=re.DOTALL)  # less the broken code that is to be mended
    for cell in SOURCES[lab].cells:
        hidden = "".join(HIDDEN.findall(cell.source))
        assert bool(hidden) == is_test(cell)
        solutions = re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", cell.source, re.DOTALL)
        assert not is_answer(cell) or solutions
        if is_written(cell) and not solutions:
            solutions = [cell.source]
        for block in [hidden, *solutions]:
            assert not block or block.strip() not in text
            for line in map(str.strip, block.splitlines()):
                shown = line in (visible.strip() for visible in told.splitlines())
                assert len(line) < 25 or not shown, f"shown to students: {line}"


@each_lab
def test_points_and_minutes_add_up(lab):
    cells = SOURCES[lab].cells
    points, minutes = map(int, re.search(r"\*\*(\d+) points, (\d+) minutes\.\*\*", cells[0].source).groups())
    headings = [match for cell in cells for match in HEADING.findall(cell.source) if match]
    assert len(headings) == sum(len(re.findall(r"^## ", c.source, re.MULTILINE)) for c in cells
                                if c.cell_type == "markdown"), "a heading without minutes"  # fmt: skip
    assert sum(int(p or 0) for p, _ in headings) == points
    assert sum(int(m) for _, m in headings) == minutes and 60 <= minutes <= 90
    stated, given = 0, {}
    for cell in cells:
        for found in HEADING.findall(cell.source):
            stated += 1
            given[stated] = [int(found[0] or 0), 0]
        if "points" in nbgrader(cell):
            given[stated][1] += nbgrader(cell)["points"]
    assert all(said == held for said, held in given.values()), given


@each_lab
def test_a_lab_has_what_a_lab_must_have(lab):
    cells = SOURCES[lab].cells
    text = "\n".join(cell.source for cell in cells)
    assert 4 <= len(steps(lab)) <= 6 and set(steps(lab)) == {
        nbgrader(c)["grade_id"].removesuffix("-tests") for c in cells if is_test(c) and not is_whole(c)
    }
    assert "**For whom:**" in text and "**You need**" in text and "Warm-up" in text and "open exp" in text
    written = [cell for cell in cells if is_written(cell)]
    assert any(c.cell_type == "markdown" and "**Rubric.**" in c.source for c in written)
    assert any(c.cell_type == "code" for c in written), "an experiment is code"
    ids = [nbgrader(cell)["grade_id"] for cell in cells if nbgrader(cell)]
    assert len(ids) == len(set(ids))


@each_lab
def test_each_step_stands_alone(lab):
    """No step, and no cell beside the steps, reads what a student defines in another step."""
    own = {name: names_of(answer.source)[0] for name, (answer, _) in steps(lab).items()}
    students = set().union(*own.values())
    assert sum(map(len, own.values())) == len(students), "two steps define the same name"
    for name, (answer, test) in steps(lab).items():
        for cell in (answer, test):
            assert not names_of(cell.source)[1] & (students - own[name]), f"{name} needs another step"
    for cell in SOURCES[lab].cells:
        beside = cell.cell_type == "code" and not nbgrader(cell) and not is_whole(cell)
        if beside and "%pip" not in cell.source:
            assert not names_of(cell.source)[1] & students, f"needs a student's function:\n{cell.source}"


@each_lab
def test_hidden_tests_draw_fresh_numbers(lab):
    for cell in SOURCES[lab].cells:
        if is_test(cell) and not is_whole(cell):
            shown, hidden = HIDDEN.sub("", cell.source), HIDDEN.search(cell.source).group(1)
            checks = re.findall(r"\bcheck_\w+", shown)
            assert "seed=0" in shown and "print(" in shown and checks
            assert "seed=" not in hidden and set(checks) == set(re.findall(r"\bcheck_\w+", hidden))
            assert shown.startswith("from nanogrpo.teach.check import"), "a graded cell brings its own check"


@pytest.mark.parametrize(
    "lab", [pytest.param(lab, marks=[pytest.mark.slow] * (lab in TRAIN)) for lab in SOURCES]
)
def test_the_solution_passes_in_process(lab):
    for cell, error in run_all(SOURCES[lab].cells):
        assert error is None, f"{cell.source}\n{error!r}"


@pytest.mark.parametrize(
    "lab", [pytest.param(lab, marks=[pytest.mark.slow] * (lab in TRAIN)) for lab in SOURCES]
)
def test_an_unanswered_lab_fails_at_its_own_steps_and_says_so(lab):
    for cell, error in run_all(graded_as(release.read(LABS / f"{lab}.ipynb"), SOURCES[lab])):
        if is_test(cell):
            assert isinstance(error, CheckFailed) and "Nothing is written here yet" in str(error)
        elif is_written(cell) or is_answer(cell) and is_whole(cell):
            assert error is None or isinstance(error, NotImplementedError)
        else:
            assert error is None, f"{cell.source}\n{error!r}"


def test_a_lab_without_answers_fails_its_own_test_and_spares_the_others():
    assert answers("no_such_lab").WRONG == answers("no_such_lab").RIGHT == {}


@each_lab
def test_enough_answers_are_kept(lab):
    kept = answers(lab)
    assert set(kept.WRONG) == set(kept.RIGHT) == set(steps(lab))
    assert all(len(rows) >= 4 for rows in kept.WRONG.values())
    assert all(len(rows) >= 2 for rows in kept.RIGHT.values())
    sources = [row[-1].strip() for rows in [*kept.WRONG.values(), *kept.RIGHT.values()] for row in rows]
    assert len(set(sources)) == len(sources)


@pytest.mark.slow  # two minutes for all; a step for itself is a fast test in test_labs_contracts
@pytest.mark.parametrize("lab, step, name, says, source", **every("WRONG"))
def test_a_wrong_answer_fails_its_step_and_no_other(lab, step, name, says, source):
    errors = said(lab, step, source)
    mine = errors.pop(step)
    assert isinstance(mine, CheckFailed), repr(mine)
    assert re.search(says, str(mine)), str(mine)
    assert not any(errors.values()), errors


@pytest.mark.slow
@pytest.mark.parametrize("lab, step, name, source", **every("RIGHT"))
def test_a_right_answer_passes_however_it_is_written(lab, step, name, source):
    errors = said(lab, step, source)
    assert not any(errors.values()), errors


@each_lab
def test_no_frozen_answer_passes_a_step(lab):
    """The right result of the first call, returned at every other: the numbers must be new each time."""
    for name, (answer, test) in steps(lab).items():
        namespace = dict(prepared(lab))
        assert run(answer, namespace) is None
        right, kept = namespace[name], []

        def frozen(*arguments, right=right, kept=kept, **options):
            if not kept:
                kept.append(right(*arguments, **options))
            return kept[0]

        namespace[name] = frozen
        error = run(test, namespace)
        assert isinstance(error, CheckFailed | AssertionError), f"{name}: {error!r}"


def pytest_lab(notebook):
    """The command of the teacher's guide for those who do not use nbgrader."""
    command = [sys.executable, "-m", "pytest", "-q", "book/labs/test_lab.py", "--notebook", str(notebook)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_pytest_alone_grades_a_notebook(tmp_path):
    lab = "lab1"
    done = pytest_lab(LABS / "source" / lab / f"{lab}.ipynb")
    assert done.returncode == 0 and f"{len(steps(lab))} passed" in done.stdout, done.stdout
    done = pytest_lab(LABS / f"{lab}.ipynb")
    assert done.returncode == 1 and f"{len(steps(lab))} failed" in done.stdout, done.stdout
    assert "Nothing is written here yet" in done.stdout


@pytest.mark.slow
@each_lab
def test_nbgrader_gives_the_solution_all_points_and_an_unanswered_lab_none(lab, tmp_path):
    got = course.prove(lab, tmp_path)
    whole = [cell for cell in SOURCES[lab].cells if is_test(cell) and is_whole(cell)]
    whole = {nbgrader(cell)["grade_id"].removesuffix("-tests") for cell in whole}
    assert set(got["solution"]["steps"]) == set(steps(lab)) | whole
    assert got["solution"]["score"] == got["solution"]["max"] > 0
    assert got["solution"]["open"] == sum(is_written(cell) for cell in SOURCES[lab].cells)
    assert got["unanswered"]["score"] == 0 and not any(got["unanswered"]["steps"].values())
    assert got["solution"]["max"] + got["solution"]["by hand"] == 100
    released = release.read(tmp_path / "release" / lab / f"{lab}.ipynb")
    assert released == release.read(LABS / f"{lab}.ipynb"), "nbgrader itself releases another notebook"


def test_every_check_of_the_labs_alone_is_used_by_one():
    used = "\n".join(cell.source for source in SOURCES.values() for cell in source.cells)
    alone = [name for name in check.__all__ if ".lab_" in getattr(check, name).__module__]
    assert alone and not [name for name in alone if f"{name}(" not in used]
