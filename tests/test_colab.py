"""The widgets with the versions that Colab has preinstalled, in an environment of their own."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest
from widgetcheck import WIDE, mount_state

from nanogrpo.show.widgets import script

ROOT = Path(__file__).resolve().parents[1]
PINS = ("anywidget==0.9.21", "ipywidgets==7.7.1", "ipython==7.34.0", "ipykernel==6.17.1")
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"

# Runs a notebook with the kernel of the environment that it is started in.
EXECUTE = """
import sys, nbformat, nbclient
nb = nbformat.read(sys.argv[1], as_version=4)
client = nbclient.NotebookClient(nb, timeout=900, startup_timeout=900, kernel_name="python3")
client.allow_errors = sys.argv[4:] == ["on"]
client.execute(cwd=sys.argv[3])
nbformat.write(nb, sys.argv[2])
"""

VERSIONS = """import json, anywidget, ipykernel, ipywidgets, IPython
print(json.dumps({m.__name__.lower(): m.__version__ for m in (anywidget, ipywidgets, IPython, ipykernel)}))"""

# The dashboard in the kernel's own loop: started by its button in one cell, seen to run in the next.
START = """import torch
from nanogrpo.grpo import GRPOConfig
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.show.dashboard import Dashboard
from nanogrpo.tasks import Addition, exact_match
task = Addition(digits=1, held_out=10)
model = GPT(GPTConfig(task.tokenizer.vocab_size, task.block_size, n_layer=1, n_head=2, n_embd=16))
config = GRPOConfig(task.max_new_tokens, group_size=4, prompts_per_step=4, max_steps=5)
board = Dashboard(model, task.tokenizer, task.split()[0], exact_match, config)
board.start_button.click()
board"""
WAIT = """import asyncio
while not board.finished:
    await asyncio.sleep(0.1)
await asyncio.sleep(0.2)
print(board.message)"""


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A Python with Colab's versions of these packages; all others are those of this environment."""
    folder = tmp_path_factory.mktemp("colab")
    python = folder / "bin" / "python"
    create = [sys.executable, "-m", "venv", "--without-pip", folder]
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--disable-pip-version-check",
    ]
    try:
        subprocess.run(create, check=True, capture_output=True, text=True, timeout=900)
        subprocess.run([*install, *PINS], check=True, capture_output=True, text=True, timeout=900)
    except (subprocess.SubprocessError, OSError) as error:
        reason = getattr(error, "stderr", None) or error
        pytest.skip(f"package: {', '.join(PINS)} could not be installed: {str(reason)[-300:]}")
    variables = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", vars=variables))
    own.joinpath("book.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")  # found after its own
    return python


def execute(python, cells, folder, *errors):
    """The cells, run one after the other with that Python; with "on", past those that fail."""
    before, after = folder / "before.ipynb", folder / "after.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), before
    )
    command = [python, "-c", EXECUTE, before, after, ROOT / "book", *errors]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return nbformat.read(after, as_version=4)


@pytest.mark.thorough
def test_the_figures_that_move_run_with_the_versions_of_colab(colab, tmp_path, browser):
    stored = nbformat.read(ROOT / "book" / "explorers.ipynb", as_version=4)
    cells = [cell.source for cell in stored.cells if cell.cell_type == "code"]
    done = execute(colab, [VERSIONS, *cells], tmp_path)
    versions = json.loads(done.cells[0].outputs[0].text)
    assert versions == {pin.split("==")[0]: pin.split("==")[1] for pin in PINS}
    models = done.metadata["widgets"][STATE]["state"]
    shown = [o.data[VIEW]["model_id"] for c in done.cells for o in c.outputs if VIEW in o.get("data", {})]
    assert (
        len(shown) == sum(VIEW in o.get("data", {}) for c in stored.cells for o in c.get("outputs", [])) > 5
    )
    for name in shown:
        state = models[name]["state"]
        assert state["_esm"] == script(state["_anywidget_id"].split(".")[-2])
    with browser.new_context(viewport=WIDE) as context:
        page = mount_state(context, [models[name]["state"] for name in shown])
        assert page.trouble == []


@pytest.mark.thorough
def test_the_dashboard_trains_in_the_kernel_of_colab(colab, tmp_path):
    done = execute(colab, [START, WAIT], tmp_path)
    assert VIEW in done.cells[0].outputs[0].data
    assert done.cells[1].outputs[0].text == "Finished, step 5 of 5.\n"


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["one-page", "length-bias"])
def test_the_colab_edition_runs_with_the_versions_of_colab(colab, tmp_path, name):
    """As a reader on Colab does: the committed notebook, solutions included, from top to bottom."""
    made = nbformat.read(ROOT / "book" / "colab" / f"{name}.ipynb", as_version=4)
    cells = [cell.source for cell in made.cells if cell.cell_type == "code"]
    done = execute(colab, cells, tmp_path)
    assert len(done.cells) == len(cells) > 3
    assert any("data" in output or "text" in output for cell in done.cells for output in cell.outputs)


@pytest.mark.thorough
@pytest.mark.parametrize("lab", sorted(path.stem for path in (ROOT / "book" / "labs").glob("lab*.ipynb")))
def test_a_student_s_lab_runs_with_the_versions_of_colab(colab, tmp_path, lab):
    """Every cell of the notebook that is handed out, up to the answers, which are still missing."""
    cells = [c for c in nbformat.read(ROOT / "book" / "labs" / f"{lab}.ipynb", as_version=4).cells
             if c.cell_type == "code"]  # fmt: skip
    done = execute(colab, [cell.source for cell in cells], tmp_path, "on")
    for cell, ran in zip(cells, done.cells, strict=True):
        said = [output for output in ran.outputs if output.output_type == "error"]
        if "nbgrader" not in cell.metadata:
            assert not said, f"{cell.source}\n{said}"
        elif not cell.metadata.nbgrader.solution:
            assert said and "Nothing is written here yet" in said[0].evalue


@pytest.mark.thorough
def test_a_finished_lab_passes_with_the_versions_of_colab(colab, tmp_path):
    source = nbformat.read(ROOT / "book" / "labs" / "source" / "lab1" / "lab1.ipynb", as_version=4)
    done = execute(colab, [cell.source for cell in source.cells if cell.cell_type == "code"], tmp_path)
    assert sum("Passed" in str(cell.outputs) for cell in done.cells) == 6
