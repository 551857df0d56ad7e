"""The playground: a tiny GPT that learns by GRPO in the page, and the same run in Python.

``nanogrpo.js`` is the book's loop in plain JavaScript, ``worker.js`` runs it beside the page, and ``page.js``
draws. :mod:`~nanogrpo.show.playground.twin` makes the same run with the package itself, and tests hold the
two to the same numbers. The policy was trained by ``book/studies/playground``.
"""

import base64
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from nanogrpo.checkpoint import load_model
from nanogrpo.model import GPT

FOLDER = Path(__file__).parent
STYLE_SHEET = "playground.css"


def load() -> GPT:
    """The policy that the playground starts from: a copy of its own at each call."""
    return load_model(FOLDER / "policy.safetensors")[0]


def presets() -> list[dict]:
    """What the page's "Break it" buttons set: a name, a title, one or two settings, and what to notice."""
    return json.loads(_read("presets.json"))


def bundle() -> str:
    """The page's script, whole: no module and no address, so that it also runs from a folder on a disk.

    It finds each element of the class ``ng-playground`` and runs there; one with the attribute ``data-small``
    shows a curve and a button only.
    """
    engine = re.sub(r"^export ", "", _read("nanogrpo.js"), flags=re.MULTILINE)
    model = load()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    data = {
        "POLICY": {"config": vars(model.config), "weights": _half(weights)},
        "PRESETS": presets(),
        "ENGINE": engine,
        "OFF_THE_PAGE": _read("worker.js"),
        "LOOK": _read(STYLE_SHEET),
    }
    lines = [f"const {name} = {json.dumps(value)};" for name, value in data.items()]
    common = (FOLDER.parent / "widgets" / "common.js").read_text(encoding="utf-8")
    return "\n".join(["(() => {", *lines, common, _read("page.js"), "})();", ""])


def _half(weights: Tensor) -> str:
    """Weights in half precision, which they have been rounded to, as text."""
    return base64.b64encode(weights.half().numpy().astype("<f2").tobytes()).decode()


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
