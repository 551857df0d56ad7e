"""Mistakes that matter turn a chapter red, however a machine rounds; what does not matter does not."""

import planted as script
import pytest
from planted import BY_NAME, HARMLESS, NOTICED_BY, ROOT, plantable, reds

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


@pytest.fixture(scope="module")
def said():
    """What nbval says of each, and of a change that does not matter."""
    jobs = {name: (BY_NAME[name], *NOTICED_BY[name]) for name in FEW}
    jobs["harmless"] = (HARMLESS, *NOTICED_BY[FEW[0]])
    return dict(zip(jobs, reds(list(jobs.values())), strict=True))


@pytest.mark.thorough
def test_a_change_that_does_not_matter_leaves_the_chapter_green(said):
    assert said["harmless"] == ""


@pytest.mark.thorough
@pytest.mark.parametrize("name", FEW)
def test_a_mistake_turns_a_cell_red(said, name):
    assert said[name].startswith("cell ")


def test_a_chapter_without_its_corpus_notices_nothing_and_is_not_asked(monkeypatch, capsys):
    monkeypatch.setattr(script, "missing", lambda: "corpus: it is not here")
    found = plantable(list(NOTICED_BY))
    left = set(NOTICED_BY) - set(found)
    assert {"k3 reversed", "clip without the min"} <= set(found) and "target shift off by one" in left
    said = capsys.readouterr().out
    assert said == f"Not planted: {len(left)}, whose chapters need what is not here. corpus: it is not here\n"
    monkeypatch.setattr(script, "missing", lambda: None)
    assert plantable(list(NOTICED_BY)) == list(NOTICED_BY)


def test_ten_and_more_are_planted():
    assert len(FEW) >= 10 and len(NOTICED_BY) >= 40
