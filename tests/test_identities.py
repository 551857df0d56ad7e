"""The numbers in the names of tests are those of book/identities.md, and the page names every such test."""

import re
from pathlib import Path

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
