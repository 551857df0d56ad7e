"""Figures as they stand in the page: what they keep of what Matplotlib drew, and what the page gives them."""

import io
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from clean import clean_drawing  # noqa: E402
from execute import DRAWN_SETTINGS, chapters  # noqa: E402
from figures import inline  # noqa: E402

plt = pytest.importorskip("matplotlib.pyplot", reason="package: matplotlib is not installed")


def page(figure) -> str:
    """The figure as a chapter stores it and the page shows it."""
    file = io.StringIO()
    with plt.matplotlib.rc_context(fname=DRAWN_SETTINGS["MATPLOTLIBRC"]):
        figure.savefig(file, format="svg", bbox_inches="tight")
    plt.close(figure)
    return inline(clean_drawing(file.getvalue()), "What it shows.", "d1")


def test_whatever_a_drawing_refers_to_is_in_it():
    figure, ax = plt.subplots()
    ax.bar([0, 1], [1, 2], hatch=["//", ".."])
    ax.plot([0, 1], [1, 2], marker="o")
    shown = page(figure)
    names = set(re.findall(r'id="([^"]+)"', shown))
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', shown))
    assert any(first for first, _ in used) and {first or second for first, second in used} <= names


def test_words_on_a_colored_ground_keep_their_color_and_others_follow_the_page():
    figure, ax = plt.subplots()
    for x, color in enumerate(("#9ecae1", "#ffffff", "#440154")):
        ax.add_patch(plt.Rectangle((x, 0), 1, 1, color=color))
        ink = {"color": "white"} if x == 2 else {}
        ax.text(x + 0.5, 0.5, f"word{x}", ha="center", va="center", **ink)
    ax.text(1.5, 1.6, "above", ha="center")
    ax.set(xlim=(0, 3), ylim=(0, 2))
    shown = page(figure)
    styles = {word: style for style, word in re.findall(r'<text style="([^"]*)"[^>]*>([^<]*)<', shown)}
    assert "fill: #111111" in styles["word0"] and "fill: #fefefe" in styles["word2"]
    assert "fill: #" not in styles["word1"] and "fill: #" not in styles["above"]


def test_words_on_a_map_of_colors_keep_their_color():
    figure, ax = plt.subplots()
    ax.imshow([[0, 1], [1, 0]])
    ax.text(0, 1, "inside", ha="center", va="center")
    (style,) = re.findall(r'<text style="([^"]*)"[^>]*>inside<', page(figure))
    assert "fill: #111111" in style


def test_panels_flow_unless_one_goes_by_the_numbers_of_another():
    for share, drawings in ((False, 2), (True, 1)):
        figure, axes = plt.subplots(1, 2, sharey=share)
        for ax in axes:
            ax.plot([0, 1])
        figure.tight_layout()
        assert page(figure).count("<svg") == drawings


@pytest.mark.parametrize(("inches", "wide"), [(4, False), (9, True)])
def test_a_drawing_that_scrolls_on_a_phone_is_reached_by_the_keyboard(inches, wide):
    figure, ax = plt.subplots(figsize=(inches, 2))
    ax.plot([0, 1])
    begin, drawing = page(figure).split("<svg", 1)
    assert ('tabindex="0"' in begin) == ('class="wide"' in drawing) == wide


def test_rows_of_panels_stay_rows_where_there_is_room():
    figure, axes = plt.subplots(2, 2)
    for ax in axes.flat:
        ax.plot([0, 1])
    figure.tight_layout()
    assert 'style="--row: 2"' in page(figure).split("<svg")[0]


@pytest.mark.parametrize("path", chapters(ROOT), ids=lambda path: path.stem)
def test_every_figure_of_a_chapter_is_a_drawing(path):
    outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    assert set(kinds) <= {"image/svg+xml"}, "run it with book/_ext/execute.py"
