"""The CSV log: whole rows, readable after a crash."""

import pytest

from nanogrpo.errors import LogError
from nanogrpo.metrics import CSVLog, read_csv


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
