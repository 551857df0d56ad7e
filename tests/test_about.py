"""The README's numbers and figure, how to cite, the changelog, the cards, the page for what is not here."""

import io
import json
import re
import struct

import about
import cards
import chapter_map
import hero
import matplotlib
import pytest
import yaml
from pagecheck import ROOT

README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
CFF = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
NUMBERED = [chapter.doc for _, each in chapter_map.parts(ROOT) for chapter in each]


def said(pattern: str) -> list[str]:
    (found,) = re.findall(pattern, README)
    return [found] if isinstance(found, str) else list(found)


def test_the_readme_s_headline_is_that_of_the_log():
    assert said(r"from (\d+) % to (\d+) % of sums") == [f"{100 * share:.0f}" for share in hero.quickstart()]


def test_the_first_finding_is_that_of_the_log():
    means = hero.over_optimization()
    judge = said(r"score rises from (\S+) to (\S+) points by step (\d+), and is down to (\S+) at step (\d+);")
    turn, end = int(judge.pop(2)), int(judge.pop(3))
    assert judge == [f"{means['judge'][step]:.1f}" for step in (0, turn, end)]
    assert said(r"the reward goes on from (\S+) to (\S+)\. Mean") == [
        f"{means['proxy'][step]:.1f}" for step in (turn, end)
    ]
    assert means["judge"].idxmax() == turn == hero.TURN and means.index.max() == end
    assert means["proxy"].is_monotonic_increasing and means["judge"][end] < means["judge"][0]


def test_the_second_finding_is_that_of_the_logs():
    runs = [("comparison", "ppo"), ("comparison", "ppo-256x1"), ("second", "reinforce-256x1")]
    found = [hero.success(*run) for run in runs]
    shares = said(
        r"ends at (\d+) % right answers, with 256 prompts of one at (\d+) %, and .* at (\d+) %\. Ten"
    )
    assert shares == [f"{100 * share:.0f}" for share, _ in found]
    assert {seeds for _, seeds in found} == {10}


def test_the_third_finding_is_that_of_float32_and_of_the_chapter():
    miss, advantage = hero.tied()
    assert said(r"by one rounding, (\S+)\.") == [f"{-miss:.1e}".replace("e-0", "e-")]
    assert said(r"advantage of (\S+) where 0") == [f"{advantage:.1f}"]
    cells = json.loads((ROOT / "book" / "zero-variance.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if cell["id"] == "zero-variance-21"]
    assert f"[{advantage:.4f}"[:7] in "".join(cell["outputs"][0]["text"])


def test_what_the_readme_links_to_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", text):
        assert (ROOT / target).exists(), target
    base = re.escape("https://asimkadav.github.io/nanogrpo/")
    for page in re.findall(rf"{base}(book/[\w/-]+)\.html", text):
        assert any((ROOT / f"{page}.{kind}").exists() for kind in ("ipynb", "md")), page


def test_the_readme_s_figure_is_drawn_from_the_logs_of_today():
    """Number by number: another processor, or Matplotlib, may round otherwise."""
    with matplotlib.rc_context({"svg.hashsalt": "hero", "svg.fonttype": "path"}):
        text = io.StringIO()
        hero.draw().savefig(text, format="svg", metadata={"Date": None}, facecolor="white")

    def drawn(svg):
        return [
            [float(x) for x in re.findall(r"-?\d+\.?\d*", d)]
            for d in re.findall(r'<path d="([^"]*)" clip-path', svg, re.DOTALL)
        ]

    stored, fresh = drawn(hero.FIGURE.read_text(encoding="utf-8")), drawn(text.getvalue())
    assert len(stored) == len(fresh) >= 7
    for one, other in zip(stored, fresh, strict=True):
        assert one == pytest.approx(other, abs=0.01)


def test_the_entry_for_a_bibliography_says_what_citation_cff_says():
    from pybtex.database import parse_string

    entry = parse_string(about.bibtex(CFF, about.last_change(CHANGES)), "bibtex").entries["nanogrpo"]
    fields = entry.fields
    assert entry.type == CFF["type"] and fields["url"] == CFF["url"] and fields["version"] == CFF["version"]
    assert fields["title"].strip("{}") == CFF["title"] and CFF["repository-code"] in fields["note"]
    assert [str(person).strip("{}") for person in entry.persons["author"]] == [CFF["authors"][0]["name"]]
    dates = re.findall(r"\d{4}-\d\d-\d\d", CHANGES)
    assert f"{fields['year']}-{int(fields['month']):02}" == max(dates)[:7]


def test_people_are_cited_by_their_names():
    person = {"family-names": "Noether", "given-names": "Emmy"}
    made = about.bibtex({**CFF, "authors": [person, *CFF["authors"]]}, ("2026", "11"))
    assert "{Noether, Emmy and {the nanoGRPO authors}}" in made


def test_a_long_title_takes_four_lines_of_a_card_at_most():
    assert cards.wrapped("GRPO, term by term") == ["GRPO, term by term"]
    assert len(cards.wrapped("words " * 60)) == 4


def tag(text: str, name: str) -> str:
    (found,) = re.findall(rf'<meta property="{re.escape(name)}" content="([^"]*)"', text)
    return found


@pytest.mark.slow
def test_every_page_has_a_card_by_its_whole_address_and_every_chapter_its_own(site):
    base, found = "https://asimkadav.github.io/nanogrpo/", {}
    for path in sorted((site / "book").glob("*.html")):
        text, doc = path.read_text(encoding="utf-8"), f"book/{path.stem}"
        image = tag(text, "og:image")
        assert image.startswith(base)
        data = (site / image.removeprefix(base)).read_bytes()
        size = struct.unpack(">II", data[16:24])
        assert size == (cards.WIDTH, cards.HEIGHT) and len(data) < 100_000
        assert [tag(text, f"og:image:{side}") for side in ("width", "height")] == [str(side) for side in size]
        assert tag(text, "og:image:alt") and 'content="summary_large_image"' in text
        found.setdefault(image, []).append(doc)
    own = [docs for docs in found.values() if docs[0] in NUMBERED]
    assert sorted(doc for docs in own for doc in docs) == sorted(NUMBERED) and {
        len(docs) for docs in own
    } == {1}
    assert len(found) == len(own) + 1, "all other pages share the book's"


@pytest.mark.slow
def test_the_book_shows_how_to_cite_and_what_has_changed(visit):
    page = visit("book/cite")
    shown = page.locator(".highlight pre").inner_text()
    assert shown.strip() == about.bibtex(CFF, about.last_change(CHANGES))
    page.goto(f"{page.url.split('/book/')[0]}/book/changelog.html", wait_until="load")
    heads = page.locator("h3").all_inner_texts()
    wanted = re.findall(r"^### (.*)$", CHANGES, re.MULTILINE)
    assert [head.strip(" #") for head in heads] == wanted and any("2026" in head for head in wanted)
    assert page.trouble == []


@pytest.mark.slow
def test_the_page_for_what_is_not_here_leads_on(site):
    text = (site / "404.html").read_text(encoding="utf-8")
    article = text[text.index("<article") : text.index("</article>")]
    links = re.findall(r'href="/nanogrpo/([^"#]+)"', article)
    assert "book/map.html" in links and len(links) >= 4
    for link in links:
        assert (site / link).exists(), link
    assert re.search(r'<form[^>]*action="/nanogrpo/search.html"[^>]*>.*?name="q"', article, re.DOTALL)
