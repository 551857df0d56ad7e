"""Commit before the reveal: a prediction gets a field to write it in, and its answer is folded until then.

A chapter asks in plain text, "**Predict**: which of the three ...?". Nothing else is marked in the notebooks.
On the page the paragraph gets a form; `predictions.js` keeps what is written in the browser. The answer is
what the cells after the question show, and the text up to the next heading, question or further cell. It
stands in a `<details>`, which opens without any script, by keyboard, and by a link to what is inside.

The Colab edition (colab.py) folds the same text; there the run is the reveal.
"""

from __future__ import annotations

import hashlib
import html
import re
from pathlib import Path

from docutils import nodes

PREDICTS = re.compile(r"\bPredict\b")
LISTED = re.compile(r"(?:.*: )?((?:[^,:?]+, )*[^,:?]+?),? or ([^,:?]+)\?")
EITHER = re.compile(r".* (high|low|more|longer|larger|long) or (high|low|less|shorter|smaller|none|short)\?")
YES_OR_NO = re.compile(r"(?:and )?(?:does|do|is|are|will|can|has) .*\?", re.IGNORECASE)
NOTE = """<p class="predict-note">What you write stays in this browser; nothing is sent.
<label><input type="checkbox" class="predict-all"> Show all answers, in every chapter</label></p>
"""


def choices(text: str) -> list[tuple[str, list[str]]]:
    """The questions of a prediction that offer answers: a list of short ones, or yes and no.

    >>> choices("Predict. What is lower: the loss, the reward, or neither? And does the mean change?")
    [('What is lower?', ['the loss', 'the reward', 'neither']), ('And does the mean change?', ['yes', 'no'])]
    >>> choices("Is it so? Predict: which of the five arrive, and when?")
    []
    """
    asked = " ".join(text[PREDICTS.search(text).end() :].split()).lstrip(":. ")
    sentences = [words for words in re.split(r"(?<=[.?!]) ", asked) if words.endswith("?")]
    return [(stem(words), found) for words in sentences if (found := offered(words))]


def offered(question: str) -> list[str]:
    """What one question offers; formulas are left to the reader's own words."""
    if re.search(r"[\\$]", question):
        return []
    found = EITHER.fullmatch(question)
    listed = LISTED.fullmatch(question)
    if not found and listed and (":" in question or "," in question):
        items = [*listed[1].split(", "), listed[2]]
        short = all(len(item.split()) <= 5 for item in items) and not YES_OR_NO.fullmatch(f"{items[0]}?")
        return [item[0].lower() + item[1:] for item in items] if short else []
    if found:
        return [found[1], found[2]]
    return ["yes", "no"] if YES_OR_NO.fullmatch(question) and " or " not in question else []


def stem(question: str) -> str:
    """The question without the answers that it lists."""
    words = re.sub(r"^before you \w+\W+", "", re.sub(r": [^:]* or [^:]*\?$", "?", question))
    return words[0].upper() + words[1:]


def form(name: str, asked: list[tuple[str, list[str]]], answered: bool) -> str:
    """Where the reader commits: choices where the question offers some, and a line of their own."""
    groups = ""
    for number, (question, items) in enumerate(asked):
        radio = f'<input type="radio" name="choice-{number}"'
        boxes = (f'<label>{radio} value="{html.escape(i)}"> {html.escape(i)}</label>' for i in items)
        groups += f"<fieldset><legend>{html.escape(question)}</legend>{''.join(boxes)}</fieldset>"
    button = f'<button type="submit" aria-controls="{name}-answer">Reveal the answer</button>'
    return (
        f'<form class="predict" id="{name}">{groups}'
        f'<label class="words"><span>{"In your words" if asked else "Your prediction"}</span>'
        f'<textarea name="words" rows="1" aria-describedby="{name}-question"></textarea></label>'
        f"{button * answered}</form>\n"
    )


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def has_output(node) -> bool:
    return any(part.get("nb_element") == "cell_code_output" for part in node.findall(nodes.container))


def is_cell(node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def is_question(node) -> bool:
    return isinstance(node, nodes.paragraph) and bool(PREDICTS.search(node.astext()))


def in_text(node) -> bool:
    """Not in an exercise, which is a section without a title, and whose solution has its fold."""
    section = node.parent
    return isinstance(section, nodes.section) and isinstance(section.next_node(), nodes.title)


def span(children: list) -> tuple[int, int]:
    """Of what stands after a question: where the first cell with an output is, and where its answer ends."""
    start = next((i for i, node in enumerate(children) if is_cell(node) and has_output(node)), None)
    stop = next((i for i, node in enumerate(children) if isinstance(node, nodes.section)), len(children))
    asked = next((i for i, node in enumerate(children) if is_question(node)), len(children))
    if start is None or start >= min(stop, asked):
        return 0, 0
    said, end = False, start
    while end < min(stop, asked) and not (said and is_cell(children[end])):
        said = said or not is_cell(children[end])
        end += 1
    return start, end


def take_output(cell):
    """The output of a cell, in a cell of its own; the code stays above the fold."""
    output = next(node for node in cell.children if has_output_here(node))
    cell.remove(output)
    return nodes.container("", output, classes=["cell"], nb_element="cell_code")


def has_output_here(node) -> bool:
    return node.get("nb_element") == "cell_code_output" or has_output(node)


def fold(paragraph, name: str, first: bool) -> None:
    """Set the form under the question, and the answer into its fold."""
    section = paragraph.parent
    at = section.index(paragraph) + 1
    start, end = span(section.children[at:])
    paragraph["ids"].append(f"{name}-question")
    if end:
        section.insert(at + end, raw("</details>\n"))
        section.insert(at + start + 1, take_output(section[at + start]))
        opening = f'<details class="answer" id="{name}-answer"><summary>The answer</summary>'
        section.insert(at + start + 1, raw(f'{opening}<p class="yours" hidden></p>\n'))
    text = form(name, choices(paragraph.astext()), bool(end))
    section.insert(at, raw(text + NOTE * first))


def split_answer(source: str) -> tuple[str, str]:
    """A cell of text after the run: what answers the question, and the next heading or question on."""
    heading = re.search(r"^(?:#|`{3,}\{)", source, re.MULTILINE)
    rest = heading.start() if heading else len(source)
    asked = PREDICTS.search(source[:rest])
    if asked:
        rest = source.rfind("\n\n", 0, asked.start()) + 2 if "\n\n" in source[: asked.start()] else 0
    return source[:rest].strip(), source[rest:].strip()


def asks(source: str) -> bool:
    """Whether a cell of text ends with a question that the cells after it answer."""
    exercise = re.compile(r"\{exercise-start\}.*?\{exercise-end\}", re.DOTALL)
    return bool(PREDICTS.search(exercise.sub("", source)))


def fold_texts(cells: list, after: str) -> None:
    """In a notebook: fold the text that follows the run that answers a prediction."""
    waiting = ran = False
    for cell in cells:
        if cell.cell_type == "code":
            ran = waiting and (ran or bool(cell.source.strip()))
            continue
        if waiting and ran and "```{" not in cell.source:
            answer, rest = split_answer(cell.source)
            if answer:
                folded = f"<details><summary>{after}</summary>\n\n{answer}\n\n</details>"
                cell.source = f"{folded}\n\n{rest}".strip()
        waiting, ran = asks(cell.source), False


def fold_answers(app, doctree, docname: str) -> None:
    if app.builder.format != "html":
        return
    if not any(map(is_cell, doctree.findall(nodes.container))):
        return  # a page of text asks nobody to run anything
    asked = [node for node in doctree.findall(is_question) if in_text(node)]
    for number, node in enumerate(asked):
        digest = hashlib.sha256(node.astext().encode()).hexdigest()[:8]
        fold(node, f"predict-{Path(docname).name}-{digest}", number == 0)


def add_script(app, pagename, templatename, context, doctree) -> None:
    if '<form class="predict"' in context.get("body", ""):
        app.add_js_file("predictions.js", loading_method="defer")
