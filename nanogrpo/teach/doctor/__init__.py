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

# Names that chapters use, from one place; each is documented where it is written.
from nanogrpo.teach.doctor.curves import METRICS as METRICS
from nanogrpo.teach.doctor.curves import Curves as Curves
from nanogrpo.teach.doctor.curves import Point as Point
from nanogrpo.teach.doctor.diagnosis import Diagnosis as Diagnosis
from nanogrpo.teach.doctor.diagnosis import command as command
from nanogrpo.teach.doctor.diagnosis import diagnose as diagnose
from nanogrpo.teach.doctor.diagnosis import report as report
from nanogrpo.teach.doctor.logs import read_curves as read_curves
from nanogrpo.teach.doctor.rules import RULES as RULES
from nanogrpo.teach.doctor.trends import change as change
