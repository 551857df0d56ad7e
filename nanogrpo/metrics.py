"""The log: one CSV row a step, on disk as soon as the step is done.

What it leaves out, and why: timings. A log without them is the same, byte for byte, when a run is repeated.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from nanogrpo.errors import LogError


class CSVLog:
    """Append rows of metrics to a CSV file; the first row's keys are its columns.

    Each row is flushed when it is written, so a run that is interrupted leaves a readable file.
    Use it as a context manager, or call :meth:`close`.

    Args:
        path: the file; its folder is made. An older file of that name is replaced.
        append: go on with a file that :func:`cut_log` has left whole.

    Raises:
        LogError: the folder or file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, append: bool = False):
        self.path = Path(path)
        self.columns: list[str] | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if append and self.path.exists():
                with open(self.path, newline="", encoding="utf-8") as file:
                    self.columns = next(csv.reader(file), None)
            self._file = open(self.path, "a" if append else "w", newline="", encoding="utf-8")
        except OSError as error:
            raise LogError(
                f"cannot write the log {self.path}: {error.strerror}; choose a folder you may write to"
            ) from error

    def write(self, row: dict[str, float | int | str]) -> None:
        """Append one row.

        Raises:
            LogError: the row's keys are not the columns of the first row, or the disk is full.
        """
        if self.columns is None:
            self.columns = list(row)
            self._line(self.columns)
        if list(row) != self.columns:
            odd = sorted(set(row) ^ set(self.columns)) or "their order"
            raise LogError(
                f"{self.path}: a row differs from the first one in {odd}; log the same metrics at every step"
            )
        self._line([repr(v) if isinstance(v, float) else v for v in row.values()])

    def _line(self, values: list) -> None:
        try:
            csv.writer(self._file, lineterminator="\n").writerow(values)
            self._file.flush()
        except OSError as error:
            raise LogError(
                f"cannot write to the log {self.path}: {error.strerror}; free some space"
            ) from error

    def sync(self) -> None:
        """Wait until the rows are on the disk itself, and not only with the operating system."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "CSVLog":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def read_csv(path: str | os.PathLike) -> dict[str, list[float]]:
    """The columns of a log by name, as numbers.

    A last line without a line end was torn by a crash: ``0.05`` cut to ``0.0`` would still look like a
    number, so the line is left out.

    Raises:
        LogError: no such file, a line with the wrong number of values, or a value that is no number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise LogError(f"cannot read the log {path}: {error.strerror}") from error
    lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    if not lines:
        raise LogError(f"the log {path} is empty; the run wrote no step")
    columns: dict[str, list[float]] = {name: [] for name in lines[0]}
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise LogError(
                f"{path}, line {number}: {len(line)} values for {len(columns)} columns; the log is damaged"
            )
        for name, value in zip(columns, line, strict=True):
            try:
                columns[name].append(float(value))
            except ValueError:
                raise LogError(
                    f"{path}, line {number}: {name}={value!r} is no number; the log is damaged"
                ) from None
    return columns


def cut_log(path: str | os.PathLike, step: int) -> str:
    """Cut a log back to the rows up to ``step``, which stay as they are, to the byte; say what was dropped.

    A run that was killed has logged steps that its last checkpoint knows nothing of; it will make them again.

    Returns:
        What was dropped, to be shown, or an empty string.

    Raises:
        LogError: a row up to ``step`` is not there or damaged, or the file cannot be read or written.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        torn = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        steps = _steps(path, lines)
        if steps[:step] != list(range(1, step + 1)):
            raise LogError(
                f"the checkpoint is of step {step}, but the log {path} does not hold all rows up to it; "
                "restore the log, or start the run anew"
            )
        late = len(steps) - step
        dropped = [f"{late} row(s) after step {step}"] * (late > 0) + ["a torn last line"] * bool(torn)
        if dropped:
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            part.write_bytes(b"".join(lines[: step + 1]))
            os.replace(part, path)
    except OSError as error:
        if isinstance(error, LogError):
            raise
        raise LogError(f"cannot cut the log {path}: {error.strerror}") from error
    return f"dropped from {path}: {' and '.join(dropped)}" if dropped else ""


def _steps(path: Path, lines: list[bytes]) -> list[int]:
    """The numbers in a log's column ``step``."""
    rows = list(csv.reader(line.decode() for line in lines))
    try:
        return [int(row[rows[0].index("step")]) for row in rows[1:]]
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
