"""What the tests of the widgets share: their arithmetic and their drawing, run in a real browser."""

import json
import math
import re
from pathlib import Path

from nanogrpo.show.widgets import script

HOST = Path(__file__).parents[1] / "book" / "_static" / "widgets-host.js"
WIDE, PHONE = {"width": 1300, "height": 900}, {"width": 390, "height": 844}

# An error of a script ends the wait for what it would have drawn.
HEARD = """const say = console.error;
console.error = (...words) => { window.heard = true; say(...words); };
addEventListener("error", () => { window.heard = true; });
"""

CALL = """async ([source, name, rows]) => {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const module = await import(url);
  URL.revokeObjectURL(url);
  return rows.map((row) => module[name](...row));
}"""


def code_of(script: str) -> str:
    """A script without its comments and blank lines, which no reader of a page notices."""
    lines = (re.sub(r"(^|\s)//.*$", "", line).rstrip() for line in script.splitlines())
    return "\n".join(filter(None, lines))


def call(browser, widget: str, function: str, rows: list[tuple]) -> list:
    """The results of a function that a widget's script exports, one for each row of arguments."""
    page = browser.new_page()
    try:
        return page.evaluate(CALL, [script(widget), function, [list(row) for row in rows]])
    finally:
        page.close()


def mount(context, widgets: list):
    """A page that shows the widgets as the book does: stored state, the book's host script, no network."""
    return mount_state(context, [stored_state(widget) for widget in widgets])


def mount_state(context, states: list[dict]):
    """The same for states as a notebook stores them."""
    page = context.new_page()
    page.trouble = []

    def refuse(route):
        page.trouble.append(f"asks for {route.request.url}")
        route.abort()

    page.route(re.compile("^(?!blob:)"), refuse)
    page.on("console", lambda m: page.trouble.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: page.trouble.append(f"script: {error}"))
    models = {str(i): {"model_module": "anywidget", "state": state} for i, state in enumerate(states)}
    kind = "application/vnd.jupyter.widget"
    state = json.dumps({"state": models}).replace("</", "<\\/")
    views = [f'<script type="{kind}-view+json">{{"model_id": "{name}"}}</script>' for name in models]
    page.set_content(
        '<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><body>'
        f'<script type="{kind}-state+json">{state}</script>{"".join(views)}'
        f"<script>{HEARD}{HOST.read_text(encoding='utf-8')}</script>"
    )
    page.wait_for_function(
        "n => window.heard || document.querySelectorAll('output').length >= n", arg=len(states)
    )
    if page.evaluate("document.querySelectorAll('output').length") < len(states):
        raise AssertionError(f"a widget was not drawn: {page.trouble}")
    return page


def stored_state(widget) -> dict:
    """What a notebook stores of a widget: its synchronized values and its script, through JSON."""
    return json.loads(json.dumps(widget.get_state()))


def numbers(text: str) -> list[float]:
    """Every number of a read-out, in order."""
    return [float(found) for found in re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", text)]


def close(got: list[float], expected: list[float], tolerance: float) -> bool:
    return len(got) == len(expected) and all(
        math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) for a, b in zip(got, expected, strict=True)
    )
