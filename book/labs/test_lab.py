"""Grade one notebook with nothing but pytest.

pytest book/labs/test_lab.py --notebook path/to/lab1.ipynb
"""

import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from grading import graded_as, is_test, nbgrader, run_all, source_of  # noqa: E402

RESULTS = {}


def pytest_generate_tests(metafunc):
    path = metafunc.config.getoption("--notebook")
    if not path:
        raise pytest.UsageError("name a student's notebook: --notebook path/to/lab1.ipynb")
    tests = [nbgrader(cell) for cell in source_of(Path(path).stem).cells if is_test(cell)]
    names = [f"{test['grade_id']}, {test['points']} points" for test in tests]
    metafunc.parametrize("step", [test["grade_id"] for test in tests], ids=names)


def test_step(step, request):
    if not RESULTS:
        path = Path(request.config.getoption("--notebook"))
        cells = graded_as(nbformat.read(path, as_version=4), source_of(path.stem))
        RESULTS.update({nbgrader(c)["grade_id"]: error for c, error in run_all(cells) if is_test(c)})
    if RESULTS[step] is not None:
        pytest.fail(f"{type(RESULTS[step]).__name__}: {RESULTS[step]}", pytrace=False)
