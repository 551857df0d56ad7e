"""The numbers in the names of tests are those of book/identities.md, and the page names every such test.

Before them it has the formula of each public function of the mathematics, and the test that proves it.
"""

import re
from pathlib import Path

import formulas_page
import pytest

ROOT = Path(__file__).parents[1]
NUMBER = r"\d[A-F]_\d\d"
PAGE = (ROOT / "book" / "identities.md").read_text(encoding="utf-8")


def proven() -> set[tuple[str, str, str]]:
    """(number, file, test) of every test whose name carries a number."""
    return {
        (number, path.name, name)
        for path in (ROOT / "tests").glob("test_*.py")
        for name, number in re.findall(
            rf"^def (test_({NUMBER})_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }


def test_the_page_names_every_test_of_an_identity_under_its_number_and_no_other():
    listed = set()
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        number = section.split(":")[0]
        listed |= {(number, *found) for found in re.findall(r"^- `(\S+)`: `(\w+)`$", section, re.MULTILINE)}
    assert listed == proven()


def test_every_number_has_one_section_with_a_sentence():
    numbers = re.findall(rf"^### ({NUMBER}): \S.*\n\n[^-\n]", PAGE, re.MULTILINE)
    assert numbers == sorted(set(numbers)) and set(numbers) == {number for number, *_ in proven()}


def test_tests_and_package_refer_to_no_number_that_the_page_lacks():
    known = set(re.findall(rf"^### ({NUMBER}):", PAGE, re.MULTILINE))
    files = [p for folder in ("tests", "nanogrpo") for p in (ROOT / folder).rglob("*.py")]
    lost = {
        (path.name, number)
        for path in files
        for number in re.findall(rf"\b({NUMBER})_", path.read_text(encoding="utf-8"))
        if number not in known
    }
    assert not lost and not [p for p in files if re.search(r"\b[Ii]ssue \d", p.read_text(encoding="utf-8"))]


FUNCTIONS = [f"{module}.{name}" for module in formulas_page.FILES for name in formulas_page.functions(module)]


@pytest.mark.parametrize("path", FUNCTIONS)
def test_each_public_function_of_the_mathematics_has_its_formula_on_the_page(path):
    module, name = path.split(".")
    formula, source = formulas_page.formula(module, name)
    assert formula and len(source) > 10, f"the docstring of {name} lacks a formula, or whose it is after it"
    assert formulas_page.proofs().get(name), f"no test test_formula_of_{name} calls {name}"
    run = "run python tests/formulas_page.py"
    assert f"`~nanogrpo.{path}`. {source}\n\n$$\n{formula}\n$$\n\nProven by `" in PAGE, run


def test_the_formulas_of_the_page_are_those_of_today():
    assert formulas_page.write(PAGE) == PAGE, "run python tests/formulas_page.py"


def test_what_a_reader_looks_for_is_among_the_formulas():
    wanted = {
        "advantages": ["group_advantages", "leave_one_out", "gae", "overlong_penalty", "token_rewards"],
        "losses": ["grpo_loss", "importance_ratio", "clipped_surrogate", "aggregate", "cispo_surrogate"],
        "kl": ["kl_k1", "kl_k2", "kl_k3", "kl_exact", "entropy"],
        "offpolicy": ["sampler_weights", "off_policy_mask"],
    }
    assert {f"{module}.{name}" for module, names in wanted.items() for name in names} <= set(FUNCTIONS)
    for paper in ("2402.03300", "2503.20783", "2402.14740", "1506.02438", "1707.06347", "2507.18071"):
        assert paper in formulas_page.formulas(), paper
