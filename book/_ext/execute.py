"""Run chapters and store their outputs, so that two runs give the same bytes.

    python book/_ext/execute.py --all                                  every chapter of _toc.yml, in place
    python book/_ext/execute.py book/quickstart.ipynb --output copy.ipynb   one chapter, into a copy

A diff of a chapter then shows what a change did, and nothing else (see clean.py). A chapter is refused if an
output names a path of this machine, or if a figure has no alt text. With --all, chapters that read tiny
Shakespeare, or run TRL, keep their outputs where it cannot be had.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import yaml
from clean import clean, machine_paths, problems
from corpus import use_copy_beside
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from needs import lacking

ROOT = Path(__file__).resolve().parents[2]


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks of the table of contents, in reading order. Labs are no chapters: students run them."""

    def files(node):
        if isinstance(node, dict):
            own = [node[key] for key in ("root", "file") if key in node]
            return own + [f for value in node.values() for f in files(value)]
        return [f for item in node for f in files(item)] if isinstance(node, list) else []

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    paths = [root / re.sub(r"(\.ipynb)?$", ".ipynb", name, count=1) for name in files(toc)]
    return [path for path in paths if path.exists() and path.parent.name != "labs"]


# A figure is stored as a drawing, which the page gives its own colors and width (figures.py). The settings
# are those of the kernel and of no cell, so that on Colab a reader's figures are what Jupyter makes of them.
DRAWN = ["--InlineBackend.figure_formats=svg"]
DRAWN_SETTINGS = {"MATPLOTLIBRC": str(Path(__file__).with_name("matplotlibrc"))}


class Client(NotebookClient):
    """nbclient that says which cell runs, for how long, and how far its progress bar is."""

    title, total, head = "", 0, ""

    def show(self, text: str, end: str = "\n") -> None:
        live = sys.stdout.isatty()
        if live or end == "\n":
            width = shutil.get_terminal_size().columns - 1
            print(("\r\x1b[K" if live else "") + text[:width], end=end, flush=True)

    def process_message(self, msg, cell, cell_index):
        content = msg["content"]
        if msg["msg_type"] == "comm_close":  # a closed widget leaves no state behind
            self.widget_state.pop(content["comm_id"], None)
        lines = re.split(r"[\r\n]", content.get("text", ""))
        frames = [line.strip() for line in lines if re.search(r"\d+/\d+\s", line)]
        if frames:
            self.show(f"{self.head} {frames[-1]}", end="")
        return super().process_message(msg, cell, cell_index)

    def started(self, cell, cell_index, **_):
        first = next((s for s in cell.source.splitlines() if s.strip() and not s.startswith("%")), "")
        self.head = f"{self.title} [{cell_index + 1:>2}/{self.total}]"
        self.line = f"{self.head} {first[:44]:<44}"
        self.clock = time.perf_counter()
        self.show(self.line, end="")

    def finished(self, cell, cell_index, **_):
        self.show(f"{self.line} {time.perf_counter() - self.clock:6.1f} s")


def kernels() -> dict[str, str]:
    """Settings with which x86 processors of different makes and years round alike: all take what AVX2 has.

    A convenience where outputs are stored and compared, so that a diff shows what a change did. Comparisons
    do not rest on it: other processors round otherwise (see tests/tolerance.py). Both settings are needed.
    """
    import torch

    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return {}  # another make, one older than AVX2, or told to take plainer kernels
    return {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def run(path: Path, output: Path, timeout: int) -> list[str]:
    """Execute one notebook in its own folder, write the cleaned result to `output`, return its problems."""
    nb = nbformat.read(path, as_version=4)
    nb.metadata.pop("widgets", None)
    client = Client(nb, timeout=timeout, startup_timeout=120, kernel_name="python3", record_timing=False)
    client.title, client.total = path.stem, len(nb.cells)
    client.on_cell_execute, client.on_cell_executed = client.started, client.finished
    client.resources, client.extra_arguments = {"metadata": {"path": str(path.parent)}}, DRAWN
    settings = {**DRAWN_SETTINGS, "PYTHONHASHSEED": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    environment = {**kernels(), **os.environ, **settings}
    # With a terminal behind its stderr, tqdm would draw its bar as wide as that terminal.
    with tempfile.TemporaryFile() as log:
        try:
            client.execute(env=environment, stdout=log, stderr=log)
        except DeadKernelError as error:
            log.seek(0)
            raise DeadKernelError(f"{error}\n{log.read().decode(errors='replace')}") from error
    paths = machine_paths(ROOT)
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
    parser.add_argument("--able", action="store_true", help="of those named, what can run here")
    parser.add_argument("--output", type=Path, help="where to write (one notebook only); default: in place")
    parser.add_argument("--timeout", type=int, default=600, help="seconds a cell may take")
    args = parser.parse_args()
    todo = chapters() if args.all else [path.resolve() for path in args.notebooks]
    if not (todo or args.all) or (args.output and len(todo) > 1):
        parser.error("name a notebook, or --all; --output goes with one notebook")
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    use_copy_beside()
    choose = args.all or args.able
    kept = {path: reason for path in todo if choose and (reason := lacking(path))}
    failed = 0
    for path in (path for path in todo if path not in kept):
        try:
            found = run(path, args.output or path, args.timeout)
        except (CellExecutionError, DeadKernelError, TimeoutError) as error:
            found = [str(error)]
        failed += bool(found)
        for line in found:
            print(f"{path.name}: {line}", file=sys.stderr)
    for reason in dict.fromkeys(kept.values()):
        names = ", ".join(path.stem for path, why in kept.items() if why == reason)
        print(f"Kept the stored outputs of {names}. {reason}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
