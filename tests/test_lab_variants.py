"""A course under a name of its own: its steps have other right answers than the book's."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "labs"))

import release  # noqa: E402
import variants  # noqa: E402
from grading import is_answer, is_test, nbgrader, run  # noqa: E402

from nanogrpo.teach.check import CheckFailed  # noqa: E402

OPTIONS = [
    (lab, step, option)
    for lab, table in variants.VARIANTS.items()
    for step in table
    for option in table[step]
]
OTHER = [row for row in OPTIONS if row[2] != next(iter(variants.VARIANTS[row[0]][row[1]]))]


def source(lab):
    return release.read(ROOT / "book/labs/source" / lab / f"{lab}.ipynb")


def with_option(lab, step, option):
    notebook = source(lab)
    variants.apply(notebook, lab, {step: option})
    return notebook


def outcome(graded, answers, step):
    """What the graded cell of one step says in one notebook, to the answers of another."""
    namespace = {"__name__": "__main__"}
    assert run(next(cell for cell in graded.cells if "%pip" in cell.source), namespace) is None
    for cell in answers.cells:
        if is_answer(cell):
            assert run(cell, namespace) is None
    return run(
        next(cell for cell in graded.cells if nbgrader(cell).get("grade_id") == f"{step}-tests"), namespace
    )


def changed(lab, step, option):
    """The step that an option changes: the id of its answer."""
    (test,) = {cell for cell, _, new in variants.VARIANTS[lab][step][option] if new.startswith("check_")}
    return test.removeprefix(f"{lab}-").removesuffix("-tests")


@pytest.mark.slow
@pytest.mark.parametrize("lab, step, option", OTHER)
def test_a_variant_has_a_solution_of_its_own_and_the_public_one_fails_it(lab, step, option):
    notebook, public, name = with_option(lab, step, option), source(lab), changed(lab, step, option)
    for _ in range(5):
        assert outcome(notebook, notebook, name) is None
        error = outcome(notebook, public, name)
        assert isinstance(error, CheckFailed), repr(error)
    assert isinstance(outcome(public, notebook, name), CheckFailed)


@pytest.mark.parametrize("lab, step, option", OTHER)
def test_a_variant_changes_no_other_graded_cell_and_no_id(lab, step, option):
    notebook, public = with_option(lab, step, option), source(lab)
    assert [cell.id for cell in notebook.cells] == [cell.id for cell in public.cells]
    assert [cell.metadata for cell in notebook.cells] == [cell.metadata for cell in public.cells]
    other = {
        now.id
        for now, then in zip(notebook.cells, public.cells, strict=True)
        if is_test(now) and now.source != then.source
    }
    assert other == {f"{lab}-{changed(lab, step, option)}-tests"}


def test_a_course_is_drawn_from_its_name_and_differs_from_the_book():
    first = {
        lab: {step: next(iter(table)) for step, table in steps.items()}
        for lab, steps in variants.VARIANTS.items()
    }
    drawn = [variants.chosen(f"course {n}") for n in range(30)]
    assert drawn == [variants.chosen(f"course {n}") for n in range(30)]
    assert len({str(one) for one in drawn}) > 4
    for one in drawn:
        assert sum(one[lab][step] != first[lab][step] for lab in first for step in first[lab]) >= 3


@pytest.mark.parametrize("rows", [1, 2])
def test_a_token_mean_must_weigh_tokens(rows):
    from nanogrpo.losses import grpo_loss
    from nanogrpo.teach.variants import check_token_mean_loss

    def with_mean(how):
        return lambda *batch, beta=0.0: grpo_loss(*batch, beta=beta, aggregation=how)[0]

    check_token_mean_loss(with_mean("token_mean"), seed=rows)
    for how in ("sequence_mean", "sequence_sum"):
        with pytest.raises(CheckFailed):
            check_token_mean_loss(with_mean(how), seed=rows)


def test_an_edit_that_no_longer_fits_says_where():
    notebook = source("lab4")
    for cell in notebook.cells:
        cell.source = cell.source.replace("kept.std(correction=0)", "kept.std(0)")
    with pytest.raises(variants.VariantError, match="lab4-whiten"):
        variants.apply(notebook, "lab4", {"whitening": "sample"})
