"""What the book needs of Sphinx beyond its configuration.

- Where `vendor.py` brought MathJax in, formulas are typeset while the book is built (formulas.py), and the
  scripts of the widget manager are served by the book itself; without them the defaults (CDNs) stay.
- Widgets are run by `widgets-host.js`, which loads the widget manager only where one of them needs it.
- The Colab badge, which a notebook must name by a remote address to show it on Colab, is served here too.
- A widget that links to lines of the package gets their numbers as they are now, not as when it was run.
- sphinx-thebe's scripts are dropped: nothing uses them, and they are emitted twice and throw on every page.
- The theme's second search field is dropped.
- What else the theme does on every page, and should not, is mended (pages.py); its icons are cut (icons.py).
- A docstring may name an object of the package by the end of its path, if only one ends so.
- A line `::: nanogrpo.module` on the API page becomes a heading with that module's documentation below it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from formulas import typeset_all
from icons import write_icons
from pages import mend_all
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

COLAB_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
MODULE_LINE = re.compile(r"^::: (nanogrpo(?:\.\w+)*)$", re.MULTILINE)
SOURCE_LINK = re.compile(r'"name": "(nanogrpo[\w.]+)", "url": "[^"]*"')
MODULE_BLOCK = "## `{0}`\n\n```{{eval-rst}}\n.. automodule:: {0}\n```\n"


def serve_scripts(app, config):
    """Point at the book's own copies of the widget manager's scripts, where there are any."""
    manager = list(config.nb_ipywidgets_js.items())
    if any(Path(app.confdir, folder, "vendor").is_dir() for folder in config.html_static_path):
        names = ("vendor/requirejs/require.js", "widgets-setup.js", "vendor/html-manager/embed-amd.js")
        manager = [(name, {}) for name in names]  # relative to widgets-host.js
    else:
        logging.getLogger(__name__).info("no scripts in _static/vendor: the pages load them from CDNs")
    config.nb_ipywidgets_js = {"widgets-host.js": {"data-manager": json.dumps(manager)}}


def drop_second_search(app, config):
    """The search field stands in the sidebar; the theme would set another one above the page."""
    config.html_theme_options.setdefault("navbar_persistent", [])


def expand_modules(app, docname, source):
    if docname.endswith("api"):
        source[0] = MODULE_LINE.sub(lambda match: MODULE_BLOCK.format(match[1]), source[0])


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
        context["body"] = context["body"].replace(COLAB_BADGE, badge)


def relink(text: str) -> str:
    """The state of widgets, with the present lines of every function that it links to."""
    from nanogrpo.show.source import source_link

    return SOURCE_LINK.sub(lambda match: f'"name": "{match[1]}", "url": "{source_link(match[1])}"', text)


def relink_widgets(app, pagename, templatename, context, doctree):
    for script in context["script_files"]:
        attributes = getattr(script, "attributes", {})
        if "widget-state" in str(attributes.get("type")):
            attributes["body"] = relink(attributes["body"])


def _describe(script) -> str:
    return f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', '')}".lower()


def setup(app):
    app.connect("config-inited", serve_scripts, priority=1)
    app.connect("config-inited", drop_second_search, priority=1)
    app.connect("source-read", expand_modules)
    app.connect("missing-reference", find_by_ending)
    app.connect("html-page-context", clean_page, priority=900)
    app.connect("html-page-context", relink_widgets, priority=901)
    app.connect("builder-inited", mend_all)
    app.connect("builder-inited", typeset_all)
    app.connect("build-finished", write_icons)
    app.add_css_file("icons.css", priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
