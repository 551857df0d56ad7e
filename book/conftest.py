"""nbval on the chapters: what is compared and how (tests/outputs.py), and which this machine can run.

Numbers are compared as numbers, on the kernels that stored them. Without tiny Shakespeare, or without TRL,
the chapters that call for it are skipped.
"""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE / "_ext")]

import outputs  # noqa: E402
from corpus import needs_corpus, use_copy_beside  # noqa: E402
from execute import kernels  # noqa: E402
from needs import lacking  # noqa: E402

use_copy_beside()
outputs.install()
os.environ.update({name: value for name, value in kernels().items() if name not in os.environ})


def is_cell(item) -> bool:
    return item.path.suffix == ".ipynb"


def pytest_collection_modifyitems(items):
    """A chapter that needs the corpus, or TRL, is skipped as a whole where there is none."""
    for item in filter(is_cell, items):
        if reason := lacking(item.path):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A kernel gets its variables when the first cell of a chapter runs, so that is where it is told."""
    if not is_cell(item) or needs_corpus(item.path):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOGRPO_DATA", os.path.join("nowhere", "since this chapter does not call load_corpus"))
        return (yield)
