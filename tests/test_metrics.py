"""The CSV log: whole rows, readable after a crash."""

import errno
import math
import os
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogrpo.errors import LogError, NanoGRPOError
from nanogrpo.metrics import CSVLog, cut_log, logged, read_csv


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
        with pytest.raises(LogError, match="damaged"):
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


# --- every type of number is right or refused


NUMBERS = {
    "float": (0.1, 0.1),
    "int": (3, 3.0),
    "a large int": (2**53, 2.0**53),
    "bool": (True, 1.0),
    "nan": (float("nan"), None),
    "inf": (-float("inf"), -float("inf")),
    "minus zero": (-0.0, -0.0),
    "np.float64": (np.float64(0.1), 0.1),
    "np.float32": (np.float32(0.1), float(np.float32(0.1))),
    "np.float16": (np.float16(0.1), float(np.float16(0.1))),
    "np.int64": (np.int64(-5), -5.0),
    "np.uint8": (np.uint8(200), 200.0),
    "np.bool": (np.bool_(False), 0.0),
    "an array without dimensions": (np.array(0.5), 0.5),
    "tensor": (torch.tensor(0.1), float(torch.tensor(0.1))),
    "float64 tensor": (torch.tensor(0.1, dtype=torch.float64), 0.1),
    "bfloat16 tensor": (torch.tensor(0.1).bfloat16(), float(torch.tensor(0.1).bfloat16())),
    "int tensor": (torch.tensor(7), 7.0),
    "bool tensor": (torch.tensor(True), 1.0),
    "tensor with gradient": (torch.tensor(0.5, requires_grad=True).mean(), 0.5),
    "Fraction that is a float": (Fraction(1, 4), 0.25),
    "Decimal that is a float": (Decimal("0.25"), 0.25),
}
NO_NUMBERS = {
    "None": None,
    "Fraction that is none": Fraction(1, 3),
    "Decimal that is none": Decimal("0.1"),
    "an int above 2**53": 2**53 + 1,
    "an int above all floats": 10**400,
    "complex": 1j,
    "complex tensor": torch.tensor(1j),
    "list": [0.1],
    "dict": {},
    "array": np.array([0.5]),
    "array of two": np.zeros(2),
    "tensor of one": torch.zeros(1),
    "tensor of two": torch.zeros(2),
    "meta tensor": torch.zeros((), device="meta"),
    "bytes": b"1",
    "a text of two lines": "a\nb",
    "a carriage return": "a\rb",
    "half a character": "\ud800",
    "a function": len,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_type_of_number_comes_back_exactly(tmp_path, name):
    value, expected = NUMBERS[name]
    with CSVLog(tmp_path / "log.csv") as log:
        log.write({"step": 1, "x": value})
    text = log.path.read_text().splitlines()[1]
    (got,) = read_csv(log.path)["x"]
    assert repr(got) == repr(expected if expected is not None else float("nan")), text
    assert "(" not in text and ("." in text) <= (not isinstance(value, int))


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_is_no_number_is_refused_and_leaves_no_trace(tmp_path, name):
    with CSVLog(tmp_path / "log.csv") as log:
        with pytest.raises(LogError, match="x="):
            log.write({"step": 1, "x": NO_NUMBERS[name]})
        log.write({"step": 1, "x": 0.5})
        with pytest.raises(LogError, match="x="):
            log.write({"step": 2, "x": NO_NUMBERS[name]})
    assert read_csv(log.path) == {"step": [1], "x": [0.5]}


@pytest.mark.parametrize(
    "row", [{}, None, [1], "step", {1: 2}, {None: 1}, {"": 1}, {" ": 1}, {"a\nb": 1}, {"\0": 1}]
)
def test_a_row_without_names_is_refused(tmp_path, row):
    with CSVLog(tmp_path / "log.csv") as log, pytest.raises(LogError):
        log.write(row)
    assert log.path.read_bytes() == b""


def test_names_with_commas_quotes_and_umlauts_come_back(tmp_path):
    row = {'a,b"c': 1.0, "größe": 2.0, " x ": 3.0, "'": 4.0, "nan": 5.0}
    with CSVLog(tmp_path / "log.csv") as log:
        log.write(row)
    assert read_csv(log.path) == {name: [value] for name, value in row.items()}


# --- files that are no logs


FILES = {
    "binary": bytes(range(256)) + b"\n",
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\n",
    "Latin-1": "step,größe\n1,2\n".encode("latin-1"),
    "UTF-16": "step,reward\n1,0.5\n".encode("utf-16"),
    "UTF-16 without a mark": "step,reward\n1,0.5\n".encode("utf-16-le"),
    "UTF-32": "step,reward\n1,0.5\n".encode("utf-32"),
    "nothing": b"",
    "only a mark": b"\xef\xbb\xbf",
    "only a line end": b"\n",
    "old line ends": b"step,reward\r1,0.5\r",
    "NUL in a line": b"step,reward\n1,0.\x005\n",
    "semicolons": b"step;reward\n1;0,5\n",
    "a name twice": b"step,step\n1,2\n",
    "an open quote": b'step,reward\n1,"0.5\n2,0.5\n',
    "a very long cell": b"step\n" + b"1" * 200_000 + b"\n",
    "an empty line": b"step\n1\n\n2\n",
    "digits with underscores": b"step\n1_0\n",
    "digits of another script": "step\n\u0661\n".encode(),
    "a number above all floats": b"step\n1e999\n",
    "a hexadecimal number": b"step\n0x10\n",
    "an empty cell": b"step,reward\n1,\n",
    "a web page": b"<html>\n<body>404</body>\n</html>\n",
    "JSON": b'{"step": 1,\n "reward": 2}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_log_is_named(tmp_path, name):
    path = tmp_path / "log.csv"
    path.write_bytes(FILES[name])
    with pytest.raises(LogError, match=re.escape(str(path))):
        read_csv(path)
    if name not in ("nothing", "only a mark"):
        with pytest.raises(LogError, match=re.escape(str(path))):
            cut_log(path, 1)
    assert path.read_bytes() == FILES[name]


def test_what_spreadsheets_add_is_not_part_of_the_log(tmp_path):
    """A byte order mark and the line ends of Windows."""
    path = tmp_path / "log.csv"
    path.write_bytes("\ufeffstep,reward\r\n1,0.5\r\n".encode())
    assert read_csv(path) == {"step": [1], "reward": [0.5]}
    with CSVLog(path, append=True) as log:
        log.write({"step": 2, "reward": 0.25})
    assert read_csv(path) == {"step": [1, 2], "reward": [0.5, 0.25]}


@pytest.mark.parametrize("name", ["binary", "UTF-16", "a name twice", "only a line end"])
def test_nothing_is_appended_to_a_file_that_is_no_log(tmp_path, name):
    path = tmp_path / "log.csv"
    path.write_bytes(FILES[name])
    with pytest.raises(LogError):
        CSVLog(path, append=True)
    assert path.read_bytes() == FILES[name]


def test_nothing_is_appended_to_half_a_line(tmp_path):
    """The new row would have become the rest of the old one: step 20.25 in place of 2."""
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n2,0.")
    with pytest.raises(LogError, match="middle of a line; cut it back"):
        CSVLog(path, append=True)


@pytest.mark.parametrize("path", [None, 3, b"x", "", "a\0b", ["x"]])
def test_what_is_no_name_of_a_file_is_refused(path):
    for call in (CSVLog, read_csv, lambda path: cut_log(path, 1), lambda path: logged(iter([]), path)):
        with pytest.raises(LogError, match="no name of a file"):
            call(path)


# --- the disk


def test_a_full_disk_is_a_typed_error_from_write_and_from_close():
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(LogError, match="free some space"):
        with CSVLog("/dev/full") as log:
            log.write({"step": 1})


@pytest.mark.parametrize("room", range(0, 40, 3))
def test_a_row_that_does_not_fit_is_taken_back_as_a_whole(tmp_path, monkeypatch, room):
    """Once there is space again, the log goes on with no torn line and no row twice."""
    log, left = CSVLog(tmp_path / "log.csv"), [room]
    real = log._file

    class SmallDisk:
        def write(self, data):
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            part = data[: left[0]]
            left[0] -= len(part)
            return real.write(part)

        def __getattr__(self, name):
            return getattr(real, name)

    log._file = SmallDisk()
    rows = [{"step": step, "loss": step / 3} for step in (1, 2, 3)]
    for row in rows:
        try:
            log.write(row)
        except LogError as error:
            assert "free some space" in str(error)
            content = log.path.read_bytes()
            assert not content or content.endswith(b"\n"), "a torn line is left"
            left[0] = 10_000
            log.write(row)
    log.close()
    assert read_csv(log.path) == {"step": [1, 2, 3], "loss": [1 / 3, 2 / 3, 1.0]}


@pytest.mark.parametrize("call", ["fsync", "close"])
def test_the_operating_system_may_fail_late(tmp_path, monkeypatch, call):
    log = CSVLog(tmp_path / "log.csv")
    log.write({"step": 1})

    def full(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(LogError, match="Disk quota exceeded; free some space"):
            log.sync()
    else:
        real = log._file
        log._file = type("File", (), {"close": full, "closed": False})()
        with pytest.raises(LogError, match="Disk quota exceeded; free some space"):
            log.close()
        real.close()


def test_a_closed_log_says_so(tmp_path):
    log = CSVLog(tmp_path / "log.csv")
    log.close()
    log.close()
    for call in (lambda: log.write({"step": 1}), log.sync):
        with pytest.raises(LogError, match="is closed"):
            call()


# --- fuzz


@pytest.mark.slow
@settings(max_examples=600)
@given(content=st.one_of(
    st.binary(max_size=60),
    st.text("0123456789.,\n\r-e\"'_ nai\0", max_size=60).map(lambda text: b"step,loss\n" + text.encode()),
    st.lists(st.lists(st.one_of(st.integers().map(str), st.floats().map(repr)), min_size=2, max_size=2)).map(
        lambda rows: "".join(f"{','.join(row)}\n" for row in [["step", "loss"], *rows]).encode()
    ),
), step=st.integers(0, 3))  # fmt: skip
def test_fuzz_log_files(tmp_path_factory, content, step):
    """A file is read as what stands in it, or refused; and to cut or to append never makes up a number."""
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(content)
    try:
        columns = read_csv(path)
    except NanoGRPOError as error:
        assert str(path) in str(error)
        columns = None
    assert path.read_bytes() == content
    if columns is not None:
        whole = content[: content.rfind(b"\n") + 1]
        assert len({len(values) for values in columns.values()}) == 1
        assert len(next(iter(columns.values()))) == whole.count(b"\n") - 1
        for value in (value for values in columns.values() for value in values if value == value):
            assert abs(value) == math.inf or any(float(t) == value for t in _numbers(whole)), value
    try:
        cut_log(path, step)
    except NanoGRPOError:
        assert path.read_bytes() == content
        return
    if not path.read_bytes():
        return
    with CSVLog(path, append=True) as log:
        log.write({name: 1.5 for name in log.columns})
    if columns is not None:
        assert {name: values[:-1] for name, values in read_csv(path).items()} == {
            name: values[:step] for name, values in columns.items()
        } or any(value != value for values in columns.values() for value in values)


def _numbers(content):
    for cell in re.split(rb'[,\n\r"]', content.removeprefix(b"\xef\xbb\xbf")):
        try:
            yield float(cell)
        except ValueError:
            continue


anything = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=5), st.complex_numbers(),
    st.fractions(), st.decimals(), st.floats(width=32).map(np.float32), st.integers(-9, 9).map(np.int16),
    st.floats().map(torch.tensor), st.lists(st.floats(), max_size=2).map(torch.tensor), st.binary(max_size=3),
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=600)
@given(rows=st.lists(st.dictionaries(st.text(max_size=3), anything, max_size=3), max_size=4))
def test_fuzz_rows(tmp_path_factory, rows):
    """What was accepted comes back as the same numbers; what was refused leaves no trace."""
    path, kept = tmp_path_factory.getbasetemp() / "rows.csv", []
    with CSVLog(path) as log:
        for row in rows:
            try:
                log.write(row)
                kept.append(row)
            except NanoGRPOError as error:
                assert str(path) in str(error)
    if not kept:
        return
    try:
        columns = read_csv(path)
    except NanoGRPOError:
        assert any(isinstance(value, str) for row in kept for value in row.values())
        return
    assert list(columns) == list(kept[0])
    for i, row in enumerate(kept):
        for name, value in row.items():
            if isinstance(value, str):
                continue  # a text that reads as a number, such as "1"
            assert columns[name][i] == value or (value != value and math.isnan(columns[name][i]))
