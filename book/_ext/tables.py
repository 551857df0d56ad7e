"""Tables that pandas writes: text at the left, numbers at the right, and one row of names of columns.

pandas sets every cell at the right, and gives the name of the rows a line of its own, empty but for it.
"""

from __future__ import annotations

import html
import re

TABLE = re.compile(r'<table (?:border="1" class="dataframe"|id="T_)[^>]*>.*?</table>', re.DOTALL)
HEAD = re.compile(r"<thead>.*?</thead>", re.DOTALL)
BODY = re.compile(r"<tbody>.*?</tbody>", re.DOTALL)
ROW = re.compile(r"<tr[^>]*>.*?</tr>", re.DOTALL)
CELL = re.compile(r"<(t[hd])((?: [^>]*)?)>(.*?)</\1>", re.DOTALL)
SPAN = re.compile(r'colspan="(\d+)"')
# What a number begins with: signs, brackets, a digit. What stands for none says nothing of its column.
NUMBER = re.compile(r"(?:(?:below|above|about)\s)?[\s+\-−±<>≈~\[(]*[\d.∞]")
NONE = re.compile(r"(?:nan|none|-?inf|[-–—.…]*)", re.IGNORECASE)


LONG = 24  # signs; on a phone a longer text wraps


def said(cell: tuple[str, str, str]) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", cell[2])).strip()


def cells(row: str) -> list[tuple[str, str, str]]:
    """The cells of a row: tag, attributes, what is in it."""
    return CELL.findall(row)


def of_words(columns: list[list[str]]) -> list[bool]:
    """For each column whether most of what it says is no number.

    >>> of_words([["0.3", "nan", "[0.1, 0.4]"], ["on", "off", "1"], ["", "", ""]])
    [False, True, False]
    """
    found = []
    for column in columns:
        spoken = [text for text in column if not NONE.fullmatch(text)]
        found.append(2 * sum(not NUMBER.match(text) for text in spoken) > len(spoken))
    return found


def one_head(rows: list[str]) -> list[str]:
    """The rows of a head, the name of the rows in the corner, if it had a line for itself."""
    if len(rows) < 2:
        return rows
    above, below = (cells(row) for row in rows[-2:])
    names = [cell for cell in below if said(cell)]
    corner = len(names)
    plain = not any("span" in attributes for _, attributes, _ in above)
    if not plain or len(above) != len(below) or below[:corner] != names or any(map(said, above[:corner])):
        return rows
    left = iter(CELL.finditer(rows[-1]))
    merged = CELL.sub(lambda cell: next(left)[0] if not said(cell.groups()) else cell[0], rows[-2], corner)
    return [*rows[:-2], merged]


def mark(row: str, words: list[bool], corner: int) -> str:
    """A row whose cells in columns of words, or over the names of the rows, say so to the style sheet."""
    at = -corner

    def marked(cell):
        nonlocal at
        tag, attributes, inside = cell.groups()
        span = int((SPAN.search(attributes) or [0, "1"])[1])
        here, at = at, at + span
        if here >= len(words) or span > 1 or (here >= 0 and not words[here]):
            return cell[0]
        kind = "words long" if tag == "td" and len(said(cell.groups())) > LONG else "words"
        known = 'class="' in attributes
        attributes = (
            attributes.replace('class="', f'class="{kind} ') if known else f'{attributes} class="{kind}"'
        )
        return f"<{tag}{attributes}>{inside}</{tag}>"

    return CELL.sub(marked, row)


def tidy(table: str) -> str:
    """A table of pandas with its text at the left, and with one line of names."""
    head, body = HEAD.search(table), BODY.search(table)
    if not head or not body or not (rows := ROW.findall(body[0])):
        return table
    values = [[said(cell) for cell in cells(row) if cell[0] == "td"] for row in rows]
    if len(set(map(len, values))) != 1:
        return table
    words = of_words([list(column) for column in zip(*values, strict=True)])
    corner = sum(tag == "th" for tag, _, _ in cells(rows[0]))
    heads = [mark(row, words, corner) for row in one_head(ROW.findall(head[0]))]
    table = table.replace(head[0], "<thead>" + "".join(heads) + "</thead>", 1)

    def body_row(row):
        first, *rest = re.split(r"(?=<td)", row[0], maxsplit=1)
        return first + "".join(mark(part, words, 0) for part in rest)

    return BODY.sub(lambda found: ROW.sub(body_row, found[0]), table, count=1)


def tidy_all(text: str) -> str:
    """The page with each of its tables of numbers in order."""
    return TABLE.sub(lambda table: tidy(table[0]), text)
