"""Reads the log that a run left: ours, TRL's ``trainer_state.json``, a CSV with TRL's names.

    **log -> curves** -> looks -> findings -> report

What it leaves out, and why: other trainers' names (a log that has none of the known ones is refused, and the
message lists them).
"""

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanogrpo.errors import LogError, RunError, os_errors, shown
from nanogrpo.metrics import as_number, number_in, read_cells
from nanogrpo.runs import CONFIG, LOG
from nanogrpo.teach.doctor.curves import METRICS, Curves

STATE = "trainer_state.json"
OLDER = {  # names in older versions of TRL
    "completion_length": "completions/mean_length",
    "clip_ratio": "clip_ratio/region_mean",
    "completions/truncated_ratio": "completions/clipped_ratio",
}
PREFIX = re.compile(r"(.* - )?train/")  # of a table that wandb or TensorBoard has written


def read_curves(path: str | os.PathLike) -> Curves:
    """The curves of a run.

    Args:
        path: a run's folder (ours, or one of TRL's, of which the latest checkpoint is read), or a file:
            ``metrics.csv``, ``trainer_state.json``, a CSV with TRL's names. Empty cells are gaps.

    Raises:
        LogError: there is no log, it cannot be read, or it has none of the metrics, or several runs.
        RunError: the settings beside it are damaged.
    """
    place = _place(path)
    settings = _settings(place.parent / CONFIG) if place.name == LOG else {}
    names = _from_json(place) if place.suffix == ".json" else _from_csv(place)
    known = {name: values for name, values in names.items() if _known(name)}
    if not known.keys() - {"learning_rate"}:
        raise LogError(
            f"{place} has none of the metrics that are read here; it has "
            f"{shown(', '.join(map(str, names)), str) or 'no columns'}; known are {', '.join(METRICS)}"
        )
    rows = [
        i for i in range(len(next(iter(known.values())))) if any(v[i] is not None for v in known.values())
    ]
    if not rows:
        raise LogError(f"{place} holds no step: the run wrote no value of any metric")
    steps = _steps(place, names.get("step"), rows)
    return Curves({name: [values[i] for i in rows] for name, values in known.items()}, steps, settings)


def _known(name: str) -> bool:
    return name in METRICS or re.fullmatch(r"rewards/.+/mean", name) is not None


def _place(path: str | os.PathLike) -> Path:
    """The log that a path stands for."""
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise LogError(f"{path!r} is no name of a file; name a run's folder, or a log")
    place = Path(text)
    if not os.path.isdir(place):
        return place
    with os_errors(LogError, f"look into {place}", "check its permissions"):
        below = [p / STATE for p in place.glob("checkpoint-*") if p.name.split("-")[-1].isdecimal()]
    latest = sorted(below, key=lambda p: int(p.parent.name.split("-")[-1]))[-1:]
    for file in (place / LOG, place / STATE, *latest):
        if file.is_file():
            return file
    raise LogError(f"{place} holds no run: neither {LOG} nor {STATE} is there; name another folder, or a log")


def _settings(path: Path) -> dict[str, Any]:
    """The settings of our run; none where a log stands alone."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}; mend it, or move the log to a folder alone") from error
    if not isinstance(settings, dict):
        raise RunError(
            f"{path} holds a {type(settings).__name__}, no settings; move the log to a folder alone"
        )
    return settings


def _renamed(names: Iterable[str]) -> dict[str, str]:
    """Each name, as TRL has it today; where both an older and a newer one are there, the newer is read."""
    plain = {name: PREFIX.sub("", name, count=1) for name in names}
    new = {name: OLDER.get(short, short) for name, short in plain.items()}
    return {name: to for name, to in new.items() if to == name or to not in plain}


def _from_csv(path: Path) -> dict[str, list[float | None]]:
    cells, found = read_cells(path), {}
    for name, to in _renamed(cells).items():
        if to in found:
            raise LogError(f"{path}: two columns are {to}; give a table of one run")
        if to == "step" or _known(to):
            found[to] = [
                as_number(path, i, to, text.strip()) if text.strip() else None
                for i, text in enumerate(cells[name], start=2)
            ]
        else:
            found[to] = [None] * len(cells[name])
    return found


def _from_json(path: Path) -> dict[str, list[float | None]]:
    """The training rows of ``log_history``, those of one step joined; evaluations and summaries are none."""
    with os_errors(LogError, f"read the log {path}", "look for it elsewhere"):
        content = path.read_bytes()
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LogError(f"{path} is no JSON: {error}; the log is damaged") from None
    history = state.get("log_history") if isinstance(state, dict) else state
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise LogError(f"{path} has no log_history, a list of rows; give a {STATE}")
    rows: dict[Any, dict[str, float | None]] = {}
    for i, row in enumerate(history):
        new = _renamed(row)
        values = {
            to: _value(path, i, to, row[name]) for name, to in new.items() if _known(to) or to == "step"
        }
        if values.keys() - {"step", "loss", "learning_rate"} or {"loss", "grad_norm"} <= values.keys():
            step = values.get("step")
            rows.setdefault(i if step is None else ("step", step), {}).update(values)
    names = dict.fromkeys(name for row in rows.values() for name in row)
    other = dict.fromkeys(str(name) for row in history for name in row if str(name) not in names)
    table = {name: [row.get(name) for row in rows.values()] for name in names}
    return table | {name: [None] * len(rows) for name in other}


def _value(path: Path, i: int, name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        return number_in(value) if isinstance(value, str) else float(value)  # some write "NaN" as a text
    except (ValueError, OverflowError):
        raise LogError(f"{path}, row {i}: {name}={shown(value):.80} is no number; mend the log") from None


def _steps(path: Path, column: list[float | None] | None, rows: list[int]) -> list[int]:
    """The steps of the rows: whole numbers that rise; counted where there are none."""
    if column is None or all(column[i] is None for i in rows):
        return list(range(1, len(rows) + 1))
    steps: list[int] = []
    for i in rows:
        value = column[i]
        if value is None or not math.isfinite(value) or value != int(value):
            raise LogError(f"{path}, row {i}: step={value} is no whole number; mend the log")
        if steps and value <= steps[-1]:
            raise LogError(
                f"{path}, row {i}: step {value:.0f} follows step {steps[-1]}; give the log of one run"
            )
        steps.append(int(value))
    return steps
