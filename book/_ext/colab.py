"""The Colab edition of the chapters: what only the book's renderer reads is made plain. `make colab`

    book/kl.ipynb          what is edited, and rendered as a page of the book
    book/colab/kl.ipynb    made from it and committed, so that Colab can open it; for plain Jupyter, too

A citation becomes a link to the work, an exercise a heading, a solution a fold, a link absolute. Code stays
as it is, without outputs. What the page folds is folded: code of a figure or of a solution, under a title,
and the answer to a prediction.
"""

from __future__ import annotations

import copy
import re
import sys
from functools import cache
from pathlib import Path

import nbformat
import tomllib
from chapter_map import parts
from execute import ROOT, chapters
from predictions import fold_texts
from pybtex.database import parse_file
from pybtex.richtext import Text

EDITION = ROOT / "book" / "colab"
# A role, or code, which stays as it is, or a link.
INLINE = re.compile(
    r"\{(?P<role>[\w:]+)\}`(?P<of>[^`]+)`"
    r"|(?P<code>(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`))"
    r"|\[(?P<text>[^\]]*)\]\((?P<to>[^)\s]+)\)",
    re.DOTALL,
)
DIRECTIVE = re.compile(r"(`{3,})\{([\w-]+)\} *(.*)")
OPTION = re.compile(r":(\w+): *(.*)")


@cache
def addresses() -> dict[str, str]:
    """Of the repository and of the rendered book, from the one place that names them."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]


def badge(name: str) -> str:
    """Where the badge of a chapter leads: its Colab edition."""
    path = addresses()["Repository"].removeprefix("https://github.com")
    return f"https://colab.research.google.com/github{path}/blob/main/book/colab/{name}.ipynb"


def page(name: str) -> str:
    return f"{addresses()['Book']}book/{name}.html"


@cache
def works() -> dict[str, tuple[str, str]]:
    """Of each cited work: authors and year, and its address."""
    found = {}
    for key, entry in parse_file(str(ROOT / "book" / "references.bib")).entries.items():
        people = [" ".join(p.prelast_names + p.last_names) for p in entry.persons["author"]]
        names = [str(Text.from_latex(name)) for name in people]
        several = len(names) > 2 or "others" in names
        who = f"{names[0]} et al." if several else " and ".join(names)
        at = entry.fields
        url = at.get("url") or (f"https://doi.org/{at['doi']}" if "doi" in at else "")
        url = url or (f"https://arxiv.org/abs/{at['eprint']}" if "eprint" in at else page("bibliography"))
        found[key] = f"{who}, {at['year']}", url
    return found


def title(path: Path) -> str:
    """The first heading of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = nbformat.reads(text, as_version=4).cells[0].source
    return re.search(r"^# (.*)$", text, re.MULTILINE)[1]


def source_of(name: str) -> Path | None:
    """The file of a page, by its name without an ending."""
    files = [ROOT / "book" / f"{name}{ending}" for ending in (".ipynb", ".md")]
    return next((path for path in files if path.exists()), None)


def api(name: str) -> str:
    """A link to an object of the package, on the page of its module."""
    full = name.removeprefix("~")
    module, steps = full, full.split(".")
    while not any((ROOT / Path(*steps)).with_suffix(end).exists() for end in (".py", "")):
        steps.pop()
        module = ".".join(steps)
    place = f"module-{module}" if module == full else full
    return f"[`{full.rsplit('.', 1)[-1] if name.startswith('~') else full}`]({page('api/' + module)}#{place})"


def role(kind: str, of: str) -> str:
    """What stands for a role of the book's renderer."""
    if kind == "cite":
        return "({})".format("; ".join("[{}]({})".format(*works()[key.strip()]) for key in of.split(",")))
    if kind == "doc":
        return f"[{title(source_of(of))}]({page(of)})"
    if kind.startswith("py:"):
        return api(of)
    raise ValueError(f"{{{kind}}}`{of}`: the Colab edition has nothing that stands for this role")


def inline(text: str, own: str) -> str:
    """Roles and links of a text made plain; `own` is the name of the chapter that it stands in."""

    def plain(match):
        if match["code"]:
            return match[0]
        if match["role"]:
            return role(match["role"], match["of"])
        to, _, place = match["to"].partition("#")
        name = to.removesuffix(".ipynb").removesuffix(".md")
        if re.match(r"\w+:", match["to"]):
            return match[0]
        if to and not source_of(name):  # a name that the chapter gave to a figure, or a part
            name, place = own, to
        text = inline(match["text"], own) or ("the figure" if place else title(source_of(name)))
        return f"[{text}]({page(name or own)}{'#' * bool(place)}{place})"

    return INLINE.sub(plain, text)


@cache
def chapter_numbers() -> dict[str, int]:
    """The number of each chapter by its name, as the page's title has it; a page without one is not there."""
    docs = [chapter.doc for _, each in parts(ROOT) for chapter in each]
    return {doc.rpartition("/")[2]: number for number, doc in enumerate(docs, 1)}


class Plain:
    """The cells of one chapter, one after the other: a solution may go on from cell to cell."""

    def __init__(self, name: str):
        self.name, self.numbers, self.solution = name, {}, None
        chapter = chapter_numbers().get(name)
        self.prefix = f"{chapter}." if chapter else ""

    def fold(self, lines: list[str]) -> list[str]:
        """Text of a solution, in a fold that is closed at first."""
        text = "\n".join(lines).strip()
        summary = f"<summary>Solution of exercise {self.solution}</summary>"
        return ["", f"<details>{summary}", "", text, "", "</details>", ""] if text else []

    def text(self, source: str) -> str:
        """A cell of text."""
        out, held = [], []
        lines = iter(source.split("\n"))
        for line in lines:
            match = DIRECTIVE.fullmatch(line)
            if not match:
                (held if self.solution else out).append(line)
                continue
            kind, body = match[2], []
            options, words = {}, match[3].strip()
            for inner in lines:
                if inner.rstrip() == match[1]:
                    break
                found = OPTION.fullmatch(inner) if not body else None
                options |= {found[1]: found[2]} if found else {}
                body += [] if found else [inner]
            if kind in ("exercise", "exercise-start"):
                number = self.numbers[options["label"]] = f"{self.prefix}{len(self.numbers) + 1}"
                out += [f"### Exercise {number}{': ' * bool(words)}{words}", "", *body]
            elif kind in ("solution", "solution-start"):
                self.solution = self.numbers[words]
                if kind == "solution":
                    out += self.fold(body)
                    self.solution = None
            elif kind == "solution-end":
                out, held, self.solution = out + self.fold(held), [], None
            elif kind in ("admonition", "note", "tip", "warning"):
                box = [f"**{words or kind.capitalize()}**", "", *body]
                (held if self.solution else out).extend(["", *(f"> {line}".rstrip() for line in box), ""])
            elif kind != "exercise-end":
                raise ValueError(f"{self.name}: the Colab edition has nothing that stands for {{{kind}}}")
        text = inline("\n".join(out + self.fold(held)), self.name)
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def code(self, cell) -> None:
        """A cell of code: without outputs, folded if it belongs to a solution or is folded on the page."""
        cell.outputs, cell.execution_count = [], None
        if self.solution:
            title = f"# @title Solution of exercise {self.solution}, in code\n"
            cell.source = title + re.sub(r"^# @title .*\n", "", cell.source)
        if self.solution or {"hide-input", "hide-cell"} & set(cell.metadata.get("tags", [])):
            cell.metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}


def edition(notebook, name: str):
    """The chapter as Colab and plain Jupyter show it well."""
    made, plain = copy.deepcopy(notebook), Plain(name)
    made.metadata.pop("widgets", None)
    fold_texts(made.cells, "What came out. Predict and run first")
    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = plain.text(cell.source)
        else:
            plain.code(cell)
    made.cells = [cell for cell in made.cells if cell.source]
    note = (
        f"*The Colab edition of [a chapter of the book]({page(name)}), where its figures and outputs stand. "
        "Here you run the cells yourself, so none is stored with an output.*"
    )
    made.cells[0].source += f"\n\n{note}"
    return made


def main() -> int:
    EDITION.mkdir(exist_ok=True)
    for old in EDITION.glob("*.ipynb"):
        old.unlink()
    for path in chapters(ROOT):
        nbformat.write(edition(nbformat.read(path, as_version=4), path.stem), EDITION / path.name)
        print(EDITION / path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
