"""Notebooks that students hand in: a small lab, right and wrong answers in many shapes, and cheats."""

import json
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "labs"))

import release  # noqa: E402

STEPS = ("completion_mask", "logprobs_of", "perplexity")
MOST = 30


def lab():
    """Lab 1 with three of its steps and nothing beside them."""
    source = release.read(ROOT / "book/labs/source/lab1/lab1.ipynb")
    ids = {name for step in STEPS for name in (step, f"{step}-tests")}
    source.cells = [
        c
        for i, c in enumerate(source.cells)
        if i < 2 or c.metadata.get("nbgrader", {}).get("grade_id") in ids
    ]
    return source


def find(notebook, grade_id):
    """The cell of that id."""
    return next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)


def unanswered():
    """As it is handed out."""
    return release.student(lab())


def solved():
    """As a good student hands it in: her answers, the visible tests."""
    notebook, source = unanswered(), lab()
    for step in STEPS:
        find(notebook, step).source = find(source, step).source
    return notebook


def insert(notebook, source, at=2):
    """A cell more."""
    notebook.cells.insert(at, new_code_cell(source))
    return notebook


def append(notebook, source):
    return insert(notebook, source, len(notebook.cells))


def answer(step, source, notebook=None):
    """The solved notebook with another answer to one step."""
    notebook = notebook or solved()
    find(notebook, step).source = source
    return notebook


def without(notebook, *grade_ids):
    notebook.cells = [
        c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") not in grade_ids
    ]
    return notebook


def bare(notebook, ids=True):
    """Without cells' metadata, as some editors store it."""
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        if not ids:
            cell.id = nbformat.v4.nbbase.random_cell_id()
    notebook.metadata = nbformat.NotebookNode()
    return notebook


def copied(notebook, source, first=False):
    """Each graded cell twice, the copy with another text, the metadata the same."""
    cells = []
    for cell in notebook.cells:
        twice = [cell]
        if cell.metadata.get("nbgrader", {}).get("grade"):
            copy = cell.copy()
            copy.source, copy.id = source, cell.id + "x"
            twice = [copy, cell] if first else [cell, copy]
        cells += twice
    notebook.cells = cells
    return notebook


def edited(notebook, source):
    """Each graded cell with another text."""
    for step in STEPS:
        find(notebook, f"{step}-tests").source = source
    return notebook


def colab(notebook):
    """As Colab writes it: nbformat 4.0, no ids of cells, metadata of its own."""
    notebook.nbformat_minor = 0
    for number, cell in enumerate(notebook.cells):
        cell.metadata["id"] = f"aBcD{number}"
        cell.pop("id", None)
        if cell.cell_type == "code":
            cell.execution_count = number
            cell.outputs = [nbformat.v4.new_output("stream", text="x" * 1000)]
    notebook.metadata = nbformat.from_dict(
        {"colab": {"provenance": []}, "kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    return notebook


def vscode(notebook):
    """As VS Code writes it."""
    for cell in notebook.cells:
        cell.metadata["vscode"] = {"languageId": "python"}
    notebook.metadata = nbformat.from_dict({"language_info": {"name": "python", "version": "3.12.1"}})
    return notebook


def huge(notebook):
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="0123456789\n" * 3_000_000)]
    return append(notebook, "for i in range(300000): print('x' * 100)\nlist(range(1000000))")


IPYTHON = """
display(torch.ones(2))
print?
x = !echo hello
assert x == ["hello"]
%matplotlib inline
import asyncio
await asyncio.sleep(0)
y = (1
     != 2)
z = 7
w = (z
  % 3)
assert get_ipython() is not None
"""

RIGHT = {
    "as it is": solved,
    "helper cells": lambda: insert(append(solved(), "helper = 3"), "import math\ndef helper(x):\n    return x"),
    "text cells": lambda: solved() if False else _with_text(),
    "scratch: a graded cell copied, and it fails": lambda: copied(solved(), "check.check_perplexity(1)", first=True),
    "scratch: a graded cell copied behind, and it fails": lambda: copied(solved(), "raise ValueError"),
    "graded cells edited": lambda: edited(solved(), "1 / 0"),
    "graded cells deleted": lambda: without(solved(), *(f"{step}-tests" for step in STEPS)),
    "graded cells to text": lambda: _to_text(solved()),
    "metadata lost": lambda: bare(solved()),
    "metadata and ids lost": lambda: bare(solved(), ids=False),
    "double precision": lambda: insert(solved(), "torch.set_default_dtype(torch.float64)"),
    "IPython": lambda: insert(solved(), IPYTHON),
    "cell magics": lambda: insert(insert(solved(), "%%time\nq = 3"), "%%capture\nprint(1)"),
    "a line magic in an answer": lambda: answer("perplexity", "%matplotlib inline\n" + find(lab(), "perplexity").source),
    "Colab": lambda: colab(solved()),
    "VS Code": lambda: vscode(solved()),
    "huge outputs": lambda: huge(solved()),
    "exit at the end": lambda: append(solved(), "exit()"),
    "exit in the middle": lambda: insert(insert(solved(), "quit"), "import sys\nsys.exit(1)"),
    "an interrupt": lambda: insert(solved(), "raise KeyboardInterrupt"),
    "errors beside the steps": lambda: insert(insert(solved(), "1 / 0"), "def broken(:"),
    "input": lambda: insert(solved(), "name = input('Who are you?')"),
    "Colab's drive": lambda: insert(solved(), "from google.colab import drive\ndrive.mount('/content')"),
    "names of the graded cells": lambda: insert(solved(), "check = 3\nprint = None\n_ = 4"),
    "gradients off": lambda: insert(solved(), "torch.set_grad_enabled(False)"),
    "warnings are errors": lambda: insert(solved(), "import warnings\nwarnings.simplefilter('error')"),
    "a default device": lambda: insert(solved(), "torch.set_default_device('cpu')"),
    "a loop beside the steps": lambda: insert(solved(), "while True:\n    pass"),
    "a deaf loop beside the steps": lambda: insert(
        solved(), "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    ),
    "a dead process beside the steps": lambda: insert(solved(), "import os\nos._exit(0)"),
    "points edited": lambda: _with_points(solved()),
    "a child left behind": lambda: append(solved(), "import subprocess\nsubprocess.Popen(['sleep', '1000'])"),
    "an answer behind its own cell": lambda: _moved(solved()),
}  # fmt: skip

MASK = "def completion_mask(completion_ids, eos_id):\n    {}\n"

PARTLY = {  # what it is, and the steps that are lost
    "one wrong": (lambda: answer("perplexity", "def perplexity(logprobs, mask):\n    return logprobs"), {"perplexity"}),
    "endless": (lambda: answer("completion_mask", MASK.format("while True: pass")), {"completion_mask"}),
    "endless and deaf": (
        lambda: answer("completion_mask", MASK.format("while True:\n        try:\n            while True: pass\n"
                                                      "        except BaseException: pass")),
        {"completion_mask"},
    ),
    "endless in C": (
        lambda: answer("completion_mask", MASK.format("import re; re.match('(a+)+$', 'a' * 40 + 'b')")), {"completion_mask"},
    ),
    "asleep": (lambda: answer("completion_mask", MASK.format("import time; time.sleep(1e6)")), {"completion_mask"}),
    "hungry": (
        lambda: answer("completion_mask", MASK.format("x = []\n    while True: x.append(bytearray(10 ** 8))")), {"completion_mask"},
    ),
    "os._exit": (lambda: answer("completion_mask", MASK.format("import os; os._exit(0)")), {"completion_mask"}),
    "sys.exit": (lambda: answer("completion_mask", MASK.format("import sys; sys.exit(0)")), {"completion_mask"}),
    "SystemExit": (lambda: answer("completion_mask", MASK.format("raise SystemExit(0)")), {"completion_mask"}),
    "KeyboardInterrupt": (lambda: answer("completion_mask", MASK.format("raise KeyboardInterrupt")), {"completion_mask"}),
    "segmentation fault": (
        lambda: answer("completion_mask", MASK.format("import os, signal; signal.raise_signal(signal.SIGSEGV)")), {"completion_mask"},
    ),
    "bottomless": (
        lambda: answer("completion_mask", MASK.format("return completion_mask(completion_ids, eos_id)")), {"completion_mask"},
    ),
    "no Python": (lambda: answer("completion_mask", "def completion_mask(:"), {"completion_mask"}),
    "answer deleted": (lambda: without(solved(), "completion_mask"), {"completion_mask"}),
    "answer and test deleted": (lambda: without(solved(), "completion_mask", "completion_mask-tests"), {"completion_mask"}),
    "unanswered": (unanswered, set(STEPS)),
    "no cells of code": (lambda: _only_text(), set(STEPS)),
    "skipped": (lambda: answer("completion_mask", MASK.format("import unittest; raise unittest.SkipTest")), {"completion_mask"}),
}  # fmt: skip


def cheat(cell):
    """An unanswered lab with a cell in front of the steps."""
    return lambda: insert(unanswered(), cell)


def answers_with(body):
    """Answers that all do the same: a function of any arguments."""

    def notebook():
        made = unanswered()
        for step in STEPS:
            find(made, step).source = f"def {step}(*a, **k):\n" + "\n".join(
                "    " + line for line in body.splitlines()
            )
        return made

    return notebook  # fmt: skip


ANYTHING = "for name in {names}: globals()[name] = lambda *a, **k: torch.zeros(3)"
NONSENSE = "\ndef {0}(*a, **k):\n    return torch.zeros(3)"
FILL = "".join(NONSENSE.format(step) for step in STEPS)  # answers that are something, and wrong


def filled(before, behind=""):
    """Nonsense answers, with code in front of them and inside them."""
    return lambda: insert(answers_with(behind + "\nreturn torch.zeros(3)")(), before)


TAMPER = """
import torch, sys
from nanogrpo.teach import check
def yes(*a, **k): return True
def nothing(*a, **k): return None
"""
CHECKS = """
for name, module in list(sys.modules.items()):
    if name.startswith('nanogrpo.teach'):
        for key in list(vars(module)):
            if callable(vars(module)[key]) and not key.startswith('__'):
                setattr(module, key, nothing)
"""
PATCHES = {
    "rebinds check": "class check: pass\nfor n in 'completion_mask logprobs_of perplexity'.split(): setattr(check, 'check_' + n, nothing)",
    "empties the checks": CHECKS,
    "another module in sys.modules": "from unittest.mock import MagicMock\nfor n in [n for n in sys.modules if n.startswith('nanogrpo.teach')]: sys.modules[n] = MagicMock()",
    "compare of every module": "for n, m in list(sys.modules.items()):\n    if n.startswith('nanogrpo.teach') and hasattr(m, 'compare'): m.compare = nothing",
    "code of compare": "for n, m in list(sys.modules.items()):\n    if n.startswith('nanogrpo.teach') and hasattr(m, 'compare') and hasattr(m.compare, '__code__'): m.compare.__code__ = (lambda *a, **k: None).__code__",
    "closure of a check": "for n in 'completion_mask logprobs_of perplexity'.split():\n    for c in getattr(check, 'check_' + n).__closure__: c.cell_contents = nothing if callable(c.cell_contents) else 0",
    "torch's comparisons": "torch.isclose = torch.eq = torch.ne = lambda a, *b, **k: torch.ones(a.shape, dtype=torch.bool)\ntorch.allclose = torch.equal = yes\ntorch.testing.assert_close = nothing",
    "methods of tensors": "torch.Tensor.all = yes\ntorch.Tensor.any = lambda *a, **k: False\ntorch.Tensor.__eq__ = yes\ntorch.Tensor.ne = torch.Tensor.__ne__ = lambda a, *b: torch.zeros(a.shape, dtype=torch.bool)\ntorch.Tensor.item = lambda *a: 0.0",
    "Python's own functions": "import builtins\nbuiltins.bool = yes\nbuiltins.any = lambda *a: False\nbuiltins.all = yes\nbuiltins.isinstance = yes",
    "AssertionError": "import builtins\nclass E(Exception):\n    def __new__(c, *a): raise SystemExit\nbuiltins.AssertionError = E",
    "hidden names": "for n, m in list(sys.modules.items()):\n    if n.startswith('nanogrpo.teach'):\n        m.bool = yes; m.all = yes; m.any = lambda *a: False; m.range = lambda *a: []",
    "the package's own functions": "import nanogrpo.rollout as r\nr.completion_mask = r.logprobs_of = lambda *a, **k: torch.zeros(3)",
    "random numbers": "torch.rand = torch.randn = lambda *s, **k: torch.zeros(s)\ntorch.randint = lambda *a, **k: torch.zeros(a[2], dtype=torch.long)",
    "a mode of torch": "class M(torch.overrides.TorchFunctionMode):\n    def __torch_function__(self, f, types, args=(), kwargs=None):\n        return torch.tensor(True) if f in (torch.isclose, torch.Tensor.all) else f(*args, **(kwargs or {}))\nM().__enter__()",
    "IPython's hooks": "ip = get_ipython()\nip.input_transformers_post.append(lambda lines: ['pass\\n'])\nip.run_cell = nothing\nip.run_code = nothing\nip.ast_transformers.append(type('T', (), {'visit': lambda self, tree: __import__('ast').parse('pass')})())",
    "a trace": "import threading\nsys.settrace(lambda f, e, a: None)\nthreading.settrace(lambda *a: None)",
    "json and pickle": "import json, os\njson.dumps = lambda *a, **k: '{\"passed\": true}'\nos.write = lambda fd, b: 0",
    "a signal": "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "the exit of Python": "import atexit, os\natexit.register(lambda: os._exit(0))\nsys.excepthook = nothing",
    "forged lines": "import os\nfor fd in range(1, 64):\n    try: os.write(fd, b'end passed 80\\n{\"passed\": true}\\n')\n    except OSError: pass",
    "the grader's modules": "import nanogrpo.teach.grade.guard as g, nanogrpo.teach.grade.worker as w\ng.spoil = lambda x: None\ng.guarded = lambda *a, **k: (lambda *a, **k: None)\nw.Run = w.told = nothing\ng.Snapshot.restore = lambda self: []",
    "a kernel of torch": "L = torch.library.Library('aten', 'IMPL')\nL.impl('isclose', lambda *a, **k: torch.ones(a[0].shape, dtype=torch.bool), 'CPU')\nL.impl('all', lambda *a, **k: torch.tensor(True), 'CPU')",
    "a thread": "import threading, time\ndef spin():\n    while True:\n        torch.isclose = lambda a, *b, **k: torch.ones(a.shape, dtype=torch.bool); time.sleep(0.0005)\nthreading.Thread(target=spin, daemon=True).start()",
    "CheckFailed": "from nanogrpo.teach.check import CheckFailed\nCheckFailed.__init__ = nothing\nCheckFailed.__new__ = lambda *a, **k: (_ for _ in ()).throw(SystemExit(0))",
}  # fmt: skip

INSIDE = {  # what an answer does when it is called; it returns zeros
    "empties the checks when called": "import sys\ndef nothing(*a, **k): return None" + CHECKS,
    "empties the checks when called, for once": '''
import sys
for name, module in list(sys.modules.items()):
    if name.startswith('nanogrpo.teach') and hasattr(module, 'compare'):
        before = module.compare
        def once(*a, module=module, before=before, **k): module.compare = before
        module.compare = once''',
    "torch's comparisons when called": "torch.isclose = lambda a, *b, **k: torch.ones(a.shape, dtype=torch.bool)",
    "its caller's variables": "import sys\nf = sys._getframe(1)\nwhile f:\n    for v in ('expected', 'right', 'want'):\n        if v in f.f_locals: return f.f_locals[v]\n    f = f.f_back",
    "its caller's functions": "import sys\nf = sys._getframe(1)\nwhile f:\n    if 'compare' in f.f_globals: f.f_globals['compare'] = lambda *a, **k: None\n    f = f.f_back",
    "a traceback's frames": "try: 1 / 0\nexcept Exception as e: f = e.__traceback__.tb_frame\nwhile f:\n    if 'compare' in f.f_globals: f.f_globals['compare'] = lambda *a, **k: None\n    f = f.f_back",
    "inspect": "import inspect\nfor i in inspect.stack():\n    if 'compare' in i.frame.f_globals: i.frame.f_globals['compare'] = lambda *a, **k: None",
    "the memory": "import gc\nfor o in gc.get_objects():\n    if callable(o) and getattr(o, '__name__', '') == 'compare': o.__code__ = (lambda *a, **k: None).__code__",
    "a tensor of its own": "class T(torch.Tensor):\n    @classmethod\n    def __torch_function__(c, f, t, a=(), k=None): return torch.tensor(True)\nreturn torch.zeros(3).as_subclass(T)",
    "an object that equals all": "class A:\n    shape = property(lambda s: s)\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    def __bool__(s): return True\n    def __getattr__(s, n): return lambda *a, **k: s\nreturn A()",
    "a skip": "import unittest\nraise unittest.SkipTest('passed')",
    "a good end": "import os\nos.write(1, b'passed'); os._exit(0)",
    "the parent's end": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
}  # fmt: skip

CHEATS = {
    "copies of graded cells that pass": lambda: copied(unanswered(), "pass"),
    "copies before": lambda: copied(unanswered(), "pass", first=True),
    "graded cells that pass": lambda: edited(unanswered(), "pass"),
    "graded cells that print": lambda: edited(unanswered(), 'print("Passed: the ratio knows where the batch came from.")'),
    "graded cells deleted": lambda: without(unanswered(), *(f"{step}-tests" for step in STEPS)),
    "graded cells to text": lambda: _to_text(unanswered()),
    "graded cells for all points": lambda: _with_points(edited(unanswered(), "pass")),
    "graded cells of other ids": lambda: _other_ids(unanswered()),
    "metadata lost": lambda: bare(edited(unanswered(), "pass"), ids=False),
    "stored outputs": lambda: colab(unanswered()),
    "a package beside it": cheat("%%writefile torch.py\nraise SystemExit(0)"),
    "results beside it": cheat("import json\njson.dump({'score': 80}, open('results.json', 'w'))"),
    **{name: filled(TAMPER + code) for name, code in PATCHES.items()},
    **{name: filled("import torch", code) for name, code in INSIDE.items()},
    "all at once": filled(TAMPER + "\n".join(PATCHES[n] for n in ("empties the checks", "torch's comparisons")), INSIDE["empties the checks when called"]),
}  # fmt: skip


def _with_text():
    notebook = solved()
    notebook.cells.insert(3, new_markdown_cell("# My notes\n\n" * 10))
    return notebook


def _only_text():
    notebook = unanswered()
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    return notebook


def _to_text(notebook):
    for index, cell in enumerate(notebook.cells):
        if cell.metadata.get("nbgrader", {}).get("grade"):
            notebook.cells[index] = new_markdown_cell(cell.source, metadata=cell.metadata, id=cell.id)
    return notebook


def _with_points(notebook):
    for step in STEPS:
        find(notebook, f"{step}-tests").metadata.nbgrader.points = 1000
    return notebook


def _other_ids(notebook):
    for step in STEPS:
        cell = find(notebook, f"{step}-tests")
        cell.metadata.nbgrader.grade_id, cell.source, cell.id = f"{step}-other", "pass", f"other-{step}"
    return notebook


def _moved(notebook):
    """The answer stands in a cell of the student's own, right behind the untouched one."""
    cell = find(notebook, "completion_mask")
    own = new_code_cell(cell.source)
    notebook.cells.insert(notebook.cells.index(cell) + 1, own)
    cell.source = find(unanswered(), "completion_mask").source
    return notebook


def write(notebook, path):
    """Store it as it is, however odd."""
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path
