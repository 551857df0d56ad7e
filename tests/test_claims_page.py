"""The page on the first sketch says what the logs and chapters say today, and its links lead somewhere."""

import re
from pathlib import Path

import claims_numbers
import claims_page
import pytest
from mdit_py_plugins.anchors.index import slugify

ROOT = Path(__file__).parents[1]
TEXT = claims_page.PAGE.read_text(encoding="utf-8")
CLAIMS = [claim for part in claims_page.CLAIMS for claim in part["claims"]]


def headings(path):
    """The anchors of a page: one for each heading, as MyST makes them."""
    if path.suffix == ".md":
        lines = path.read_text(encoding="utf-8").splitlines()
    else:
        cells = claims_page.cells(path.stem)
        lines = [x for c in cells if c["cell_type"] == "markdown" for x in "".join(c["source"]).splitlines()]
    return {slugify(re.sub(r"^#+ ", "", line).replace("`", "")) for line in lines if line.startswith("#")}


def test_the_page_is_made_from_the_logs_and_chapters_of_today():
    assert claims_page.write(TEXT) == TEXT, "run python tests/claims_page.py"
    assert set(claims_page.parts(TEXT)) == set(claims_page.made())


def test_every_claim_has_a_known_verdict_and_each_part_of_the_sketch_its_claims():
    assert len(CLAIMS) > 50 and len({claim["claim"] for claim in CLAIMS}) == len(CLAIMS)
    assert {claim["verdict"] for claim in CLAIMS} == set(claims_page.VERDICTS)
    assert all(claim["why"].endswith(".") for claim in CLAIMS)
    assert len(claims_page.CLAIMS) == 6 and all(part["claims"] for part in claims_page.CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["claim"][:40])
def test_every_link_has_a_target(claim):
    page, anchor = claims_page.target(claim["see"])
    path = ROOT / "book" / page
    assert path.exists()
    assert f"file: book/{path.stem}" in (ROOT / "_toc.yml").read_text() or path.stem == "intro"
    assert not anchor or anchor in headings(path), sorted(headings(path))
    for name in claims_page.logs(claim):
        assert list((ROOT / "book" / "studies" / name).glob("**/*.csv")), name


SIGNS = {
    "above": lambda value: value.low > 0,
    "below": lambda value: value.high < 0,
    "zero": lambda value: value.low < 0 < value.high,
    "any": lambda value: value.low < value.high,
}


@pytest.mark.parametrize("claim", [c for c in CLAIMS if "from" in c], ids=lambda claim: claim["claim"][:40])
def test_each_interval_says_what_its_verdict_says(claim):
    intervals = [value for value in claims_page.values(claim) if hasattr(value, "low")]
    assert len(intervals) == len(claim.get("expect", [])), "each interval needs the sign that its row tells"
    for value, sign in zip(intervals, claim.get("expect", []), strict=True):
        assert SIGNS[sign](value), value


def test_a_claim_that_is_measured_in_a_chapter_links_to_that_chapter():
    for claim in CLAIMS:
        chapters = {source[1] for source in claim.get("from", []) if source[0] in ("stored", "table")}
        elsewhere = chapters - {claims_page.target(claim["see"])[0].split(".")[0], "quickstart"}
        assert not elsewhere, (claim["claim"], elsewhere)


def test_no_number_of_a_row_is_typed_into_its_sentence():
    """A digit that is not looked up is a setting: 20 seeds, lambda 1, a word of a formula."""
    for claim in CLAIMS:
        words = re.sub(r"\{[^}]*\}", "", claim.get("number", ""))
        assert not re.search(r"\d\.\d(?!5)|%|\[", words), words
        assert ("number" in claim) == ("from" in claim)


def test_numbers_against_other_ways_to_them():
    assert claims_numbers.paper("shao2024deepseekmath") == ("2024", "2402.03300")
    assert claims_numbers.memory() == ("4", pytest.approx(2.5, abs=0.07))  # of rounded shares
    assert claims_numbers.start_kl() == 0
    assert claims_numbers.same_first() == (10, 10)
    assert claims_numbers.columns()[0] == claims_numbers.columns()[1] == 5
    body = Path(claims_numbers.inspect.getsourcefile(claims_numbers.grpo_loss)).read_text(encoding="utf-8")
    whole = body.split("def grpo_loss")[1].split("\ndef ")[0]
    assert 20 < claims_numbers.loss_lines() <= min(40, whole.count("\n"))


def test_the_page_needs_nothing_but_the_repository():
    for name in ("claims.json", "claims_page.py", "claims_numbers.py"):
        assert "shared" not in (ROOT / "tests" / name).read_text(encoding="utf-8")
    assert "the seed" not in TEXT.lower()
