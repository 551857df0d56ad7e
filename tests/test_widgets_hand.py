"""Every figure that moves, in the reader's hand: touched, driven to its extremes, and typed into."""

from pathlib import Path

import nbformat
import pytest
from clean import widget_state
from execute import chapters
from widgetcheck import PHONE, WIDE, mount_state

from nanogrpo.show.widgets import script

ROOT = Path(__file__).parents[1]


def stored() -> dict[str, dict[str, dict]]:
    """By kind of widget and chapter the states that the chapters show, with the script as it is today."""
    found = {}
    for path in chapters(ROOT):
        for model in widget_state(nbformat.read(path, as_version=4)).values():
            if "_esm" in model["state"]:
                name = model["state"]["_anywidget_id"].split(".")[-2]
                states = found.setdefault(name, {})
                states.setdefault(path.stem, {**model["state"], "_esm": script(name)})
    return found


STORED = stored()
WIDGETS = {name: next(iter(states.values())) for name, states in STORED.items()}  # one of each kind
each_widget = pytest.mark.parametrize("name", sorted(WIDGETS))
BOOK_CSS = ROOT / "book" / "_static" / "book.css"
DRAGGED = [name for name in sorted(WIDGETS) if "drag(" in script(name).split("// The arithmetic of", 1)[1]
           or "barEditor(" in script(name).split("// The arithmetic of", 1)[1]]  # fmt: skip

# The formula is a text with a table and code, and has no axes.
DRAWN = [name for name in sorted(WIDGETS) if name != "formula"]
# Other texts, other labels: what a chapter's own data are, each once.
DIFFER = [
    (name, chapter)
    for name in DRAWN
    for i, (chapter, state) in enumerate(STORED[name].items())
    if state not in list(STORED[name].values())[:i]
]


def test_every_script_of_a_widget_is_shown_by_a_chapter():
    scripts = {path.stem for path in (ROOT / "nanogrpo" / "show" / "widgets").glob("*.js")}
    assert set(WIDGETS) == scripts - {"common"}
    assert len(DRAGGED) >= 4


@pytest.fixture
def show(browser):
    contexts = []

    def go(name, chapter=None, **options):
        contexts.append(browser.new_context(**{"viewport": WIDE, **options}))
        return mount_state(contexts[-1], [STORED[name][chapter] if chapter else WIDGETS[name]])

    yield go
    for context in contexts:
        context.close()


# The center of a grip, once it stands in the middle of the screen.
GRIP = """i => {
  const grip = document.querySelectorAll("[data-grip]")[i];
  grip.scrollIntoView({ block: "center", behavior: "instant" });
  const box = grip.getBoundingClientRect();
  return { x: box.x + box.width / 2, y: box.y + box.height / 2, at: scrollY };
}"""
COUNT = """() => { window.told = { pointermove: 0, pointercancel: 0 };
  for (const kind of Object.keys(told)) document.addEventListener(kind, () => told[kind]++, true); }"""


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAGGED)
def test_every_grip_follows_a_finger_and_the_page_stays(show, name):
    page = show(name, viewport=PHONE, has_touch=True, is_mobile=True)
    page.add_style_tag(content="body { padding: 60vh 0 }")
    page.evaluate(COUNT)
    finger = page.context.new_cdp_session(page)
    grips = page.locator("[data-grip]").count()
    assert grips
    for i in range(grips):
        for way in (-4, 4):
            start = page.evaluate(GRIP, i)
            page.evaluate("told.pointermove = 0")
            before = page.locator("output").inner_text()
            place = {"x": start["x"], "y": start["y"]}
            finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [place]})
            for step in range(1, 13):
                place = {**place, "y": start["y"] + way * step}
                finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [place]})
            finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
            told = page.evaluate("({ ...told, at: scrollY })")
            assert (told["pointercancel"], told["at"]) == (0, start["at"]), "the finger moved the page"
            assert told["pointermove"] >= 12, "the finger was lost on its way"
            moved = page.locator("output").inner_text() != before
            assert moved or way == 4, "the finger moved, and nothing followed"


# Labels that leave their drawing, that touch or lie on each other, or that show how a float is stored.
STRAY = """() => [...document.querySelectorAll(".ng svg")].flatMap((svg) => {
  const box = svg.getBoundingClientRect(), found = [];
  const texts = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim());
  const boxes = texts.map((t) => t.getBoundingClientRect());
  texts.forEach((t, i) => {
    const b = boxes[i];
    const [far, odd] = [0.6, /\\d\\.\\d{7}|(^|[^\\d.])-0(\\.0*)?($|[^\\d.])|NaN|Infinity/];
    const inside = b.left > box.left - far && b.right < box.right + far && b.top > box.top - far;
    if (!inside || b.bottom > box.bottom + far) found.push(`outside: ${t.textContent}`);
    if (odd.test(t.textContent)) found.push(`odd: ${t.textContent}`);
    texts.slice(i + 1).forEach((u, j) => {
      const c = boxes[i + 1 + j];
      const across = Math.min(b.right, c.right) - Math.max(b.left, c.left);
      const down = Math.min(b.bottom, c.bottom) - Math.max(b.top, c.top);
      if (across > 1 && down > 0.4 * Math.min(b.height, c.height))
        found.push(`on each other: ${t.textContent} | ${u.textContent}`);
      else if (across > -2 && Math.abs(b.bottom - c.bottom) < 2) // "EOS" and "rest" would read as one word
        found.push(`fused: ${t.textContent} | ${u.textContent}`);
    });
  });
  return found;
})"""

# Every state that one press, one choice or one end of a slider leads to, from the state as it is stored.
DRIVE = """async ([kind, i, value]) => {
  if (kind === "press") return document.querySelectorAll(".ng-buttons button")[i].click();
  const input = document.querySelectorAll(".ng input, .ng select")[i];
  if (input.type === "checkbox") return input.click();
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
}"""
WAYS = """() => {
  const skip = /CSV|Play|Next step/;
  const presses = [...document.querySelectorAll(".ng-buttons button")]
    .flatMap((b, i) => (skip.test(b.textContent) ? [] : [["press", i, b.textContent]]));
  const inputs = [...document.querySelectorAll(".ng input, .ng select")].flatMap((input, i) => {
    const values = input.tagName === "SELECT" ? [...input.options].map((o) => o.value)
      : input.type === "range" ? [input.min, String((Number(input.min) + Number(input.max)) / 2), input.max]
      : input.type === "checkbox" ? ["click"] : ["-1000", "-1", "-0.3", "0", "0.3", "1", "7.7", "1000"];
    return values.map((value) => ["set", i, value]);
  });
  return [...presses, ...inputs];
}"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chapter"), DIFFER)
def test_no_label_leaves_its_drawing_at_any_preset_or_extreme(show, name, chapter):
    page = show(name, chapter)
    assert page.locator(".ng svg text").count(), "a widget without a drawing"
    assert page.evaluate(STRAY) == [], "as it is stored"
    for way in page.evaluate(WAYS):  # one after the other: each is an extreme of what came before, too
        page.evaluate(DRIVE, way)
        assert page.evaluate(STRAY) == [], way
    assert page.trouble == []


HEIGHT = "() => document.querySelector('.ng').getBoundingClientRect().height"
TYPED = ["", "-", "0", "0.3", "12", "1000000"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@each_widget
def test_no_widget_changes_its_height_while_one_types(show, name, size):
    page = show(name, viewport=size)
    fields = page.locator(".ng input[type=number]")
    last = fields.count() - 1
    for i in range(last + 1) if last < 4 else (0, last // 2, last):
        height = page.evaluate(HEIGHT)
        field = fields.nth(i)
        before = field.input_value()
        for text in TYPED:
            field.focus()
            field.press("Control+a")
            field.press("Delete")
            if text:
                page.keyboard.type(text)
            assert abs(page.evaluate(HEIGHT) - height) < 1.5, (i, text)
            svgs = page.locator(".ng-panels svg")
            assert svgs.count(), "an input that is none took the drawing away"
        field.fill(before)


# For each row of controls, where its sliders end: a label that wraps must not push one below the others.
SLIDERS = """() => [...document.querySelectorAll(".ng-controls")].flatMap(box => {
  const columns = getComputedStyle(box).gridTemplateColumns.split(" ").length;
  const labels = [...box.querySelectorAll("label")].filter(label => label.offsetParent);
  const rows = Array.from({ length: Math.ceil(labels.length / columns) },
    (_, i) => labels.slice(i * columns, (i + 1) * columns));
  return rows.map(row => row.map(label => label.querySelector("input[type=range]")).filter(Boolean)
    .map(input => input.getBoundingClientRect().bottom));
})"""


@pytest.mark.parametrize("name", ["clip", "gae"])
def test_sliders_of_a_row_stand_on_one_line_where_a_label_wraps(show, name):
    page = show(name)
    page.add_style_tag(path=BOOK_CSS)
    page.evaluate("""() => {
      document.body.className = "bd-article";
      document.querySelectorAll(".ng").forEach(e => (e.style.width = "736px"));
    }""")
    rows = [row for row in page.evaluate(SLIDERS) if len(row) > 1]
    assert rows and all(max(row) - min(row) <= 1 for row in rows), rows
