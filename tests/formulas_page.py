"""Write the formulas into the page of identities: from docstrings, each with the tests that prove it.

``python tests/formulas_page.py`` writes them into ``book/identities.md``, between two comments.
A function is proven by each test called ``test_formula_of_`` and its name, in whichever file of the tests.
Files are read here, and not imported.
"""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "book" / "identities.md"
BEGIN, END = "<!-- formulas -->", "<!-- end of formulas -->"
FILES = {
    "advantages": "From rewards to advantages",
    "losses": "Ratio, loss and aggregation",
    "surrogates": "What else is made of the ratio",
    "kl": "KL divergence and entropy",
    "offpolicy": "Samples of another policy",
    "selection": "Which tokens count, and the price of entropy",
}
NO_FORMULA = {"per_token"}  # it gives advantages the shape of tokens, and computes nothing


def functions(module: str) -> dict[str, str]:
    """The docstrings of a file's public functions that compute something; what refuses bad input is none."""
    source = (TESTS.parent / "nanogrpo" / f"{module}.py").read_text(encoding="utf-8")
    own = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {
        node.name: ast.get_docstring(node) or ""
        for node in own
        if not node.name.startswith(("_", "check_")) and node.name not in NO_FORMULA
    }


def proofs() -> dict[str, list[tuple[str, str]]]:
    """Of each function: (file, test) of the tests that prove its formula, and that do call it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_formula_of_"):
                inner = list(ast.walk(node))
                called = {x.id for x in inner if isinstance(x, ast.Name)}
                called |= {x.attr for x in inner if isinstance(x, ast.Attribute)}
                name = node.name.removeprefix("test_formula_of_")
                if name in called:
                    found.setdefault(name, []).append((path.name, node.name))
    return found


def formula(module: str, name: str) -> tuple[str, str]:
    """The first formula of a docstring, and the sentence that follows it: whose it is. Empty without."""
    found = re.search(r"\.\. math::\s*(.*?)\n\n(\S.*?)(?:\n\n|\Z)", functions(module)[name], re.DOTALL)
    if not found:
        return "", ""
    source = re.split(r"(?<=[.)])(?<!Dr[.])\s+(?=[A-Z`\":]|k and)", found[2])[0]
    source = re.sub(r":math:`([^`]+)`", r"$\1$", " ".join(source.split()))
    source = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", source).replace("``", "`")
    return " ".join(found[1].split()), re.sub(r"[.:;]$", "", source) + "."


def entry(module: str, name: str) -> str:
    """One function: whose formula it is, the formula, and its tests."""
    written, source = formula(module, name)
    tests = ", ".join(f"`{test}` in `tests/{file}`" for file, test in proofs().get(name, []))
    return f"{{py:func}}`~nanogrpo.{module}.{name}`. {source}\n\n$$\n{written}\n$$\n\nProven by {tests}."


def formulas() -> str:
    """All entries, in the order of the files."""
    parts = []
    for module, title in FILES.items():
        parts.append(f"### {title}\n\n`nanogrpo/{module}.py`")
        parts += [entry(module, name) for name in functions(module)]
    return "\n\n".join(parts)


def write(text: str) -> str:
    """The page with the formulas of today."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{formulas()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
