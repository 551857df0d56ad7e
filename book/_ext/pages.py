"""What is mended in each rendered page: markup that a screen reader trips over, scripts that it needs not.

Pure functions on the text of a page. The theme, myst-nb and pandas write what is mended here; a plain
replacement keeps the book from copying their templates.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from figures import set_in
from tables import tidy_all

# 0.5 MB of icons as a script; the style sheet draws the same ones from a font (see icons.py).
ICON_SCRIPT = re.compile(r'\s*<script[^>]*src="[^"]*/fontawesome\.js[^"]*"[^>]*></script>')
# Sphinx's search, and its index; the search page has one of the book's own (sections.py, book-search.js).
SEARCH_SCRIPTS = re.compile(
    r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>'
)
OWN_SEARCH = '<script src="_static/sections.js"></script><script src="_static/book-search.js"></script>'
# A name that hides the text that is shown, so that what one sees is not what one can say.
HIDING_NAME = re.compile(r'(<summary|<button class="[^"]*search-button-field[^"]*"[^>]*?) aria-label="[^"]*"')
HEAD = re.compile(r"<thead>.*?</thead>", re.DOTALL)
EMPTY_HEADER = re.compile(r"<th((?: [^>]*)?)>(?:\s|&nbsp;|<p></p>)*</th>")
# A role of digital publishing that is deprecated; it stands in a list, which needs items.
CITATION_ROLE = re.compile(r'(<div class="citation"[^>]*) role="doc-biblioentry"')
# A span around each word, of which the API page would have ten thousand.
WORD = re.compile(r'<span class="pre">([^<]*)</span>')
# The arrow that opens a part of the contents has no name of its own.
ARROW = re.compile(r'<summary>(?=<span class="toctree-toggle")')
# The theme's button for Colab leads to the chapter itself; its Colab edition (colab.py) is made for that.
LAUNCH = re.compile(
    r'(href="https://colab\.research\.google\.com/github/[^"]*/blob/main/book/)([\w-]+\.ipynb")'
)
# A description is what the page begins with; the badge, and the points of a lab, are no part of it.
BADGE_WORDS = re.compile(
    r'(<meta (?:name|property)="(?:og:)?description" content=")Open in Colab\s+(?:\d+ points, \d+ \w+\. )?'
)
# The title of a solution is a link to its exercise, so that a click on it jumped away and opened nothing.
SOLUTION_LINK = re.compile(
    r'(<p class="admonition-title">Solution to)<a class="reference internal" href="[^"]*">([^<]*)</a>'
)
# A folded cell says what it holds: the title that it gives itself, or that it draws, and how long it is.
FOLD = re.compile(
    r'<p class="collapsed admonition-title">Show code cell \w+</p>\s*'
    r'<p class="expanded admonition-title">Hide code cell \w+</p>'
    r"(?P<rest>.*?<pre>(?P<code>.*?)</pre>.*?</details>)"
    r'(?=(?P<figure>(?:\s*</div>\s*<details class="answer[^>]*>.*?</p>'
    r'\s*<div class="cell docutils container">)?'  # the output of a cell that answers a prediction
    r'\s*<div class="cell_output docutils container">\s*<figure)?)',
    re.DOTALL,
)
# A number with its unit, or an interval, in a cell of a table stays on one line.
SHORT, NAME = 14, 23
INTERVAL = re.compile(r"(\[[-+]?[\d.]+%?,) (?=[-+]?[\d.]+%?\])")
ROWS = re.compile(r"<tbody>.*?</tbody>", re.DOTALL)
CELL = re.compile(r"(<t[dh](?: [^>]*)?>)([^<]*)(</t[dh]>)")
# Code, or what it printed, that is somewhat wider than the page is set smaller (book.css): columns stay so.
BOX = re.compile(
    r'<div class="highlight"><pre(?=[ >])(?![^>]*--columns)(?P<rest>[^>]*>(?P<code>.*?)</pre>)', re.DOTALL
)
FITS, SMALLER = 88, 110
# A table of the text, which on a phone would hide its last columns if a row is as long as that.
TABLE = re.compile(r'<table class="table">(?P<head>.*?)<tbody>(?P<rows>.*?)</tbody>', re.DOTALL)
LONG = 70
SENTENCE = re.compile(r"\S+ \S+ .*\.")
# A long option with its value, which in a table may go on in a second line behind the sign; so may no other.
OPTION = re.compile(r"(<code [^>]*>)([^<=]{10,}=)([^<]{6,})(</code>)")
# 1e-3 in a line of text; a browser would break it at its sign.
PARAGRAPH = re.compile(r"<p>.*?</p>", re.DOTALL)
POWER = re.compile(r"(?<![\w.-])(?<!part\">)(\d[\d.]*e-\d+)(?![^<>]*>)")
SIDEBAR = re.compile(r'<div id="pst-primary-sidebar"(?! role)')
# A formula in a line of text; a browser may break the line behind it, and begin the next one with its comma.
FORMULA = re.compile(r'(?<!<span class="marked">)<span class="math[^"]*">')
SPAN, MARK = re.compile(r"<(/?)span\b"), re.compile(r"[,.;:?!)\u2019\u201d]+")
# A percent sign stays with its number; in code the same signs are another thing.
VERBATIM = re.compile(r"(<(pre|code|script|style|textarea)\b.*?</\2>)", re.DOTALL)
PERCENT = re.compile(r"(?<=\d) %(?=[\s<),.;:?])")


def mend(text: str, search_page: bool = False) -> str:
    """The page without what it needs not, and with names and landmarks that fit what it shows."""
    text = ICON_SCRIPT.sub("", text)
    text = ARROW.sub('<summary aria-label="Pages below">', HIDING_NAME.sub(r"\1", text))
    text = tidy_all(text)
    # A corner above the names of rows, or above remarks, is no header of anything.
    text = HEAD.sub(lambda head: EMPTY_HEADER.sub(r"<td\1></td>", head[0]), text)
    text = WORD.sub(r"\1", text)
    text = SOLUTION_LINK.sub(r"\1\2", BADGE_WORDS.sub(r"\1", text))
    text = FOLD.sub(name_fold, text)
    text = ROWS.sub(lambda rows: CELL.sub(keep_whole, rows[0]), BOX.sub(set_smaller, text))
    text = LAUNCH.sub(r"\1colab/\2", text)
    text = TABLE.sub(stack, TABLE.sub(break_options, text))
    text = PARAGRAPH.sub(keep_powers, text)
    text = CITATION_ROLE.sub(r'\1 role="listitem"', keep_percents(keep_marks(text)))
    text = SIDEBAR.sub('<div id="pst-primary-sidebar" role="navigation" aria-label="Book"', text)
    text = SEARCH_SCRIPTS.sub("", text)
    return text.replace("</body>", f"{OWN_SEARCH}</body>") if search_page else text


def name_fold(match: re.Match) -> str:
    """The title of a folded cell."""
    code = html.unescape(re.sub(r"<[^>]*>", "", match["code"])).strip()
    own = re.match(r"# @title (.*)", code)
    what = own[1] if own else "The code of the figure" if match["figure"] else "The code"
    lines = code.count("\n") + 1
    title = f"{html.escape(what, quote=False)}, {lines} line{'s' * (lines > 1)}"
    return f'<p class="admonition-title">{title}</p>{match["rest"]}'


def keep_whole(cell: re.Match) -> str:
    """A cell whose numbers do not break, or the name of a row that is short."""
    begin, text, end = cell.groups()
    short = NAME if begin.startswith("<th") else SHORT
    if len(html.unescape(text.strip())) <= short:
        begin = begin.replace("<th>", '<th class="whole">')  # nor at a hyphen
        return f"{begin}{text.strip().replace(' ', '&nbsp;')}{end}"
    return begin + INTERVAL.sub(r"\1&nbsp;", text) + end


def words(markup: str) -> str:
    """What is left of markup without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", markup)).split())


def stack(table: re.Match) -> str:
    """A table with long rows: each cell knows the name of its column, which a phone shows (book.css)."""
    names = [words(name) for name in re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", table["head"], re.DOTALL)]
    rows = table["rows"].split("</tr>")
    said = [words(cell) for cell in re.findall(r"<td(?: [^>]*)?>(.*?)</td>", table["rows"], re.DOTALL)]
    sentences = len(names) > 3 and any(map(SENTENCE.fullmatch, said))
    if len(names) < 3 or not sentences and max(len(words(row)) for row in rows) <= LONG:
        return table[0]
    heads = ["", *(f' data-head="{html.escape(name)}"' if name else "" for name in names[1:])]
    for i, row in enumerate(rows):
        head = iter(heads)
        rows[i] = re.sub(r"<td(?=[ >])", lambda cell, head=head: cell[0] + next(head, ""), row)
    return f'<table class="table stacked">{table["head"]}<tbody>{"</tr>".join(rows)}</tbody>'


def break_options(table: re.Match) -> str:
    """A table whose long options may be broken behind the equals sign, and nowhere else (book.css)."""
    return OPTION.sub(r'\1<span class="part">\2</span><wbr><span class="part">\3</span>\4', table[0])


def keep_powers(paragraph: re.Match) -> str:
    """A paragraph whose powers of ten stay in one line; in code they stay as they are."""
    parts = VERBATIM.split(paragraph[0])
    parts[::3] = [POWER.sub(r'<span class="part">\1</span>', prose) for prose in parts[::3]]
    del parts[2::3]
    return "".join(parts)


def keep_marks(text: str) -> str:
    """The page with each formula and the mark behind it in a span that does not break (book.css)."""
    done, at = [], 0
    for begin in FORMULA.finditer(text):
        depth = 0
        for span in SPAN.finditer(text, begin.start()):
            depth += -1 if span[1] else 1
            if not depth:
                break
        end = text.find(">", span.start()) + 1
        if mark := MARK.match(text, end):
            formula = text[begin.start() : mark.end()]
            done += [text[at : begin.start()], f'<span class="marked">{formula}</span>']
            at = mark.end()
    return "".join([*done, text[at:]])


def keep_percents(text: str) -> str:
    """The page with no line of prose that ends between a number and its percent sign."""
    parts = VERBATIM.split(text)  # prose, then what is verbatim, and the name of its tag
    parts[::3] = [PERCENT.sub("&nbsp;%", prose) for prose in parts[::3]]
    del parts[2::3]
    return "".join(parts)


def set_smaller(match: re.Match) -> str:
    """A box of code that says how many columns it has, if that is what makes it fit."""
    code = html.unescape(re.sub(r"<[^>]*>", "", match["code"]))
    columns = max(map(len, code.split("\n")))
    if not FITS < columns <= SMALLER:
        return match[0]
    return f'<div class="highlight"><pre style="--columns: {columns}"{match["rest"]}'


def each_page(app, change) -> None:
    """Let every page that the builder renders pass through `change(text, context)`."""
    render = app.builder.templates.render
    app.builder.templates.render = lambda template, context: change(render(template, context), context)


def mend_all(app) -> None:
    def file_of(name: str) -> str:
        images = {dest: source for source, dest in app.builder.images.items()}
        return str(Path(app.srcdir, images[name])) if name in images else ""

    def change(text, context):
        return set_in(mend(text, context.get("pagename") == "search"), file_of)

    if app.builder.format == "html":
        each_page(app, change)
