"""Chapters' outputs are compared as what they are: what must pass, and above all what must not."""

import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outputs import disagreement, fields, margins, measured
from tolerance import NUMBER, binomial_margin, run_margin, seed_margin, unit, value

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from execute import chapters  # noqa: E402


def printed(text, name="stdout"):
    return [{"output_type": "stream", "name": name, "text": text}]


def table(*cells):
    body = "".join(f"<tr>\n<th>row {i}</th>\n<td>{cell}</td>\n</tr>\n" for i, cell in enumerate(cells))
    data = {"text/html": f"<table>\n{body}</table>", "text/plain": "  ".join(cells)}
    return [{"output_type": "execute_result", "data": data, "metadata": {}}]


def accepts(old, new, tags=(), spread=None):
    return disagreement(printed(old), printed(new), tags, spread) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss 0.123", "loss 0.125"),  # two units
        ("loss 0.123", "loss -0.123"),  # a sign
        ("loss +0.123", "loss -0.123"),
        ("12 of 20 models", "13 of 20 models"),  # a whole number is exact
        ("12 of 20 models", "12 of 21 models"),
        ("1.2e-07", "1.2e-06"),  # a power of ten
        ("1.2e-07", "1.4e-07"),
        ("31.2%", "31.4%"),
        ("31%", "33%"),
        ("31.2%", "31.2"),  # a unit
        ("1,234 tokens", "1,235 tokens"),
        ("loss 0.12", "loss nan"),
        ("loss nan", "loss 0.12"),
        ("loss inf", "loss nan"),
        ("below 1e-12", "0.001"),
        ("same", "different"),
        ("True", "False"),
        ("0.55 0.65", "0.65 0.55"),  # two numbers swapped
        ("0.5 0.6", "0.5"),
        ("0.5", "0.5 0.6"),
        ("a\nb", "a"),
        ("a\nb", "b\na"),
        ("a", ""),
        ("", "a"),
        ("k1 0.5", "k3 0.5"),  # a digit inside a word is part of the word
        ("[0.0, 0.5]", "(0.0, 0.5)"),
        ("-0.00 to 0.10", "0.02 to 0.10"),
        ("1.000000000000", "1.000000000002"),
    ],
)
def test_mathematics_that_is_wrong_is_refused(old, new):
    assert not accepts(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss 0.123", "loss 0.124"),
        ("loss -0.000", "loss 0.000"),
        ("-0.001", "0.000"),
        ("31.2%", "31.3%"),
        ("31%", "32%"),
        ("a   1.0", "a 1.0"),  # columns are as wide as what stands in them
        ("1.2e-07", "1.3e-07"),
        ("[+0.001, -0.000]", "[+0.001, +0.000]"),
        ("nan", "nan"),
    ],
)
def test_mathematics_that_rounds_otherwise_is_accepted(old, new):
    assert accepts(old, new)


RUNS = {"stdout 0": {"0": [[31.2, 31.6, 30.8, 31.4, 31.0]]}}


def test_a_run_may_differ_by_its_spread_and_no_more():
    far = run_margin(RUNS["stdout 0"]["0"])
    assert 3 < far < 8
    for factor, fine in ((0.99, True), (1.01, False)):
        assert accepts("right: 31.2%", f"right: {31.2 + factor * far:.1f}%", ["run"], RUNS) is fine
    assert not accepts("right: 31.2%", "right: 31.4%", [], RUNS), "without the tag it is mathematics"
    assert not accepts("right: 31.2%", "right: 31.4%", ["run"], None), "without a measured spread, too"
    assert not accepts("right: 31.2%", "right: nan%", ["run"], RUNS)
    assert not accepts("right: 31.2%", "wrong: 31.2%", ["run"], RUNS)


def test_numbers_of_an_output_that_are_printed_alike_share_their_spread_and_others_do_not():
    stored = ["accuracy 31.2%", "pass 92.1%", "steps 200", "loss 0.12"]
    found = margins(stored, {"0": [[31.2, 31.6, 30.8, 31.4, 31.0]]})
    assert found[0] == found[1] and found[0][0] > 1
    assert found[2] == [0.0] and found[3] == [0.01]


def test_a_line_whose_words_differed_between_runs_is_not_compared_and_its_neighbors_are():
    spread = {"stdout 0": {"1": None}}
    assert accepts("seed 0\nalarm: never", "seed 0\nalarm: 45", ["run"], spread)
    assert not accepts("seed 0\nalarm: never", "seed 1\nalarm: never", ["run"], spread)


def test_sampled_text_is_free_and_the_table_around_it_is_not():
    old, new, less = table("87 ✓", "154 ✗"), table("78 ✗", "152 ✓"), table("87 ✓")
    assert disagreement(old, new) and disagreement(old, new, ["run"], {})
    assert disagreement(old, new, ["sampled"]) is None
    assert disagreement(old, less, ["sampled"]), "a row is missing"
    assert disagreement(printed("ROMEO: ay"), [], ["sampled"]), "nothing was printed"


def test_a_table_is_compared_as_html_alone_and_all_kinds_must_be_there():
    old, new = table("0.5"), table("0.5")
    new[0]["data"]["text/plain"] = "otherwise aligned"
    assert disagreement(old, new) is None
    del new[0]["data"]["text/html"]
    assert disagreement(old, new)
    assert disagreement(old, table("0.7")) and disagreement(old, old + old)


def test_pictures_are_not_compared_but_what_they_are_called_is():
    def figure(picture, size="<Figure size 600x300 with 1 Axes>"):
        data = {"image/png": picture, "text/plain": size}
        return [{"output_type": "display_data", "data": data, "metadata": {}}]

    assert disagreement(figure("a"), figure("b")) is None
    assert disagreement(figure("a"), figure("a", "<Figure size 600x300 with 2 Axes>"))


def test_an_error_is_compared_by_name_and_message():
    def error(name, message):
        return [{"output_type": "error", "ename": name, "evalue": message, "traceback": []}]

    assert disagreement(error("A", "x"), error("A", "x")) is None
    assert disagreement(error("A", "x"), error("B", "x")) and disagreement(error("A", "x"), error("A", "y"))


@given(st.floats(-1e6, 1e6), st.integers(1, 6))
def test_a_printed_number_is_read_back_to_its_last_digit(x, digits):
    for text in (f"{x:.{digits}f}", f"{x:+,.{digits}f}", f"{x:.{digits}e}", f"{x:.{digits}f}%"):
        assert NUMBER.fullmatch(text), text
        assert abs(value(text) - x) <= 0.5000001 * unit(text) + 1e-9 * abs(x)


@given(st.floats(-100, 100), st.integers(1, 5), st.floats(-0.99, 0.99))
def test_no_two_roundings_of_nearly_one_number_are_told_apart(x, digits, noise):
    near = x + noise * 0.5 * 10**-digits
    assert accepts(f"{x:.{digits}f}", f"{near:.{digits}f}")


def test_margins_are_those_of_their_formulas():
    # t with 4 degrees of freedom exceeds 8.61 with probability 1e-3, both tails together
    assert run_margin([[1, 2, 3, 4, 5]]) == pytest.approx(8.6103 * (2 * 2.5) ** 0.5, rel=1e-3)
    assert seed_margin([1, 2, 3, 4, 5]) == pytest.approx(8.6103 * (2.5 * 1.2) ** 0.5, rel=1e-3)
    assert binomial_margin(0.5, 100) == pytest.approx(3.2905 * (2 * 0.25 / 100) ** 0.5, rel=1e-3)
    assert run_margin([[1, 2, 3, 4, 5]] * 20) < 0.5 * run_margin([[1, 2, 3, 4, 5]])


def tagged(tag):
    for path in chapters(ROOT):
        for cell in nbformat.read(path, as_version=4).cells:
            if tag in cell.metadata.get("tags", []):
                yield path.stem, cell


def test_every_cell_that_prints_sampled_text_asserts_what_matters_about_it():
    silent = [(name, cell.id) for name, cell in tagged("sampled") if "assert " not in cell.source]
    assert not silent, f"nothing compares what these cells show: {silent}"


def test_the_spread_of_every_run_is_measured_and_fits_what_is_stored():
    for name, cell in tagged("run"):
        spread = measured(name, cell.id)
        assert spread is not None, f"{name}, cell {cell.id}: run tests/spread.py book/{name}.ipynb"
        stored = fields(cell.outputs)
        for key, lines in spread.items():
            kind, n = key.rsplit(" ", 1)
            for i, found in lines.items():
                have = len(NUMBER.findall(stored[kind][int(n)][int(i)]))
                assert found is None or len(found) == have, f"{name}, cell {cell.id}: measure again"


def test_no_output_is_ignored_but_what_depends_on_the_clock():
    ignored = {name: cell.id for name, cell in tagged("nbval-ignore-output")}
    assert set(ignored) == {"dashboard", "tiny-gpt"}
