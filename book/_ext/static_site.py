"""What the book needs of Sphinx beyond its configuration.

- Formulas are typeset by KaTeX while the book is built, for the fonts of `make fonts`. Without those they are
  MathML, which a browser draws in a font of its own; without node, the browser typesets them.
- Widgets are run by `widgets-host.js`, without the widget manager.
- The Colab badge, which a notebook must name by a remote address to show it on Colab, is served here too.
- A widget that links to lines of the package gets their numbers as they are now, not as when it was run.
- sphinx-thebe's scripts are dropped: nothing uses them, and they are emitted twice and throw on every page.
- The search ranks sections of chapters first (sections.py).
- The theme's second search field is dropped.
- What else the theme does on every page, and should not, is mended (pages.py); its icons are cut (icons.py).
- A prediction gets a field, and its answer a fold (predictions.py, predictions.js).
- A page with a playground gets its script, which is put together from the package (playground.js).
- Chapters have numbers, a map of what needs what, and a mark of what was read (chapter_map.py, progress.js).
- A link to a page shows a card elsewhere (cards.py); how to cite, and what has changed, are pages (about.py).
- A docstring may name an object of the package by the end of its path, if only one ends so.
"""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import about
from cards import add_card
from chapter_map import ChapterMap, Placeholder, add_mark, draw, renumber
from icons import write_icons
from pages import mend_all
from predictions import add_script, fold_answers
from sections import write_sections
from sphinx.util import logging
from sphinx.util.nodes import make_refnode
from sphinxcontrib import katex

COLAB_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
SOURCE_LINK = re.compile(r'"name": "(nanogrpo[\w.]+)", "url": "[^"]*"')


def choose_formulas(app, config):
    """KaTeX's page without a remote address: with its own fonts, or as MathML."""
    config.katex_prerender = shutil.which("node") is not None
    config.katex_css_path = "vendor/katex/katex.min.css"
    katex.KATEX_DEFAULT_OPTIONS["throwOnError"] = True  # a mistake ends the build, with the formula's text
    # Its Unix socket exists before it listens, and five seconds are too few: on a busy machine builds broke.
    katex.KaTeXServer.start_server_process = katex.KaTeXServer.start_network_socket
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0
    if not any(Path(app.confdir, name, config.katex_css_path).exists() for name in config.html_static_path):
        config.katex_css_path = "katex-math.css"  # the extension's own rules, which it lists a second time
        config.katex_options = "output: 'mathml'"
        katex.KATEX_DEFAULT_OPTIONS["output"] = "mathml"
        logging.getLogger(__name__).info("no fonts of KaTeX (make fonts): formulas are MathML")


def drop_second_search(app, config):
    """The search field stands in the sidebar; the theme would set another one above the page."""
    config.html_theme_options.setdefault("navbar_persistent", [])


def find_by_ending(app, env, node, contnode):
    """Resolve ``:class:`GPT``` from any module of the package."""
    if node.get("refdomain") != "py":
        return None
    ending = "." + node["reftarget"]
    hits = [(name, entry) for name, entry in env.domains["py"].objects.items() if name.endswith(ending)]
    if len(hits) != 1:
        return None
    name, entry = hits[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def clean_page(app, pagename, templatename, context, doctree):
    context["script_files"] = [s for s in context["script_files"] if "thebe" not in _describe(s)]
    if "body" in context:
        badge = context["pathto"]("_static/colab-badge.svg", 1)
        context["body"] = stay_here(context["body"].replace(COLAB_BADGE, badge), context["pathto"], app)


def defer_scripts(app, pagename, templatename, context, doctree):
    """Let a page be drawn before its scripts are loaded; they still run in their order, once it is parsed.

    What the theme writes into the page counts on the options of Sphinx, so these are loaded at once. Pages
    without a source, such as that of the search, have scripts of their own that count on more.
    """
    for script in context["script_files"] if doctree else ():
        name = str(getattr(script, "filename", None) or "")
        if name and "documentation_options" not in name:
            script.attributes["defer"] = "defer"


def stay_here(body: str, pathto, app) -> str:
    """A notebook that Colab opens, too, names other pages by their whole address; here they are near."""
    base = re.escape(app.config.html_baseurl)
    whole = re.compile(rf'<a class="reference external" href="{base}([\w/-]+)\.html')
    return whole.sub(lambda found: f'<a class="reference internal" href="{pathto(found[1])}', body)


def relink(text: str, warn) -> str:
    """The state of widgets, with the present lines of every function that it links to."""
    from nanogrpo.errors import SourceError
    from nanogrpo.show.source import source_link

    def link(match):
        try:
            return f'"name": "{match[1]}", "url": "{source_link(match[1])}"'
        except SourceError as error:
            warn(f"a widget links to what is gone, run the chapter again: {error}")
            return match[0]

    return SOURCE_LINK.sub(link, text)


def relink_widgets(app, pagename, templatename, context, doctree):
    for script in context["script_files"]:
        attributes = getattr(script, "attributes", {})
        if "widget-state" in str(attributes.get("type")):
            warn = partial(logging.getLogger(__name__).warning, location=pagename)
            attributes["body"] = relink(attributes["body"], warn)


def add_playground(app, pagename, templatename, context, doctree):
    if 'class="ng-playground"' in context.get("body", ""):
        app.add_js_file("playground.js", loading_method="defer")


def write_playground(app, exception):
    from nanogrpo.show.playground import bundle

    if not exception and app.builder.format == "html":
        Path(app.outdir, "_static", "playground.js").write_text(bundle(), encoding="utf-8")


def _describe(script) -> str:
    return f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', '')}".lower()


def setup(app):
    app.connect("config-inited", choose_formulas, priority=1)
    app.connect("config-inited", drop_second_search, priority=1)
    app.connect("missing-reference", find_by_ending)
    app.connect("html-page-context", clean_page, priority=900)
    app.connect("html-page-context", relink_widgets, priority=901)
    app.connect("html-page-context", defer_scripts, priority=902)
    app.connect("html-page-context", add_playground)
    app.connect("doctree-resolved", fold_answers)
    app.connect("html-page-context", add_script)
    app.add_node(Placeholder)
    app.add_directive("chapter-map", ChapterMap)
    app.connect("doctree-resolved", draw)
    app.connect("env-check-consistency", renumber)  # only now has Sphinx counted
    app.connect("html-page-context", add_mark, priority=800)  # the theme has set its title
    app.connect("html-page-context", add_card, priority=400)  # before the tags for other sites are made
    app.connect("source-read", about.set_in)
    app.add_js_file("progress.js", loading_method="defer")
    app.connect("builder-inited", mend_all)
    app.connect("build-finished", write_playground)
    app.connect("build-finished", write_icons)
    app.connect("build-finished", write_sections)
    app.add_css_file("icons.css", priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
