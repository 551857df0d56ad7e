"""Where the chapters use a word of the glossary first, and whether the reader is told there what it means.

A word is *told* where it is bold, which is how a chapter defines it, or where it is a link into the glossary.
Not read are titles, code, formulas, quotations, directives, and texts of other links, which lead to where the
word is explained.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

# In everyday sense in many sentences; what they mean here is told by bold words and by the glossary alone.
EVERYDAY = {"value", "return", "state", "action", "update", "interval", "mask", "group", "objective"}
HIDDEN = re.compile(
    # Directives and their options, titles, quotations; addresses, formulas, code, HTML, roles; other links.
    r"^`{3,}[^\n]*$|^:\w+:[^\n]*$|^#[^\n]*$|^> [^\n]*$"
    r"|https?://[^\s)]+|\$\$.*?\$\$|\$[^$\n]+?\$|`[^`\n]+`|<[^<>\n]+>|\{[\w:]+\}`[^`]+`"
    r"|\*{1,2}\"[^*]*\*|!?\[[^\]]*\]\((?!glossary\.md)[^)]*\)"
    r"|(?:[Gg]roup relative|[Pp]roximal) policy optimization|Group Relative Policy Optimization",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[(?P<text>[^\]]*)\](?P<rest>\(glossary\.md#(?P<anchor>[^)]*)\))")
BOLD = re.compile(r"\*\*\w[\w.-]*(?:\s+[\w-]+){0,3}\*\*")  # a few words: a sentence in bold defines none


@dataclass(frozen=True)
class Use:
    """A word of the glossary in a chapter: which term, as written, where, and whether the reader is told."""

    term: str
    written: str
    cell: str
    start: int
    told: bool


def anchor(term: str) -> str:
    """The place of a term on its page, as Sphinx and MyST name it."""
    return re.sub(r"[^a-z0-9]+", "-", term.lower()).strip("-")


def terms(page: str) -> dict[str, list[str]]:
    """The glossary's terms, each with the forms in which it is looked for."""
    found = {}
    for entry in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        title, _, body = entry.partition("\n")
        also = re.match(r"\s*Also: (.*)\.\n", body)
        found[title.strip()] = [title.strip(), *(also[1].split(", ") if also else [])]
    return found


def pattern(words: dict[str, list[str]]) -> tuple[re.Pattern, dict[str, str]]:
    """One expression for all forms, the longest first, and the term of each form in small letters."""
    forms = {
        form: term for term, all_forms in words.items() for form in all_forms if anchor(term) not in EVERYDAY
    }
    ordered = sorted(forms, key=len, reverse=True)

    def one(form):
        if any(letter.isupper() for letter in form[1:]):
            return re.escape(form) + "s?"  # GRPO is no word in small letters
        head, rest = form[0], re.escape(form[1:]).replace(r"\ ", r"\s+").replace(r"\-", "[- ]")
        return f"[{head.upper()}{head.lower()}]{rest}(?:s|es)?"

    return re.compile(r"(?<![\w-])(?:" + "|".join(map(one, ordered)) + r")(?![\w+-])"), {
        re.sub(r"[\s-]+", "-", form.lower()): term for form, term in forms.items()
    }


def hidden(text: str) -> str:
    """The text with what is not read as blanks, so that places stay."""
    return HIDDEN.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def uses(text: str, cell: str, words: dict[str, list[str]]) -> list[Use]:
    """All words of the glossary in a text, in order."""
    looked_for, term_of = pattern(words)
    text = hidden(text)
    told = [(match.span("text"), match["anchor"]) for match in LINK.finditer(text)]
    told += [(match.span(), None) for match in BOLD.finditer(text)]
    found = []
    for match in looked_for.finditer(
        LINK.sub(lambda link: f"[{link['text']}]" + " " * len(link["rest"]), text)
    ):
        key = re.sub(r"[\s-]+", "-", match[0].lower())
        term = next(term_of[k] for k in (key, key.removesuffix("s"), key.removesuffix("es")) if k in term_of)
        places = [place for (start, end), place in told if start <= match.start() < end]
        right = any(place in (None, anchor(term)) for place in places)
        found.append(Use(term, match[0], cell, match.start(), right))
    return found


def first_uses(path: Path, words: dict[str, list[str]]) -> dict[str, Use]:
    """The first use of each term in a chapter."""
    first = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for use in uses(cell.source, cell.id, words):
                first.setdefault(use.term, use)
    return first


def untold(path: Path, words: dict[str, list[str]]) -> list[str]:
    """What a reader of a chapter meets without being told what it means."""
    return [
        f"{path.stem}, cell {use.cell}: {use.written!r} is neither bold nor a link to "
        f"glossary.md#{anchor(term)}"
        for term, use in first_uses(path, words).items()
        if not use.told
    ]
