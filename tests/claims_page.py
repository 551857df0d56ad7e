"""Write the page on what the first sketch claimed: verdicts from a data file, numbers from logs and outputs.

``python tests/claims_page.py`` writes the tables of ``book/claims.md``, between the comments that name them.
``claims.json`` quotes each claim, gives its verdict, and says where it is measured and which numbers speak of
it. The numbers are looked up here, so that none is typed by hand; a test holds the page to what they are now.
"""

import json
import re
from collections import Counter
from html import unescape
from pathlib import Path

import claims_numbers
from variant_tables import parts, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "book" / "claims.md"
CLAIMS = json.loads(Path(__file__).with_name("claims.json").read_text(encoding="utf-8"))
VERDICTS = ("holds", "holds with a limit", "does not hold", "not shown")
STUDIES = "https://github.com/asimkadav/nanogrpo/tree/main/book/studies/"


def cells(chapter: str) -> list[dict]:
    return json.loads((ROOT / "book" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]


def outputs(chapter: str, cell: str) -> list[dict]:
    """The stored outputs of a cell by its id."""
    (found,) = (each["outputs"] for each in cells(chapter) if each["id"] == cell)
    return found


def stored(chapter: str, cell: str, pattern: str) -> str:
    """What a pattern finds in the text that a cell has printed."""
    text = "".join("".join(output.get("text", [])) for output in outputs(chapter, cell))
    return "".join(re.search(pattern, text).groups()).strip()


def html_table(chapter: str, cell: str, row: str, column: int) -> str:
    """One value of a stored table, by the name of its row, of the first table that has it."""
    for output in outputs(chapter, cell):
        html = "".join(output.get("data", {}).get("text/html", []))
        for line in re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL):
            name, *values = (
                unescape(x).strip() for x in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL)
            )
            if name == row:
                return values[column]
    raise KeyError(f"{chapter}, {cell}: no row {row!r}")


def lookup(kind: str, *args) -> list:
    """The values that a source of ``claims.json`` stands for."""
    if kind == "call":
        found = getattr(claims_numbers, args[0])(*args[1:])
        return list(found) if type(found) is tuple else [found]  # an interval is a tuple of its own
    return [{"stored": stored, "table": html_table, "gap": claims_numbers.gap}[kind](*args)]


def values(claim: dict) -> list:
    return [value for source in claim.get("from", []) for value in lookup(*source)]


def number(claim: dict) -> str:
    """The numbers of a claim in its sentence; an interval as estimate and ends, with its sign."""
    shown = [claims_numbers.shown(v) if hasattr(v, "low") else v for v in values(claim)]
    return claim.get("number", "").format(*shown)


def title(target: str) -> str:
    """What the first line of a page calls it."""
    path = ROOT / "book" / target
    if path.suffix == ".md":
        return re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)[1]
    return "".join(cells(path.stem)[0]["source"]).splitlines()[0].lstrip("# ")


def target(see: str) -> tuple[str, str]:
    """The file of the book and the section that a claim's ``see`` names."""
    page, _, anchor = see.partition("#")
    ending = "md" if (ROOT / "book" / f"{page}.md").exists() else "ipynb"
    return f"{page}.{ending}", anchor


def logs(claim: dict) -> list[str]:
    """The folders below ``book/studies`` whose logs its numbers are made from."""
    found = []
    for source in claim.get("from", []):
        if source[0] == "gap":
            found += [arg for arg in source[1:] if "/" in arg]
        elif source[0] == "call":
            found += claims_numbers.LOGS.get(source[1], [])
    return list(dict.fromkeys(found))


def where(claim: dict) -> str:
    """Links to where a claim is measured or told of: a section of a chapter, and the logs."""
    page, anchor = target(claim["see"])
    links = [f"[{title(page)}]({page}{'#' * bool(anchor)}{anchor})"]
    links += [f"[log]({STUDIES}{name})" for name in logs(claim)]
    return ", ".join(links)


def rows(part: dict) -> str:
    lines = []
    for claim in part["claims"]:
        told = f"**{claim['verdict'].capitalize()}**. {claim['why']}"
        line = [claim["claim"], told, number(claim), where(claim)]
        lines.append([cell.replace("|", r"\|") for cell in line])
    return table(["the first sketch", "verdict", "number", "where"], lines)


def summary() -> str:
    """How many claims there are of each verdict."""
    counts = Counter(claim["verdict"] for part in CLAIMS for claim in part["claims"])
    lines = [[verdict, str(counts[verdict])] for verdict in VERDICTS]
    return table(["verdict", "claims"], [*lines, ["all", str(counts.total())]])


def made() -> dict[str, str]:
    """The tables of the page by name."""
    return {"summary": summary()} | {slug(part["part"]): rows(part) for part in CLAIMS}


def slug(heading: str) -> str:
    """The name of the table below a heading."""
    return re.sub(r"\W", "", heading.lower().replace(" ", "_"))


def write(text: str) -> str:
    """The page with the tables of today."""
    for name, body in made().items():
        before, rest = text.split(f"<!-- table: {name} -->")
        text = f"{before}<!-- table: {name} -->\n\n{body}\n\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return text


__all__ = ["PAGE", "parts", "write"]

if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
