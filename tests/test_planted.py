"""Mistakes that matter turn a chapter red, however a machine rounds; what does not matter does not."""

import pytest
from planted import BY_NAME, HARMLESS, NOTICED_BY, ROOT, red

from nanogrpo.teach.museum.pieces import planted

# The cheapest to see: in exact sums that a chapter's first cells print. `make planted` plants all of them.
FEW = [name for name, (chapter, _) in NOTICED_BY.items() if chapter == "grpo"]


@pytest.mark.parametrize("name", NOTICED_BY)
def test_each_can_still_be_planted(name):
    fault = BY_NAME[name]
    source = (ROOT / "nanogrpo" / fault.file).read_text(encoding="utf-8")
    broken = planted(source, fault)
    assert broken != source
    compile(broken, fault.file, "exec")


@pytest.mark.slow
def test_a_change_that_does_not_matter_leaves_the_chapter_green():
    assert red(HARMLESS, *NOTICED_BY[FEW[0]]) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_a_mistake_turns_a_cell_red(name):
    assert red(BY_NAME[name], *NOTICED_BY[name]).startswith("cell ")


def test_ten_and_more_are_planted():
    assert len(FEW) >= 10 and len(NOTICED_BY) >= 40
