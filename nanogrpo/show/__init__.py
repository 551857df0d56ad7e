"""Figures and widgets. Nothing in the core imports this wing, so a bare install needs no plotting library."""

import os
import sys

UNSEEN = (
    "agg",
    "cairo",
    "pdf",
    "pgf",
    "ps",
    "svg",
    "template",
)  # Matplotlib's back ends that draw into files


def show_in_notebook() -> bool:
    """Let a notebook show its figures where ``MPLBACKEND`` sends them into files, and say so.

    Clusters and graders set that variable for scripts. In a notebook it would take every figure away without
    a word. A script, or a notebook whose code chose a back end itself, is left alone.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    backend = os.environ.get("MPLBACKEND", "")
    if shell is None or not hasattr(shell, "kernel") or backend.lower() not in UNSEEN:
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    if matplotlib.get_backend().lower() != backend.lower():
        return False
    shell.run_line_magic("matplotlib", "inline")
    print(f"MPLBACKEND={backend} would hide this notebook's figures; they are shown here.", file=sys.stderr)
    return True


show_in_notebook()
