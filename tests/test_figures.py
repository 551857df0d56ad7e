"""Figures as they stand in the page: what they keep of what Matplotlib drew, and what the page gives them."""

import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from boxes import overlap, text_boxes  # noqa: E402
from clean import clean_drawing  # noqa: E402
from execute import DRAWN_SETTINGS, chapters  # noqa: E402
from figures import PLACED, SVG, frame, groups, inline, set_in  # noqa: E402

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


@pytest.mark.parametrize(("share", "numbers", "lent"), [(False, True, 0), (True, False, 3), (True, True, 0)])
def test_panels_flow_and_one_that_goes_by_the_numbers_of_another_is_lent_them(share, numbers, lent):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=share)
    for ax in axes:
        ax.plot([0, 1])
        ax.set_yticks([0.25, 0.5, 0.75])
    axes[0].set_ylabel("loss")
    axes[1].tick_params(labelleft=numbers)
    figure.tight_layout()
    drawings = page(figure).split("<svg")[1:]
    kinds = [re.findall(r'class="(\w+)"', drawing.split(">")[0]) for drawing in drawings]
    assert kinds == ([["together"], ["apart"], ["apart"]] if lent else [[], []])
    texts = [set(re.findall(r">([^<>]+)</text>", drawing)) for drawing in drawings]
    if lent:
        assert all({"0.25", "0.50", "0.75", "loss"} <= found for found in texts)
        assert drawings[2].count("translate(") - drawings[1].count("translate(") == lent + 1


def test_a_panel_s_own_name_makes_room_for_the_numbers_that_it_is_lent():
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for ax, name in zip(axes, ("KL in the log (nats)", "KL to the start (nats)"), strict=True):
        ax.plot([0, 1000])
        ax.set_ylabel(name)
    figure.tight_layout()
    right = ET.fromstring("<svg" + page(figure).split("<svg")[3].split("</svg>")[0] + "</svg>")
    boxes = text_boxes(right)
    texts = ["".join(text.itertext()) for text in right.iter(f"{{{SVG}}}text")]
    assert {"1000", "KL to the start (nats)"} <= set(texts)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if overlap(a, b)]


def test_a_drawing_of_narrow_panels_is_one_although_they_share_an_axis():
    figure, axes = plt.subplots(1, 2, figsize=(5, 3), sharey=True)
    for ax in axes:
        ax.plot([0, 1])
    figure.tight_layout()
    assert page(figure).count("<svg") == 1


def test_panels_of_one_row_are_drawn_at_one_height():
    figure, axes = plt.subplots(1, 2, figsize=(9, 3))
    for ax, name in zip(axes, ("loss", "share of groups with equal rewards"), strict=True):
        ax.plot([0, 1])
        ax.set_ylabel(name)
    figure.tight_layout()
    boxes = [box.split() for box in re.findall(r'viewBox="([^"]*)"', page(figure))]
    assert len(boxes) == 2 and boxes[0][1::2] == boxes[1][1::2]


def test_a_scale_of_colors_belongs_to_the_panel_at_its_left():
    for each, drawings in ((True, 4), (False, 1)):
        figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
        pictures = [ax.imshow([[0, 1], [1, 0]], aspect="auto") for ax in axes.flat]
        places = axes.flat if each else axes.T
        for picture, place in zip(pictures, places, strict=False):
            figure.colorbar(picture, ax=place)
        shown = page(figure)
        assert shown.count("<svg") == drawings
        if each:
            assert all(one.count("<image") == 2 for one in shown.split("<svg")[1:])


def test_panels_with_logarithmic_axes_flow():
    """Matplotlib sets their numbers as formulas, in groups that are moved."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3))
    for ax in axes:
        ax.loglog([1, 1000], [1, 1000])
    figure.tight_layout()
    assert page(figure).count("<svg") == 2


@pytest.mark.parametrize(("inches", "wide"), [(4, False), (9, True)])
def test_a_drawing_that_scrolls_on_a_phone_is_reached_by_the_keyboard(inches, wide):
    figure, ax = plt.subplots(figsize=(inches, 2))
    ax.plot([0, 1])
    begin, drawing = page(figure).split("<svg", 1)
    assert ('tabindex="0"' in begin) == ('class="wide"' in drawing) == wide


def test_panels_that_a_text_calls_left_and_right_say_so_where_they_stack():
    names = {}
    for rows, row in ((1, 2), (1, 3), (2, 2), (1, 1), (1, 4)):
        figure, axes = plt.subplots(rows, row, figsize=(9, 3 * rows), squeeze=False)
        for ax in axes.flat:
            ax.plot([0, 1])
        figure.tight_layout()
        file = io.StringIO()
        with plt.matplotlib.rc_context(fname=DRAWN_SETTINGS["MATPLOTLIBRC"]):
            figure.savefig(file, format="svg", bbox_inches="tight")
        plt.close(figure)
        shown = inline(clean_drawing(file.getvalue()), "What it shows.", "d1", placed=True)
        names[rows, row] = re.findall(r'<p class="drawn-place">([^<]*)</p><svg', shown)
    assert names[1, 2] == ["left", "right"] and names[1, 3] == ["left", "middle", "right"]
    assert names[2, 2] == ["top left", "top right", "bottom left", "bottom right"]
    assert names[1, 1] == names[1, 4] == []


@pytest.mark.parametrize("said", ["Left the loss.", "On the right: x", "Right, the loss", "the middle one"])
def test_a_text_that_says_where_a_panel_stands_is_known(said):
    assert PLACED.search(said)
    for other in (
        "right answers",
        "left out of the loss",
        "what is right or wrong",
        "wrong more often than right: when",
    ):
        assert not PLACED.search(other)


def test_only_prose_says_where_a_panel_stands(tmp_path):
    """Code, and the style sheet that a table brings along, have such words as well."""
    figure, axes = plt.subplots(1, 2)
    for ax in axes:
        ax.plot([0, 1])
    figure.tight_layout()
    with plt.matplotlib.rc_context(fname=DRAWN_SETTINGS["MATPLOTLIBRC"]):
        figure.savefig(tmp_path / "two.svg", bbox_inches="tight")
    plt.close(figure)
    code = "<pre>for left, right in pairs:</pre><style>td {\n vertical-align: middle }</style>"
    for said, placed in (
        (code, False),
        ("<p>If all are right, what then?</p>", False),
        ("<p>Left, a run.</p>", True),
    ):
        shown = set_in(
            f'{said}<img alt="Two." src="../_images/two.svg" />{code}', lambda name: tmp_path / name
        )
        assert shown.count("<svg") == 2 and ("drawn-place" in shown) == placed, said


@pytest.mark.parametrize("rows, row, shown", [(2, 2, 2), (1, 3, 3), (1, 4, 2)])
def test_rows_of_panels_stay_rows_where_there_is_room_and_four_are_two_pairs(rows, row, shown):
    figure, axes = plt.subplots(rows, row)
    for ax in axes.flat:
        ax.plot([0, 1])
    figure.tight_layout()
    assert f'style="--row: {shown}"' in page(figure).split("<svg")[0]


WIDGET = re.compile(r"^\w*Explorer\(", re.MULTILINE)
SIDE = re.compile(r"\b[Oo]n the (?:left|right)\b|\b(?:left|right) (?:half|panel)\b")
HALF = re.compile(r"(?:left|right) (?:half|panel) of the (?:explorer|widget)")
NUMBER = re.compile(r"[−\-+\d.,%/ ×e]*|.*\$.*")
SHAPES = f"{{{SVG}}}use", f"{{{SVG}}}text"


def on_the_axis(drawing: str) -> list[float]:
    """How far from the axis, in points, the dots of rows with names stand that are too near to it."""
    found = []
    for axes in groups(groups(ET.fromstring(drawing))[0], "axes"):
        named = groups(axes, "matplotlib.axis") if groups(axes, "patch") else []
        words = [word for axis in named[1:2] for word in axis.iter(SHAPES[1])]
        names = ["".join(w.itertext()).strip() for w in words if "rotate(-90" not in w.get("transform", "")]
        if all(map(NUMBER.fullmatch, names)):
            continue  # no axis, or one of numbers, where a dot may stand on zero
        _, top, _, bottom = frame(axes)
        dots = [float(dot.get("y", 0)) for line in groups(axes, "line2d") for dot in line.iter(SHAPES[0])]
        found += [round(bottom - y, 1) for y in dots if not top + 6 < y < bottom - 6]
    return found


@pytest.mark.parametrize("path", chapters(ROOT), ids=lambda path: path.stem)
def test_no_row_of_dots_stands_on_the_axis(path):
    cells = nbformat.read(path, as_version=4).cells
    drawings = [o["data"]["image/svg+xml"] for c in cells for o in c.get("outputs", [])
                if "image/svg+xml" in o.get("data", {})]  # fmt: skip
    assert [found for found in map(on_the_axis, drawings) if found] == []


def test_a_row_on_the_axis_is_found():
    for margin, near in ((0.02, True), (0.3, False)):
        figure, ax = plt.subplots(figsize=(5, 2))
        for y in (0, 1):
            ax.plot([1, 2], [y, y], "o")
        ax.set_yticks([0, 1], ["one", "two"])
        ax.margins(y=margin)
        file = io.StringIO()
        with plt.matplotlib.rc_context(fname=DRAWN_SETTINGS["MATPLOTLIBRC"]):
            figure.savefig(file, format="svg")
        plt.close(figure)
        assert bool(on_the_axis(file.getvalue())) == near


@pytest.mark.parametrize("path", chapters(ROOT), ids=lambda path: path.stem)
def test_every_figure_of_a_chapter_is_a_drawing(path):
    outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    assert set(kinds) <= {"image/svg+xml"}, "run it with book/_ext/execute.py"


def test_every_drawing_that_a_page_takes_from_a_file_has_words_and_not_their_outlines():
    """Outlines would be black in the dark, and nothing to look for on the page."""
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "book").glob("*.md")]
    files = [
        ROOT / "book" / name for page in pages for name in re.findall(r"^```{figure} (\S+\.svg)", page, re.M)
    ]
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "<text" in text and "DejaVu" not in "".join(re.findall(r'id="([^"]*)"', text)), file.name


@pytest.mark.parametrize("path", chapters(ROOT), ids=lambda path: path.stem)
def test_no_text_says_left_or_right_of_the_panels_of_a_widget(path):
    """On a phone they stand one below the other, and do not say, as those of a figure do, where they were."""
    cells = nbformat.read(path, as_version=4).cells
    shown = [i for i, c in enumerate(cells) if c.cell_type == "code" and WIDGET.search(c.source)]
    near = {j for i in shown for j in (i - 1, i + 1) if cells[j].cell_type == "markdown"}
    said = [cells[i].source.split("\n\n")[-1 if i + 1 in shown else 0] for i in sorted(near)]
    said += [c.source for c in cells if c.cell_type == "markdown" and HALF.search(c.source)]
    assert not [text for text in said if SIDE.search(text)]
