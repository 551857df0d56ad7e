"""What the book's extension does to its pages: markup mended, icons cut, formulas typeset at build time."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from icons import codes_of, cut  # noqa: E402
from pages import mend  # noqa: E402


class Script:
    def __init__(self, filename):
        self.filename, self.attributes = filename, {}


def test_scripts_wait_for_the_page_but_for_the_options_that_the_page_itself_writes_to():
    from static_site import defer_scripts

    scripts = [Script(name) for name in ("documentation_options.js", "", "copybutton.js")]
    options, inline, other = scripts
    defer_scripts(None, "search", "", {"script_files": scripts}, None)
    assert not any(script.attributes for script in scripts), "a page without a source has scripts of its own"
    defer_scripts(None, "book/kl", "", {"script_files": scripts}, "a source")
    assert other.attributes == {"defer": "defer"} and not options.attributes and not inline.attributes


@pytest.mark.parametrize(
    ("given", "mended"),
    [
        ('<script src="a/fontawesome.js?x=1"></script><p>', "<p>"),
        ('<summary aria-label="Toggle">Show</summary>', "<summary>Show</summary>"),
        (
            '<summary><span class="toctree-toggle"></span></summary>',
            '<summary aria-label="Pages below"><span class="toctree-toggle"></span></summary>',
        ),
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
        (
            '<a href="https://colab.research.google.com/github/a/b/blob/main/book/kl.ipynb">',
            '<a href="https://colab.research.google.com/github/a/b/blob/main/book/colab/kl.ipynb">',
        ),
        (
            '<a href="https://colab.research.google.com/github/a/b/blob/main/book/labs/lab1.ipynb">',
            '<a href="https://colab.research.google.com/github/a/b/blob/main/book/labs/lab1.ipynb">',
        ),
        (
            '<meta name="description" content="Open in Colab 100 points, 90 minutes. A lab" />',
            '<meta name="description" content="A lab" />',
        ),
        (
            '<meta name="description" content="Open in Colab A KL" />',
            '<meta name="description" content="A KL" />',
        ),
        (
            '<p class="admonition-title">Solution to<a class="reference internal" href="#x"> One</a></p>',
            '<p class="admonition-title">Solution to One</p>',
        ),
        (
            "<tbody><th>a, A &gt; 0</th><td>15.3 MiB</td></tbody><th>a b</th>",
            '<tbody><th class="whole">a,&nbsp;A&nbsp;&gt;&nbsp;0</th><td>15.3&nbsp;MiB</td></tbody>'
            "<th>a b</th>",
        ),
        (
            "<tbody><td>about 0.1 [-0.2, +3.0]</td><th>this is a row with a name</th></tbody>",
            "<tbody><td>about 0.1 [-0.2,&nbsp;+3.0]</td><th>this is a row with a name</th></tbody>",
        ),
        (
            f'<div class="highlight"><pre id="a"><b>{"x" * 99}</b>\n</pre>',
            f'<div class="highlight"><pre style="--columns: 99" id="a"><b>{"x" * 99}</b>\n</pre>',
        ),
        (
            f'<div class="highlight"><pre>{"&lt;" * 88}</pre><pre>{"x" * 111}</pre>',
            f'<div class="highlight"><pre>{"&lt;" * 88}</pre><pre>{"x" * 111}</pre>',
        ),
        (
            '<p>a <span class="math"><span>x</span></span>, and <span class="math">y</span> z</p>',
            '<p>a <span class="marked"><span class="math"><span>x</span></span>,</span>'
            ' and <span class="math">y</span> z</p>',
        ),
        ("<p>77 %, 8 % of<code>7 % 2</code></p>", "<p>77&nbsp;%, 8&nbsp;% of<code>7 % 2</code></p>"),
        (
            "<p>from 1e-3 to 2.5e-12, <code>1e-3</code> or a1e-3</p><text>1e-3</text>",
            '<p>from <span class="part">1e-3</span> to <span class="part">2.5e-12</span>, <code>1e-3</code>'
            " or a1e-3</p><text>1e-3</text>",
        ),
        ('<p class="untouched">f(x) < 3</p>', '<p class="untouched">f(x) < 3</p>'),
    ],
)
def test_markup_is_mended(given, mended):
    assert mend(given) == mended
    assert mend(mended) == mended


def test_cells_of_a_table_with_sentences_know_their_columns():
    def table(text):
        head = "<thead><tr><th><p>a</p></th><th><p>b &amp; c</p></th><th><p>d</p></th></tr></thead>"
        return f'<table class="table">{head}<tbody><tr><td>1</td><td>2</td><td>{text}</td></tr></tbody>'

    assert mend(table("short")) == table("short")
    long = "a sentence that is so long that on a phone one would have to scroll for it"
    made = mend(table(long))
    assert re.findall("<td([^>]*)>", made) == ["", ' data-head="b &amp; c"', ' data-head="d"']
    assert '<table class="table stacked">' in made and mend(made) == made
    assert re.sub(' data-head="[^"]*"| stacked', "", made) == table(long)


def test_a_table_of_four_columns_and_sentences_is_stacked_though_they_are_short():
    def table(last):
        head = "<thead><tr><th>a</th><th>b</th><th>c</th><th>d</th></tr></thead>"
        row = f"<tr><td>1</td><td>2</td><td>3</td><td><p>{last}</p></td></tr>"
        return mend(f'<table class="table">{head}<tbody>{row}</tbody>')

    assert 'class="table stacked"' in table("One pass over 3,200 pairs.")
    assert 'class="table"' in table("over 3,200 pairs") and 'class="table"' in table("0.5 1.")


def test_a_long_option_in_a_table_breaks_behind_its_sign_and_nowhere_else():
    def table(code):
        rows = f'<tr><td><code class="x">{code}</code></td></tr>'
        return f'<table class="table"><thead></thead><tbody>{rows}</tbody>'

    made = mend(table('loss_agg_mode="seq-mean"'))
    assert made == table('<span class="part">loss_agg_mode=</span><wbr><span class="part">"seq-mean"</span>')
    assert mend(made) == made and mend(table("delta=2.0")) == table("delta=2.0")


def test_a_folded_cell_says_what_it_holds():
    def page(code, after=""):
        shown = '<p class="collapsed admonition-title">Show code cell source</p>\n'
        hidden = '<p class="expanded admonition-title">Hide code cell source</p>'
        return f"{shown}{hidden}</summary><pre>{code}</pre></details>{after}"

    def title(made):
        return re.findall(r"admonition-title.>(.*?)</p>", made)

    figure = '\n<div class="cell_output docutils container">\n<figure id="a">'
    assert title(mend(page("<b>x</b> = 1\ny\n"))) == ["The code, 2 lines"]
    assert title(mend(page("x", figure))) == ["The code of the figure, 1 line"]
    assert title(mend(page("# @title Setup: a &lt; b\nx\n"))) == ["Setup: a &lt; b, 2 lines"]
    two = mend(page("x") + page("y\nz", figure))
    assert title(two) == ["The code, 1 line", "The code of the figure, 2 lines"]


def test_the_search_page_has_the_search_of_the_book_and_no_page_that_of_sphinx():
    text = '<script src="_static/searchtools.js?v=1"></script><script src="own.js"></script></body>'
    assert mend(text) == '<script src="own.js"></script></body>'
    made = mend(text, search_page=True)
    assert "searchtools" not in made and re.findall(r'src="([^"]*)"', made)[1:] == [
        "_static/sections.js",
        "_static/book-search.js",
    ]


def test_icons_are_those_that_pages_or_style_sheets_use():
    sheet = r'.fa-moon:before,.fa-night:before{content:"\f186"}.fa-sun:before{content:"\f185"}'
    sheet += r'a:after{content:"\f35d"}'
    assert codes_of([sheet], ['<i class="fa-night">', "<p>fa-unknown</p>"]) == {0xF186, 0xF35D}


@pytest.mark.slow
def test_a_cut_font_has_the_characters_it_was_left(tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="package: matplotlib is not installed")
    from fontTools.ttLib import TTFont

    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    data, found = cut(font, {ord("a"), ord("b"), 0xF8FF})
    assert found == {ord("a"), ord("b")}
    assert set(TTFont(io.BytesIO(data)).getBestCmap()) == found
    assert len(data) < font.stat().st_size / 50


def test_katex_is_the_one_that_its_style_sheet_is_for():
    """The version of npm's package, which brings style sheet and fonts, and that of Sphinx's extension."""
    katex = pytest.importorskip("sphinxcontrib.katex", reason="package: those of the book are not installed")
    packages = json.loads((ROOT / "package.json").read_text())
    assert packages["dependencies"] == {"katex": katex.katex_version}


def test_npm_s_lock_names_no_address_to_fetch_from_and_pins_all_by_checksum():
    lock = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    own = lock.pop("")
    assert not [name for name, package in lock.items() if "resolved" in package]
    assert not [name for name, package in lock.items() if not package["integrity"].startswith("sha512-")]
    packages = json.loads((ROOT / "package.json").read_text())
    kinds = ("dependencies", "devDependencies")
    assert [own[kind] for kind in kinds] == [packages[kind] for kind in kinds]
    pins = [pin for kind in kinds for pin in packages[kind].values()]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", pin) for pin in pins), "one exact version each"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="package: no node to typeset formulas")
@pytest.mark.parametrize("fonts", [True, False], ids=["with fonts", "without"])
def test_formulas_are_typeset_for_eyes_and_ears_and_a_mistake_ends_the_build(tmp_path, fonts):
    (tmp_path / "conf.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
        "extensions = ['sphinxcontrib.katex', 'static_site']\nhtml_math_renderer = 'katex'\n"
        "html_static_path, nb_ipywidgets_js = ['_static'], {}\n"
        "import static_site; static_site.write_icons = lambda *_: None\n"
    )
    sheet = tmp_path / "_static" / "vendor" / "katex" / "katex.min.css"
    sheet.parent.mkdir(parents=True)
    if fonts:
        sheet.write_text(".katex {}")

    def build(formula):
        (tmp_path / "index.rst").write_text(f"Title\n=====\n\nHere :math:`{formula}`.\n")
        command = [sys.executable, "-m", "sphinx", "-q", "-E", str(tmp_path), str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True)
        return done, (tmp_path / "out" / "index.html").read_text()

    done, page = build(r"\frac{x}{2}")
    assert done.returncode == 0, done.stderr
    assert "<mfrac><mi>x</mi><mn>2</mn></mfrac>" in page
    assert ('class="katex-html"' in page) == fonts == ("vendor/katex/katex.min.css" in page)
    assert not re.search('(src|href)="(https?:)?//', page.split("<body")[0]), "the head asks another site"
    done, _ = build(r"\nofrac{x}{2}")
    assert done.returncode and "nofrac" in done.stderr


PRIVATE = re.compile(r"\bseed's (?:row|code|loss|advice|task|own)|\b[Tt]he seed (?:said|suggest|had|of this)")


READ = sorted(
    path
    for pattern in ("book/*.ipynb", "book/*.md", "book/labs/**/*.md", "nanogrpo/**/*.py")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("path", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_reader_meets_no_word_of_the_authors_own(path):
    """A seed is where random numbers begin; what the book grew from is its first sketch.

    Docstrings are pages, too.
    """
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    found = PRIVATE.findall(text)
    assert not found, found
