"""Grade one notebook with pytest, by the same code as `make grade`.

pytest book/labs/test_lab.py --notebook path/to/lab1.ipynb
"""

from pathlib import Path

import pytest

from nanogrpo.teach.grade.notebook import labs_in
from nanogrpo.teach.grade.process import Options, grade

SOURCE = Path(__file__).resolve().parent / "source"


def pytest_generate_tests(metafunc):
    path = metafunc.config.getoption("--notebook")
    if not path:
        raise pytest.UsageError("name a student's notebook: --notebook path/to/lab1.ipynb")
    graded = grade(Path(path), labs_in(SOURCE), Options(seconds=metafunc.config.getoption("--seconds")))
    if graded.error:
        raise pytest.UsageError(graded.error)
    total = f"{graded.points:g} of {graded.most:g} points, {graded.lab.by_hand:g} more by hand"
    metafunc.config.total = total
    names = [f"{step.name.removesuffix('-tests')}, {step.most:g} points" for step in graded.steps]
    metafunc.parametrize("step", graded.steps, ids=names)


def test_step(step):
    if step.said:
        pytest.fail(step.said, pytrace=False)
