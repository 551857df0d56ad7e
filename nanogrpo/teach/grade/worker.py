"""The process that runs one notebook: ``python -m nanogrpo.teach.grade.worker``, started by :mod:`.process`.

It reads the cells from its standard input, and writes a line when a cell begins and one when it ends. Each
line carries a word that only the two processes know, so a notebook cannot write one. This file keeps nothing
in modules that a notebook could import.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import random
import sys
import warnings

import torch

CELL = "<cell "  # what the file name of a student's code begins with


def channel(word: str):
    """Write to the starting process, which from now on nothing else can: prints go nowhere."""
    private, nothing, write = os.dup(1), os.open(os.devnull, os.O_RDWR), os.write
    for number in (0, 1, 2):
        os.dup2(nothing, number)

    def tell(*what) -> None:
        write(
            private,
            (
                " ".join([word, *(str(part).encode("utf-8", "replace").hex() for part in what)]) + "\n"
            ).encode(),
        )

    return tell


def limit_memory(gigabytes: float) -> None:
    """Let this process take that much more than it has; where the system knows no such limit, nothing."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            has = int(file.read().split()[0]) * resource.getpagesize()
        most = has + int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, OSError, ValueError):
        pass


def student_shell():
    """IPython as a notebook has it, without history and without a terminal."""
    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    class Shell(InteractiveShell):
        def ask_exit(self):
            """A notebook goes on after `exit`."""

        def enable_gui(self, gui=None):
            pass

    class Quiet(DisplayPublisher):
        def publish(self, data, metadata=None, **options):
            pass

    class Silent(DisplayHook):
        def compute_format_data(self, result):
            return {}, {}

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    return Shell.instance(config=config, display_pub_class=Quiet, displayhook_class=Silent)


def imports(sources: list[str]) -> dict:
    """What the source's own cells import, done before anything else: a graded cell gets it from here."""
    from IPython.core.inputtransformer2 import TransformerManager

    names = {"__name__": "graded", "__builtins__": __builtins__}
    for source in sources:
        tree = ast.parse(TransformerManager().transform_cell(source))  # without %pip and the like
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, "<source>", "exec"), names)
    return names


def caller_watch(found: set, package: str):
    """A profile function that notes which of the package's functions a student's code calls itself."""

    def watch(frame, event, argument):
        code, back = frame.f_code, frame.f_back
        if event != "call" or not code.co_filename.startswith(package) or back is None:
            return
        direct = back.f_code.co_filename.startswith(CELL) or back.f_code.co_filename.endswith("results.py")
        if direct and os.sep + "teach" + os.sep not in code.co_filename:
            module = os.path.relpath(code.co_filename, package).removesuffix(".py").replace(os.sep, ".")
            found.add(f"{module}.{getattr(code, 'co_qualname', code.co_name)}")

    return watch


def told(error: BaseException) -> str:
    """An error in words."""
    if isinstance(error, KeyboardInterrupt):
        return "the time limit"
    text = str(error)[:2000]
    return text if type(error).__name__ == "CheckFailed" else f"{type(error).__name__}: {text}"


class Run:
    """One notebook, cell by cell."""

    def __init__(self, job: dict):
        import nanogrpo.teach
        from nanogrpo.teach.grade import files, guard, results

        for name in [name for name in sys.modules if name.startswith("nanogrpo.teach.grade")]:
            del sys.modules[name]
        del nanogrpo.teach.grade
        self.guard, self.results, self.package = guard, results, os.path.dirname(nanogrpo.__file__) + os.sep
        self.trusted = imports(job["imports"])
        self.shell = student_shell()
        self.shell.compile.get_code_name = lambda raw, code, number: f"{CELL}{number}>"
        guard.forbid(lambda name: name.startswith((CELL, "<string>", "<stdin>")))
        self.refused = files.close(self.package)
        self.all, self.near = guard.Snapshot(), guard.Snapshot(near=True)
        limit_memory(job["memory"])

    def student(self, source: str) -> str:
        """Run a student's cell; what went wrong, or nothing."""
        result = self.shell.run_cell(source, store_history=True)
        error = result.error_before_exec or result.error_in_exec
        return told(error) if error is not None else ""

    def graded(self, source: str, given: list[str], watched: bool) -> tuple[str, str]:
        """Run a graded cell: what went wrong, or nothing; and what is worth a look."""
        self.guard.calm()
        changed = self.all.restore()
        called: set[str] = set()
        watch = caller_watch(called, self.package) if watched else None
        turns = [False, True]  # an honest run, and one with spoiled answers, in an order that nobody knows
        random.SystemRandom().shuffle(turns)
        said = {}
        for spoiled in turns:
            said[spoiled] = self._once(source, given, spoiled, watch)
            if isinstance(said[spoiled], KeyboardInterrupt) or (spoiled is False and said[spoiled]):
                break
        notes = [f"replaced {', '.join(sorted(set(changed))[:5])}"] if changed else []
        notes += [f"calls {', '.join(sorted(called))}"] if called else []
        notes += [f"wanted to open {name}" for name in self.refused()[:3]]
        failed = said.get(False) or (said.get(True) if False not in said else None)
        if failed is None and said.get(True) is None:
            failed = RuntimeError("the check was made to accept anything: spoiled answers pass it, too")
        return (told(failed) if failed is not None else ""), "; ".join(notes)

    def _once(self, source: str, given: list[str], spoiled: bool, watch) -> BaseException | None:
        names, own = dict(self.trusted), self.shell.user_ns
        for name in given:
            names.pop(name, None)
            if name in own:
                names[name] = self.results.guarded(own[name], self.settle, spoiled, watch)
        try:
            self.settle()
            torch.set_grad_enabled(True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(source, "<graded>", "exec"), names)
            changed = self.near.restore()
            self.all.restore()
        except BaseException as error:
            return error
        return RuntimeError(f"{', '.join(changed[:3])} changed while the check ran") if changed else None

    def settle(self) -> None:
        """Put back what the checks use directly, and end what would run later."""
        self.guard.calm()
        self.near.restore()


def main() -> None:
    """Run the cells that the starting process sends."""
    job = json.loads(sys.stdin.read())
    tell = channel(job["word"])
    os.environ["MPLBACKEND"] = "agg"
    run = Run(job)
    gc.disable()  # nothing that an answer left behind is taken away in the middle of a check
    sys.modules["__main__"] = run.shell.user_module
    for index, (source, step, given) in enumerate(job["cells"]):
        if index in job["skip"]:
            continue
        tell("begin", index)
        try:
            done = run.graded(source, given, job["watch"]) if step else (run.student(source), "")
        except BaseException as error:  # an interrupt that came between two lines of this file
            done = (told(error), "")
        tell("end", index, *done)
    tell("done")


if __name__ == "__main__":
    main()
