"""Figures that move in the page itself: one Python and one JavaScript file each, no kernel, no network.

A widget is an anywidget: a few synchronized values, and a script that draws them. The script is stored with
the notebook, so the figure works in the rendered page as it does in JupyterLab and on Colab. All arithmetic
that a reader sees is also written in Python, in the widget's module, and tested to agree.
"""

import json
from pathlib import Path

# For a large value that a figure carries: one line of a notebook, and not a line for each number.
ON_ONE_LINE = {
    "sync": True,
    "to_json": lambda value, widget: json.dumps(value, separators=(",", ":"), allow_nan=False),
    "from_json": lambda text, widget: json.loads(text),
}


def script(name: str) -> str:
    """The script of one widget: the drawing that all share, then its own."""
    folder = Path(__file__).parent
    return "\n".join((folder / f"{part}.js").read_text(encoding="utf-8") for part in ("common", name))
