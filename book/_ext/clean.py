"""What is stored of a notebook's outputs: pure functions that take out all that differs from run to run.

Widget ids, addresses, timings and the frames of a progress bar differ between two runs; paths and versions
differ between machines. `clean` removes them, `problems` names what a reader would still trip over.
"""

from __future__ import annotations

import json
import os
import re
import site
import sys
import tempfile
from pathlib import Path

import nbformat

STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
ANSI_CURSOR = re.compile(r"\x1b\[\d*[A-DGJK]")
# What a drawing says of its making: a date, and Matplotlib's version.
DRAWN_WHEN = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
STYLED = re.compile(r'<table id="(T_\w+)"')
CELL_FILE = re.compile(r"\S*[/\\]ipykernel_\d+[/\\]\d+\.py")
CLOCK = r"(?:\d+:)?\d+:\d+"
# tqdm writes "[00:12<00:03,  4.1it/s, reward=0.53]"; only what follows the rate says something about the run.
# TQDM_DISABLE would leave nothing: the last frame tells a reader how many steps ran, and how they ended.
TQDM = re.compile(
    rf"\s*\[{CLOCK}(?:(?:<|&lt;)(?:\?|{CLOCK}))?,\s*[?\d.]+[kMG]?[^\s,\]]*/[^\s,\]]+(?:,\s*([^\]\n]*))?\]"
)
FOREIGN_PATH = re.compile(r"(?<![\w.:/~])(?:/home/|/root/|/Users/|/tmp/|/var/folders/|[A-Za-z]:\\+Users\\)")


def machine_paths(root: Path) -> dict[str, str]:
    """Folders of this machine and what stands for each in an output; the longest comes first."""
    names = {str(root) + os.sep: "", str(root): "."}
    names |= {folder: "site-packages" for folder in [*site.getsitepackages(), site.getusersitepackages()]}
    names |= {sys.prefix: "<env>", sys.base_prefix: "<python>", tempfile.gettempdir(): "<tmp>"}
    home = os.path.expanduser("~")
    names |= {k.replace(home, "~", 1): v for k, v in names.items() if k.startswith(home + os.sep)}
    names[home] = "~"
    return {k: names[k] for k in sorted(names, key=len, reverse=True) if len(k.strip(os.sep)) > 1}


def last_frame(text: str) -> str:
    """What a terminal shows in the end: of the frames between carriage returns, the last on each line."""
    lines = []
    for line in ANSI_CURSOR.sub("", text).split("\n"):
        frames = [frame for frame in line.split("\r") if frame]
        blank = "\r" in line and (not frames or not frames[-1].strip())  # a bar that was wiped
        lines.append("" if blank or not frames else frames[-1])
    return "\n".join(lines)


def clean_text(text: str, paths: dict[str, str]) -> str:
    """Take addresses, paths of the machine and the clock of progress bars out of one string."""
    if "ipykernel_" in text:  # looking for it in a long text without spaces, as of a font, takes seconds
        text = CELL_FILE.sub("<cell>", text)
    for folder, stand_in in paths.items():
        text = text.replace(folder, stand_in)
    text = ADDRESS.sub("0x…", text)
    return TQDM.sub(lambda match: f" [{match[1]}]" if match[1] else "", text)


def clean_drawing(svg: str) -> str:
    """A drawing in one line, with thousandths of a point, without what it says of its making."""
    one_line = re.sub(r"\s*\n\s*", " ", DRAWN_WHEN.sub("", svg)).strip()
    return re.sub(r'="[^"]*"', lambda value: re.sub(r"(\.\d{3})\d+", r"\1", value[0]), one_line)


def clean_value(value, paths: dict[str, str], key: str = ""):
    """`clean_text` on every string inside an output or a widget's state, but for images and program text."""
    if isinstance(value, str) and key == "image/svg+xml":
        return clean_drawing(value)
    if isinstance(value, dict):
        return type(value)({k: clean_value(v, paths, k) for k, v in value.items()})
    if isinstance(value, list):
        return [clean_value(v, paths, key) for v in value]
    if not isinstance(value, str) or key.startswith("image/") or key in ("_esm", "_css"):
        return value
    return clean_text(value, paths)


def merge_streams(outputs: list) -> list:
    """Join what was printed between two displays: one stdout, then one stderr; drop what ends up blank."""
    merged, printed = [], {}

    def flush():
        for name in ("stdout", "stderr"):
            text = last_frame(printed.pop(name, ""))
            if text.strip():
                merged.append(nbformat.v4.new_output("stream", name=name, text=text))

    for output in rejoin_bars(outputs):
        if output["output_type"] == "stream":
            printed[output["name"]] = printed.get(output["name"], "") + output["text"]
        else:
            flush()
            merged.append(output)
    flush()
    return merged


def rejoin_bars(outputs: list) -> list:
    """Put the later frames of a bar that a display interrupted to where its first ones stand."""
    kept, latest = [], {}
    for output in outputs:
        if output["output_type"] == "stream":
            bar = latest.get(output["name"])
            open_bar = bar and "\r" in bar["text"].rsplit("\n", 1)[-1]
            if open_bar and output["text"].startswith(("\r", "\n")):
                bar["text"] += output["text"]
                continue
            output = latest[output["name"]] = type(output)(output)
        kept.append(output)
    return kept


def widget_state(nb) -> dict:
    return nb.metadata.get("widgets", {}).get(STATE, {}).get("state", {})


def references(model: dict) -> list[str]:
    """The ids of the models that a widget's model names."""
    return re.findall(r"IPY_MODEL_(\w+)", json.dumps(model["state"]))


def drop_views(nb):
    """Drop the widgets that no output needs.

    A widget that brings a picture of its own, as the dashboard does, is stored as that: it needs no kernel
    and no script, and has a theme. One that was closed while its cell ran has no model any more.
    """
    state, shown = widget_state(nb), []
    for cell in nb.cells:
        for output in list(cell.get("outputs", [])):
            view = output.get("data", {}).get(VIEW, {}).get("model_id")
            if view and "text/html" in output.data:
                del output.data[VIEW]
            elif view in state:
                shown.append(view)
            elif view:
                cell.outputs.remove(output)
    prune(state, shown)
    if not state:
        nb.metadata.pop("widgets", None)
    return nb


def prune(state: dict, shown: list[str]) -> None:
    """Drop the models that no shown widget needs; a link between two that are kept is kept."""
    needed, todo = set(), list(shown)
    while todo:
        name = todo.pop()
        if name in state and name not in needed:
            needed.add(name)
            todo += references(state[name])
    for name in list(state):
        link = state[name]["model_name"].endswith("LinkModel") and needed.issuperset(references(state[name]))
        if name not in needed and not link:
            del state[name]


def renumber_tables(nb):
    """Give styled tables of pandas, which draw a name at random, the names T_1, T_2, ... in their order."""
    shown = [output.data for cell in nb.cells for output in cell.get("outputs", []) if "data" in output]
    count = 0
    for data in (data for data in shown if "text/html" in data):
        for name in dict.fromkeys(STYLED.findall(data["text/html"])):
            count += 1
            data["text/html"] = re.sub(rf"\b{name}(?=_|\b)", f"T_{count}", data["text/html"])
    return nb


def renumber_widgets(nb):
    """Give the widgets' models the ids 1, 2, ... in the order in which they were made."""
    new = {old: f"{i:032x}" for i, old in enumerate(widget_state(nb), 1)}
    if not new:
        return nb
    text = re.sub("|".join(map(re.escape, new)), lambda m: new[m.group()], json.dumps(nb))
    return nbformat.from_dict(json.loads(text))


def clean(nb, paths: dict[str, str]):
    """The notebook as it is stored."""
    nb = drop_views(nb)
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = clean_value(merge_streams(cell.outputs), paths)
    if "widgets" in nb.metadata:
        nb.metadata.widgets = clean_value(nb.metadata.widgets, paths)
    nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nb.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    return renumber_tables(renumber_widgets(nb))


def problems(nb, paths: dict[str, str]) -> list[str]:
    """What a reader would trip over, one line each: a path of a machine, a figure without alt text."""
    found = []
    for number, cell in enumerate(nb.cells, 1):
        if cell.cell_type != "code":
            continue
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if any(kind.startswith("image/") for kind in kinds) and not alt.strip():
            found.append(
                f"cell {number}: a figure without alt text (mystnb.image.alt in the cell's metadata)"
            )
        printed = [{k: v for k, v in o.get("data", o).items() if "image/" not in k} for o in cell.outputs]
        found += [f"cell {number}: {line}" for line in path_problems(printed, paths)]
    return found + [f"widget state: {line}" for line in path_problems(nb.metadata.get("widgets", {}), paths)]


def path_problems(value, paths: dict[str, str]) -> list[str]:
    """The first path of a machine that the value holds, if any."""
    text = json.dumps(value, ensure_ascii=False)
    own = [folder for folder in paths if os.path.isabs(folder) and folder in text]
    return [f"the output names the path {hit!r}" for hit in own[:1] or FOREIGN_PATH.findall(text)[:1]]
