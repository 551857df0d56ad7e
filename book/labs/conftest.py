"""The one option of test_lab.py."""

import os

os.environ.setdefault("MPLBACKEND", "agg")


def pytest_addoption(parser):
    parser.addoption("--notebook", help="a student's notebook, named as it was handed out: lab1.ipynb")
