"""Right answers get their points however handed in, mistakes cost their step, and cheats get nothing."""

import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import submissions as S
from cheats import CHEATS, READING, answers_with, reading

from nanogrpo.teach.grade.notebook import Lab, labs_in
from nanogrpo.teach.grade.process import Options, _end, grade

SOURCES = S.ROOT / "book/labs/source"
FAST = Options(seconds=15, memory=2)  # for what never ends
PATIENT = Options(seconds=30, memory=2)  # a right answer has its time on a busy machine
LAB = Lab("lab1", S.lab())


# One of each kind, and the rest for the thorough tests: a few seconds each, and there are a hundred.
FEW = {"as it is", "graded cells edited", "one wrong", "sys.exit", "graded cells that pass", "copies before"}


def each(kinds):
    """The kinds of a table; all but a few are thorough tests."""
    return [
        pytest.param(kind, marks=pytest.mark.slow if kind in FEW else pytest.mark.thorough) for kind in kinds
    ]


def lost(notebook, tmp_path, options=FAST):
    """The steps that a notebook loses."""
    graded = grade(S.write(notebook, tmp_path / "lab1.ipynb"), [LAB], options)
    assert not graded.error and graded.most == S.MOST
    assert graded.points == sum(step.most for step in graded.steps if not step.said)
    return {step.name.removesuffix("-tests") for step in graded.steps if not step.points}


@pytest.mark.parametrize("kind", each(S.RIGHT))
def test_right_answers_get_all_points_however_they_are_handed_in(kind, tmp_path):
    assert lost(S.RIGHT[kind](), tmp_path, PATIENT) == set()


@pytest.mark.parametrize("kind", each(S.PARTLY))
def test_a_mistake_costs_its_own_step_and_no_other(kind, tmp_path):
    make, expected = S.PARTLY[kind]
    assert lost(make(), tmp_path) == expected


@pytest.mark.parametrize("kind", each(CHEATS))
def test_a_cheat_gets_nothing(kind, tmp_path):
    assert lost(CHEATS[kind](), tmp_path) == set(S.STEPS)


@pytest.mark.slow
def test_solutions_on_the_disk_can_be_read_but_not_while_the_grader_runs(tmp_path):
    """All ways work in Python as it is; the grader closes each, and tells the teacher who tried."""
    told = "print(sorted(set(WAYS) - set(found)), len(found))"
    done = subprocess.run(
        [sys.executable, "-c", READING + told], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "[] 13\n", done.stdout + done.stderr
    graded = grade(S.write(reading(), tmp_path / "lab1.ipynb"), [LAB], FAST)
    assert graded.points == 0
    assert "wanted to open " in graded.steps[0].note and "lab1.ipynb" in graded.steps[0].note


@pytest.mark.slow
def test_a_check_that_accepts_anything_is_not_believed(tmp_path):
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


@pytest.mark.thorough
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

HONEST = (
    "as it is",
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
LOSING = (
    "one wrong",
    "endless",
    "sys.exit",
    "answer deleted",
    "answer and test deleted",
    "no Python",
    "unanswered",
)
# Graded cells without an id are not among them: nbgrader refuses such a notebook, and leaves it ungraded.
CHEATING = ("copies of graded cells that pass", "graded cells that pass")


@pytest.mark.thorough
def test_nbgrader_gives_the_points_that_the_grader_gives(tmp_path):
    """The tests of the grader say what it gives to these; here is what nbgrader gives."""
    from course import nbgrader  # submissions.py has put its folder on the path
    from nbgrader.api import Gradebook

    course = tmp_path / "course"
    (course / "source/lab1").mkdir(parents=True)
    nbformat.write(S.lab(), course / "source/lab1/lab1.ipynb")
    config = (S.ROOT / "book/labs/nbgrader_config.py").read_text().replace("timeout = 300", "timeout = 10")
    (course / "nbgrader_config.py").write_text(config)
    expected = {kind: (S.RIGHT[kind], S.MOST) for kind in HONEST}
    expected |= {kind: (S.PARTLY[kind][0], S.MOST - 10 * len(S.PARTLY[kind][1])) for kind in LOSING}
    expected |= {kind: (CHEATS[kind], 0) for kind in CHEATING}
    students = {kind: f"student{number}" for number, kind in enumerate(expected)}
    for kind, (make, _) in expected.items():
        (course / "submitted" / students[kind] / "lab1").mkdir(parents=True)
        S.write(make(), course / "submitted" / students[kind] / "lab1/lab1.ipynb")
    for verb in ("generate_assignment", "autograde"):
        nbgrader(verb, "lab1", folder=course)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "nanogrpo") as book:
        got = {
            kind: book.find_submission_notebook("lab1", "lab1", name).score for kind, name in students.items()
        }
    assert got == {kind: points for kind, (_, points) in expected.items()}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of a process from /proc")
def test_what_a_worker_has_started_ends_with_it():
    """A notebook's own programs are refused; should one start, it does not outlive its worker."""
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '99']).pid, flush=True); time.sleep(99)"
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    child = Path(f"/proc/{int(worker.stdout.readline())}/stat")
    assert child.exists()
    _end(worker)
    for _ in range(100):
        if (
            not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] == "Z"
        ):  # ended, and not yet fetched
            return
        time.sleep(0.1)
    raise AssertionError("the child goes on")
