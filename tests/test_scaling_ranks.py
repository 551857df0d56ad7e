"""`accelerate launch` on two processes gives the run of one, if the loss is divided by a count of all ranks.

The study's own script (book/studies/scaling), with fewer steps; in the environment of `make parity`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REASON = "package: TRL is not installed here; `make parity` runs two processes with it"
pytest.importorskip("trl", reason=REASON)

STUDY = Path(__file__).parents[1] / "book" / "studies" / "scaling"
LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch"]
LAUNCH += "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
ALIKE = 1e-3  # of the furthest that a weight moves, as in the protocol
STEPS = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name, start in (("one", [sys.executable]), ("two", LAUNCH)):
        command = [*start, str(STUDY / "run.py"), "--out", str(folder / name), "--steps", str(STEPS)]
        command += ["--only", "dapo", "bnpo", *(["split"] if name == "two" else [])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def compare():
    sys.path.insert(0, str(STUDY))
    try:
        import compare

        yield compare
    finally:
        sys.path.remove(str(STUDY))


def test_the_second_run_had_two_ranks(runs, compare):
    assert compare.log(runs / "one" / "dapo")["world"] == 1
    assert compare.log(runs / "two" / "dapo")["world"] == 2
    assert [len(part[0]) for part in compare.texts(runs / "two" / "dapo")] == [64, 64]


@pytest.mark.parametrize(
    ("loss", "other"), [("dapo", "two/dapo"), ("dapo", "one/dapo in parts")], ids=["ranks", "parts"]
)
def test_a_count_of_all_ranks_makes_two_the_same_as_one(runs, compare, loss, other):
    found = compare.compared(runs / "one" / loss, runs / other)
    assert found["steps_with_equal_texts"] == found["steps"] == STEPS
    assert found["apart_last"] <= ALIKE * found["moved_last"]


@pytest.mark.parametrize("other", ["two/bnpo", "one/bnpo in parts"], ids=["ranks", "parts"])
def test_each_its_own_count_makes_another_run(runs, compare, other):
    """The control: what the margin forgives is far less than this."""
    found = compare.compared(runs / "one" / "bnpo", runs / other)
    assert found["apart_first"] > 10 * ALIKE * found["moved_first"]


def test_ranks_with_one_seed_repeat_each_other(runs, compare):
    first, second = compare.texts(runs / "two" / "split, reseeded")
    assert first == second
    first, second = compare.texts(runs / "two" / "split, own")
    assert first != second
