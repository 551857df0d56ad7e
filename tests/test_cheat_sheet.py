"""The cheat sheet says what the code says, and fits on two sheets of paper."""

import re

import cheat_sheet
import pytest
from pagecheck import PHONE
from variant_tables import DICTIONARY

TEXT = cheat_sheet.PAGE.read_text(encoding="utf-8")
# Names of code in a table that go on in a second line: only at a blank or at a hyphen.
BROKEN = """() => [...document.querySelectorAll("td code")].filter((code) => {
  const words = code.textContent.split(/[\\s-]/).filter(Boolean), range = document.createRange();
  const walk = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) for (const word of words) {
    const at = walk.currentNode.data.indexOf(word);
    if (at < 0) continue;
    range.setStart(walk.currentNode, at); range.setEnd(walk.currentNode, at + word.length);
    if (new Set([...range.getClientRects()].map((r) => Math.round(r.top))).size > 1) return true;
  }
  return false; }).map((code) => code.textContent)"""


@pytest.mark.slow
def test_the_page_is_made_from_the_code_of_today():
    assert cheat_sheet.write(TEXT) == TEXT, "run python tests/cheat_sheet.py"


def test_every_row_has_a_formula_without_a_bar_and_known_options():
    rows = cheat_sheet.formulas().splitlines()[2:]
    assert len(rows) == len(cheat_sheet.FUNCTIONS) > 20
    assert {row.count(" | ") for row in rows} == {3}
    assert all(re.match(r"\| \$.+\$ \| \{py:func\}", row) for row in rows)
    for own in cheat_sheet.FUNCTIONS.values():
        assert all(name in DICTIONARY or f"`{name}" in cheat_sheet.defaults() for name in own)


def test_the_last_column_of_a_variant_says_how_far_its_numbers_agree():
    last = [row.split("|")[-2].strip() for row in cheat_sheet.short_names().splitlines()[2:]]
    assert len(last) == len(DICTIONARY) and not any("`" in cell for cell in last)
    assert sum(cell.startswith("equal") for cell in last) > len(last) / 2


def test_an_identity_stands_beside_the_function_that_its_test_calls():
    found = cheat_sheet.identities()
    assert {"2D_33", "2D_34"} <= set(found["kl_k3"])
    assert sum(bool(found.get(path.split(".")[1])) for path in cheat_sheet.FUNCTIONS) > 15


@pytest.mark.slow
def test_it_prints_on_two_sheets(visit):
    paper = visit("book/cheat-sheet").pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("size", [PHONE, {"width": 1280, "height": 900}], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", ["book/cheat-sheet", "book/variants", "book/defaults"])
def test_no_name_in_a_table_is_broken(visit, name, size):
    page = visit(name, size=size)
    assert page.locator("td code").count() > 20
    assert page.evaluate(BROKEN) == []
