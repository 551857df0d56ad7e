"""A lock on a folder: one process at a time; it dies with its process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from nanogrpo.errors import RunError
from nanogrpo.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from nanogrpo.lock import Lock
Lock(Path(sys.argv[1]), "the run").acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / ".lock"],
        stdout=subprocess.PIPE,
        text=True,
        # a shell in the background has its children ignore Ctrl-C; this one listens
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_holds_it(tmp_path, holder):
    with pytest.raises(RunError, match=f"the run is held by process {holder.pid}; wait until it ends"):
        Lock(tmp_path / ".lock", "the run").acquire()
    assert (tmp_path / ".lock").read_text() == str(holder.pid), "who is refused must not change the file"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_lock_of_a_dead_process_is_taken_over_and_that_is_said(tmp_path, holder, how, capsys):
    holder.send_signal(how)
    holder.wait()
    lock = Lock(tmp_path / ".lock", "the run")
    lock.acquire()
    assert f"process {holder.pid}, which held the run, is gone" in capsys.readouterr().err
    assert (tmp_path / ".lock").read_text() == str(os.getpid())
    lock.release()
    assert not list(tmp_path.iterdir())


def test_one_process_cannot_hold_it_twice(tmp_path, capsys):
    first, second = Lock(tmp_path / ".lock", "the run"), Lock(tmp_path / ".lock", "the run")
    first.acquire()
    first.acquire()  # what one holds it may ask for again
    with pytest.raises(RunError, match=f"process {os.getpid()}"):
        second.acquire()
    second.release()  # which does nothing
    assert first.held and not second.held
    first.release()
    second.acquire()
    second.release()
    assert not capsys.readouterr().err, "a lock that was given back is not taken over"


@pytest.mark.parametrize("content", ["", "9", "9" * 100])
def test_whatever_a_killed_process_left_of_its_number_can_be_locked(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    lock = Lock(tmp_path / ".lock", "the run")
    lock.acquire()
    assert (tmp_path / ".lock").read_text() == str(os.getpid())
    lock.release()


@pytest.mark.parametrize("place", ["none/.lock", "file/.lock", "folder", "x" * 300])
def test_a_place_that_cannot_be_written_is_a_run_error(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="cannot write .*choose another --out"):
        Lock(tmp_path / place, "the run").acquire()


def count(path, results):
    """Take the lock as often as can be had, and note whether anybody else was there."""
    taken = 0
    while taken < 50:
        lock = Lock(path, "the run")
        try:
            lock.acquire()
        except RunError:
            continue
        mine = path.with_name("inside")
        try:
            os.close(os.open(mine, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            results.put("two at once")
            return
        time.sleep(0.0002)
        os.unlink(mine)
        lock.release()
        taken += 1
    results.put("alone")


@pytest.mark.slow
def test_no_two_hold_it_while_it_comes_and_goes(tmp_path):
    context = multiprocessing.get_context("fork" if sys.platform != "win32" else "spawn")
    results = context.Queue()
    processes = [context.Process(target=count, args=(tmp_path / ".lock", results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == ["alone"] * 4
    for process in processes:
        process.join()


def test_a_folder_without_locks_is_used_and_that_is_said(tmp_path, monkeypatch, capsys):
    def refuse(fd):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("nanogrpo.lock._try", refuse)
    lock = Lock(tmp_path / ".lock", "the run")
    lock.acquire()
    assert "cannot be locked (Operation not supported); start it only once" in capsys.readouterr().err
    lock.release()


@pytest.mark.parametrize(
    "link", ["symlink", "dangling symlink", "hard link", "a file of the user's", "binary", "fifo"]
)
def test_a_file_that_is_no_lock_is_neither_written_nor_removed(tmp_path, link):
    thesis, path = tmp_path / "thesis.tex", tmp_path / "run" / ".lock"
    path.parent.mkdir()
    thesis.write_text("my thesis")
    if link == "symlink":
        path.symlink_to(thesis)
    elif link == "dangling symlink":
        path.symlink_to(tmp_path / "not there")
    elif link == "hard link":
        os.link(thesis, path)
    elif link == "fifo":
        os.mkfifo(path)
    elif link == "binary":
        path.write_bytes(b"\xff\xfe")
    else:
        path.write_text("my thesis")
    with pytest.raises(RunError, match=r"\.lock"):
        Lock(path, "the run").acquire()
    assert os.path.lexists(path) and thesis.read_text() == "my thesis"
    assert not (tmp_path / "not there").exists()
    if link == "a file of the user's":
        assert path.read_text() == "my thesis"
