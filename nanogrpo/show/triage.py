"""The run doctor's score: what it says of the runs of ``book/studies/doctor``, read anew from their curves.

The study's protocol says which diagnosis of which fault counts as right, and what is declared.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from nanogrpo.errors import ShapeError
from nanogrpo.show.stats import Interval
from nanogrpo.show.studies import study_log
from nanogrpo.teach.doctor import Curves, Diagnosis, diagnose


@dataclass(frozen=True)
class Patient:
    """A run of the study, what is wrong with it, and what the doctor says.

    Attributes:
        fault: its name; empty for a healthy run.
        group: ``"healthy"``, ``"training"``, ``"unseen"`` (the first rules were not tuned on such), ``"new"``
            (no rule was), or ``"silent"`` (no curve shows it).
        expected: the name of the right finding; empty where there is none.
        seed: of the run.
        curves: its log and settings.
        diagnosis: of its curves.
    """

    fault: str
    group: str
    expected: str
    seed: int
    curves: Curves
    diagnosis: Diagnosis

    @property
    def right(self) -> bool:
        """Whether the right finding is the first one; of a healthy run, whether there is none."""
        return self.diagnosis.first == self.expected


def patients(part: str = "second_held_out", settings: bool = True) -> list[Patient]:
    """The runs of a part of the study; without ``settings`` the doctor sees the curves alone.

    Raises:
        LogError: the log is not to be had, see :func:`~nanogrpo.show.studies.study_log`.
    """
    faults = json.loads(study_log("doctor/faults.json").read_text(encoding="utf-8"))
    how = json.loads(study_log(f"doctor/{part}.json").read_text(encoding="utf-8"))["settings"]
    healthy = {"group": "healthy", "expected": ""}
    found, logged = [], _runs(part)
    for run in how:
        fault, seed = run.rsplit("/", 1)[0], int(run.rsplit("/", 1)[1])
        rows = logged.get((fault, seed), [])
        own = [n for n in (rows[0] if rows else {}) if n not in ("fault", "seed", "step")]
        names = [n for n in own if any(row[n] for row in rows)]
        columns = {n: [float(row[n]) if row[n] else None for row in rows] for n in names}
        steps = [int(row["step"]) for row in rows]
        curves = Curves(columns, steps, how[run] if settings else {})
        known = faults[fault] if fault else healthy
        found.append(Patient(fault, known["group"], known["expected"], seed, curves, diagnose(curves)))
    return found


def first_rules(part: str) -> dict[tuple[str, int], str]:
    """What the first rules named first in the runs of a held-out part, by fault and seed; empty for nothing.

    Raises:
        LogError: the log is not to be had.
    """
    named = json.loads(study_log("doctor/first_rules.json").read_text(encoding="utf-8"))["named"][part]
    return {(run.rsplit("/", 1)[0], int(run.rsplit("/", 1)[1])): name for run, name in named.items()}


def _runs(part: str) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The rows of each run, as they stand in the log; a run that stopped at once has none."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with open(study_log(f"doctor/{part}.csv"), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs.setdefault((row["fault"], int(row["seed"])), []).append(row)
    return runs


def share(hits: Sequence[bool], level: float = 0.95) -> Interval:
    """A share of independent runs, with its exact binomial interval (Clopper and Pearson).

    Raises:
        ShapeError: there are no runs.

    >>> [round(x, 3) for x in share([True] * 8 + [False] * 2)]
    [0.8, 0.444, 0.975]
    """
    if not len(hits):
        raise ShapeError("a share needs at least one run")
    ends = stats.binomtest(sum(hits), len(hits)).proportion_ci(level, "exact")
    return Interval(sum(hits) / len(hits), float(ends.low), float(ends.high))


def share_by_kind(
    runs: Sequence[Patient], hits: Sequence[float] | None = None, level: float = 0.95, draws: int = 9999
) -> Interval:
    """The share of runs that are diagnosed rightly, with a percentile bootstrap over kinds of fault.

    Runs of one kind are alike, so they count as one draw. In place of that share it is the mean of ``hits``,
    a number for each run, where these are given: the difference of two doctors, say.

    Raises:
        ShapeError: there are no runs.
    """
    if not runs:
        raise ShapeError("a share needs at least one run")
    kinds = dict.fromkeys(run.fault for run in runs)
    pairs = list(zip(runs, [run.right for run in runs] if hits is None else hits, strict=True))
    right = np.array([sum(hit for run, hit in pairs if run.fault == kind) for kind in kinds])
    number = np.array([sum(run.fault == kind for run in runs) for kind in kinds])
    picks = np.random.default_rng(0).integers(len(kinds), size=(draws, len(kinds)))
    drawn = right[picks].sum(1) / number[picks].sum(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(right.sum() / number.sum()), float(low), float(high))
