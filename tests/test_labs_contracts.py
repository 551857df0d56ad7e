"""Every contract of the labs' texts is checked: wrong answers fail and are named, right ones pass."""

import copy
import re
from collections import defaultdict
from functools import cache

import pytest
import torch
from labs.contracts import WRONG
from labs.derived import SLOW, derived
from labs.edges import WRONG as EDGES
from labs.extremes import WRONG as EXTREMES
from labs.mutants import SAME, is_same, mutants
from test_labs import SOURCES, answers, prepared, run, steps

from nanogrpo.teach import check
from nanogrpo.teach.checks.registry import CHECKS, CheckFailed

STEPS = [(lab, step) for lab in SOURCES for step in steps(lab)]
QUICK = [(lab, step) for lab, step in STEPS if step not in SLOW]
each_step = pytest.mark.parametrize("lab, step", STEPS, ids=[f"{lab}-{step}" for lab, step in STEPS])
quick_step = pytest.mark.parametrize("lab, step", QUICK, ids=[f"{lab}-{step}" for lab, step in QUICK])
# A sentence that gives numbers and no mistake.
BARE = re.compile(r"[^(]*.*( is | has shape ).*, expected (\([\d, ]*\)|-?[\d.e+naif-]+)\.? \[check_.*")


class Seen(BaseException):
    """Carries the arguments of a check's first call out of the check."""


@cache
def solution(lab, step):
    """The lab's own answer, and the names around it."""
    namespace = dict(prepared(lab))
    assert run(steps(lab)[step][0], namespace) is None
    return namespace[step], namespace


def said(lab, step, answer):
    """What the step's graded cell says of an answer; None if it passes."""
    torch.manual_seed(0)
    return run(steps(lab)[step][1], {**solution(lab, step)[1], step: answer})


def by_hand(step):
    return {name: answer for of, name, answer in [*WRONG, *EDGES, *EXTREMES] if of == step}


def mechanically(lab, step):
    """What is derived from the solution, with the arguments that the first call of the check has."""
    right, calls = solution(lab, step)[0], []

    def look(*arguments, **options):
        calls.append((*arguments, *options.values()))
        raise Seen

    with pytest.raises(Seen):
        said(lab, step, look)
    arguments = calls[0]
    result = [0.5] * 4 if step == "train" else right(*copy.deepcopy(arguments))
    changed = derived(step, right, arguments, result)
    return {k: v for k, v in changed.items() if step not in SLOW or k.startswith("result: ")}


def must_fail(lab, step, wrong):
    """Raise unless each answer fails with a sentence of the check, and nine of ten name a mistake."""
    bare = []
    for name, answer in wrong.items():
        error = said(lab, step, answer)
        assert error is not None, f"{step}: {name!r} passes"
        assert isinstance(error, CheckFailed), f"{step}: {name!r} ends in {error!r}"
        crashed = "It stopped with" in str(error) and not name.startswith("argument ")
        assert not crashed, f"{step}: {name!r} is no answer: {error}"
        if BARE.fullmatch(str(error)):
            bare.append((name, str(error)))
    assert len(bare) <= max(1, 0.1 * len(wrong)), bare


@each_step
def test_there_are_enough_wrong_answers(lab, step):
    written = len(by_hand(step)) + len(answers(lab).WRONG[step])
    assert written >= 4
    assert step in SLOW or len(mechanically(lab, step)) >= max(4, 8 - written)


@quick_step
def test_each_broken_promise_fails_and_is_named(lab, step):
    if step == "update":
        pytest.skip("slow: the training of a policy, see the test below")
    must_fail(lab, step, by_hand(step))


@pytest.mark.slow
@each_step
def test_each_answer_that_is_derived_from_the_solution_fails_and_is_named(lab, step):
    must_fail(lab, step, by_hand(step) | mechanically(lab, step))


def mutated(lab, step):
    """The functions that mutants of a solution's text define, by name."""
    for name, text in mutants(steps(lab)[step][0].source).items():
        namespace = dict(solution(lab, step)[1])
        exec(compile(text, name, "exec"), namespace)
        yield name, namespace[step]


@pytest.mark.slow
@each_step
def test_each_mutant_of_a_solution_fails_or_is_as_right(lab, step):
    if step in SLOW:
        pytest.skip("each of its mutants that gets through the first look trains for ten seconds")
    passed = {name for name, answer in mutated(lab, step) if said(lab, step, answer) is None}
    assert not [name for name in passed if not is_same(step, name)]


def test_mutants_of_many_kinds_are_made_and_the_table_has_no_idle_row():
    all = {(step, name) for lab, step in STEPS for name in mutants(steps(lab)[step][0].source)}
    assert len(all) > 1000 and len({name.split(":")[0] for _, name in all}) > 20
    for of, names, reason in SAME:
        assert any(re.fullmatch(of, s) and re.fullmatch(names, name) for s, name in all), reason


@pytest.mark.slow
@each_step
def test_right_answers_pass_two_hundred_fresh_seeds(lab, step):
    """A check draws for several seeds at each call; the loop of lab 5 takes too long for so many."""
    cell = steps(lab)[step][1].source
    rows = [("the solution", None), *answers(lab).RIGHT[step]]
    seeds = {"train": 4, "update": 60}.get(step, 200)
    for name, source in rows:
        namespace = dict(solution(lab, step)[1])
        if source is not None:
            exec(compile(source, name, "exec"), namespace)
        for which in sorted(set(re.findall(r"\bcheck_\w+", cell))):
            for seed in range(10_000, 10_000 + seeds, 4):
                CHECKS[which].run(namespace[step], seed=seed)


def test_the_inputs_of_a_failure_can_be_had():
    by_name = defaultdict(list)
    for name in CHECKS:
        if name not in ("check_train", "check_reference_is_frozen"):
            by_name[name] = [check.inputs(name, seed=3), check.inputs(name, seed=3)]
    for name, (first, second) in by_name.items():
        for a, b in zip(first, second, strict=True):
            assert not isinstance(a, torch.Tensor) or torch.equal(a.nan_to_num(), b.nan_to_num()), name
    with pytest.raises(check.CheckFailed, match=r"check_leave_one_out\(..., seed=(\d+)\)") as failed:
        check.check_leave_one_out(lambda rewards: rewards, seed=7)
    seed = int(re.search(r"seed=(\d+)", str(failed.value)).group(1))
    found, expected = (check.inputs("check_leave_one_out", which)[0] for which in (seed, 7))
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="no check is called 'check_nonsense'"):
        check.inputs("check_nonsense", 0)


@pytest.mark.parametrize("step", ["sample_token", "kl_penalty"])
def test_a_graded_cell_brings_its_own_check(step):
    """A name that the notebook gave away costs nothing, and gains nothing."""
    lab = "lab1" if step == "sample_token" else "lab6"
    names = dict.fromkeys(["check", *re.findall(r"\bcheck_\w+", steps(lab)[step][1].source)], "mine")
    right, namespace = solution(lab, step)
    assert run(steps(lab)[step][1], {**namespace, **names, step: right}) is None
    names = {name: lambda *a, **o: None for name in names}
    error = run(steps(lab)[step][1], {**namespace, **names, step: lambda *a, **o: 0.0})
    assert isinstance(error, CheckFailed)
