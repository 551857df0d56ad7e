"""nbval on the chapters: numbers compared as numbers (tests/outputs.py), on the kernels that stored them."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE / "_ext")]

import outputs  # noqa: E402
from execute import kernels  # noqa: E402

outputs.install()
os.environ.update({name: value for name, value in kernels().items() if name not in os.environ})
