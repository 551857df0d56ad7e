"""The CSV log: whole rows, readable after a crash."""

import pytest

from nanogrpo.errors import LogError
from nanogrpo.metrics import CSVLog, cut_log, read_csv


def test_numbers_come_back_exactly(tmp_path):
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-17}]
    with CSVLog(tmp_path / "new" / "log.csv") as log:
        for row in rows:
            log.write(row)
    assert read_csv(log.path) == {"step": [1, 2], "loss": [0.1 + 0.2, 1e-17]}


def test_each_row_is_on_disk_before_the_next(tmp_path):
    log = CSVLog(tmp_path / "log.csv")
    log.write({"step": 1})
    assert read_csv(log.path) == {"step": [1]}, "a run killed here would lose the row"
    log.close()


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n2,0.0")  # the crash cut 0.05 to 0.0, which still looks like a number
    assert read_csv(path) == {"step": [1], "loss": [0.5]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n3\n", "line 3: 1 values for 2 columns"),
        ("a\nx\n", "line 2: a='x' is no number"),
    ],
)
def test_a_damaged_log_says_where(tmp_path, text, message):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(LogError, match=message):
        read_csv(path)


def test_missing_and_unwritable_logs_are_typed_errors(tmp_path):
    with pytest.raises(LogError, match="cannot read the log"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="cannot write the log .*choose a folder"):
        CSVLog(tmp_path / "file" / "log.csv")


def test_a_row_with_other_columns_is_refused(tmp_path):
    with CSVLog(tmp_path / "log.csv") as log:
        log.write({"step": 1, "loss": 0.5})
        with pytest.raises(LogError, match="'kl'"):
            log.write({"step": 2, "loss": 0.5, "kl": 0.1})
    assert read_csv(log.path) == {"step": [1], "loss": [0.5]}, "the rows before the mistake are lost"


WHOLE = "step,loss\n1,0.5\n2,0.25\n3,0.125\n"


@pytest.mark.parametrize(
    ("text", "step", "left", "said"),
    [
        (WHOLE, 3, WHOLE, ""),
        (WHOLE, 2, "step,loss\n1,0.5\n2,0.25\n", "1 row(s) after step 2"),
        (WHOLE + "4,0.0", 3, WHOLE, "a torn last line"),
        (WHOLE + "4,0.0", 1, "step,loss\n1,0.5\n", "2 row(s) after step 1 and a torn last line"),
        (WHOLE, 0, "step,loss\n", "3 row(s) after step 0"),
        ("step,lo", 0, "", "a torn last line"),
        ("", 0, "", ""),
    ],
)
def test_a_log_is_cut_back_to_a_step_and_says_what_it_lost(tmp_path, text, step, left, said):
    path = tmp_path / "log.csv"
    path.write_text(text)
    message = cut_log(path, step)
    assert path.read_text() == left and message == (f"dropped from {path}: {said}" if said else "")
    with CSVLog(path, append=True) as log:
        log.write({"step": step + 1, "loss": 2.0})
    assert path.read_text() == (left or "step,loss\n") + f"{step + 1},2.0\n"
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_a_log_that_lacks_steps_cannot_be_gone_on_with(tmp_path):
    path = tmp_path / "log.csv"
    assert cut_log(path, 0) == "" and not path.exists()
    for text in (WHOLE, "step,loss\n1,0.5\n3,0.25\n4,0.1\n5,0.1\n", WHOLE + "4,0.5"):
        path.write_text(text)
        with pytest.raises(LogError, match="the checkpoint is of step 4, but the log"):
            cut_log(path, 4)
        assert path.read_text() == text, "a log that cannot be used must be left alone"
    for text in ("loss\n0.5\n", "step\nx\n"):
        path.write_text(text)
        with pytest.raises(LogError, match="a damaged column step, or none"):
            cut_log(path, 1)
    with pytest.raises(LogError, match="the checkpoint is of step 1, but the log"):
        cut_log(tmp_path / "none.csv", 1)
    with pytest.raises(LogError, match="cannot cut the log"):
        cut_log(tmp_path, 1)


def test_an_appended_row_with_other_columns_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text(WHOLE)
    with CSVLog(tmp_path / "log.csv", append=True) as log:
        with pytest.raises(LogError, match="'kl'"):
            log.write({"step": 4, "kl": 0.1})
