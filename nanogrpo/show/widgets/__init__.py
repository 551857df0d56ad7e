"""Figures that move in the page itself: one Python and one JavaScript file each, no kernel, no network.

A widget is an anywidget: a few synchronized values, and a script that draws them. The script is stored with
the notebook, so the figure works in the rendered page as it does in JupyterLab and on Colab. All arithmetic
that a reader sees is also written in Python, in the widget's module, and tested to agree.
"""

from pathlib import Path


def script(name: str) -> str:
    """The script of one widget: the drawing that all share, then its own."""
    folder = Path(__file__).parent
    return "\n".join((folder / f"{part}.js").read_text(encoding="utf-8") for part in ("common", name))
