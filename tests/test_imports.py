"""The import graph runs one way, and importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nanogrpo"
WINGS = ("nanogrpo.teach", "nanogrpo.show")
# The flow, in layers: a module may import from earlier layers only.
LAYERS = [
    {"errors"},
    {"options", "precision", "lock"},
    {"tokenizer", "advantages", "kl", "model", "optim", "metrics"},
    {"inputs", "surrogates"},
    {"offpolicy", "selection"},
    {"losses", "rewards", "plays", "rollout", "checkpoint", "data", "state"},
    {"together"},
    {"packed", "reward_model", "tasks"},
    {"evaluate", "sft", "pretrain", "hub", "microbatches"},
    {"causal", "critic", "step"},
    {"variants", "smollm"},
    {"sampler"},
    {"grpo"},
    {"ppo"},
    {"recipes", "preferences", "runs"},
    {"job"},
    {"commands"},
    {"demo"},
    {"__main__"},
]
# A wing that a module loads inside a command: drawing, and the run doctor.
IN_A_COMMAND = {"demo": {"show"}, "__main__": {"teach"}}
CORE = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(path, top_level_only=False):
    """Names of the modules that a file imports, from its syntax tree."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_core_module_has_its_place():
    placed = set().union(*LAYERS)
    assert set(CORE) <= placed, f"give {set(CORE) - placed} a layer in this test"


@pytest.mark.parametrize("module", CORE)
def test_a_module_imports_from_earlier_layers_only(module):
    layer = next(i for i, names in enumerate(LAYERS) if module in names)
    earlier = set().union(*LAYERS[:layer])
    used = {name.split(".")[1] for name in imports(PACKAGE / f"{module}.py") if name.startswith("nanogrpo.")}
    used -= IN_A_COMMAND.get(module, set())
    used -= {"weights"}  # files, with a function that finds them
    assert used <= earlier | {module}, f"{module} imports {used - earlier} from its own or a later layer"
    assert not any(n.startswith(WINGS) for n in imports(PACKAGE / f"{module}.py", top_level_only=True))


@pytest.mark.parametrize("module", ["advantages", "losses", "kl"])
def test_the_mathematics_imports_nothing_but_torch(module):
    others = {n.split(".")[0] for n in imports(PACKAGE / f"{module}.py")} - {
        "torch",
        "nanogrpo",
        "__future__",
        "typing",
    }
    assert not others


@pytest.mark.slow
def test_importing_the_core_loads_no_plotting_widgets_or_compiler():
    modules = ", ".join(f"nanogrpo.{name}" for name in CORE if name != "__main__")
    code = f"import sys, nanogrpo, {modules}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    unwanted = {"matplotlib", "ipywidgets", "anywidget", "IPython", "pandas", "scipy", "torch._dynamo"} & set(
        loaded
    )
    assert not unwanted, f"import nanogrpo loads {unwanted}"
    assert not [name for name in loaded if name.startswith(WINGS)], "the core loads a wing"
