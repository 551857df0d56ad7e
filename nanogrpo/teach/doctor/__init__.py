"""The run doctor: reads the curves of a run, ours or TRL's, and says what looks wrong.

    log -> curves -> looks -> findings -> report

    >>> columns = {"reward": [0.5] * 10, "grad_norm": [0.0] * 10}
    >>> diagnosis = diagnose(Curves(columns, steps=list(range(1, 11))))
    >>> diagnosis.first
    'no gradient'

Each file is a step of that line: :mod:`~nanogrpo.teach.doctor.logs` reads, the looks are sorted by kind
(what contradicts an identity, what moves, what stands still), and :mod:`~nanogrpo.teach.doctor.rules` is the
table of them, in the order of the report. From a shell: ``python -m nanogrpo doctor runs/x``.
"""

from nanogrpo.teach.doctor.curves import METRICS, Curves, Point
from nanogrpo.teach.doctor.logs import read_curves
from nanogrpo.teach.doctor.report import Diagnosis, Finding, command, diagnose, report
from nanogrpo.teach.doctor.rules import RULES, Rule
from nanogrpo.teach.doctor.trends import Change, Seen, change

__all__ = [
    "METRICS",
    "RULES",
    "Change",
    "Curves",
    "Diagnosis",
    "Finding",
    "Point",
    "Rule",
    "Seen",
    "change",
    "command",
    "diagnose",
    "read_curves",
    "report",
]
