"""The chapters as they are stored, and the rendered book as a browser shows it with the network closed."""

import gzip
import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from pagecheck import CHECK, PHONE, THEMES, TYPESET

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from clean import clean, machine_paths, problems, widget_state  # noqa: E402
from execute import chapters  # noqa: E402

from tests.formulacheck import broken_formulas  # noqa: E402

CHAPTERS = chapters(ROOT)
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = re.findall(r"'(?:root|file)': '([^']+)'", str(TOC))

per_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
LIGHT, DARK = ([pytest.param((name, theme), id=f"{name}-{theme}") for name in PAGES] for theme in THEMES)
# One visit for all tests that ask for the same: pytest orders them by page. What changes the page comes last.
in_both_themes = pytest.mark.parametrize("seen", [*LIGHT, *DARK], indirect=True, scope="module")
on_a_phone = pytest.mark.parametrize("held", PAGES, indirect=True, scope="module")
in_daylight = pytest.mark.parametrize("seen", LIGHT, indirect=True, scope="module")


@per_chapter
def test_a_chapter_is_stored_as_the_executor_wrote_it(path):
    stored = nbformat.read(path, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "not run from a fresh kernel"
    )
    paths = machine_paths(ROOT)
    assert problems(stored, paths) == []
    assert clean(nbformat.read(path, as_version=4), paths) == stored, "run it with book/_ext/execute.py"


@per_chapter
def test_no_formula_has_a_command_with_its_backslash_doubled(path):
    """Written so, it renders as a line break and a word."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            inside = re.findall(r"\$\$.*?\$\$|\$[^$\n]*\$", cell.source, re.DOTALL)
            assert not [formula for formula in inside if re.search(r"\\\\[a-zA-Z]", formula)], cell.id


def test_every_module_of_the_core_is_on_the_api_page():
    """By hand, in the order of the flow; autosummary finds those of the wings by itself."""
    text = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^   nanogrpo\.(\w+)$", text, re.MULTILINE)
    files = [path for path in (ROOT / "nanogrpo").glob("*.py") if not path.name.startswith("_")]
    packages = {path.parent.name for path in (ROOT / "nanogrpo").glob("*/__init__.py")}
    assert sorted(listed) == sorted({path.stem for path in files} | packages)


@pytest.mark.slow
def test_no_formula_is_broken_on_any_page(site):
    pages = {str(path.relative_to(site)): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {name: broken[:3] for name, page in pages.items() if (broken := broken_formulas(page))} == {}


@pytest.mark.slow
def test_every_module_has_a_page(site):
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "nanogrpo").rglob("*.py")]
    modules = [".".join(path.parts) for path in files if not path.name.startswith("_")]
    for module in modules:
        page = (site / "book" / "api" / f"{module}.html").read_text(encoding="utf-8")
        assert f'id="module-{module}"' in page


# Text in an output, and the background that it stands on, as a contrast ratio (WCAG 2.1).
CONTRAST = """() => {
  const rgb = s => s.match(/[\\d.]+/g).map(Number);
  const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {
    const v = c[i] / 255; return sum + w * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
  const ground = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0.5) return c; }
    return [255, 255, 255]; };
  const outputs = ["pre", "td", "th"].map(tag => `.cell_output ${tag}`).join(", ");
  return [...document.querySelectorAll(`${outputs}, figcaption .caption-text`)]
    .map(e => {
      const [a, b] = [rgb(getComputedStyle(e).color), ground(e)].map(light).sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 40)]; })
    .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.slow
@in_both_themes
def test_a_page_is_whole_without_the_network(seen):
    page = seen
    page.wait_for_function(TYPESET)
    assert page.locator(".katex-error").count() == 0, "a formula has an error"
    images = page.evaluate("() => [...document.images].map(i => [i.src, i.alt, i.naturalWidth])")
    assert not [src for src, alt, _ in images if not alt.strip()], "a figure without alt text"
    assert not [src for src, _, width in images if width == 0], "a figure that does not show"
    assert page.evaluate(CONTRAST) == [], "an output that cannot be read in this theme"
    assert page.trouble == []


@pytest.mark.slow
@on_a_phone
def test_a_page_fits_a_phone(held):
    assert held.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], (
        "the page scrolls sideways"
    )


@pytest.mark.slow
def test_the_drawing_of_the_landing_page_is_named_and_follows_the_theme(visit):
    inks = []
    for theme in THEMES:
        page = visit("book/intro", theme)
        drawing = page.get_by_role("img", name="The loop of GRPO")
        assert drawing.is_visible()
        inks.append(page.evaluate("getComputedStyle(document.querySelector('.flow text')).fill"))
    assert inks[0] != inks[1]


def test_the_drawing_of_the_landing_page_tells_the_truth():
    """The rewards and advantages of the drawing, by the package."""
    import torch

    from nanogrpo.advantages import group_advantages

    text = (ROOT / "book" / "_static" / "flow.svg").read_text(encoding="utf-8")
    tokens = re.findall(r'class="token"[^>]*>([^<]+)<', text)
    prompt, answers, rewards, advantages = tokens[0], tokens[1:5], tokens[5:9], tokens[9:13]
    right = str(sum(map(int, prompt.rstrip("=").split("+"))))
    assert rewards == [str(int(answer == right)) for answer in answers]
    computed = group_advantages(torch.tensor([[float(r) for r in rewards]]))[0]
    assert [int(a.replace("\u2212", "-")) for a in advantages] == computed.round().int().tolist()


@pytest.mark.slow
@pytest.mark.skipif(
    not any(path.stem == "quickstart" for path in CHAPTERS), reason="no quickstart in _toc.yml yet"
)
def test_the_quickstart_shows_its_plot_and_its_table(visit):
    page = visit("book/quickstart")
    plots = page.locator(".cell_output .drawn").evaluate_all(
        "all => all.map(i => i.getBoundingClientRect().width)"
    )
    assert plots and max(plots) > 300
    tables = page.locator(".cell_output table").evaluate_all("all => all.map(t => t.rows.length)")
    assert tables and max(tables) > 2


@pytest.mark.slow
@in_daylight
def test_a_page_with_all_that_it_loads_is_light(seen):
    """At most 1.5 MB, where text travels compressed, as a server sends it, and the rest as it is."""
    page = seen
    page.wait_for_function(TYPESET)
    weights = {}
    for answer in page.answers:
        if answer.ok and answer.url.startswith("http"):
            kind, body = answer.headers.get("content-type", ""), answer.body()
            text = re.search("text|javascript|json|svg|xml", kind)
            weights[answer.url.rsplit("/", 1)[1]] = len(gzip.compress(body, 6) if text else body)
    assert sum(weights.values()) <= 1.5e6, sorted(weights.items(), key=lambda item: -item[1])[:8]


@pytest.mark.slow
@in_both_themes
def test_a_page_is_accessible(seen, axe):
    page = seen
    page.wait_for_function(TYPESET)
    page.evaluate("document.querySelectorAll('details').forEach(e => (e.open = true))")
    page.evaluate("document.getAnimations().forEach(a => a.effect.getTiming().iterations < 99 && a.finish())")
    page.evaluate(axe)
    assert page.evaluate(CHECK) == []


@per_chapter
def test_the_widgets_of_a_page_bring_little_code(path):
    """At most 60 KB: all their scripts as they stand in the page, compressed together with it."""
    models = widget_state(nbformat.read(path, as_version=4)).values()
    code = "\n".join(model["state"].get("_esm", "") for model in models)
    assert len(gzip.compress(code.encode(), 6)) <= 60_000


def test_all_widgets_together_bring_little_code():
    """At most 60 KB compressed, were they all on one page."""
    scripts = sorted((ROOT / "nanogrpo" / "show" / "widgets").glob("*.js"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
    assert len(scripts) > 10 and len(gzip.compress(code.encode(), 6)) <= 60_000


@per_chapter
def test_no_chapter_needs_the_widget_manager(path):
    """Any widget but a browser widget would load RequireJS and the manager, 0.9 MB, for all of its page."""
    for output in (o for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", [])):
        view = output.get("data", {}).get("application/vnd.jupyter.widget-view+json")
        models = widget_state(nbformat.read(path, as_version=4)) if view else {}
        assert not view or models[view["model_id"]]["model_module"] == "anywidget"


@pytest.mark.slow
@pytest.mark.skipif(
    not any(path.stem == "explorers" for path in CHAPTERS), reason="no explorers in _toc.yml yet"
)
def test_the_rollout_viewer_links_to_the_lines_of_today(visit):
    from nanogrpo.show.source import source_link
    from nanogrpo.show.widgets.rollouts import SOURCES

    page = visit("book/explorers")
    for what, name in SOURCES.items():
        viewer = page.get_by_role("group", name="A run of GRPO, token by token")
        assert viewer.get_by_role("link", name=what, exact=True).get_attribute("href") == source_link(name)


# What the reader of a page sees in raw form: roles, directives, tables and images of Markdown, formulas.
RAW = re.compile(
    r"\{[\w:-]+\}`|```|:::|\|\s*:?-{3,}:?\s*\||!?\[[^\]\n]*\]\(http|\$\$|\$[^$\s]{1,20}\$|\\(?:pi|log|frac|beta)\b"
)
TEXT = """() => { const page = document.querySelector(".bd-article").cloneNode(true);
  page.querySelectorAll("pre, code, script, style, .math, .katex").forEach((e) => e.remove());
  return page.textContent; }"""
OVERFLOW = """() => { document.querySelectorAll("details").forEach((e) => (e.open = true));
  return [...document.querySelectorAll(".bd-article pre")].filter((e) => e.scrollWidth > e.clientWidth + 1)
    .map((e) => e.textContent.slice(0, 60)); }"""
# Words of a figure that stand outside its drawing, or on one another.
STRAYS = """() => [...document.querySelectorAll(".drawn svg")].flatMap((svg) => {
  const edge = svg.getBoundingClientRect(), found = [];
  const words = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim());
  const boxes = words.map((t) => [t.textContent, t.getBoundingClientRect()]);
  boxes.forEach(([text, a], i) => {
    const out = Math.max(edge.left - a.left, a.right - edge.right, edge.top - a.top, a.bottom - edge.bottom);
    if (out > 3) found.push(`${text} stands outside by ${out.toFixed(1)} px`);
    for (const [other, b] of boxes.slice(i + 1)) {
      const [wide, high] = [Math.min(a.right, b.right) - Math.max(a.left, b.left),
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)];
      if (wide > 4 && high > 5) found.push(`${text} on ${other}`);
    } });
  return found; })"""
# Names of columns that keep a table from fitting a phone though they have a space to break at.
UNBROKEN = """() => [...document.querySelectorAll("table.dataframe")].flatMap((table) => {
  const box = table.closest(".output");
  if (!box || box.scrollWidth <= box.clientWidth + 1) return [];
  return [...table.querySelectorAll("thead th")].filter((th) => getComputedStyle(th).whiteSpace !== "normal")
    .map((th) => th.textContent); })"""
# Columns that touch, and numbers that are broken over lines, in a table that pandas wrote.
FUSED = """() => [...document.querySelectorAll("table.dataframe")].flatMap((table) => {
  const cells = [...table.querySelectorAll("td, th")].filter((c) => c.textContent.trim());
  const thin = cells.filter((c) => parseFloat(getComputedStyle(c).paddingLeft) < 8);
  const lines = (c) => { const r = document.createRange(); r.selectNodeContents(c);
    return new Set([...r.getClientRects()].map((b) => Math.round(b.top))).size; };
  const small = cells.filter((c) => c.textContent.trim().length < 24 && !c.querySelector("br") &&
    !c.closest("thead"));
  const broken = small.filter((c) => lines(c) > 1);
  return [...thin, ...broken].map((c) => c.textContent); })"""


# Sentences of a table that begin beyond the edge of the screen; columns of short words may.
FAR = """() => [...document.querySelectorAll(".bd-article td")]
  .filter((c) => c.checkVisibility() && !c.closest(".dataframe, .ng"))
  .filter((c) => c.textContent.trim().length > 60 && c.getBoundingClientRect().left > innerWidth - 40)
  .map((c) => c.textContent.trim().slice(0, 40))"""
# A mark that begins the line below its formula.
ORPHANS = """() => [...document.querySelectorAll(".bd-article span.math")].flatMap((math) => {
  const [next, end] = [math.nextSibling, [...math.querySelectorAll(".base")].at(-1)];
  if (next?.nodeType !== 3 || !/^[,.;:?!)]/.test(next.data) || !end) return [];
  const range = document.createRange();
  range.setStart(next, 0);
  range.setEnd(next, 1);
  const below = range.getBoundingClientRect().left < end.getBoundingClientRect().left;
  return below ? [`${math.textContent} | ${next.data.slice(0, 20)}`] : []; })"""


@pytest.mark.slow
@on_a_phone
def test_a_page_in_the_reader_s_hand(held):
    """At 1280 px and on paper no code is cut off; on a phone tables are apart; nothing is raw."""
    page = held
    page.set_viewport_size({"width": 1280, "height": 900})
    assert RAW.findall(page.evaluate(TEXT)) == []
    assert page.evaluate(OVERFLOW) == [], "code that runs off its box"
    page.emulate_media(media="print")
    assert page.evaluate(OVERFLOW) == [], "code that paper cuts off"
    page.emulate_media(media="screen")
    page.set_viewport_size(PHONE)
    assert page.evaluate(FUSED) == []
    assert page.evaluate(UNBROKEN) == [], "names of columns that push numbers off a phone"
    assert page.evaluate(FAR) == [], "a sentence that a reader has to scroll for"
    assert page.evaluate(ORPHANS) == [], "a mark without its formula"
    assert page.evaluate(STRAYS) == [], "words of a figure"
    title = page.locator(".solution .admonition-title").first
    if title.count():
        where = page.url
        title.click()
        assert page.url == where and "toggle-hidden" not in title.locator("..").get_attribute("class")
    assert page.trouble == []


@pytest.mark.slow
def test_the_table_of_the_labs_fits_a_phone(visit):
    page = visit("book/labs/guide", size=PHONE)
    boxes = page.locator(".bd-article .pst-scrollable-table-container")
    assert boxes.first.evaluate("(box) => box.scrollWidth - box.clientWidth") <= 1


@pytest.mark.slow
def test_each_page_has_a_description_of_its_own(site):
    found = {}
    for path in sorted((site / "book").rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        said = re.findall(r'<meta name="description" content="([^"]*)"', text)
        assert len(said) == 1 and len(said[0]) >= 40, (path.name, said)
        assert not re.match(r"Open in Colab|\d+ points", said[0])
        found.setdefault(said[0], []).append(path.name)
    assert not [names for names in found.values() if len(names) > 1]


@pytest.mark.slow
def test_no_link_reads_out_a_whole_caption(site):
    """As a reference to a figure does that is given no words of its own."""
    for path in sorted((site / "book").rglob("*.html")):
        article = path.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        links = re.findall(r'<a class="reference internal"[^>]*>(.*?)</a>', article, re.DOTALL)
        words = [re.sub(r"<[^>]*>", "", link) for link in links]
        assert not [link for link in words if len(link) > 90], path.name


@pytest.mark.slow
def test_works_are_listed_as_they_are_cited(visit):
    """By author and year in the text, so without numbers in the list."""
    page = visit("book/grpo")
    cited = page.locator(".bd-article a[href*='bibliography']").first
    assert re.search(r"[A-Z].*\d{4}", cited.inner_text())
    page = visit("book/bibliography")
    works = page.locator(".citation")
    assert works.count() > 40 and not page.locator(".citation > .label >> visible=true").count()
    assert not any(re.match(r"\[\d+\]", text) for text in works.all_inner_texts())


QUERIES = {
    "loss zero": "book/grpo",
    "k3": "book/kl",
    "advantage": "book/(grpo|policy-gradients|ppo|ppo-vs-grpo)",
    "overoptimization": "book/over-optimization",
    "length bias": "book/length-bias",
    "GRPO": "book/(grpo|one-page)",
    "zero variance": "book/zero-variance",
    "entropy": "book/entropy",
    "clip": "book/(ppo|grpo)",
    "reward model": "book/reward-model",
    "critic": "book/ppo",
    "GAE": "book/ppo",
    "mask padding": "book/masks",
    "EOS": "book/masks",
    "temperature": "book/(scored|tiny-gpt)",
    "KL reward": "book/(kl|over-optimization)",
    "baseline": "book/policy-gradients",
    "causal attention": "book/tiny-gpt",
    "Bradley-Terry": "book/reward-model",
    "grpo_loss": "book/(grpo|one-page|kl)",
}


@pytest.mark.slow
def test_a_search_finds_the_section_of_a_chapter_first_and_at_once(visit):
    page = visit("search")
    for query, where in QUERIES.items():
        began = page.evaluate("performance.now()")
        page.evaluate("query => Search.performSearch(query)", query)
        first = page.locator("#search-results a").first.get_attribute("href")
        assert page.evaluate("performance.now()") - began < 1000, query
        assert re.match(rf"(\./)?{where}\.html", first), (query, first)
    assert page.trouble == []


@pytest.mark.slow
def test_a_search_that_finds_nothing_says_so(visit):
    page = visit("search")
    page.evaluate("Search.performSearch('qqqxyz')")
    assert "Nothing was found" in page.locator("#search-results").inner_text()


@pytest.mark.slow
def test_no_page_of_the_api_is_long_or_heavy_and_no_chapter_is_endless(visit, site):
    """At most 30,000 px with every answer shown, the pages of the API among them; 0.3 MB compressed."""
    page = visit("book/api")
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        if "_static" in name or name == "index.html":
            continue
        page.goto(f"{page.url.split('/book/')[0]}/{name}", wait_until="load")
        height = page.evaluate("document.documentElement.scrollHeight")
        assert height <= 30_000, name
        assert len(gzip.compress(path.read_bytes(), 6)) <= 300_000, name
