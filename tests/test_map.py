"""Chapters are numbered alike everywhere; what they need is a way that can be gone; what was read is kept."""

import re

import chapter_map
import pytest
from pagecheck import CHECK, PHONE, ROOT, THEMES

PARTS = chapter_map.parts(ROOT)
CHAPTERS = {chapter.doc: chapter for _, each in PARTS for chapter in each}
NUMBERS = {doc: str(i) for i, doc in enumerate(CHAPTERS, 1)}
GRPO = "book/grpo"


def test_what_a_chapter_says_of_itself_is_found():
    needs = "**You need** [one](a) and [two](b.ipynb), and `c`."
    says = f"# A title\n\n{needs} **It takes** 25 minutes\nto read, and more.\n\nText"
    assert chapter_map.parse("book/x", says) == ("book/x", "A title", ("book/a", "book/b"), 25)
    hour = says.replace("25 minutes\nto read", "an hour to hunt")
    assert chapter_map.parse("book/x", hour).minutes == 60


@pytest.mark.parametrize("gone", ["**You need**", "**It takes**", "25 minutes", "# A title"])
def test_a_chapter_that_does_not_say_it_ends_the_build_with_its_name(gone):
    says = "# A title\n\n**You need** nothing. **It takes** 25 minutes to read."
    with pytest.raises(ValueError, match="book/x does not say"):
        chapter_map.parse("book/x", says.replace(gone, ""))


def test_all_that_a_chapter_needs_is_counted_once():
    def chapter(doc, *needs):
        return chapter_map.Chapter(doc, doc, needs, 10)

    made = {c.doc: c for c in (chapter("a"), chapter("b", "a"), chapter("c", "a", "b", "glossary"))}
    assert chapter_map.before("c", made) == {"a", "b", "c"}
    assert ">30</td>" in "".join(chapter_map.rows([made["c"]], made, str, str))


@pytest.mark.parametrize("doc", CHAPTERS)
def test_a_chapter_comes_after_what_it_needs(doc):
    assert all(int(NUMBERS[need]) < int(NUMBERS[doc]) for need in CHAPTERS[doc].needs if need in CHAPTERS)


SIDEBAR = """() => Object.fromEntries([...document.querySelectorAll(".bd-links a.reference.internal")]
  .map((a) => [new URL(a.href).pathname.replace(/^\\/|\\.html$/g, ""), a.textContent.trim()]))"""
LABELS = """() => ({ title: document.title, head: document.querySelector(".bd-article h1").textContent,
  figures: [...document.querySelectorAll("figcaption .caption-number")].map((e) => e.textContent.trim()),
  exercises: [...document.querySelectorAll(".exercise .admonition-title")]
    .map((e) => e.textContent.trim()).filter((text) => /^Exercise/.test(text)) })"""


@pytest.mark.slow
def test_sidebar_titles_captions_exercises_and_map_have_the_same_numbers(visit):
    page = visit("book/map")
    sidebar = page.evaluate(SIDEBAR)
    rows = page.locator(".chapter-map tbody th[scope=row]").all_inner_texts()
    assert rows == [f"{NUMBERS[doc]}. {chapter.title}" for doc, chapter in CHAPTERS.items()]
    base = page.url.split("/book/")[0]
    for doc, number in NUMBERS.items():
        assert sidebar[doc].startswith(f"{number}. "), sidebar[doc]
        page.goto(f"{base}/{doc}.html", wait_until="load")
        found = page.evaluate(LABELS)
        assert found["head"].startswith(f"{number}. ") and found["title"].startswith(f"{number}. ")
        figures = [f"Fig. {number}.{i}" for i in range(1, len(found["figures"]) + 1)]
        assert found["figures"] == figures, doc
        numbers = [re.match(r"Exercise (\S+)", text)[1] for text in found["exercises"]]
        assert numbers == [f"{number}.{i}" for i in range(1, len(numbers) + 1)], doc
    for doc in ("book/api", "book/glossary", "book/labs/lab1", "book/playground"):
        assert not re.match(r"\d", sidebar[doc])


@pytest.mark.slow
def test_the_map_adds_up_the_minutes(visit):
    page = visit("book/map")
    rows = page.locator(".chapter-map tr[data-chapter]").evaluate_all(
        "all => all.map((r) => [r.dataset.chapter, ...[...r.cells].slice(1).map((c) => c.textContent)])"
    )
    for doc, needs, own, way in rows:
        chapter = CHAPTERS[doc]
        direct = [NUMBERS[need] for need in chapter.needs if need in NUMBERS]
        assert needs == (", ".join(direct) or "none") and int(own) == chapter.minutes
        on_the_way, left = {doc}, list(chapter.needs)
        while left:
            need = left.pop()
            if need in CHAPTERS:
                on_the_way.add(need)
                left += CHAPTERS[need].needs
        assert int(way) == sum(CHAPTERS[each].minutes for each in on_the_way)


def go(page, name):
    page.goto(f"{page.url.split('/book/')[0]}/{name}.html", wait_until="load")


def marked(page) -> list[str]:
    return (
        page.locator(".bd-links .read")
        .locator("..")
        .evaluate_all(
            "all => all.map((a) => a.getAttribute('href').replace(/^.*\\//, '').replace('.html', ''))"
        )
    )


@pytest.mark.slow
def test_a_chapter_that_was_read_is_marked_until_it_is_forgotten(visit):
    page = visit(GRPO)
    assert marked(page) == []
    button = page.locator(".read-mark button")
    assert button.get_attribute("aria-pressed") == "false"
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true" and len(marked(page)) == 1
    go(page, "book/ppo")
    assert marked(page) == ["grpo"] and page.locator(".read-mark button").inner_text().startswith("I have")
    page.locator(".read-mark button").click()
    go(page, "book/map")
    assert sorted(marked(page)) == ["grpo", "ppo"]
    assert f"2 of {len(CHAPTERS)} chapters" in page.locator(".read-mark output").inner_text()
    assert page.locator(".chapter-map .read").count() == 2
    page.get_by_role("button", name="Forget").click()
    assert marked(page) == [] and page.evaluate("localStorage.getItem('nanogrpo.read')") is None
    go(page, GRPO)
    assert button.get_attribute("aria-pressed") == "false" and page.trouble == []


THROWS = """Object.defineProperty(window, "localStorage",
  { get() { throw new DOMException("no", "SecurityError"); } })"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kept",
    [
        THROWS,
        "localStorage.setItem('nanogrpo.read', '{broken')",
        "localStorage.setItem('nanogrpo.read', '[3]')",
    ],
)
def test_storage_that_throws_or_holds_something_else_breaks_nothing(visit, kept):
    page = visit(GRPO)
    page.context.add_init_script(kept)
    page.reload(wait_until="load")
    before = len(page.trouble)  # the theme's own scripts want a storage
    button = page.locator(".read-mark button")
    button.click()
    assert button.get_attribute("aria-pressed") == "true" and len(marked(page)) == 1
    button.click()
    assert marked(page) == [] and len(page.trouble) == before


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
def test_marks_are_named_readable_and_fit_a_phone(visit, axe, theme):
    page = visit("book/map", theme, PHONE)
    page.evaluate("localStorage.setItem('nanogrpo.read', JSON.stringify(['book/grpo', 'book/ppo']))")
    page.reload(wait_until="networkidle")
    assert page.locator(".chapter-map .read").first.inner_text().split() == ["✓", "(read)"]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.evaluate(axe)
    assert page.evaluate(CHECK) == []
