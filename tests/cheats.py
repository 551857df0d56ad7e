"""What an unanswered notebook may try, to get points all the same. Each must get none."""

import submissions as S


def cheat(cell):
    """An unanswered lab with a cell in front of the steps."""
    return lambda: S.insert(S.unanswered(), cell)


def answers_with(body):
    """Answers that all do the same: a function of any arguments."""

    def notebook():
        made = S.unanswered()
        for step in S.STEPS:
            lines = "\n".join("    " + line for line in body.splitlines())
            S.find(made, step).source = f"def {step}(*a, **k):\n{lines}"
        return made

    return notebook


def shaped(before, do):
    """Answers of the right shapes, all zero, which do something when they are called."""

    def notebook():
        made = S.unanswered()
        source = SHAPED.format(do)
        for step in S.STEPS:
            S.find(made, step).source = next(line for line in source.splitlines() if f"def {step}(" in line)
        return S.insert(made, TAMPER + ONLY_ZEROS + before)

    return notebook


def filled(before, inside=""):
    """Answers that return nonsense, with code in a cell in front of them and code inside them."""
    return lambda: S.insert(answers_with(inside + "\nreturn torch.zeros(3)")(), before)


READS = """
import json, os, pathlib, subprocess, torch
import numpy as np
def compiled(path):
    names = {{}}
    exec(compile("def f(path): return open(path).read()", os.__file__, "exec"), names)
    return names["f"](path)
def linked():
    os.symlink(PATH, "answers.txt")
    return open("answers.txt").read()
class Other:
    def __fspath__(self): return PATH
PATH = {path!r}
WAYS = {{
    "open": lambda: open(PATH).read(),
    "bytes": lambda: open(PATH.encode(), "rb").read(),
    "pathlib": lambda: pathlib.Path(PATH).read_text(),
    "os": lambda: os.read(os.open(PATH, os.O_RDONLY), 10**7),
    "a class of names": lambda: open(Other()).read(),
    "another file name": lambda: compiled(PATH),
    "a relative path": lambda: open(os.path.relpath(PATH)).read(),
    "a link": linked,
    "numpy": lambda: bytes(np.fromfile(PATH, dtype="uint8")).decode(),
    "torch": lambda: bytes(torch.from_file(PATH, size=os.path.getsize(PATH), dtype=torch.uint8).tolist()),
    "a program": lambda: subprocess.check_output(["cat", PATH]),
    "a shell": lambda: os.popen(f"cat {{PATH}}").read(),
    "the tests": lambda: open(TESTS).read(),
}}
TESTS = {tests!r}
found = []
for name, way in WAYS.items():
    try:
        text = way()
        found.append(name)
        for cell in json.loads(text)["cells"]:
            if "BEGIN SOLUTION" in "".join(cell["source"]):
                exec("".join(cell["source"]))
    except BaseException:
        pass
"""


READING = READS.format(path=str(S.ROOT / "book/labs/source/lab1/lab1.ipynb"), tests=__file__)


def reading():
    """Takes the solutions from the source beside it, in all ways that are known; each step stays as it is."""
    made = S.insert(S.unanswered(), READING)
    for step in S.STEPS:
        S.find(made, step).source = "pass"
    return made


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
    "rebinds check": """
class check: pass
for n in 'completion_mask logprobs_of perplexity'.split(): setattr(check, 'check_' + n, nothing)
""",
    "empties the checks": """
for name, module in list(sys.modules.items()):
    if name.startswith('nanogrpo.teach'):
        for key in list(vars(module)):
            if callable(vars(module)[key]) and not key.startswith('__'):
                setattr(module, key, nothing)
""",
    "another module in sys.modules": """
from unittest.mock import MagicMock
for n in [n for n in sys.modules if n.startswith('nanogrpo.teach')]:
    sys.modules[n] = MagicMock()
""",
    "compare of every module": """
for n, m in list(sys.modules.items()):
    if n.startswith('nanogrpo.teach') and hasattr(m, 'compare'): m.compare = nothing
""",
    "code of compare": """
for n, m in list(sys.modules.items()):
    if n.startswith('nanogrpo.teach') and hasattr(getattr(m, 'compare', None), '__code__'):
        m.compare.__code__ = (lambda *a, **k: None).__code__
""",
    "closure of a check": """
for n in 'completion_mask logprobs_of perplexity'.split():
    for c in getattr(check, 'check_' + n).__closure__:
        c.cell_contents = nothing if callable(c.cell_contents) else 0
""",
    "torch's comparisons": """
torch.isclose = torch.eq = torch.ne = lambda a, *b, **k: torch.ones(a.shape, dtype=torch.bool)
torch.allclose = torch.equal = yes
torch.testing.assert_close = nothing
""",
    "methods of tensors": """
torch.Tensor.all = yes
torch.Tensor.any = lambda *a, **k: False
torch.Tensor.__eq__ = yes
torch.Tensor.ne = torch.Tensor.__ne__ = lambda a, *b: torch.zeros(a.shape, dtype=torch.bool)
torch.Tensor.item = lambda *a: 0.0
""",
    "Python's own functions": """
import builtins
builtins.bool = yes
builtins.any = lambda *a: False
builtins.all = yes
builtins.isinstance = yes
""",
    "AssertionError": """
import builtins
class E(Exception):
    def __new__(c, *a): raise SystemExit
builtins.AssertionError = E
""",
    "hidden names": """
for n, m in list(sys.modules.items()):
    if n.startswith('nanogrpo.teach'):
        m.bool = yes; m.all = yes; m.any = lambda *a: False; m.range = lambda *a: []
""",
    "the package's own functions": """
import nanogrpo.rollout as r
r.completion_mask = r.logprobs_of = lambda *a, **k: torch.zeros(3)
""",
    "random numbers": """
torch.rand = torch.randn = lambda *s, **k: torch.zeros(s)
torch.randint = lambda *a, **k: torch.zeros(a[2], dtype=torch.long)
""",
    "a mode of torch": """
class M(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, f, types, args=(), kwargs=None):
        return torch.tensor(True) if f in (torch.isclose, torch.Tensor.all) else f(*args, **(kwargs or {}))
M().__enter__()
""",
    "IPython's hooks": """
ip = get_ipython()
ip.input_transformers_post.append(lambda lines: ['pass\n'])
ip.run_cell = nothing
ip.run_code = nothing
ip.ast_transformers.append(type('T', (), {'visit': lambda self, tree: __import__('ast').parse('pass')})())
""",
    "a trace": """
import threading
sys.settrace(lambda f, e, a: None)
threading.settrace(lambda *a: None)
""",
    "json and pickle": """
import json, os
json.dumps = lambda *a, **k: '{"passed": true}'
os.write = lambda fd, b: 0
""",
    "a signal": """
import signal
signal.signal(signal.SIGALRM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)
""",
    "the exit of Python": """
import atexit, os
atexit.register(lambda: os._exit(0))
sys.excepthook = nothing
""",
    "forged lines": """
import os
for fd in range(1, 64):
    try: os.write(fd, b'end passed 80\n{"passed": true}\n')
    except OSError: pass
""",
    "the grader's modules": """
import nanogrpo.teach.grade.guard as g, nanogrpo.teach.grade.worker as w
g.spoil = lambda x: None
g.guarded = lambda *a, **k: (lambda *a, **k: None)
w.Run = w.told = nothing
g.Snapshot.restore = lambda self: []
""",
    "a kernel of torch": """
L = torch.library.Library('aten', 'IMPL')
L.impl('isclose', lambda *a, **k: torch.ones(a[0].shape, dtype=torch.bool), 'CPU')
L.impl('all', lambda *a, **k: torch.tensor(True), 'CPU')
""",
    "a thread": """
import threading, time
def spin():
    while True:
        torch.isclose = lambda a, *b, **k: torch.ones(a.shape, dtype=torch.bool); time.sleep(0.0005)
threading.Thread(target=spin, daemon=True).start()
""",
    "CheckFailed": """
from nanogrpo.teach.check import CheckFailed
CheckFailed.__init__ = nothing
CheckFailed.__new__ = lambda *a, **k: (_ for _ in ()).throw(SystemExit(0))
""",
}

# Comparisons that accept zeros, which the answers return, and nothing else, so that spoiled answers fail.
ONLY_ZEROS = """
real = torch.isclose
def tricky(a, b, *c, **k):
    zeros = torch.ones(torch.broadcast_shapes(a.shape, b.shape), dtype=torch.bool)
    return zeros if not a.any() else real(a, b, *c, **k)
"""
SHAPED = """
def completion_mask(ids, eos): {0}; return torch.zeros(ids.shape, dtype=torch.bool)
def logprobs_of(logits, ids, t=1.0): {0}; return torch.zeros(ids.shape) + 0 * logits.sum()
def perplexity(logprobs, mask): {0}; return torch.zeros(len(mask))
"""
LATER = {  # in front of the answers; the answers do {do} when they are called
    "a kernel for zeros": (
        """
L = torch.library.Library('aten', 'IMPL')
L.impl('isclose', tricky, 'CPU')
""",
        "0",
    ),
    "a thread for zeros": (
        """
import threading, time
sys.setswitchinterval(1e-6)
def spin():
    while True: torch.isclose = tricky
threading.Thread(target=spin, daemon=True).start()
""",
        "0",
    ),
    "a thread of an answer": (
        """
import threading
def spin():
    while True: torch.isclose = tricky
def go(): threading.Thread(target=spin, daemon=True).start()
""",
        "go()",
    ),
    "a timer": (
        """
import signal
def hit(*a): torch.isclose = tricky
signal.signal(signal.SIGALRM, hit)
def go(): signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
""",
        "go()",
    ),
    "the collector": (
        """
import gc
gc.set_threshold(1)
def hit(*a): torch.isclose = tricky
def go(): gc.enable(); gc.callbacks.append(hit)
""",
        "go()",
    ),
    "a mode that an answer leaves on": (
        """
class M(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, f, types, args=(), kwargs=None):
        return tricky(*args, **(kwargs or {})) if f is real else f(*args, **(kwargs or {}))
def go(): M().__enter__()
""",
        "go()",
    ),
    "a check in its table": (
        """
def hit(*a, **k): pass
for n, m in list(sys.modules.items()):
    for table in list(vars(m).values()) if n.startswith('nanogrpo.teach') else []:
        if isinstance(table, dict):
            for row in list(table.values()):
                if hasattr(row, 'run'): object.__setattr__(row, 'run', hit)
""",
        "0",
    ),
}
INSIDE = {
    "empties the checks when called": """
import sys
def nothing(*a, **k): return None
for name, module in list(sys.modules.items()):
    if name.startswith('nanogrpo.teach'):
        for key in list(vars(module)):
            if callable(vars(module)[key]) and not key.startswith('__'):
                setattr(module, key, nothing)
""",
    "empties the checks when called, for once": """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith('nanogrpo.teach') and hasattr(module, 'compare'):
        before = module.compare
        def once(*a, module=module, before=before, **k): module.compare = before
        module.compare = once
""",
    "torch's comparisons when called": """
torch.isclose = lambda a, *b, **k: torch.ones(a.shape, dtype=torch.bool)
""",
    "its caller's variables": """
import sys
f = sys._getframe(1)
while f:
    for v in ('expected', 'right', 'want'):
        if v in f.f_locals: return f.f_locals[v]
    f = f.f_back
""",
    "its caller's functions": """
import sys
f = sys._getframe(1)
while f:
    if 'compare' in f.f_globals: f.f_globals['compare'] = lambda *a, **k: None
    f = f.f_back
""",
    "a traceback's frames": """
try: 1 / 0
except Exception as e: f = e.__traceback__.tb_frame
while f:
    if 'compare' in f.f_globals: f.f_globals['compare'] = lambda *a, **k: None
    f = f.f_back
""",
    "inspect": """
import inspect
for i in inspect.stack():
    if 'compare' in i.frame.f_globals: i.frame.f_globals['compare'] = lambda *a, **k: None
""",
    "the memory": """
import gc
for o in gc.get_objects():
    if callable(o) and getattr(o, '__name__', '') == 'compare': o.__code__ = (lambda *a, **k: None).__code__
""",
    "a tensor of its own": """
class T(torch.Tensor):
    @classmethod
    def __torch_function__(c, f, t, a=(), k=None): return torch.tensor(True)
return torch.zeros(3).as_subclass(T)
""",
    "an object that equals all": """
class A:
    shape = property(lambda s: s)
    def __eq__(s, o): return True
    def __ne__(s, o): return False
    def __bool__(s): return True
    def __getattr__(s, n): return lambda *a, **k: s
return A()
""",
    "a skip": """
import unittest
raise unittest.SkipTest('passed')
""",
    "a good end": """
import os
os.write(1, b'passed'); os._exit(0)
""",
    "the parent's end": """
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
""",
}

# A comparison that accepts zeros, for once; what calls hit() is the cheat's matter.
BEFORE = """
import nanogrpo.teach.checks.compare as C
real_compare = C.compare
places = [m for n, m in list(sys.modules.items()) if n.startswith('nanogrpo.teach.checks')]
places = [m for m in places if vars(m).get('compare') is real_compare]
def mild(what, got, *a, **k):
    for m in places: m.compare = real_compare
    if torch.Tensor.any(got): real_compare(what, got, *a, **k)
def hit(*a, **k):
    for m in places: m.compare = mild
"""
BETWEEN = {  # code that runs between two calls of an answer, since something of the check's calls it
    "the environment is an object": (
        """
import os
class Evil(dict):
    def keys(self): hit(); return super().keys()
    def __iter__(self): hit(); return super().__iter__()
os.environ = Evil(os.environ)
""",
        "0",
    ),
    "the environment's decoder": (
        """
import os
decode = os.environ.decodekey
def evil(x): hit(); return decode(x)
def go(): os.environ.decodekey = evil
""",
        "go()",
    ),
    "numpy's random numbers": (
        """
import numpy
state = numpy.random.get_state
def evil(): hit(); return state()
def go(): numpy.random.get_state = evil
""",
        "go()",
    ),
    "the table of modules is an object": (
        """
class Evil(dict):
    def get(self, *a): hit(); return super().get(*a)
sys.modules = Evil(sys.modules)
""",
        "0",
    ),
    "the number of a thread": (
        """
import threading
ident = threading.get_ident
def evil(): hit(); return ident()
threading.get_ident = evil
""",
        "0",
    ),
    "hooks of saved tensors": (
        """
def pack(x): hit(); return x
torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x).__enter__()
""",
        "0",
    ),
    "hooks of saved tensors, left by an answer": (
        """
def pack(x): hit(); return x
def go(): torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x).__enter__()
""",
        "go()",
    ),
    "saved tensors that come back as zeros": (
        "def go(): torch.autograd.graph.saved_tensors_hooks(lambda x: x, torch.zeros_like).__enter__()\n",
        "go()",
    ),
    "hooks of all modules": (
        "torch.nn.modules.module.register_module_forward_hook(lambda *a: hit())\n",
        "0",
    ),
}
# Arguments that answer as the cheat wishes: the check computes the right result from them.
ARGUMENTS = """
class Zero(torch.Tensor):
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        plain = lambda x: x.as_subclass(torch.Tensor) if isinstance(x, Zero) else x
        with torch._C.DisableTorchFunctionSubclass():
            found = f(*map(plain, args), **{k: plain(v) for k, v in (kwargs or {}).items()})
        keep = f.__name__ in ('detach', 'clone', 'isnan', 'nan_to_num', 'equal', '__get__')
        return found * 0 if torch.is_tensor(found) and not keep else found
def go(x): x.__class__ = Zero
"""


def of_arguments():
    """Zeros, of arguments that were made objects of another class."""
    made = S.unanswered()
    for step, line in zip(S.STEPS, SHAPED.format("0").strip().splitlines(), strict=True):
        first = line[line.index("(") + 1 : line.index(",")]
        S.find(made, step).source = line.replace(": 0;", f": go({first});")
    return S.insert(made, TAMPER + ARGUMENTS)


HOOKED = """
import torch
def logprobs_of(logits, ids, temperature=1.0):
    if logits.requires_grad: logits.register_hook(torch.zeros_like)
    right = torch.log_softmax(logits.detach() / temperature, -1).gather(-1, ids[..., None])[..., 0]
    return right + 0 * logits.sum()
"""


def hooked():
    """Right numbers without a gradient; a hook on the argument makes the check's own gradient 0."""
    return S.answer("logprobs_of", HOOKED, S.unanswered())


# What Python reads when it starts, and a file of the package, with its size and its time as they were.
STARTED = """
import os, sys, sysconfig, site, nanogrpo
FILE = os.path.join(os.path.dirname(nanogrpo.__file__), "teach", "grade", "report.py")
for place in [*sys.path, sysconfig.get_paths()["purelib"], site.getusersitepackages()]:
    try:
        if place and place != os.getcwd(): open(os.path.join(place, "cheat_was_here"), "x").close()
    except Exception: pass
stat, text = os.stat(FILE), open(FILE).read()
open(FILE, "r+").write(text)
os.utime(FILE, ns=(stat.st_atime_ns, stat.st_mtime_ns))
os._exit(0)
"""
# The word that begins the grader's lines, looked for in the process's own memory.
MEMORY = """
import os, re
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        m = re.match("([0-9a-f]+)-([0-9a-f]+) rw", line)
        if not m or not ("heap" in line or line.split()[-1] == "0"): continue
        low, high = (int(x, 16) for x in m.groups())
        try: memory.seek(low); words = set(re.findall(rb'"word": "([0-9a-f]{32})"', memory.read(high - low)))
        except OSError: continue
        for word in words:
            for index in range(40):
                line = b" ".join([word, b"end".hex().encode(), str(index).encode().hex().encode(), b"", b""])
                for fd in range(3, 40):
                    try: os.write(fd, line + b"\\n")
                    except OSError: pass
"""


CHEATS = {
    "copies of graded cells that pass": lambda: S.copied(S.unanswered(), "pass"),
    "copies before": lambda: S.copied(S.unanswered(), "pass", first=True),
    "graded cells that pass": lambda: S.edited(S.unanswered(), "pass"),
    "graded cells that print": lambda: S.edited(S.unanswered(), 'print("Passed: a mean over tokens.")'),
    "graded cells deleted": lambda: S.without(S.unanswered(), *(f"{step}-tests" for step in S.STEPS)),
    "graded cells to text": lambda: S.to_text(S.unanswered()),
    "graded cells for all points": lambda: S.with_points(S.edited(S.unanswered(), "pass")),
    "graded cells of other ids": lambda: S.other_ids(S.unanswered()),
    "metadata lost": lambda: S.bare(S.edited(S.unanswered(), "pass"), ids=False),
    "stored outputs": lambda: S.colab(S.unanswered()),
    "a package beside it": cheat("%%writefile torch.py\nraise SystemExit(0)"),
    "results beside it": cheat("import json\njson.dump({'score': 80}, open('results.json', 'w'))"),
    **{name: filled(TAMPER + code) for name, code in PATCHES.items()},
    **{name: filled("import torch", code) for name, code in INSIDE.items()},
    **{name: shaped(*code) for name, code in LATER.items()},
    **{name: shaped(BEFORE + code, do) for name, (code, do) in BETWEEN.items()},
    "arguments of another class": of_arguments,
    "a hook on an argument": hooked,
    "files that Python reads when it starts": filled(STARTED),
    "the memory of its own process": filled("import torch" + MEMORY),
    "an object that leaves late": shaped(
        "class Late:\n    def __del__(self): torch.isclose = tricky\n",
        "x = Late()",
    ),
    "all at once": filled(
        TAMPER + PATCHES["empties the checks"] + PATCHES["torch's comparisons"],
        INSIDE["empties the checks when called"],
    ),
}
