"""Run chapters and store their outputs, so that two runs give the same bytes.

    python book/_ext/execute.py --all                                       every chapter of _toc.yml, in place
    python book/_ext/execute.py book/quickstart.ipynb --output live.ipynb   one chapter, into a copy

What differs from run to run (widget ids, addresses, timings, frames of a progress bar) or from machine to machine
(paths, versions) is taken out of the outputs, so that a diff shows what a change did. A chapter is refused if an
output still names a path of this machine, or if a figure has no alt text.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shutil
import site
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[2]

ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
ANSI_CURSOR = re.compile(r"\x1b\[\d*[A-DGJK]")
CELL_FILE = re.compile(r"\S*[/\\]ipykernel_\d+[/\\]\d+\.py")
CLOCK = r"(?:\d+:)?\d+:\d+"
# tqdm writes "[00:12<00:03,  4.1it/s, reward=0.53]"; only what follows the rate says something about the run.
TQDM = re.compile(rf"\[{CLOCK}(?:(?:<|&lt;)(?:\?|{CLOCK}))?,\s*[?\d.]+[kMG]?[^\s,\]]*/[^\s,\]]+(?:,\s*)?")
FOREIGN_PATH = re.compile(r"(?<![\w.:/~])(?:/home/|/root/|/Users/|/tmp/|/var/folders/|[A-Za-z]:\\+Users\\)")


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks of the table of contents, in reading order."""

    def files(node):
        if isinstance(node, dict):
            own = [node[key] for key in ("root", "file") if key in node]
            return own + [f for value in node.values() for f in files(value)]
        return [f for item in node for f in files(item)] if isinstance(node, list) else []

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    paths = [root / re.sub(r"(\.ipynb)?$", ".ipynb", name, count=1) for name in files(toc)]
    return [path for path in paths if path.exists()]


def machine_paths(root: Path = ROOT) -> dict[str, str]:
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
    text = CELL_FILE.sub("<cell>", text)
    for folder, stand_in in paths.items():
        text = text.replace(folder, stand_in)
    text = ADDRESS.sub("0x…", text)
    return TQDM.sub("[", text).replace(" []", "")


def clean_value(value, paths: dict[str, str], key: str = ""):
    """`clean_text` on every string inside an output or a widget's state, but for images and program text."""
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

    for output in outputs:
        if output["output_type"] == "stream":
            printed[output["name"]] = printed.get(output["name"], "") + output["text"]
        else:
            flush()
            merged.append(output)
    flush()
    return merged


def renumber_widgets(nb):
    """Give the widgets' models the ids 1, 2, ... in the order in which they were made."""
    kind = "application/vnd.jupyter.widget-state+json"
    state = nb.metadata.get("widgets", {}).get(kind, {}).get("state", {})
    new = {old: f"{i:032x}" for i, old in enumerate(state, 1)}
    if not new:
        return nb
    text = re.sub("|".join(map(re.escape, new)), lambda m: new[m.group()], json.dumps(nb))
    return nbformat.from_dict(json.loads(text))


def clean(nb, paths: dict[str, str]):
    """The notebook as it is stored."""
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = clean_value(merge_streams(cell.outputs), paths)
    if "widgets" in nb.metadata:
        nb.metadata.widgets = clean_value(nb.metadata.widgets, paths)
    nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nb.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    return renumber_widgets(nb)


def problems(nb, paths: dict[str, str]) -> list[str]:
    """What a reader would trip over, one line each: a path of a machine, a figure without alt text."""
    found = []
    for number, cell in enumerate(nb.cells):
        if cell.cell_type != "code":
            continue
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if any(kind.startswith("image/") for kind in kinds) and not alt.strip():
            found.append(f"cell {number}: a figure without alt text; set mystnb.image.alt in the cell's metadata")
        printed = [{k: v for k, v in o.get("data", o).items() if "image/" not in k} for o in cell.outputs]
        found += [f"cell {number}: {line}" for line in path_problems(printed, paths)]
    found += [f"widget state: {line}" for line in path_problems(nb.metadata.get("widgets", {}), paths)]
    return found


def path_problems(value, paths: dict[str, str]) -> list[str]:
    text = json.dumps(value, ensure_ascii=False)
    own = [folder for folder in paths if os.path.isabs(folder) and folder in text]
    return [f"the output names the path {hit!r}" for hit in own[:1] or FOREIGN_PATH.findall(text)[:1]]


class Client(NotebookClient):
    """nbclient that says which cell runs, for how long, and how far its progress bar is."""

    title, total, line = "", 0, ""

    def show(self, text: str, end: str = "\n") -> None:
        live = sys.stdout.isatty()
        if live or end == "\n":
            width = shutil.get_terminal_size().columns - 1
            print(("\r\x1b[K" if live else "") + text[:width], end=end, flush=True)

    def process_message(self, msg, cell, cell_index):
        content = msg["content"]
        state = content.get("data", {}).get("state", {}) if msg["msg_type"] == "comm_msg" else {}
        text = state.get("value") if isinstance(state.get("value"), str) else content.get("text", "")
        frames = [f.strip() for f in re.split(r"[\r\n]", html.unescape(text)) if re.search(r"\d+/\d+ ", f)]
        if frames:
            self.show(f"{self.line} {frames[-1]}", end="")
        return super().process_message(msg, cell, cell_index)

    def started(self, cell, cell_index, **_):
        first = next((s for s in cell.source.splitlines() if s.strip() and not s.startswith("%")), "")
        self.line = f"{self.title} [{cell_index + 1:>2}/{self.total}] {first[:48]:<48}"
        self.clock = time.perf_counter()
        self.show(self.line, end="")

    def finished(self, cell, cell_index, **_):
        self.show(f"{self.line} {time.perf_counter() - self.clock:6.1f} s")


def run(path: Path, output: Path, timeout: int) -> list[str]:
    """Execute one notebook in its own folder, write the cleaned result to `output`, return its problems."""
    nb = nbformat.read(path, as_version=4)
    nb.metadata.pop("widgets", None)
    client = Client(nb, timeout=timeout, startup_timeout=120, kernel_name="python3", record_timing=False)
    client.title, client.total = path.stem, len(nb.cells)
    client.on_cell_execute, client.on_cell_executed = client.started, client.finished
    client.resources = {"metadata": {"path": str(path.parent)}}
    client.execute(env={**os.environ, "PYTHONHASHSEED": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1"})
    paths = machine_paths()
    nb = clean(nb, paths)
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_suffix(".part")
    nbformat.write(nb, draft)
    draft.replace(output)
    return problems(nb, paths)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--all", action="store_true", help="every chapter of _toc.yml")
    parser.add_argument("--output", type=Path, help="where to write (one notebook only); default: in place")
    parser.add_argument("--timeout", type=int, default=600, help="seconds a cell may take")
    args = parser.parse_args()
    todo = chapters() if args.all else [path.resolve() for path in args.notebooks]
    if not todo or (args.output and len(todo) > 1):
        parser.error("name a notebook, or --all; --output goes with one notebook")
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    failed = 0
    for path in todo:
        try:
            found = run(path, args.output or path, args.timeout)
        except (CellExecutionError, TimeoutError) as error:
            found = [str(error)]
        failed += bool(found)
        for line in found:
            print(f"{path.name}: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
