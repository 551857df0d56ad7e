"""The log: one CSV row a step, on disk as soon as the step is done.

A log is UTF-8 text: a line of column names, then a line of numbers a step. What is written comes back as the
same number, to the last bit, or is refused. What cannot be read is named with its line, never guessed.

What it leaves out, and why: timings. A log without them is the same, byte for byte, when a run is repeated.
"""

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from nanogrpo.errors import LogError, os_errors, shown, underflows

FREE = "free some space, or choose another folder"


class CSVLog:
    """Append rows of metrics to a CSV file; the first row's keys are its columns.

    Each row is on disk when :meth:`write` returns, so a run that is interrupted leaves a readable file. A row
    that does not fit on the disk is taken back as a whole, so that the log goes on well once there is space.
    Use it as a context manager, or call :meth:`close`.

    Args:
        path: the file; its folder is made. An older file of that name is replaced.
        append: go on with a file that :func:`cut_log` has left whole.

    Raises:
        LogError: the folder or file cannot be written, or the file to go on with is no log, or is torn.

    Two writers of one file would mix their rows; whoever finds that the file has changed meanwhile stops.
    """

    def __init__(self, path: str | os.PathLike, append: bool = False):
        self.path = _path(path)
        self.columns: list[str] | None = None
        with os_errors(LogError, f"write the log {self.path}", "choose a folder you may write to"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if append and self.path.exists():
                content = self.path.read_bytes()
                if content and not content.endswith(b"\n"):
                    raise LogError(f"{self.path} ends in the middle of a line; cut it back by cut_log first")
                self.columns = _header(self.path, _text(self.path, content)) if content else None
            self._file = open(self.path, "ab" if append else "wb", buffering=0)
            self._end = self._size()  # where the next row goes

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Append one row of numbers: Python's, NumPy's, or tensors without dimensions; a bool is 0 or 1.

        Raises:
            LogError: the row's keys are not the columns of the first row, a value is none that can be read
                back, or the disk is full.
        """
        if not isinstance(row, Mapping) or not row:
            raise LogError(f"{self.path}: a row is a dict of metrics, with at least one; got {row!r:.80}")
        values = [self._cell(name, value) for name, value in row.items()]
        if self.columns is None:
            for name in row:
                self._check_name(name)
            self._line(list(row))
            self.columns = list(row)
        if list(row) != self.columns:
            odd = sorted(map(str, set(row) ^ set(self.columns))) or "their order"
            raise LogError(
                f"{self.path}: a row differs from the first one in {odd}; log the same metrics at every step"
            )
        self._line(values)

    def _check_name(self, name) -> None:
        if not isinstance(name, str) or not name.strip() or not _one_line(name):
            raise LogError(f"{self.path}: {name!r} is no name for a column; use a text of one line")

    def _cell(self, name, value) -> str | int:
        """What stands in the file: the shortest text that is read back as the very same number."""
        if isinstance(value, str):
            if not _one_line(value):
                raise LogError(f"{self.path}: {name}={value!r} is no text of one line")
            return value
        try:
            if getattr(value, "ndim", 0) or type(value).__name__ == "MaskedConstant":  # of NumPy
                raise TypeError
            number = float(value.detach() if hasattr(value, "detach") else value)
            if not (math.isnan(number) or number == value):
                raise TypeError
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise LogError(
                f"{self.path}: {name}={shown(value):.80} is no number that a log can hold; "
                "give an int or a float"
            ) from None
        return int(number) if _whole(value) else float.__repr__(number)

    def _line(self, values: list) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        data = text.getvalue().encode()
        if self._file.closed:
            raise LogError(f"the log {self.path} is closed; open it with append=True to go on")
        with os_errors(LogError, f"write to the log {self.path}", FREE):
            before = self._size()
            if before != self._end:
                raise LogError(
                    f"{self.path} has been changed by another program since its last row was written here; "
                    "give each run a log of its own"
                )
            try:
                done = 0
                while done < len(data):
                    done += self._file.write(data[done:])
                self._end = self._size()
            except OSError:
                self._take_back(before)
                raise

    def _size(self) -> int | None:
        return self._file.seek(0, os.SEEK_END) if self._file.seekable() else None

    def _take_back(self, size: int | None) -> None:
        try:
            if size is not None:
                self._file.truncate(size)
        except OSError:
            pass  # a torn last line is left out by whoever reads the log

    def sync(self) -> None:
        """Wait until the rows are on the disk itself, and not only with the operating system.

        Raises:
            LogError: they cannot be written there, or the log is closed.
        """
        if self._file.closed:
            raise LogError(f"the log {self.path} is closed; sync it before")
        with os_errors(LogError, f"write the log {self.path} to the disk", FREE):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; closing it twice does nothing.

        Raises:
            LogError: the operating system could not keep what was written.
        """
        with os_errors(LogError, f"close the log {self.path}", FREE):
            self._file.close()

    def __enter__(self) -> "CSVLog":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def _path(path: str | os.PathLike) -> Path:
    try:
        text = os.fspath(path)
        if not isinstance(text, str) or "\0" in text or not text:
            raise TypeError
        os.fsencode(text)
        return Path(text)
    except (TypeError, UnicodeEncodeError):
        raise LogError(f"{path!r} is no name of a file") from None


def _one_line(text: str) -> bool:
    """Whether a text can stand in a cell: only characters that can be printed, so no line end and no NUL."""
    return text.isprintable()


def _whole(value) -> bool:
    """Whether a number, a NumPy scalar or a tensor is of a type of whole numbers, or a truth value."""
    dtype = str(getattr(value, "dtype", type(value).__name__))
    return "int" in dtype or "bool" in dtype


def _text(path: Path, content: bytes) -> str:
    """The whole lines of a log; a byte order mark, as spreadsheets write it, is no part of a name."""
    content = content[: content.rfind(b"\n") + 1]
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LogError(f"{path} is UTF-16; save it as CSV in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LogError(
            f"{path} is no text in UTF-8, so no log: {error.reason} at byte {error.start}"
        ) from None
    if "\0" in text:
        raise LogError(f"{path} holds NUL characters; it is no log, or is damaged")
    return text.replace("\r\n", "\n")


def _lines(path: Path, text: str) -> Iterator[list[str]]:
    """The cells of each line; a quoted cell may not hold a line end, so lines are lines."""
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            cells = next(csv.reader([line], strict=True), [])
        except csv.Error as error:
            raise LogError(f"{path}, line {number}: {error}; the log is damaged") from None
        yield cells


def _header(path: Path, text: str) -> list[str]:
    names = next(_lines(path, text), None)
    if names is None:
        raise LogError(f"the log {path} is empty, or its only line is torn; the run wrote no step")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LogError(f"{path}, line 1: the column {twice[0]!r} stands there more than once")
    if not names:
        raise LogError(f"{path}, line 1: there are no names of columns; it is no log")
    return names


def read_csv(path: str | os.PathLike) -> dict[str, list[float]]:
    """The columns of a log by name, as numbers.

    A last line without a line end was torn by a crash: ``0.05`` cut to ``0.0`` would still look like a
    number, so the line is left out.

    Raises:
        LogError: no such file, or not in UTF-8; a name that stands twice, a line with the wrong number of
            values, or a value that is no number.
    """
    return _columns(*_read(path))


def read_cells(path: str | os.PathLike) -> dict[str, list[str]]:
    """The columns of a log by name, as the texts that stand there; for logs of others, which may have gaps.

    Raises:
        LogError: as for :func:`read_csv`, but for what a value may be.
    """
    return _cells(*_read(path))


def _read(path: str | os.PathLike) -> tuple[Path, str]:
    path = _path(path)
    with os_errors(LogError, f"read the log {path}", "look for it elsewhere"):
        content = path.read_bytes()
    return path, _text(path, content)


def _cells(path: Path, text: str) -> dict[str, list[str]]:
    cells: dict[str, list[str]] = {name: [] for name in _header(path, text)}
    for number, line in enumerate(_lines(path, text), start=1):
        if len(line) != len(cells):
            raise LogError(
                f"{path}, line {number}: {len(line)} values for {len(cells)} columns; the log is damaged"
            )
        for column, value in zip(cells.values(), line, strict=True):
            column.append(value)
    return {name: column[1:] for name, column in cells.items()}


def _columns(path: Path, text: str) -> dict[str, list[float]]:
    return {
        name: [as_number(path, line, name, value) for line, value in enumerate(values, start=2)]
        for name, values in _cells(path, text).items()
    }


def as_number(path: Path, line: int, name: str, value: str) -> float:
    """The number in a cell of a log, or LogError with its place."""
    try:
        return number_in(value)
    except ValueError:
        raise LogError(
            f"{path}, line {line}: {name}={value!r:.80} is no number; the log is damaged"
        ) from None


def number_in(text: str) -> float:
    """A number as a writer of logs writes it, or ValueError; ``float`` also takes ``1_0`` for ten."""
    number = float(text)
    lost = underflows(text, number)
    if "_" in text or not text.isascii() or lost or (math.isinf(number) and any(c.isdigit() for c in text)):
        raise ValueError(text)
    return number


def cut_log(path: str | os.PathLike, step: int) -> str:
    """Cut a log back to the rows up to ``step``, which stay as they are, to the byte; say what was dropped.

    A run that was killed has logged steps that its last checkpoint knows nothing of; it will make them again.

    Returns:
        What was dropped, to be shown, or an empty string.

    Raises:
        LogError: a row up to ``step`` is not there or damaged, or the file cannot be read or written.
    """
    path = _path(path)
    with os_errors(LogError, f"cut the log {path}", "restore it, or start the run anew"):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        torn = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        steps = _steps(path, b"".join(lines), step)
        if steps[:step] != list(range(1, step + 1)):
            raise LogError(
                f"the checkpoint is of step {step}, but the log {path} does not hold all rows up to it; "
                "restore the log, or start the run anew"
            )
        late = len(steps) - step
        dropped = [f"{late} row(s) after step {step}"] * (late > 0) + ["a torn last line"] * bool(torn)
        if dropped:
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            try:
                part.write_bytes(b"".join(lines[: step + 1]))
                os.replace(part, path)
            except OSError:
                part.unlink(missing_ok=True)
                raise
    return f"dropped from {path}: {' and '.join(dropped)}" if dropped else ""


def _steps(path: Path, content: bytes, upto: int) -> list[int]:
    """The numbers in a log's column ``step``; the rows ``upto`` one are read as a whole."""
    if not content:
        return []
    text = _text(path, content)
    _columns(path, "".join(f"{line}\n" for line in text.split("\n")[:-1][: upto + 1]))
    if "step" not in (names := _header(path, text)):
        raise LogError(f"the log {path} has a damaged column step, or none: it has {', '.join(names)}")
    place, rows = names.index("step"), list(_lines(path, text))[1:]
    try:
        return [int(row[place]) for row in rows]
    except (ValueError, IndexError) as error:
        raise LogError(f"the log {path} has a damaged column step, or none: {error}") from error


def logged(rows: Iterator[dict[str, float]], path: str | os.PathLike) -> Iterator[dict[str, float]]:
    """Pass the rows of a trainer on, each written to a CSV file first.

    The file is closed when the run ends in whatever way: by itself, by leaving the loop, or by Ctrl-C.

    Raises:
        LogError: at once, before any training, where the file cannot be written.
    """
    log = CSVLog(path)

    def write():
        with log:
            for row in rows:
                log.write(row)
                yield row

    return write()
