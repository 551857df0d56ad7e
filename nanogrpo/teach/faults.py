"""A collection of faults: the mistakes that codes of this kind really make, each with the test that finds it.

    python -m nanogrpo.teach.faults            plant each in a copy, run its tests, print who caught it
    python -m nanogrpo.teach.faults --list     what each one does, and how it shows in training
    python -m nanogrpo.teach.faults k3 k1      only those whose name contains one of these words

Your files are never changed: a fault is planted in a temporary copy of the package, and the tests run there.
A fault that no test catches, or whose text is no longer in the package, makes the command fail.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from nanogrpo.errors import FaultError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """One mistake that can be planted.

    Attributes:
        name: A few words.
        file: In the package, for example ``losses.py``.
        edits: Pairs of the right text, which must stand in the file exactly once, and the wrong one.
        effect: What it does, in one sentence.
        symptom: How it shows in a training run.
        tests: The test file that is meant to catch it.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    effect: str
    symptom: str
    tests: str


@dataclass(frozen=True)
class Verdict:
    """What the tests said about a planted fault; ``caught_by`` is empty if nobody noticed."""

    fault: Fault
    caught_by: str
    message: str


FAULTS = (
    Fault(
        "k3 reversed",
        "kl.py",
        (("return torch.expm1(delta) - delta", "return torch.expm1(-delta) + delta"),),
        "Estimates chi-square minus KL: still positive, still delta squared half near zero, and wrong.",
        "The reported KL has spikes, and the penalty is far too strong once the policy has moved.",
        "test_kl.py",
    ),
    Fault(
        "k1 reversed",
        "kl.py",
        (("return -_delta(logprobs, ref_logprobs, mask)", "return _delta(logprobs, ref_logprobs, mask)"),),
        "Estimates minus the KL, so a penalty in the reward pays for drifting away.",
        "The reported KL is negative on average, and the policy leaves the reference ever faster.",
        "test_kl.py",
    ),
    Fault(
        "k3 without expm1",
        "kl.py",
        (("return torch.expm1(delta) - delta", "return torch.exp(delta) - 1 - delta"),),
        "Loses every digit in float32 where policy and reference are close, as they are at the start.",
        "In the first steps the KL jumps between multiples of 6e-8, and is at times negative.",
        "test_kl.py",
    ),
    Fault(
        "reference not detached",
        "kl.py",
        (("_masked(ref_logprobs.detach() - logprobs, mask)", "_masked(ref_logprobs - logprobs, mask)"),),
        "If the reference shares its weights with the policy, the two gradients of the KL cancel.",
        "No effect of beta, or a reference that changes.",
        "test_kl.py",
    ),
    Fault(
        "reference is the policy itself",
        "grpo.py",
        (("reference = copy.deepcopy(model).requires_grad_(False)", "reference = model"),),
        "The reference moves with the policy, so the distance between them is always zero.",
        "The KL is zero for ever.",
        "test_trainer_math.py",
    ),
    Fault(
        "penalty with the wrong sign",
        "losses.py",
        (("per_token = per_token + beta * kl", "per_token = per_token - beta * kl"),),
        "The loss is lower the farther the policy is from the reference.",
        "The KL explodes, the sooner the larger beta.",
        "test_losses.py",
    ),
    Fault(
        "Bessel's std where population is meant",
        "advantages.py",
        (
            (
                '"group", eps: float = 1e-4, correction: int = 0',
                '"group", eps: float = 1e-4, correction: int = 1',
            ),
        ),
        "All advantages are smaller by sqrt((G-1)/G).",
        "None: the learning rate hides it. At G = 2 it is a factor of 0.71.",
        "test_advantages.py",
    ),
    Fault(
        "population std where Bessel is meant",
        "advantages.py",
        (
            (
                "rewards.std(1, keepdim=True, correction=correction)",
                "rewards.std(1, keepdim=True, correction=0)",
            ),
        ),
        "The option is ignored, so results do not compare with TRL's.",
        "None: the learning rate hides it.",
        "test_advantages.py",
    ),
    Fault(
        "ties by a small eps",
        "advantages.py",
        (
            ('"group", eps: float = 1e-4, correction', '"group", eps: float = 1e-8, correction'),
            ("return advantages.masked_fill(tied, 0.0)  # equal", "return advantages  # equal"),
        ),
        "In float32 the mean of equal rewards can be off by one rounding, and 1e-8 makes that of order one.",
        "Groups in which all rewards are equal push the policy about, all members the same way.",
        "test_advantages.py",
    ),
    Fault(
        "group mean over the wrong axis",
        "advantages.py",
        (
            (
                "rewards - rewards.mean(1, keepdim=True)  # (P, G)",
                "rewards - rewards.mean(0, keepdim=True)  # (P, G)",
            ),
        ),
        "Compares a completion with answers to other prompts.",
        "Learning is slow and noisy, and the loss on policy is not zero.",
        "test_advantages.py",
    ),
    Fault(
        "GAE without (1 - done)",
        "advantages.py",
        (("next_value = torch.where(mask[:, t], values[:, t], 0.0)", "next_value = values[:, t]"),),
        "The last token's error contains the critic's opinion of padding.",
        "The critic's targets run away, since each contains the next one's error.",
        "test_advantages.py",
    ),
    Fault(
        "mask applied after exp",
        "losses.py",
        (
            (
                '    if level == "token":\n        return log_ratio.exp()\n',
                '    if level == "token":\n'
                "        return torch.where(mask, (logprobs - old_logprobs.detach()).exp(), 1.0)\n",
            ),
        ),
        "The loss is finite, its gradient NaN, as soon as a masked log-ratio is NaN or overflows.",
        "All weights become NaN in one step, after a loss that looked fine.",
        "test_losses.py",
    ),
    Fault(
        "the clip's min turned into max",
        "losses.py",
        (("-torch.min(capped * advantages", "-torch.max(capped * advantages"),),
        "The clip stops the gradient where it should push, and pushes where it should stop.",
        "clip_ratio grows with every inner step, and the policy with it.",
        "test_losses.py",
    ),
    Fault(
        "old log-probs not detached",
        "losses.py",
        (
            (
                "torch.where(mask, logprobs - old_logprobs.detach(), 0.0)",
                "torch.where(mask, logprobs - old_logprobs, 0.0)",
            ),
        ),
        "Where both come from one graph, the gradient of the ratio cancels to zero.",
        "grad_norm is zero.",
        "test_losses.py",
    ),
    Fault(
        "normalized by the microbatch",
        "losses.py",
        (
            (
                "    n = denominators or Denominators.of(mask)\n    _check_counts",
                "    n = Denominators.of(mask, denominators and denominators.max_length)\n    _check_counts",
            ),
        ),
        "A token counts more in a microbatch of short completions, and the sum grows with their number.",
        "Results change with the microbatch size.",
        "test_losses.py",
    ),
    Fault(
        "target shift off by one",
        "rollout.py",
        (
            ("used = int(lens.max()) + T - 1", "used = int(lens.max()) + T"),
            ("wanted = (at - 1)", "wanted = at"),
        ),
        "Scores each token with the prediction of the token after it.",
        "The first ratio is not 1, and the reward falls.",
        "test_exact.py",
    ),
    Fault(
        "EOS left out of the mask",
        "rollout.py",
        (("sampled[:, column] = open_", "sampled[:, column] = open_ & (chosen != eos_id)"),),
        "The decision to stop is never trained.",
        "Completions grow to the length limit.",
        "test_exact.py",
    ),
    Fault(
        "fast path: target shift off by one",
        "packed.py",
        (("model.hidden(completion_ids[:, :-1], cache)", "model.hidden(completion_ids[:, 1:], cache)"),),
        "Each token is predicted by a model that has just read it.",
        "The first ratio is not 1, and the log-probs rise toward zero while the samples stay as they are.",
        "test_trainer_math.py",
    ),
    Fault(
        "fast path: EOS left out of the mask",
        "packed.py",
        (("completion_mask(tokens, eos_id), ~", "(tokens == eos_id).cumsum(1) == 0, ~"),),
        "The decision to stop is never trained.",
        "Completions grow to the length limit.",
        "test_trainer_math.py",
    ),
)


def planted(source: str, fault: Fault) -> str:
    """The text of a file with the fault in it.

    Raises:
        FaultError: A text to replace does not stand there exactly once.
    """
    for right, wrong in fault.edits:
        times = source.count(right)
        if times != 1:
            raise FaultError(
                f"fault {fault.name!r}: {right!r} stands {times} times in {fault.file}, not once; "
                "the package has changed, so change the fault with it"
            )
        source = source.replace(right, wrong)
    return source


def examine(fault: Fault, root: Path = ROOT) -> Verdict:
    """Plant a fault in a copy of package and tests, and run the test file that should catch it.

    Raises:
        FaultError: The fault cannot be planted, the tests are not there, or they could not be run.
    """
    if not (root / "tests" / fault.tests).is_file():
        raise FaultError(f"no tests/{fault.tests} in {root}; run this from a checkout of the repository")
    with tempfile.TemporaryDirectory() as folder:
        copy, report = Path(folder), Path(folder) / "report.xml"
        shutil.copytree(root / "nanogrpo", copy / "nanogrpo", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(root / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(root / "pyproject.toml", copy)
        victim = copy / "nanogrpo" / fault.file
        victim.write_text(planted(victim.read_text(encoding="utf-8"), fault), encoding="utf-8")
        settings = {
            "PYTHONPATH": folder,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # none is needed, and loading them doubles the time
            "OMP_NUM_THREADS": "1",
        }
        run = subprocess.run(
            [sys.executable, "-c", _RUN, folder, f"tests/{fault.tests}", f"--junitxml={report}"],
            cwd=copy,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
        )
        if run.returncode not in (0, 1):
            raise FaultError(
                f"fault {fault.name!r}: pytest could not run\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
            )
        return _verdict(fault, report)


# Checks first that the copy is what will be tested, and not the installed package.
_RUN = """
import sys, nanogrpo, pytest
assert nanogrpo.__file__.startswith(sys.argv[1]), f"testing {nanogrpo.__file__}, not the copy"
sys.exit(pytest.main([sys.argv[2], "-x", "-q", "-p", "no:cacheprovider", sys.argv[3]]))
"""


def _verdict(fault: Fault, report: Path) -> Verdict:
    """Name and first line of the first failed test of a JUnit report."""
    for case in ElementTree.parse(report).iter("testcase"):
        for failure in (*case.findall("failure"), *case.findall("error")):
            text = f"{failure.get('message')}\n{failure.text}"
            lines = [
                line.split("AssertionError: ", 1)[1]
                for line in text.splitlines()
                if "AssertionError: " in line
            ]
            message = (lines or text.splitlines())[0]
            return Verdict(fault, case.get("name", "?").split("[")[0], message.strip())
    return Verdict(fault, "", "NOT CAUGHT")


def examine_all(faults: Sequence[Fault] = FAULTS) -> list[Verdict]:
    """Examine some faults, as many at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(examine, faults))


def table(verdicts: Sequence[Verdict]) -> str:
    """Three columns as text: fault, caught by, message."""
    widths = (24, 40, 48)

    def row(*cells: str) -> str:
        wrapped = [textwrap.wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
        lines = zip_longest(*wrapped, fillvalue="")
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in lines)

    rows = [row("fault", "caught by", "message") + "\n" + row(*("-" * width for width in widths))]
    for v in verdicts:
        name = v.caught_by.removeprefix("test_").replace("_", " ")  # spaces, so that the cell can wrap
        rows.append(row(v.fault.name, f"{v.fault.tests}: {name}" if name else "nobody", v.message))
    return "\n\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if every fault was caught."""
    parser = argparse.ArgumentParser(
        prog="python -m nanogrpo.teach.faults", description=__doc__.split("\n")[0]
    )
    parser.add_argument("words", nargs="*", help="only faults whose name contains one of these words")
    parser.add_argument("--list", action="store_true", help="describe the faults and run nothing")
    options = parser.parse_args(arguments)
    chosen = [
        f for f in FAULTS if not options.words or any(w.lower() in f.name.lower() for w in options.words)
    ]
    if not chosen:
        parser.error(f"no fault is named like {' or '.join(options.words)}; see --list")
    if options.list:
        for fault in chosen:
            print(f"{fault.name} ({fault.file})\n  does:  {fault.effect}\n  shows: {fault.symptom}\n")
        return 0
    print(f"Planting {len(chosen)} faults, one by one, each in a copy of its own ...\n")
    verdicts = examine_all(chosen)
    missed = [v.fault.name for v in verdicts if not v.caught_by]
    print(table(verdicts))
    print(
        f"\n{len(chosen) - len(missed)} of {len(chosen)} caught."
        + (f" MISSED: {', '.join(missed)}" * bool(missed))
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
