"""What the book's extension does to its pages: markup mended, icons cut, formulas typeset at build time."""

import io
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

formulas = pytest.importorskip("formulas", reason="package: those of the book are not installed")

from icons import codes_of, cut  # noqa: E402
from pages import mend  # noqa: E402

MATHJAX = ROOT / "book" / "_static" / "vendor" / "mathjax"


@pytest.mark.parametrize(
    ("given", "mended"),
    [
        ('<script src="a/fontawesome.js?x=1"></script><p>', "<p>"),
        ('<summary aria-label="Toggle">Show</summary>', "<summary>Show</summary>"),
        (
            '<thead><tr><th style="x"></th><th>a</th><th> <p></p></th></tr></thead><th></th>',
            '<thead><tr><td style="x"></td><th>a</th><td></td></tr></thead><th></th>',
        ),
        ('<div class="citation" role="doc-biblioentry">', '<div class="citation" role="listitem">'),
        (
            "<code><span class=\"pre\">a</span> <span class='n'>b</span></code>",
            "<code>a <span class='n'>b</span></code>",
        ),
        (
            '<div id="pst-primary-sidebar" class="x">',
            '<div id="pst-primary-sidebar" role="navigation" aria-label="Book" class="x">',
        ),
        ('<p class="untouched">f(x) < 3</p>', '<p class="untouched">f(x) < 3</p>'),
    ],
)
def test_markup_is_mended(given, mended):
    assert mend(given) == mended
    assert mend(mended) == mended


def test_only_the_search_page_keeps_the_index_of_the_search():
    text = '<script src="_static/searchtools.js?v=1"></script><script src="own.js"></script>'
    assert mend(text) == '<script src="own.js"></script>'
    assert mend(text, search_page=True) == text


def test_icons_are_those_that_pages_or_style_sheets_use():
    sheet = r'.fa-moon:before,.fa-night:before{content:"\f186"}.fa-sun:before{content:"\f185"}'
    sheet += r'a:after{content:"\f35d"}'
    assert codes_of([sheet], ['<i class="fa-night">', "<p>fa-unknown</p>"]) == {0xF186, 0xF35D}


def test_a_cut_font_has_the_characters_it_was_left(tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="package: matplotlib is not installed")
    from fontTools.ttLib import TTFont

    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    data, found = cut(font, {ord("a"), ord("b"), 0xF8FF})
    assert found == {ord("a"), ord("b")}
    assert set(TTFont(io.BytesIO(data)).getBestCmap()) == found
    assert len(data) < font.stat().st_size / 50


def spell(asked):
    """In the place of MathJax: each formula in brackets, with a rule of style."""
    return {"html": [f"[{tex}|{display}]" for tex, display in asked], "css": "a {\n  b: url(FONTS/x);\n}"}


PAGE = (
    '<head><script>window.MathJax = {"options": {}}</script>\n'
    '<script defer src="x/mathjax@3/es5/t.js"></script></head>'
    '<span class="math notranslate nohighlight">\\(a &lt; \\left[b\\right]\\)</span> \\(kept\\)'
    '<div class="math notranslate nohighlight" id="q">\n<span class="eqno">(1)</span>'
    "\\[\\begin{split}c\\\\[2pt] d\\end{split}\\]</div>"
    '<div class="amsmath math notranslate nohighlight">\\begin{align*}e\\end{align*}</div>'
)


def test_formulas_are_typeset_in_their_places():
    text = formulas.typeset(PAGE, spell, "../fonts", warn=pytest.fail)
    assert text == (
        "<head><style>a {b: url(../fonts/x);}</style>\n</head>"
        '<span class="math notranslate nohighlight">[a < \\left[b\\right]|False]</span> \\(kept\\)'
        '<div class="math notranslate nohighlight" id="q">\n<span class="eqno">(1)</span>'
        "[\\begin{split}c\\\\[2pt] d\\end{split}|True]</div>"
        '<div class="amsmath math notranslate nohighlight">[\\begin{align*}e\\end{align*}|True]</div>'
    )


def test_a_page_without_formulas_asks_for_none():
    assert (
        formulas.typeset("<head></head><p>\\(x\\)</p>", pytest.fail, "", pytest.fail)
        == "<head></head><p>\\(x\\)</p>"
    )


@pytest.mark.skipif(
    shutil.which("node") is None or not MATHJAX.is_dir(),
    reason="package: MathJax is not here (no npm, or no network); run book/_ext/vendor.py",
)
def test_mathjax_typesets_for_eyes_and_for_ears_and_tells_of_mistakes():
    typesetter, heard = formulas.Typesetter(MATHJAX), []
    page = '<head></head><span class="math notranslate nohighlight">\\(\\frac{x}{2}\\)</span>'
    text = formulas.typeset(page, typesetter, "fonts", heard.append)
    assert "<mjx-frac>" in text and "<mfrac><mi>x</mi><mn>2</mn></mfrac>" in text and heard == []
    assert "fonts/MathJax_Main-Regular.woff" in text
    formulas.typeset(page.replace("frac", "nofrac"), typesetter, "fonts", heard.append)
    assert len(heard) == 1 and "nofrac" in heard[0]
    typesetter.close()
