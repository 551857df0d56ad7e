"""The options of test_lab.py, and its last line: the points."""

import os

os.environ.setdefault("MPLBACKEND", "agg")


def pytest_addoption(parser):
    parser.addoption("--notebook", help="a student's notebook")
    parser.addoption("--seconds", type=float, default=60.0, help="time limit of a cell")


def pytest_terminal_summary(terminalreporter, config):
    if hasattr(config, "total"):
        terminalreporter.write_line(config.total)
