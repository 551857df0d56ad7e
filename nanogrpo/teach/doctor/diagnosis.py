"""The run doctor: what looks wrong in a run's curves, with the evidence and the chapter that explains it.

    log -> curves -> looks -> findings -> **report**

What it leaves out, and why: a cure (the chapter has it), and whatever leaves no trace in a curve, as more
than half of the museum's mistakes do; :mod:`nanogrpo.teach.check` finds those in the code.
"""

import argparse
import textwrap
from dataclasses import dataclass

from nanogrpo.job import printable
from nanogrpo.teach.doctor.curves import Curves
from nanogrpo.teach.doctor.logs import read_curves
from nanogrpo.teach.doctor.rules import RULES, Rule
from nanogrpo.teach.doctor.trends import Seen


@dataclass(frozen=True)
class Finding:
    """A rule that has something to say of a run, and its evidence."""

    rule: Rule
    seen: Seen

    def __str__(self) -> str:
        lines = [
            f"{self.rule.name}: {self.seen.metric}, from step {self.seen.step}",
            f"evidence: {self.seen.evidence}.",
            f"meaning: {self.rule.says}",
            f"read: book/{self.rule.chapter}",
        ]
        return "\n".join(textwrap.fill(text, 100, subsequent_indent="   ") for text in lines)


@dataclass(frozen=True)
class Diagnosis:
    """What was found, the likeliest cause first; and what could not be looked at, with the reason."""

    findings: list[Finding]
    not_looked_at: dict[str, str]

    @property
    def first(self) -> str:
        """The name of the first finding; empty where there is none."""
        return self.findings[0].rule.name if self.findings else ""


def diagnose(curves: Curves) -> Diagnosis:
    """Ask every rule of :data:`~nanogrpo.teach.doctor.rules.RULES`, in its order: causes come first."""
    findings, missing = [], {}
    for rule in RULES:
        if reason := rule.cannot(curves):
            missing[rule.name] = reason
        elif (seen := rule.look(curves)) is not None:
            findings.append(Finding(rule, seen))
    return Diagnosis(findings, missing)


def report(name: str, curves: Curves, diagnosis: Diagnosis) -> str:
    """The diagnosis in words."""
    steps = f"{len(curves.steps)} rows, steps {curves.steps[0]} to {curves.steps[-1]}"
    how = "with its settings" if curves.settings else "without settings: no config.json of ours beside it"
    lines = [f"{name}: {steps}, {how}", ""]
    for i, finding in enumerate(diagnosis.findings, start=1):
        lines += [f"{i}. " + str(finding).replace("\n", "\n   "), ""]
    if not diagnosis.findings:
        lines += ["Nothing looks wrong. Many mistakes leave no trace in a curve, so this is no proof.", ""]
    if diagnosis.not_looked_at:
        lines.append("Not looked at:")
        lines += [f"   {rule}: {reason}" for rule, reason in diagnosis.not_looked_at.items()]
    return "\n".join(lines).rstrip()


def command(args: argparse.Namespace) -> None:
    """Report on each run that was named."""
    for i, path in enumerate(args.runs):
        curves = read_curves(path)
        print("\n" * bool(i) + report(printable(str(path)), curves, diagnose(curves)))
