"""Commit before the reveal: what answers a prediction is folded, and opens; what is written is kept."""

import re

import nbformat
import pytest
from docutils import nodes
from execute import chapters
from pagecheck import CHECK, PHONE, ROOT, THEMES, TYPESET
from predictions import PREDICTS, asks, choices, fold, fold_texts, split_answer, stem

CHAPTERS = chapters(ROOT)


def cell(*kinds):
    parts = [
        nodes.container("", nodes.paragraph(text=kind), nb_element=f"cell_code_{kind}") for kind in kinds
    ]
    return nodes.container("", *parts, nb_element="cell_code", classes=["cell"])


def told(*children):
    """The section after the fold of its first question, in words."""
    section = nodes.section("", nodes.title(text="T"), *children)
    fold(section[1], "p", False)
    return [
        node.astext()[:12] if not isinstance(node, nodes.raw) else node.astext()[:6] for node in section[2:]
    ]


def test_the_fold_holds_outputs_and_text_up_to_the_next_cell():
    question, text = nodes.paragraph(text="Predict."), nodes.paragraph(text="It fell.")
    made = told(question, cell("source", "output"), text, nodes.paragraph(text="So."), cell("source"))
    assert made == ["<form ", "source", "<detai", "output", "It fell.", "So.", "</deta", "source"]


def test_the_fold_ends_before_the_next_question_and_the_next_section():
    first, second = nodes.paragraph(text="Predict."), nodes.paragraph(text="Predict again.")
    made = told(first, cell("source"), cell("source", "output"), second, cell("source", "output"))
    assert made[:6] == ["<form ", "source", "source", "<detai", "output", "</deta"]
    made = told(nodes.paragraph(text="Predict."), cell("source", "output"), nodes.section("", nodes.title()))
    assert made == ["<form ", "source", "<detai", "output", "</deta", ""]


def test_a_question_that_no_cell_answers_has_a_field_and_no_fold():
    assert told(nodes.paragraph(text="Predict."), nodes.paragraph(text="Later.")) == ["<form ", "Later."]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Predict which is larger.", []),
        ("Does it? Predict: why?", []),
        (
            "Predict. Does it? And then: less, the same, or more?",
            [("Does it?", ["yes", "no"]), ("And then?", ["less", "the same", "more"])],
        ),
        ("Predict: is it high or low?", [("Is it high or low?", ["high", "low"])]),
        ("Predict: is the result still $x$?", []),
        ("Predict: which is best, long or short?", [("Which is best, long or short?", ["long", "short"])]),
    ],
)  # fmt: skip
def test_choices_are_those_that_a_question_offers(text, found):
    assert choices(text) == found


def test_a_question_keeps_what_is_not_an_answer():
    assert stem("before you run: what comes first: a, or b?") == "What comes first?"


def test_the_text_of_an_answer_ends_at_a_heading_or_at_the_next_question():
    assert split_answer("It fell.\n\n## Next\n\nMore.") == ("It fell.", "## Next\n\nMore.")
    assert split_answer("It fell.\n\nAnd now. **Predict** x.") == ("It fell.", "And now. **Predict** x.")
    assert split_answer("And now. **Predict** x.") == ("", "And now. **Predict** x.")


def test_an_exercise_that_asks_for_a_prediction_folds_nothing():
    assert asks("**Predict** x.") and not asks("```{exercise-start} A\n```\nPredict.\n```{exercise-end}\n```")


def test_in_a_notebook_the_run_comes_before_the_text():
    make = nbformat.v4
    cells = [make.new_markdown_cell(text) for text in ("**Predict** x.", "It fell.", "Nothing is asked.")]
    cells.insert(1, make.new_code_cell("run()"))
    fold_texts(cells, "After")
    assert "<summary>After</summary>\n\nIt fell.\n\n</details>" in cells[2].source
    assert [cells[0].source, cells[3].source] == ["**Predict** x.", "Nothing is asked."]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_prediction_in_the_colab_edition_has_its_answer_folded(path):
    """As many folds as questions, but for those that another question, or a heading, follows at once."""
    notebook = nbformat.read(ROOT / "book" / "colab" / path.name, as_version=4)
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    questions = [source for source in text if PREDICTS.search(source) and "### Exercise" not in source]
    folds = [source for source in text if "What came out" in source]
    assert len(folds) <= len(questions) and len(folds) >= 0.5 * len(questions) - 1


@pytest.mark.slow
def test_every_prediction_of_every_chapter_is_a_control(site):
    asked = folded = 0
    for path in CHAPTERS:
        text = (site / "book" / f"{path.stem}.html").read_text(encoding="utf-8")
        names = re.findall(r'<form class="predict" id="([^"]+)"', text)
        assert len(set(names)) == len(names)
        asked += len(names)
        folded += text.count('<details class="answer"')
        assert text.count("<details") == text.count("</details>")
        for name in names:
            assert f'id="{name}-question"' in text
    print(f"{asked} predictions, {folded} with a fold")
    assert asked > 90 and folded > 0.9 * asked


ANSWERS = "details.answer"


@pytest.mark.slow
def test_a_reader_commits_by_keyboard_and_finds_it_again(visit):
    page = visit("book/kl", answers="folded")
    form = page.locator("form.predict").nth(2)
    answer = page.locator(f"#{form.get_attribute('id')}-answer")
    assert answer.get_attribute("open") is None
    form.get_by_role("group").first.get_by_label("no", exact=True).focus()
    page.keyboard.press("Space")
    field = form.get_by_role("textbox")
    field.focus()
    page.keyboard.type("it climbs")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert answer.get_attribute("open") == ""
    assert answer.locator(".yours").inner_text() == "You said: no; it climbs"
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.reload()
    assert answer.get_attribute("open") == "" and field.input_value() == "it climbs"
    assert page.locator(f"{ANSWERS}[open]").count() == 1
    assert page.trouble == [], "nothing is sent"


@pytest.mark.slow
def test_all_answers_are_shown_where_the_reader_wants_it(visit):
    page = visit("book/grpo", answers="folded")
    count = page.locator(ANSWERS).count()
    assert count and page.locator(f"{ANSWERS}[open]").count() == 0
    page.get_by_label("Show all answers").check()
    assert page.locator(f"{ANSWERS}[open]").count() == count
    page.goto(page.url.replace("grpo", "kl"))
    page.wait_for_function("document.querySelectorAll('details.answer:not([open])').length === 0")
    page.get_by_label("Show all answers").uncheck()
    assert page.locator(f"{ANSWERS}[open]").count() == 0


@pytest.mark.slow
def test_a_link_to_what_is_folded_opens_it(visit):
    page = visit("book/kl", answers="folded")
    inside = page.evaluate("document.querySelector('details.answer figure[id], details.answer [id]').id")
    page.evaluate("id => (location.hash = id)", inside)
    page.wait_for_function("id => document.getElementById(id).closest('details').open", arg=inside)


@pytest.mark.slow
def test_a_widget_in_a_fold_is_there_when_it_opens(visit):
    page = visit("book/kl", answers="folded")
    widget = page.locator(f"{ANSWERS} .ng").first
    assert not widget.is_visible()
    page.locator(ANSWERS).filter(has=page.locator(".ng")).first.locator("> summary").click()
    assert widget.bounding_box()["width"] > 300


@pytest.mark.slow
def test_paper_shows_every_answer(visit):
    page = visit("book/grpo", answers="folded")
    page.emulate_media(media="print")
    shown = page.locator(f"{ANSWERS} > p:not(.yours), {ANSWERS} .cell").evaluate_all(
        "all => all.map((e) => e.checkVisibility() && e.getBoundingClientRect().height > 0)"
    )
    assert shown and all(shown)


@pytest.mark.slow
def test_without_a_script_an_answer_opens_all_the_same(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}book/grpo.html")
    assert not page.locator("form.predict").first.is_visible()
    answer = page.locator(ANSWERS).first
    answer.locator("> summary").click()
    assert answer.locator(".cell_output").first.is_visible()
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
def test_a_folded_page_is_accessible_and_fits_a_phone(visit, axe, theme):
    page = visit("book/kl", theme, PHONE, answers="folded")
    page.wait_for_function(TYPESET)
    page.locator("form.predict button").first.click()
    page.evaluate(axe)
    assert page.evaluate(CHECK) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
